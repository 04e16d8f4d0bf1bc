"""Parameter trees and their names: a nested dict of arrays is also a flat dict of "a/b/c" -> array."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tljax.errors import ConfigError

Tree = dict[str, Any]  # nested: str -> Tree | array
Flat = dict[str, Any]  # "a/b/c" -> array


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Flat:
    """Names every leaf of a nested dict by its path, in sorted order.

    >>> flatten({"b": 1, "a": {"y": 2, "x": 3}})
    {'a/x': 3, 'a/y': 2, 'b': 1}
    """
    flat: Flat = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """The inverse of `flatten`.

    >>> unflatten({'a/x': 3, 'a/y': 2, 'b': 1})
    {'a': {'x': 3, 'y': 2}, 'b': 1}
    """
    tree: Tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree


def subtree(tree: Mapping[str, Any], path: str) -> Tree:
    """The node of a nested dict at "a/b"; an empty dict where there is none (a stage without parameters)."""
    node: Any = tree
    for key in path.split("/") if path else ():
        node = node.get(key, {})
    return node


def partition(flat: Mapping[str, Any], keep: Callable[[str], bool]) -> tuple[Flat, Flat]:
    """Splits a flat dict in two by name: (those for which `keep` holds, the rest)."""
    return {k: v for k, v in flat.items() if keep(k)}, {k: v for k, v in flat.items() if not keep(k)}


def join(*parts: Mapping[str, Any]) -> Flat:
    """Puts disjoint flat dicts together again, in sorted order. A name in two of them is an error."""
    joined: Flat = {}
    for part in parts:
        if doubled := joined.keys() & part.keys():
            raise ValueError(f"join: {sorted(doubled)[:5]} stand in more than one part")
        joined.update(part)
    return {path: joined[path] for path in sorted(joined)}


def match(rules: Iterable[tuple[str, Any]], names: Iterable[str], where: str = "rules") -> dict[str, Any]:
    """Gives every name the value of the first rule whose pattern matches all of it.

    Args:
      rules: (regular expression, value) pairs; the first full match wins.
      names: what has to be covered.
      where: how an error names the table.

    Raises:
      ConfigError: names that no rule covers, or a rule that can never apply; all of them at once.

    >>> match([(".*/bias", 0), (".*", 1)], ["a/bias", "a/kernel"])
    {'a/bias': 0, 'a/kernel': 1}
    """
    compiled = []
    for pattern, value in rules:
        try:
            compiled.append((pattern, re.compile(pattern), value))
        except re.error as error:
            raise ConfigError(where, f"pattern {pattern!r} is no regular expression ({error})") from None
    matched, missing, used = {}, [], set()
    for name in names:
        for index, (_, regex, value) in enumerate(compiled):
            if regex.fullmatch(name):
                matched[name] = value
                used.add(index)
                break
        else:
            missing.append(f"{name}: no pattern matches")
    idle = [f"{pattern}: matches no name of its own" for i, (pattern, _, _) in enumerate(compiled) if i not in used]
    if missing or idle:
        found = f"{len(missing)} names are not covered and {len(idle)} patterns match nothing"
        raise ConfigError(where, found, "each name covered, each pattern used", details=[*missing, *idle])
    return matched


def count(flat: Mapping[str, Any]) -> int:
    """How many numbers the leaves hold together."""
    return sum(int(np.prod(leaf.shape)) for leaf in flat.values())


def nbytes(flat: Mapping[str, Any]) -> int:
    """How many bytes the leaves take together."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in flat.values())


def digest(leaf: Any) -> str:
    """SHA-256 over dtype, shape and bytes of one array: equal if and only if the array is bit-identical."""
    array = np.asarray(leaf)
    header = f"{array.dtype.name}{array.shape}".encode()
    mark = hashlib.sha256(header)
    mark.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return mark.hexdigest()


def digests(flat: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each leaf, by name; hashing leaves the interpreter free, so several are taken at once."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(flat, pool.map(digest, flat.values()), strict=True))


def combined(parts: Mapping[str, str]) -> str:
    """One digest for many, independent of their order."""
    return hashlib.sha256("\n".join(f"{k} {v}" for k, v in sorted(parts.items())).encode()).hexdigest()
