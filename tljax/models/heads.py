"""From the top of a trunk to logits: pooling and classification. B batch, T tokens, D width, C classes, V words."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.backbone import Activations
from tljax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm, affine, last


class MeanPooler(nn.Module):
    """The mean over real tokens; no parameters. A row without any real token gives zeros, not NaN."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden_BTD = x["hidden"].astype(jnp.float32)
        mask_BT1 = x["attention_mask"][:, :, None].astype(jnp.float32)
        total_BD = (hidden_BTD * mask_BT1).sum(1)
        pooled_BD = total_BD / jnp.maximum(mask_BT1.sum(1), 1.0)
        return {"pooled": pooled_BD.astype(x["hidden"].dtype), "last_hidden_state": x["hidden"]}


class FirstToken(nn.Module):
    """The first token; no parameters."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        return {"pooled": x["hidden"][:, 0], "last_hidden_state": x["hidden"]}


def last_token(hidden_BTD: jax.Array, mask_BT: jax.Array) -> Activations:
    """The last real token of each row, and all of them."""
    last_B = jnp.where(mask_BT != 0, jnp.arange(mask_BT.shape[1])[None], 0).max(axis=1)
    pooled_BD = jnp.take_along_axis(hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
    return {"pooled": pooled_BD, "last_hidden_state": hidden_BTD}


class Logits(nn.Module):
    """One affine map (B, D) -> (B, C), in float32."""

    num_labels: int
    init_std: float = 0.02
    use_bias: bool = True

    @nn.compact
    def __call__(self, pooled_BD: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (pooled_BD.shape[-1], self.num_labels))
        logits_BC = pooled_BD.astype(jnp.float32) @ kernel.astype(jnp.float32)
        if not self.use_bias:
            return logits_BC
        return logits_BC + last(self.param("bias", nn.initializers.zeros_init(), (self.num_labels,)), logits_BC)


class ClassifierHead(Logits):
    """Dropout and one affine map on the pooled vector (B, D) -> logits (B, C), always float32."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:  # type: ignore[override]
        pooled_BD = Dropout(self.dropout)(x["pooled"], train)
        return {**x, "logits": Logits.__call__(self, pooled_BD)}


class TwoLayerHead(nn.Module):
    """Affine map, activation, affine map on the pooled vector (B, D) -> logits (B, C), dropout before each."""

    num_labels: int
    names: tuple[str, str]
    activation: str
    dropouts: tuple[float, float]
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        pooled_BD = Dropout(self.dropouts[0])(x["pooled"], train)
        inner = Dense(pooled_BD.shape[-1], self.init_std, name=self.names[0])(pooled_BD)
        inner = Dropout(self.dropouts[1])(ACTIVATIONS[self.activation](inner), train)
        logits = Logits(self.num_labels, self.init_std, name=self.names[1])(inner)
        return {**x, "logits": logits}


class TiedLanguageHead(nn.Module):
    """Scores of every word for each token's successor (B, T, V), by the embedding table of the words."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden_BTD = x["last_hidden_state"]
        table_VD = self.get_variable("params", "embedding")
        if table_VD is None:  # parameter shapes are being inferred, and this head has none
            return {"logits": hidden_BTD.astype(jnp.float32), "last_hidden_state": hidden_BTD}
        logits_BTV = affine(hidden_BTD, table_VD.T, None).astype(jnp.float32)
        return {"logits": logits_BTV, "last_hidden_state": hidden_BTD}


class MaskedHead(nn.Module):
    """Scores of every word at places in the text, by the embedding table of the words (Devlin et al. 2019).

    (B, M, V) for the `predicted` places (B, M) of the batch, so that the product over the vocabulary, as dear as the
    trunk of a small network, is made for hidden words alone; (B, T, V) where the batch names none.
    """

    vocabulary: int
    activation: str
    epsilon: float
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden = x["hidden"]
        if "predicted" in x:
            hidden = jnp.take_along_axis(hidden, x["predicted"][:, :, None], axis=1)
        inner = ACTIVATIONS[self.activation](Dense(hidden.shape[-1], self.init_std, name="dense")(hidden))
        inner = LayerNorm(self.epsilon, name="norm")(inner)
        table_VD = self.get_variable("params", "embedding")
        bias_V = self.param("bias", nn.initializers.zeros_init(), (self.vocabulary,))
        logits = inner if table_VD is None else affine(inner, table_VD.T, bias_V)  # None: shapes are being inferred
        return {"logits": logits.astype(jnp.float32), "last_hidden_state": x["hidden"]}


class LanguageHead(nn.Module):
    """Scores of every word for each token's successor (B, T, V), by an affine map of its own."""

    vocabulary: int
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        logits_BTV = Dense(self.vocabulary, self.init_std, use_bias=False, name="lm_head")(x["last_hidden_state"])
        return {"logits": logits_BTV.astype(jnp.float32), "last_hidden_state": x["last_hidden_state"]}
