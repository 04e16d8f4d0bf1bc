"""The networks of the benchmarks: a family at a size, with random weights, and random batches for it."""

import argparse
from typing import Any

import numpy as np

from tljax import models

SIZES = {"base": (12, 768), "small": (6, 384)}  # layers, width
RESNETS = {"base": ("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048)),  # ResNet-50
           "small": ("basic", (2, 2, 2, 2), (64, 128, 256, 512))}  # fmt: skip  # ResNet-18
CLASSES = 10


def config_of(family: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fields of config.json; what is left out is transformers' base size."""
    layers, width = options.layers or SIZES[options.size][0], options.width or SIZES[options.size][1]
    if family == "resnet":
        kind, depths, sizes = RESNETS[options.size]
        return {"model_type": "resnet", "layer_type": kind, "depths": depths, "hidden_sizes": sizes,
                "image_size": options.pixels}  # fmt: skip
    if family == "gpt2":
        return {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": width // 64}
    return {"model_type": family, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 64,
            "intermediate_size": 4 * width, "image_size": options.pixels}  # fmt: skip


def batch_of(backbone: models.Backbone, options: argparse.Namespace) -> dict[str, Any]:
    """Random examples on the host, without padding."""
    rng, inputs = np.random.default_rng(options.seed), {}
    for name, leaf in backbone.example().items():
        shape = (options.batch, options.length) if len(leaf.shape) == 2 else (options.batch, *leaf.shape[1:])
        if name == "input_ids":
            inputs[name] = rng.integers(1, 20_000, shape).astype(np.int32)
        elif name == "pixel_values":
            inputs[name] = rng.normal(size=shape).astype(np.float32)
        else:
            inputs[name] = np.full(shape, int(name == "attention_mask"), np.int32)
    labels = rng.integers(0, CLASSES, options.batch).astype(np.int32)
    return {"inputs": inputs, "labels": labels, "weights": np.ones(options.batch, np.float32)}
