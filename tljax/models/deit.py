"""DeiT (Touvron et al. 2021): ViT's layers, with a distillation token."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from tljax.models import vit
from tljax.models.backbone import Activations, Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead, Logits
from tljax.models.patches import fields

DEFAULTS = vit.DEFAULTS
DROPOUTS = vit.DROPOUTS
TWO_HEADS = ("cls_classifier", "distillation_classifier")


class DistilledHead(nn.Module):
    """The mean of what two affine maps say, of the class token and of the distillation token."""

    num_labels: int
    init_std: float

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        hidden_BTD = x["last_hidden_state"]
        said: list[jax.Array] = [
            Logits(self.num_labels, self.init_std, name=name)(hidden_BTD[:, i]) for i, name in enumerate(TWO_HEADS)
        ]
        return {"logits": (said[0] + said[1]) / 2, "last_hidden_state": hidden_BTD}


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a DeiT: embeddings, layer_0 …, layernorm, head.

    Arguments as for ViT. The head is that of the class that `architectures` names first: one affine map of the class
    token, or, "WithTeacher", the mean of two.
    """
    c = fields(config, DEFAULTS)
    std = c["initializer_range"]
    head = Stage("head", "classifier", ClassifierHead(num_labels, std))
    if "DeiTForImageClassificationWithTeacher" in config.get("architectures", ()):
        head = Stage("head", tuple(zip(TWO_HEADS, TWO_HEADS, strict=True)), DistilledHead(num_labels, std))
    embeddings = vit.ViTEmbeddings(c, dtype, distilled=True)
    return vit.assembled("deit", c, embeddings, vit.ViTLayer(c), vit.FinalLayerNorm(c["layer_norm_eps"]), head)


DEIT = Architecture(build, DEFAULTS, DROPOUTS)
