"""What a parameter is called in a checkpoint and how its axes lie: one convention, and what a family has besides.

Hugging Face's Flax names are tljax's own, so a Flax checkpoint needs no names but those. In PyTorch "/" is ".", a
kernel, a scale and an embedding are a `weight`, and kernels lie the other way round. What differs from that is data,
in families.py.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

Axes = tuple[int, ...]  # array of tljax = numpy.transpose(array of the checkpoint, axes); () leaves it as it is

TORCH = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
ONCE = {"scale": "gamma", "bias": "beta"}  # in checkpoints that were TensorFlow's first
MEAN_HEAD = "classifier"  # of every family, where it reads the mean over tokens
KERNELS: dict[int, Axes] = {2: (1, 0), 4: (2, 3, 1, 0)}  # out, in -> in, out; OIHW -> HWIO


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family has besides the convention.

    Attributes:
      base: the trunk's name; a checkpoint of the trunk alone leaves this prefix out.
      classifier, trunk: Hugging Face's classes with and without the head.
      language: its class that gives the next token, or hidden ones; "" where there is none.
      words: the modules of that class's head, which a checkpoint may lack.
      head: the modules of the head, the one that gives the logits last.
      other_heads: what the head of another class of the family consists of: (class, modules).
      poolings: how tokens may become one vector.
      pooler: the trunk's module for "pooler", which a checkpoint may lack; "" where that takes no parameters.
      spellings: (pattern in a PyTorch name, what else may stand there), for re.sub.
      conv1d: pattern of kernels that PyTorch keeps as (in, out) and Flax as (out, in).
      buffers: patterns of names that hold no weights; passed over.
      droppable: patterns of names that a classifier has no use for; dropped and reported.
      may_be_zero: patterns of parameters that a sound checkpoint may hold as all zeros, besides the head's.
      flax: whether transformers 4 had it in Flax, so that a flax_model.msgpack of it has names to go by.
      positions: pattern of the position embeddings that follow the image size.
      prefix: how many of those belong to tokens that are no patches.
      antialias: whether transformers smooths as it interpolates them.
      tied: the table that a language head without parameters of its own reads; "" without such a head.
      part: where config.json keeps the fields, if not at its top; and what else an export says there.
      requires: field of config.json -> the only value that tljax computes.
    """

    base: str
    classifier: str
    trunk: str
    language: str = ""
    words: tuple[str, ...] = ()
    head: tuple[str, ...] = ("classifier",)
    other_heads: tuple[tuple[str, tuple[str, ...]], ...] = ()
    poolings: tuple[str, ...] = ("pooler",)
    pooler: str = ""
    spellings: tuple[tuple[str, str], ...] = ()
    conv1d: str = "(?!)"
    buffers: tuple[str, ...] = ()
    droppable: tuple[str, ...] = ()
    may_be_zero: tuple[str, ...] = ()
    flax: bool = False
    positions: str = "(?!)"
    prefix: int = 1
    antialias: bool = False
    tied: str = ""
    part: str = ""
    part_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    requires: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def in_head(self, path: str) -> bool:
        """Whether a parameter belongs to the head."""
        heads = (*self.head, *self.words, *(module for _, head in self.other_heads for module in head), MEAN_HEAD)
        return path.startswith(tuple(f"{module}/" for module in heads))

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Hugging Face's classes with a head that tljax knows."""
        return self.classifier, *dict(self.other_heads)

    def logits(self, pooling: str, classes: Iterable[str] = ()) -> str:
        """The module that gives the logits."""
        if pooling == "mean":
            return MEAN_HEAD
        return next((head for name, head in self.other_heads if name in set(classes)), self.head)[-1]


def lookup(family: Family, path: str, rank: int) -> tuple[tuple[str, ...], Axes]:
    """The PyTorch spellings of one parameter of `rank` axes, the written one first, and its axes.

    >>> from tljax.weights.families import FAMILIES
    >>> lookup(FAMILIES["vit"], "vit/encoder/layer/3/intermediate/dense/kernel", 2)
    (('vit.encoder.layer.3.intermediate.dense.weight', 'vit.layers.3.mlp.fc1.weight'), (1, 0))
    """
    *module, leaf = path.split("/")
    names = {".".join([*module, TORCH.get(leaf, leaf)]): None}
    if leaf in ONCE:
        names[".".join([*module, ONCE[leaf]])] = None
    for pattern, other in family.spellings:
        names |= {re.sub(pattern, other, name): None for name in names}
    transposed = leaf == "kernel" and not re.fullmatch(family.conv1d, path)
    axes: Axes = KERNELS.get(rank, ()) if transposed else ()
    return tuple(names), axes


def sources(family: Family, format: str, path: str, rank: int) -> tuple[tuple[str, ...], Axes]:
    """All names that a checkpoint of `format` may have for one parameter, with and without the base's prefix."""
    spellings, axes = lookup(family, path, rank)
    if format == "flax":
        spellings, axes = (path,), (1, 0) if re.fullmatch(family.conv1d, path) else ()
    prefix = family.base + ("/" if format == "flax" else ".")
    bare = tuple(name.removeprefix(prefix) for name in spellings if name.startswith(prefix))
    return spellings + bare, axes


def fate(family: Family, name: str) -> str:
    """What becomes of a tensor that no parameter asked for: "buffer", "droppable" or "unexpected"."""
    dotted = name.replace("/", ".").removeprefix(f"{family.base}.")
    for kind, patterns in (("buffer", family.buffers), ("droppable", family.droppable)):
        if any(re.fullmatch(pattern, dotted, re.DOTALL) for pattern in patterns):
            return kind
    return "unexpected"


def may_be_zero(family: Family, path: str) -> bool:
    """Whether a sound checkpoint may hold a parameter as all zeros."""
    return family.in_head(path) or any(re.fullmatch(pattern, path) for pattern in family.may_be_zero)
