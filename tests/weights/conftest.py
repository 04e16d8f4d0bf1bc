"""Tiny checkpoints with random weights, made by tljax's own networks and PyTorch's names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from tljax import models
from tljax.weights import convert, files

TRUNK = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {"0": "no", "1": "maybe", "2": "yes"}
CONFIGS = {
    "bert": {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 20,
             "max_position_embeddings": 12, "id2label": LABELS, **TRUNK},
    "vit": {"model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 8, "patch_size": 4,
            "id2label": LABELS, **TRUNK},
}  # fmt: skip
_made: dict[str, dict[str, Any]] = {}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """tiny("bert", edit=f, **fields) -> a folder; `edit` changes the dict of tensors before it is written."""

    def make(family: str, edit: Callable[[dict[str, Any]], Any] = lambda tensors: None, **fields: Any) -> Path:
        if family not in _made:
            backbone = models.build(CONFIGS[family], num_labels=3)
            _made[family] = convert.to_safetensors(backbone.init(jax.random.key(1)), family)
        tensors = dict(_made[family])
        edit(tensors)
        folder = tmp_path / family
        folder.mkdir(exist_ok=True)
        config = {name: value for name, value in {**CONFIGS[family], **fields}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))
        files.write_safetensors(folder / files.SAFETENSORS, tensors)
        return folder

    return make
