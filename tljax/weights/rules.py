"""What a parameter is called in a checkpoint and how its axes lie: one table a family, and the engine that reads it.

A row names a *module* in Flax and in PyTorch (several spellings; the first is the one that is written) and the
*kind* of its parameters. "{i}" stands for a number and means the same number on both sides. Hugging Face's
Flax names are tljax's own names, so Flax checkpoints need no second table.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

Axes = tuple[int, ...]  # flax array = numpy.transpose(torch array, axes); () leaves the array as it is
Kind = tuple[tuple[str, tuple[str, ...], Axes], ...]  # (leaf in Flax, spellings in PyTorch, axes)

DENSE: Kind = (("/kernel", (".weight",), (1, 0)), ("/bias", (".bias",), ()))
CONV: Kind = (("/kernel", (".weight",), (2, 3, 1, 0)), ("/bias", (".bias",), ()))  # OIHW -> HWIO
NORM: Kind = (("/scale", (".weight", ".gamma"), ()), ("/bias", (".bias", ".beta"), ()))  # gamma, beta: once TensorFlow
EMBEDDING: Kind = (("/embedding", (".weight",), ()),)
PARAMETER: Kind = (("", ("",), ()),)


@dataclasses.dataclass(frozen=True)
class Family:
    """One table.

    Attributes:
      base: the trunk's name; a checkpoint of the trunk alone leaves this prefix out.
      modules: (module in Flax, spellings in PyTorch, kind).
      buffers: patterns of names that hold no weights; passed over.
      droppable: patterns of names that a classifier has no use for; dropped and reported.
      may_be_zero: patterns of parameters that a sound checkpoint may hold as all zeros.
      resizable: parameters that follow the image size.
      head: the head's prefix in Flax.
      classifier, trunk: Hugging Face's classes with and without that head.
      poolings: how tokens may become one vector.
      requires: field of config.json -> the only value that tljax computes.
    """

    base: str
    modules: tuple[tuple[str, tuple[str, ...], Kind], ...]
    buffers: tuple[str, ...]
    droppable: tuple[str, ...]
    may_be_zero: tuple[str, ...]
    resizable: tuple[str, ...]
    head: str
    classifier: str
    trunk: str
    poolings: tuple[str, ...]
    requires: Mapping[str, Any]


_B, _V = "bert/encoder/layer/{i}", "vit/encoder/layer/{i}"
_b, _v, _v5 = "bert.encoder.layer.{i}", "vit.encoder.layer.{i}", "vit.layers.{i}"  # _v5: in memory in transformers 5

FAMILIES: dict[str, Family] = {
    "bert": Family(
        base="bert",
        modules=(
            ("bert/embeddings/word_embeddings", ("bert.embeddings.word_embeddings",), EMBEDDING),
            ("bert/embeddings/position_embeddings", ("bert.embeddings.position_embeddings",), EMBEDDING),
            ("bert/embeddings/token_type_embeddings", ("bert.embeddings.token_type_embeddings",), EMBEDDING),
            ("bert/embeddings/LayerNorm", ("bert.embeddings.LayerNorm",), NORM),
            (f"{_B}/attention/self/query", (f"{_b}.attention.self.query",), DENSE),
            (f"{_B}/attention/self/key", (f"{_b}.attention.self.key",), DENSE),
            (f"{_B}/attention/self/value", (f"{_b}.attention.self.value",), DENSE),
            (f"{_B}/attention/output/dense", (f"{_b}.attention.output.dense",), DENSE),
            (f"{_B}/attention/output/LayerNorm", (f"{_b}.attention.output.LayerNorm",), NORM),
            (f"{_B}/intermediate/dense", (f"{_b}.intermediate.dense",), DENSE),
            (f"{_B}/output/dense", (f"{_b}.output.dense",), DENSE),
            (f"{_B}/output/LayerNorm", (f"{_b}.output.LayerNorm",), NORM),
            ("bert/pooler/dense", ("bert.pooler.dense",), DENSE),
            ("classifier", ("classifier",), DENSE),
        ),
        buffers=(r"(bert\.)?embeddings\.(position_ids|token_type_ids)",),
        droppable=(r"cls\..*", r"qa_outputs\..*", r"(bert\.)?pooler\.dense\..*"),
        may_be_zero=(r"bert/embeddings/token_type_embeddings/.*", r"classifier/.*"),
        resizable=(),
        head="classifier/",
        classifier="BertForSequenceClassification",
        trunk="BertModel",
        poolings=("pooler", "mean"),
        requires={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    ),
    "vit": Family(
        base="vit",
        modules=(
            ("vit/embeddings/cls_token", ("vit.embeddings.cls_token",), PARAMETER),
            ("vit/embeddings/position_embeddings", ("vit.embeddings.position_embeddings",), PARAMETER),
            ("vit/embeddings/patch_embeddings/projection", ("vit.embeddings.patch_embeddings.projection",), CONV),
            (f"{_V}/attention/attention/query", (f"{_v}.attention.attention.query", f"{_v5}.attention.q_proj"), DENSE),
            (f"{_V}/attention/attention/key", (f"{_v}.attention.attention.key", f"{_v5}.attention.k_proj"), DENSE),
            (f"{_V}/attention/attention/value", (f"{_v}.attention.attention.value", f"{_v5}.attention.v_proj"), DENSE),
            (f"{_V}/attention/output/dense", (f"{_v}.attention.output.dense", f"{_v5}.attention.o_proj"), DENSE),
            (f"{_V}/intermediate/dense", (f"{_v}.intermediate.dense", f"{_v5}.mlp.fc1"), DENSE),
            (f"{_V}/output/dense", (f"{_v}.output.dense", f"{_v5}.mlp.fc2"), DENSE),
            (f"{_V}/layernorm_before", (f"{_v}.layernorm_before", f"{_v5}.layernorm_before"), NORM),
            (f"{_V}/layernorm_after", (f"{_v}.layernorm_after", f"{_v5}.layernorm_after"), NORM),
            ("vit/layernorm", ("vit.layernorm",), NORM),
            ("classifier", ("classifier",), DENSE),
        ),
        buffers=(),
        droppable=(r"(vit\.)?pooler\.dense\..*", r"decoder\..*", r"(vit\.)?embeddings\.mask_token"),
        may_be_zero=(r"vit/embeddings/cls_token", r"classifier/.*"),
        resizable=("vit/embeddings/position_embeddings",),
        head="classifier/",
        classifier="ViTForImageClassification",
        trunk="ViTModel",
        poolings=("pooler",),
        requires={},
    ),
}


def rows(family: Family) -> Iterable[tuple[str, tuple[str, ...], Axes]]:
    """(pattern of a parameter in Flax, patterns of its spellings in PyTorch, axes), one for each parameter."""
    for flax, spellings, kind in family.modules:
        for leaf, leaves, axes in kind:
            yield flax + leaf, tuple(torch + end for torch in spellings for end in leaves), axes


def lookup(family: Family, path: str) -> tuple[tuple[str, ...], Axes]:
    """The PyTorch spellings of one parameter, the written one first, and its axes.

    Raises:
      ValueError: no row, or more than one, is about `path`: the table is wrong, not the checkpoint.

    >>> lookup(FAMILIES["vit"], "vit/encoder/layer/3/intermediate/dense/bias")
    (('vit.encoder.layer.3.intermediate.dense.bias', 'vit.layers.3.mlp.fc1.bias'), ())
    """
    found = []
    for flax, spellings, axes in rows(family):
        if match := re.fullmatch(re.escape(flax).replace(r"\{i\}", r"(\d+)"), path):
            found.append((tuple(_number(name, match.groups()) for name in spellings), axes))
    if len(found) != 1:
        raise ValueError(f"{path}: {len(found)} rows of the table of {family.base!r} are about it, expected one")
    return found[0]


def _number(pattern: str, numbers: Iterable[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("{i}", number, 1)
    return pattern


def sources(family: Family, format: str, path: str) -> tuple[tuple[str, ...], Axes]:
    """All names that a checkpoint of `format` may have for one parameter, with and without the base's prefix."""
    spellings, axes = ((path,), ()) if format == "flax" else lookup(family, path)
    prefix = family.base + ("/" if format == "flax" else ".")
    bare = tuple(name.removeprefix(prefix) for name in spellings if name.startswith(prefix))
    return spellings + bare, axes


def fate(family: Family, name: str) -> str:
    """What becomes of a tensor that no parameter asked for: "buffer", "droppable" or "unexpected"."""
    dotted = name.replace("/", ".")
    for kind, patterns in (("buffer", family.buffers), ("droppable", family.droppable)):
        if any(re.fullmatch(pattern, dotted, re.DOTALL) for pattern in patterns):
            return kind
    return "unexpected"


def covered(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the patterns matches all of `path`."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)
