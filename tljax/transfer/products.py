"""The matrix products and convolutions of a jaxpr, and which values they depend on."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from tljax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Product:
    """`flops` that take two values, and give one; values are numbers of a `Graph`."""

    operands: tuple[int, ...]
    out: int
    flops: int
    tag: str


@dataclasses.dataclass(frozen=True)
class Link:
    """`out` is computed from `ins`; `smooth` where a gradient passes."""

    ins: tuple[int, ...]
    out: int
    smooth: bool


class Graph:
    """Values as numbers, how they follow from one another, and the products among them.

    Jaxprs are put in one after the other (`follow`). Inner ones are followed for each of their calls: a function that
    is called twice is work done twice.

    Attributes:
      links: in the order of the computation.
      products: likewise. Of the branches of a condition only those of the dearest, as XLA counts them; the body of a
        while loop, whose rounds nobody knows, once, as XLA does.
    """

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.products: list[Product] = []
        self._values = 0

    def values(self, count: int) -> list[int]:
        """So many new values that depend on nothing."""
        self._values += count
        return list(range(self._values - count, self._values))

    def follow(self, jaxpr: Jaxpr, ins: Sequence[int], tag: str, times: int = 1) -> list[int]:
        """Puts a jaxpr in, applied to the values `ins`, and returns those that come out.

        Args:
          tag: what its products shall be known by.
          times: how often it runs.

        Raises:
          ConfigError: products inside of a primitive that hides what goes where (a Pallas kernel).
        """
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*self.values(len(jaxpr.constvars)), *ins), strict=True))

        def read(atoms: Iterable[Any]) -> list[int]:
            return [self.values(1)[0] if isinstance(atom, Literal) else known[atom] for atom in atoms]

        for equation in jaxpr.eqns:
            outs = self._equation(equation, read(equation.invars), tag, times)
            known |= dict(zip(equation.outvars, outs, strict=True))
        return read(jaxpr.outvars)

    def after(self, roots: Iterable[int]) -> set[int]:
        """`roots`, and the values that change smoothly with them: a gradient with respect to `roots` needs theirs."""
        found: set[int] = set(roots)
        size = -1
        while size != len(found):  # again where a loop carries a value back
            size = len(found)
            found.update(link.out for link in self.links if link.smooth and not found.isdisjoint(link.ins))
        return found

    def before(self, roots: Iterable[int], smooth: bool) -> set[int]:
        """The values that `roots` are computed from; with `smooth` those alone to which a gradient of theirs comes."""
        found: set[int] = set(roots)
        size = -1
        while size != len(found):
            size = len(found)
            for link in reversed(self.links):
                if link.out in found and (link.smooth or not smooth):
                    found.update(link.ins)
        return found

    def _link(self, ins: Iterable[int], out: int, smooth: bool = True) -> None:
        self.links.append(Link(tuple(ins), out, smooth))

    def _equation(self, equation: JaxprEqn, ins: list[int], tag: str, times: int) -> list[int]:
        name, inner = equation.primitive.name, list(jaxprs_in_params(equation.params))
        if name in LOOPS:
            return LOOPS[name](self, equation, ins, tag, times)
        if len(inner) == 1 and len(inner[0].invars) == len(ins) and len(inner[0].outvars) == len(equation.outvars):
            return self.follow(inner[0], ins, tag, times)  # jit, remat, custom_jvp, custom_vjp, …
        if any(_has_products(part) for part in inner):
            raise ConfigError(f"the floor of {tag}", f"matrix products inside of {name}",
                              "jax.numpy, jax.lax, jit, scan, cond, remat, custom derivatives")  # fmt: skip
        outs = self.values(len(equation.outvars))
        for out, var in zip(outs, equation.outvars, strict=True):
            self._link(ins, out, name != "stop_gradient" and jnp.issubdtype(_shaped(var).dtype, jnp.inexact))
        if name in FLOPS:
            self.products.append(Product((ins[0], ins[1]), outs[0], times * FLOPS[name](equation), tag))
        return outs

    def _scan(self, equation: JaxprEqn, ins: list[int], tag: str, times: int) -> list[int]:
        p = equation.params
        return self._loop(p["jaxpr"].jaxpr, ins, p["num_consts"], p["num_carry"], tag, times * p["length"])

    def _while(self, equation: JaxprEqn, ins: list[int], tag: str, times: int) -> list[int]:
        p = equation.params
        consts = p["cond_nconsts"]
        self.follow(p["cond_jaxpr"].jaxpr, ins[:consts] + ins[consts + p["body_nconsts"] :], tag, times)
        body = p["body_jaxpr"].jaxpr
        return self._loop(body, ins[consts:], p["body_nconsts"], len(body.outvars), tag, times)

    def _loop(self, body: Jaxpr, ins: list[int], consts: int, carried: int, tag: str, times: int) -> list[int]:
        held = self.values(carried)
        outs = self.follow(body, [*ins[:consts], *held, *ins[consts + carried :]], tag, times)
        for start, here, end in zip(ins[consts : consts + carried], held, outs[:carried], strict=True):
            self._link((start, end), here)
        return [*held, *outs[carried:]]

    def _cond(self, equation: JaxprEqn, ins: list[int], tag: str, times: int) -> list[int]:
        before = self.products
        outs, choices = self.values(len(equation.outvars)), []
        for branch in equation.params["branches"]:
            self.products = []
            for out, end in zip(outs, self.follow(branch.jaxpr, ins[1:], tag, times), strict=True):
                self._link((end,), out)
            choices.append(self.products)
        self.products = before + max(choices, key=lambda products: sum(p.flops for p in products))
        return outs


def _shaped(atom: Any) -> jax.ShapeDtypeStruct:
    """What a jaxpr says of a value (jax has no public type for it)."""
    return atom.aval


def _has_products(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in FLOPS or any(map(_has_products, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def _dot(equation: JaxprEqn) -> int:
    """Two for each multiplication and addition."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs, out = _shaped(equation.invars[0]).shape, _shaped(equation.outvars[0]).shape
    return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """As XLA counts: what meets padding, or the holes of a dilated picture, is no work.

    So both gradients cost what the convolution does, whatever its stride: they pair the same inputs, weights and
    outputs. (XLA counts the weight gradient of a grouped convolution dense, C times as much in a depthwise one.)
    """
    lhs, rhs, out = (_shaped(atom).shape for atom in (*equation.invars, *equation.outvars))
    p, numbers = equation.params, equation.params["dimension_numbers"]
    pairs = 1
    for i, axis in enumerate(numbers.lhs_spec[2:]):
        places = np.arange(out[numbers.out_spec[2 + i]])[:, None] * p["window_strides"][i] - p["padding"][i][0]
        places = places + np.arange(rhs[numbers.rhs_spec[2 + i]])[None, :] * p["rhs_dilation"][i]
        holes = p["lhs_dilation"][i]
        pairs *= int(((places >= 0) & (places <= (lhs[axis] - 1) * holes) & (places % holes == 0)).sum())
    rows = lhs[numbers.lhs_spec[0]] // p["batch_group_count"]
    return 2 * pairs * rows * rhs[numbers.rhs_spec[1]] * rhs[numbers.rhs_spec[0]]


FLOPS: dict[str, Callable[[JaxprEqn], int]] = {"dot_general": _dot, "conv_general_dilated": _convolution}
LOOPS: dict[str, Callable[[Graph, JaxprEqn, list[int], str, int], list[int]]] = {
    "cond": Graph._cond,
    "scan": Graph._scan,
    "while": Graph._while,
}
