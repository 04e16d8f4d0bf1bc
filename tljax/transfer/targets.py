"""Which kernels an adapter is put on: the families' own, as a table, or those that patterns name."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping

from tljax.errors import ConfigError
from tljax.models.adapters import Adapter, Site, check_site


@dataclasses.dataclass(frozen=True)
class Targets:
    """A family's own targets, as `Adapter.targets` has them.

    Attributes:
      lora: of the low-rank kinds: query and value (Hu et al. 2022).
      ia3: key and value, and what the feed-forward layer narrows with (Liu et al. 2022).
      feedforward: those of `ia3` whose inputs are scaled.
      bottleneck: the two maps of a layer that a residual follows (Houlsby et al. 2019).
    """

    lora: str
    ia3: str
    feedforward: str
    bottleneck: str


# As PEFT has them (peft/utils/constants.py, 0.21) for bert, roberta, deberta-v2, gpt2, llama, mistral, qwen2 and qwen3.
_BERT = Targets("query,value", "key,value,output/dense", "output/dense", "output/dense")
_LLAMA = Targets("q_proj,v_proj", "k_proj,v_proj,down_proj", "down_proj", "o_proj,down_proj")
_QWEN = dataclasses.replace(_LLAMA, ia3="q_proj,v_proj,down_proj")
_VIT = Targets("query,value", r"key,value,layer/\d+/output/dense", r"layer/\d+/output/dense", "output/dense")
_DINOV2 = Targets("query,value", "key,value,mlp/(fc2|weights_out)", "mlp/(fc2|weights_out)",
                  "output/dense,mlp/(fc2|weights_out)")  # fmt: skip
_CONVNEXT = Targets("pwconv1,pwconv2", "dwconv,pwconv2", "pwconv2", "pwconv2")
_GPT2 = Targets("c_attn", "c_attn,mlp/c_proj", "mlp/c_proj", "attn/c_proj,mlp/c_proj")
_POINTWISE = r"layer/\d+/(expand|reduce)_1x1/convolution"

TARGETS: dict[str, Targets] = {
    "albert": Targets("query,value", "key,value,ffn_output", "ffn_output", "attention/dense,ffn_output"),
    "bert": _BERT,
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "deberta-v2": Targets("query_proj,value_proj", "key_proj,value_proj,output/dense", "output/dense", "output/dense"),
    "deit": _VIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "distilbert": Targets("q_lin,v_lin", "k_lin,v_lin,ffn/lin2", "ffn/lin2", "attention/out_lin,ffn/lin2"),
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mobilenet_v2": Targets(_POINTWISE, _POINTWISE, "", r"layer/\d+/reduce_1x1/convolution"),
    "modernbert": Targets("Wqkv", "Wqkv,mlp/Wo", "mlp/Wo", "attn/Wo,mlp/Wo"),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "resnet": Targets("encoder/.*/convolution", "encoder/.*/convolution", "", r"layer/\d+/convolution"),
    "roberta": _BERT,
    "siglip": Targets("q_proj,v_proj", "k_proj,v_proj,mlp/fc2", "mlp/fc2", "self_attn/out_proj,mlp/fc2"),
    "swin": Targets("query,value", r"key,value,blocks/\d+/output/dense", r"blocks/\d+/output/dense", "output/dense"),
    "tljax_events": _GPT2,
    "vit": _VIT,
    "xlm-roberta": _BERT,
}


def sites(adapter: Adapter, family: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Site, ...]:
    """Where an adapter on kernels sits.

    Args:
      family: as `model_type` in config.json says; "" for a network of one's own, which has no targets to go by.
      shapes: path -> shape of every kernel that may have one, in the order of the result.

    Raises:
      ConfigError: a pattern that is none or that matches nothing, with the nearest paths; no pattern and no family; a
        kernel that is too small for the rank, or a depthwise one; all of them at once.
    """
    own = TARGETS.get(family)
    asked = adapter.targets
    if not asked and own is None:
        there = f"there are: {', '.join(list(shapes)[:5])} …"
        raise ConfigError("adapter, targets", f"none, and family {family!r} has no usual ones",
                          "patterns of the kernels to adapt", there)  # fmt: skip
    column = adapter.kind if adapter.kind in ("ia3", "bottleneck") else "lora"
    chosen = _matching(asked or getattr(own, column), shapes)
    feedforward = adapter.feedforward
    if feedforward is None:
        feedforward = own.feedforward if own else ""
        inputs = {path for path in chosen if _any(feedforward, path)}
    else:
        inputs = _matching(feedforward, chosen) if feedforward else set()
    found = [Site(path, shape, adapter.kind == "ia3" and path in inputs)
             for path, shape in shapes.items() if path in chosen]  # fmt: skip
    if problems := [problem for site in found if (problem := check_site(adapter, site))]:
        raise ConfigError(f"adapter {adapter.kind}", f"{len(problems)} kernels cannot have it",
                          "others, or a lower rank", details=problems)  # fmt: skip
    return tuple(found)


def split(patterns: str) -> list[str]:
    """The patterns that commas and bars join, outside of brackets.

    >>> split(r"query,(key|value)|layer/[0-9]{1,2}/output")
    ['query', '(key|value)', 'layer/[0-9]{1,2}/output']
    """
    parts, depth = [""], 0
    for letter in patterns:
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _matching(patterns: str, paths: Iterable[str]) -> set[str]:
    """The paths that some pattern matches; every pattern has to match one."""
    paths, chosen, idle = list(paths), set(), []
    for pattern in split(patterns):
        try:
            matched = {path for path in paths if _any(pattern, path)}
        except re.error as error:
            raise ConfigError("adapter, targets", f"pattern {pattern!r} is no regular expression ({error})") from None
        chosen |= matched
        if not matched:
            near = sorted(paths, key=lambda path: -_likeness(pattern, path))[:3]
            idle.append(f"{pattern}: matches no kernel; the nearest are {', '.join(near)}")
    if idle or not chosen:
        raise ConfigError("adapter, targets", f"{len(idle)} of {len(split(patterns))} patterns match nothing",
                          "ends of paths of kernels, such as query or output/dense", details=idle)  # fmt: skip
    return chosen


def _any(patterns: str, path: str) -> bool:
    """Whether a pattern matches the end of a path, from a "/" on."""
    return any(re.fullmatch(f"(.*/)?({pattern})(/kernel)?", path) for pattern in split(patterns))


def _likeness(pattern: str, path: str) -> float:
    """How alike a pattern and the end of a path are."""
    parts = path.removesuffix("/kernel").split("/")[-1 - pattern.count("/") :]
    return difflib.SequenceMatcher(None, pattern, "/".join(parts)).ratio()
