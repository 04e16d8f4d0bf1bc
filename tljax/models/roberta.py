"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT's layers, other positions, another head."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from tljax.models import bert
from tljax.models.backbone import Architecture, Backbone, Stage
from tljax.models.heads import ClassifierHead, FirstToken, MeanPooler, TwoLayerHead

DEFAULTS = {**bert.DEFAULTS, "pad_token_id": 1, "vocab_size": 50265}  # transformers' RobertaConfig
DROPOUTS = bert.DROPOUTS


def build(config: Mapping[str, Any], num_labels: int, pooling: str, dtype: Any) -> Backbone:
    """The stages of a RoBERTa: embeddings, layer_0 …, pooler (no parameters), head; arguments as for BERT."""
    c = nn.FrozenDict({name: config.get(name, default) for name, default in DEFAULTS.items()})
    rate, std = bert.head_dropout(c), c["initializer_range"]
    embeddings = bert.BertEmbeddings(c, dtype, c["hidden_size"], c["pad_token_id"])
    if not num_labels:
        paths = (f"lm_head/{name}" for name in ("dense", "layer_norm", "bias"))
        head = bert.masked("roberta", c, "gelu", *paths)  # whatever the layers' own activation is
        return bert.assembled("roberta", c, embeddings, head)
    pooler, classifier = (MeanPooler(), ClassifierHead(num_labels, std, dropout=rate)) if pooling == "mean" else (
        FirstToken(), TwoLayerHead(num_labels, ("dense", "out_proj"), "tanh", (rate, rate), std))  # fmt: skip
    return bert.assembled("roberta", c, embeddings, Stage("pooler", "roberta/pooler", pooler),
                          Stage("head", "classifier", classifier))  # fmt: skip


def _reserved(fields: Mapping[str, Any]) -> int:
    return fields["pad_token_id"] + 1  # tokens are counted from there


ROBERTA = Architecture(build, DEFAULTS, DROPOUTS, reserved=_reserved, masked=True)
