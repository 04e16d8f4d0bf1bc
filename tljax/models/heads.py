"""From the top of a trunk to logits: pooling and classification. B batch, T tokens, D width, C classes."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from tljax.models.backbone import Activations
from tljax.models.layers import Dropout


class MeanPooler(nn.Module):
    """The mean over real tokens; no parameters. A row without any real token gives zeros, not NaN."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden_BTD = x["hidden"].astype(jnp.float32)
        mask_BT1 = x["attention_mask"][:, :, None].astype(jnp.float32)
        total_BD = (hidden_BTD * mask_BT1).sum(1)
        pooled_BD = total_BD / jnp.maximum(mask_BT1.sum(1), 1.0)
        return {"pooled": pooled_BD.astype(x["hidden"].dtype), "last_hidden_state": x["hidden"]}


class ClassifierHead(nn.Module):
    """Dropout and one affine layer on the pooled vector (B, D) -> logits (B, C), always float32."""

    num_labels: int
    dropout: float
    init_std: float = 0.02

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        pooled_BD: jax.Array = Dropout(self.dropout)(x["pooled"], train)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), (pooled_BD.shape[-1], self.num_labels))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_labels,))
        logits_BC = pooled_BD.astype(jnp.float32) @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)[None, :]
        return {"logits": logits_BC, "last_hidden_state": x["last_hidden_state"]}
