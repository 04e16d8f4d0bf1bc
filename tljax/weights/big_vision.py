"""ViT checkpoints of Google's vision_transformer (augreg) and big_vision: .npz archives, from which all is read.

Sizes follow from the tensors, so that no config.json is needed. Both store query, key and value as (D, heads, width)
and normalise with epsilon 1e-6, pixels with mean and deviation 0.5. big_vision adds positions to the patches before
the class token joins them, so its class token has the position 0 here.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from tljax.errors import WeightsError
from tljax.weights.foreign import Row, count, ins_together, outs_together, same, shape_of, translated
from tljax.weights.tensors import Tensor, Weights

_LAYER = r"vit/encoder/layer/\1"
_BLOCK = r"Transformer/encoderblock_(\d+)"
_ATTENTION = rf"{_BLOCK}/MultiHeadDotProductAttention_[01]"
POSITIONS = "Transformer/posembed_input/pos_embedding"
FAMILIES = ("vit",)
ROWS: tuple[Row, ...] = (
    (r"cls", "vit/embeddings/cls_token", same),
    (POSITIONS, "vit/embeddings/position_embeddings", same),
    (r"embedding/(\w+)", r"vit/embeddings/patch_embeddings/projection/\1", same),
    (rf"{_BLOCK}/LayerNorm_0/(\w+)", rf"{_LAYER}/layernorm_before/\2", same),
    (rf"{_BLOCK}/LayerNorm_[12]/(\w+)", rf"{_LAYER}/layernorm_after/\2", same),
    (rf"{_ATTENTION}/(query|key|value)/(\w+)", rf"{_LAYER}/attention/attention/\2/\3", outs_together),
    (rf"{_ATTENTION}/out/kernel", rf"{_LAYER}/attention/output/dense/kernel", ins_together),
    (rf"{_ATTENTION}/out/bias", rf"{_LAYER}/attention/output/dense/bias", same),
    (rf"{_BLOCK}/MlpBlock_[03]/Dense_0/(\w+)", rf"{_LAYER}/intermediate/dense/\2", same),
    (rf"{_BLOCK}/MlpBlock_[03]/Dense_1/(\w+)", rf"{_LAYER}/output/dense/\2", same),
    (r"Transformer/encoder_norm/(\w+)", r"vit/layernorm/\1", same),
    (r"head/(\w+)", r"classifier/\1", same),
)


def opened(weights: Weights) -> tuple[dict[str, Any], Weights]:
    """Fields of Hugging Face's config.json for a ViT, and its tensors under the names of FlaxViT.

    Raises:
      WeightsError: no ViT with a class token.
    """
    weights = _bare(weights)
    height, width, channels, D = shape_of(weights, "embedding/kernel", 4)
    first = next((name for name in weights.tensors if name.endswith("/query/kernel")), "a query's kernel")
    fields = {
        "model_type": "vit",
        "hidden_size": D,
        "image_size": math.isqrt(max(shape_of(weights, POSITIONS, 3)[1] - 1, 0)) * height,
        "intermediate_size": next(
            (t.shape[-1] for name, t in weights.tensors.items() if name.endswith("/Dense_0/kernel") and t.shape), 0
        ),
        "layer_norm_eps": 1e-6,
        "num_attention_heads": shape_of(weights, first, 3)[1],
        "num_channels": channels,
        "num_hidden_layers": count(weights.tensors, rf"{_BLOCK}/.*"),
        "patch_size": height,
    }
    if height != width or "cls" not in weights.tensors:
        found = "no class token" if height == width else f"patches of {height} x {width} pixels"
        raise WeightsError(str(weights.files[0]), found, "a ViT with square patches and a class token")
    # a head above a hidden layer that Hugging Face's class has not is no head of it: both are dropped, and named
    rows = ROWS[:-1] if "pre_logits/kernel" in weights.tensors else ROWS
    return fields, translated(weights, rows, "flax")


def _bare(weights: Weights) -> Weights:
    """Without the wrapper `params/` and what pretraining alone uses; positions with one for the class token."""
    tensors = {name.removeprefix("params/"): tensor for name, tensor in weights.tensors.items()}
    if "pos_embedding" in tensors and POSITIONS not in tensors:
        patches = tensors.pop("pos_embedding")
        if len(patches.shape) == 3:
            shape = (1, patches.shape[1] + 1, patches.shape[2])
            tensors[POSITIONS] = Tensor(patches.dtype, shape, functools.partial(_with_origin, patches))
    return dataclasses.replace(weights, tensors=tensors)


def _with_origin(patches: Tensor) -> np.ndarray:
    values = patches.load()
    return np.concatenate([np.zeros_like(values[:, :1]), values], axis=1)
