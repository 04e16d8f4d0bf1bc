"""ResNet (He et al. 2016), basic and bottleneck blocks; names as Hugging Face's FlaxResNet. A stage is a block."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.convolution import BatchNorm, Conv, MeanOfPixels, max_pool
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS
from tljax.models.patches import IMAGENET, example, fields, normalised


class ConvLayer(nn.Module):
    """Convolution, batch normalisation, activation."""

    features: int
    size: int = 3
    stride: int = 1
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.features, self.size, self.stride, use_bias=False, name="convolution")(x)
        x = BatchNorm(name="normalization")(x, train)
        return ACTIVATIONS[self.activation](x) if self.activation else x


class Embedder(nn.Module):
    """pixel_values (B, S, S, 3) -> hidden (B, S / 4, S / 4, C): a wide convolution and pooling."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, pixels = self.config, normalised(x["pixel_values"], self.config).astype(self.dtype)
        hidden = ConvLayer(c["embedding_size"], 7, 2, c["hidden_act"], name="embedder")(pixels, train)
        return {"hidden": max_pool(hidden, 3, 2)}


class Convolutions(nn.Module):
    """Of a block; the first ones have ReLU whatever the config says, as in transformers."""

    layers: tuple[tuple[int, int, int], ...]  # features, size, stride

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (features, size, stride) in enumerate(self.layers):
            last = i == len(self.layers) - 1
            x = ConvLayer(features, size, stride, "" if last else "relu", name=str(i))(x, train)
        return x


class Block(nn.Module):
    """Convolutions with a residual, which is projected where its shape changes."""

    layers: tuple[tuple[int, int, int], ...]
    stride: int
    activation: str

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden, features = x["hidden"], self.layers[-1][0]
        out = Convolutions(self.layers, name="layer")(hidden, train)
        if self.stride != 1 or hidden.shape[-1] != features:
            hidden = ConvLayer(features, 1, self.stride, "", name="shortcut")(hidden, train)
        return {"hidden": ACTIVATIONS[self.activation](out + hidden)}


DEFAULTS = {
    **IMAGENET,
    "depths": (3, 4, 6, 3),
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": (256, 512, 1024, 2048),
    "image_size": 224,
    "layer_type": "bottleneck",
    "num_channels": 3,
}  # transformers' ResNetConfig; it has no image_size


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a ResNet: embeddings, layer_0 …, pooler (no parameters), head; arguments as for ViT."""
    c = fields(config, DEFAULTS)

    def block(features: int, stride: int) -> Block:
        if c["layer_type"] == "basic":
            return Block(((features, 3, stride), (features, 3, 1)), stride, c["hidden_act"])
        narrow, early = features // 4, c["downsample_in_bottleneck"]
        layers = ((narrow, 1, stride if early else 1), (narrow, 3, 1 if early else stride), (features, 1, 1))
        return Block(layers, stride, c["hidden_act"])

    blocks = []
    for i, (depth, features) in enumerate(zip(c["depths"], c["hidden_sizes"], strict=True)):
        for j in range(depth):
            stride = 2 if j == 0 and (i > 0 or c["downsample_in_first_stage"]) else 1
            blocks.append((f"resnet/encoder/stages/{i}/layers/{j}", block(features, stride)))
    return Backbone(
        stages=(
            Stage("embeddings", "resnet/embedder", Embedder(c, dtype)),
            *(Stage(f"layer_{i}", path, module) for i, (path, module) in enumerate(blocks)),
            Stage("pooler", "resnet/pooler", MeanOfPixels()),
            Stage("head", "classifier/1", ClassifierHead(num_labels)),
        ),
        example=lambda: example(c),
    )


RESNET = Architecture(build, DEFAULTS, ())
