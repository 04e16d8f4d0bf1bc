"""Swin Transformer (Liu et al. 2021); names as in transformers' PyTorch class. A stage is a block.

B batch, S side in tokens, W side of a window in tokens, C channels.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tljax.models.attention import attend
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, DropPath, LayerNorm
from tljax.models.patches import IMAGENET, PatchEmbeddings, example, fields, normalised

EPSILON = 1e-5  # of the normalisations beside the layers; no field of the config


class Embeddings(nn.Module):
    """pixel_values (B, H, W, 3) -> hidden (B, S, S, C), normalised."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        c, P = self.config, self.config["patch_size"]
        pixels = normalised(x["pixel_values"], c).astype(self.dtype)
        B, S = pixels.shape[0], c["image_size"] // P
        patches = PatchEmbeddings(P, c["embed_dim"], c["initializer_range"], name="patch_embeddings")(pixels)
        hidden = LayerNorm(EPSILON, name="norm")(patches)
        if c["use_absolute_embeddings"]:
            shape = (1, S * S, c["embed_dim"])
            hidden += self.param("position_embeddings", nn.initializers.zeros_init(), shape).astype(self.dtype)
        hidden = Dropout(c["hidden_dropout_prob"])(hidden, train)
        return {"hidden": hidden.reshape(B, S, S, -1)}


class WindowAttention(nn.Module):
    """Attention among the tokens of each window (N, W * W, C), with a learned bias for each offset."""

    config: Any
    heads: int
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array | None, train: bool) -> jax.Array:
        c, widest, C = self.config, self.config["window_size"], x.shape[-1]
        std = c["initializer_range"]
        maps = [Dense(C, std, c["qkv_bias"], name=name)(x) for name in ("query", "key", "value")]
        shape = ((2 * widest - 1) ** 2, self.heads)
        table = self.param("relative_position_bias_table", nn.initializers.normal(std), shape)
        offsets = jnp.take(table, _offsets(self.window, widest), axis=0).transpose(2, 0, 1)[None]
        q, k, v = (mapped.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3) for mapped in maps)
        return attend(q, k, v, visible=visible, bias=offsets, dropout=c["attention_probs_dropout_prob"], train=train)


class Attention(nn.Module):
    config: Any
    heads: int
    window: int

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array | None, train: bool) -> jax.Array:
        attended = WindowAttention(self.config, self.heads, self.window, name="self")(x, visible, train)
        return Output(self.config, name="output")(attended, x.shape[-1], train)


class Output(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        x = Dense(features, self.config["initializer_range"], name="dense")(x)
        return Dropout(self.config["hidden_dropout_prob"])(x, train)


class Intermediate(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        return ACTIVATIONS[c["hidden_act"]](Dense(int(x.shape[-1] * c["mlp_ratio"]), c["initializer_range"],
                                                  name="dense")(x))  # fmt: skip


class Layer(nn.Module):
    """Normalisation, attention in (shifted) windows, residual; normalisation, two affine layers, residual."""

    config: Any
    heads: int
    window: int
    shift: int
    drop: float

    @nn.compact
    def __call__(self, hidden: jax.Array, train: bool) -> jax.Array:
        c, W, (B, S, _, C) = self.config, self.window, hidden.shape
        padded = -(-S // W) * W
        x = LayerNorm(c["layer_norm_eps"], name="layernorm_before")(hidden)
        x = jnp.pad(x, ((0, 0), (0, padded - S), (0, padded - S), (0, 0)))
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = x.reshape(B, padded // W, W, padded // W, W, C).swapaxes(2, 3).reshape(-1, W * W, C)
        visible = jnp.tile(_together(padded, W, self.shift), (B, 1, 1))[:, None] if self.shift else None
        windows = Attention(c, self.heads, W, name="attention")(windows, visible, train)
        x = windows.reshape(B, padded // W, padded // W, W, W, C).swapaxes(2, 3).reshape(B, padded, padded, C)
        x = jnp.roll(x, (self.shift, self.shift), (1, 2))[:, :S, :S]
        hidden = hidden + DropPath(self.drop)(x, train)
        x = LayerNorm(c["layer_norm_eps"], name="layernorm_after")(hidden)
        return hidden + Output(c, name="output")(Intermediate(c, name="intermediate")(x), C, train)


def _offsets(window: int, widest: int) -> np.ndarray:
    """(W * W, W * W): which row of the table holds the bias between two tokens of a window."""
    row, column = (axis.reshape(-1) for axis in np.mgrid[:window, :window])
    down = row[:, None] - row[None, :] + widest - 1
    across = column[:, None] - column[None, :] + widest - 1
    return down * (2 * widest - 1) + across


def _together(side: int, window: int, shift: int) -> np.ndarray:
    """(windows, W * W, W * W): whether two tokens were neighbours before the picture was rolled."""
    place = np.arange(side)
    region = (place >= side - window).astype(int) + (place >= side - shift)
    picture = region[:, None] * 3 + region[None, :]
    count = side // window
    windows = picture.reshape(count, window, count, window).swapaxes(1, 2).reshape(-1, window * window)
    return windows[:, :, None] == windows[:, None, :]


class Merging(nn.Module):
    """Four neighbouring tokens become one of twice the width (B, S / 2, S / 2, 2 C)."""

    init_std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        odd = x.shape[1] % 2
        x = jnp.pad(x, ((0, 0), (0, odd), (0, odd), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for column in range(2) for row in range(2)], axis=-1)
        return Dense(x.shape[-1] // 2, self.init_std, False, name="reduction")(LayerNorm(EPSILON, name="norm")(x))


class Block(nn.Module):
    """A layer; the last one below a coarser picture makes that too."""

    config: Any
    heads: int
    window: int
    shift: int
    drop: float
    coarser: bool

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        layer = Layer(self.config, self.heads, self.window, self.shift, self.drop, name="layer")
        hidden = layer(x["hidden"], train)
        return {
            "hidden": Merging(self.config["initializer_range"], name="downsample")(hidden) if self.coarser else hidden
        }


class MeanOfTokens(LayerNorm):
    """The normalisation above the last block (a stage); the head reads the mean over the picture."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        hidden = LayerNorm.__call__(self, x["hidden"])
        B, C = hidden.shape[0], hidden.shape[-1]
        return {"pooled": hidden.mean((1, 2)), "last_hidden_state": hidden.reshape(B, -1, C)}


DEFAULTS = {
    **IMAGENET,
    "attention_probs_dropout_prob": 0.0,
    "depths": (2, 2, 6, 2),
    "drop_path_rate": 0.1,
    "embed_dim": 96,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "image_size": 224,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "mlp_ratio": 4.0,
    "num_channels": 3,
    "num_heads": (3, 6, 12, 24),
    "patch_size": 4,
    "qkv_bias": True,
    "use_absolute_embeddings": False,
    "window_size": 7,
}  # transformers' SwinConfig
DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob")


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a Swin: embeddings, layer_0 …, layernorm, head; arguments as for ViT."""
    c = fields(config, DEFAULTS)
    drops = iter(np.linspace(0, c["drop_path_rate"], sum(c["depths"])).tolist())
    side = c["image_size"] // c["patch_size"]
    stages: list[Stage] = []
    for i, (depth, heads) in enumerate(zip(c["depths"], c["num_heads"], strict=True)):
        root, above = f"swin/encoder/layers/{i}", i + 1 < len(c["depths"])
        window, shifts = (side, (0, 0)) if side <= c["window_size"] else (c["window_size"], (0, c["window_size"] // 2))
        for j in range(depth):
            coarser = above and j == depth - 1
            places = (("downsample", f"{root}/downsample"),) if coarser else ()
            block = Block(c, heads, window, shifts[j % 2], next(drops), coarser)
            stages.append(Stage(f"layer_{len(stages)}", (("layer", f"{root}/blocks/{j}"), *places), block))
        side = -(-side // 2)
    return Backbone(
        stages=(
            Stage("embeddings", "swin/embeddings", Embeddings(c, dtype)),
            *stages,
            Stage("layernorm", "swin/layernorm", MeanOfTokens(c["layer_norm_eps"])),
            Stage("head", "classifier", ClassifierHead(num_labels, c["initializer_range"])),
        ),
        example=lambda: example(c),
    )


SWIN = Architecture(build, DEFAULTS, DROPOUTS)
