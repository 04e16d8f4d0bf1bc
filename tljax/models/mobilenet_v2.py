"""MobileNetV2 (Sandler et al. 2018); names as in transformers' PyTorch class. A stage is an inverted residual."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.convolution import BatchNorm, Conv, MeanOfPixels
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS
from tljax.models.patches import IMAGE, example, fields, normalised

CHANNELS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)


class ConvLayer(nn.Module):
    """Convolution, batch normalisation, activation."""

    config: Any
    features: int
    size: int = 1
    stride: int = 1
    depthwise: bool = False
    dilation: int = 1
    active: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c, groups = self.config, x.shape[-1] if self.depthwise else 1
        padding = "SAME" if c["tf_padding"] else None
        x = Conv(self.features, self.size, self.stride, groups, False, self.dilation, padding, c["initializer_range"],
                 name="convolution")(x)  # fmt: skip
        # transformers gives TensorFlow's decay, 0.997, to PyTorch, which takes it for the share of the new batch
        x = BatchNorm(c["layer_norm_eps"], 0.003, name="normalization")(x, train)
        return ACTIVATIONS[c["hidden_act"]](x) if self.active else x


class Stem(nn.Module):
    """pixel_values (B, S, S, 3) -> hidden (B, S / 2, S / 2, C)."""

    config: Any
    dtype: Any
    wide: int
    features: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, normalised(x["pixel_values"], self.config).astype(self.dtype)
        hidden = ConvLayer(c, self.wide, 3, 2, name="first_conv")(hidden, train)
        if not c["first_layer_is_expansion"]:
            hidden = ConvLayer(c, self.wide, name="expand_1x1")(hidden, train)
        hidden = ConvLayer(c, self.wide, 3, depthwise=True, name="conv_3x3")(hidden, train)
        return {"hidden": ConvLayer(c, self.features, active=False, name="reduce_1x1")(hidden, train)}


class InvertedResidual(nn.Module):
    """Wider, depthwise convolution, narrower; with a residual where the shape stays."""

    config: Any
    wide: int
    features: int
    stride: int
    dilation: int

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, hidden = self.config, x["hidden"]
        out = ConvLayer(c, self.wide, name="expand_1x1")(hidden, train)
        out = ConvLayer(c, self.wide, 3, self.stride, True, self.dilation, name="conv_3x3")(out, train)
        out = ConvLayer(c, self.features, active=False, name="reduce_1x1")(out, train)
        return {"hidden": hidden + out if self.stride == 1 and hidden.shape == out.shape else out}


class Top(ConvLayer):
    """The last convolution and the mean over the picture (a stage)."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        return MeanOfPixels()({"hidden": ConvLayer.__call__(self, x["hidden"], train)}, train)


DEFAULTS = {
    **IMAGE,
    "classifier_dropout_prob": 0.8,
    "depth_divisible_by": 8,
    "depth_multiplier": 1.0,
    "expand_ratio": 6.0,
    "finegrained_output": True,
    "first_layer_is_expansion": True,
    "hidden_act": "relu6",
    "image_size": 224,
    "initializer_range": 0.02,
    "layer_norm_eps": 0.001,
    "min_depth": 8,
    "num_channels": 3,
    "output_stride": 32,
    "tf_padding": True,
}  # transformers' MobileNetV2Config
DROPOUTS = ("classifier_dropout_prob",)


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a MobileNetV2: embeddings, layer_0 …, conv_1x1, head; arguments as for ViT."""
    c = fields(config, DEFAULTS)
    times = c["depth_multiplier"]
    channels = [_divisible(round(count * times), c) for count in CHANNELS]
    reached, dilation, blocks = 2, 1, []
    for before, after, stride in zip(channels, channels[1:], STRIDES, strict=False):
        wide = _divisible(round(before * c["expand_ratio"]), c)
        if reached == c["output_stride"]:  # from here on larger windows in place of smaller pictures
            blocks.append(InvertedResidual(c, wide, after, 1, dilation))
            dilation *= stride
        else:
            blocks.append(InvertedResidual(c, wide, after, stride, 1))
            reached *= stride
    top = 1280 if c["finegrained_output"] and times < 1 else _divisible(round(1280 * times), c)
    head = ClassifierHead(num_labels, c["initializer_range"], dropout=c["classifier_dropout_prob"])
    return Backbone(
        stages=(
            Stage(
                "embeddings", "mobilenet_v2/conv_stem", Stem(c, dtype, _divisible(round(32 * times), c), channels[0])
            ),
            *(Stage(f"layer_{i}", f"mobilenet_v2/layer/{i}", block) for i, block in enumerate(blocks)),
            Stage("conv_1x1", "mobilenet_v2/conv_1x1", Top(c, top)),
            Stage("head", "classifier", head),
        ),
        example=lambda: example(c),
    )


def _divisible(count: int, c: Mapping[str, Any]) -> int:
    """The nearest multiple of `depth_divisible_by` that is not more than 10 % smaller."""
    by = c["depth_divisible_by"]
    near = max(c["min_depth"], int(count + by / 2) // by * by)
    return near + by if near < 0.9 * count else near


MOBILENET_V2 = Architecture(build, DEFAULTS, DROPOUTS)
