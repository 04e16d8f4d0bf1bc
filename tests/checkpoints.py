"""The tiny checkpoints that golden/make.py wrote, one or more a family: what PyTorch computes with each."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tljax import models
from tljax.weights.load import Model, load_pretrained

DATA = Path(__file__).parent / "golden" / "data"
SETS = sorted(folder.name for folder in DATA.iterdir())
CONFIGS = {name: json.loads((DATA / name / "config.json").read_text()) for name in SETS}
LANGUAGE = [name for name in SETS if CONFIGS[name]["architectures"][0].endswith(("CausalLM", "LMHeadModel"))]
CLASSIFIERS = [name for name in SETS if name not in LANGUAGE]
THEIRS = [family for family in models.FAMILIES if family != "tljax_events"]  # which other libraries have too


def given(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(inputs, outputs) as tljax has them: channels last, int32."""
    arrays = dict(np.load(DATA / name / "golden.npz", allow_pickle=False))
    inputs = {key: arrays.pop(key).astype(np.int32) for key in ("input_ids", "attention_mask", "token_type_ids")
              if key in arrays}  # fmt: skip
    if "pixel_values" in arrays:
        inputs = {"pixel_values": arrays.pop("pixel_values").transpose(0, 2, 3, 1)}
    if arrays["last_hidden_state"].ndim == 4:
        arrays["last_hidden_state"] = arrays["last_hidden_state"].transpose(0, 2, 3, 1)
    return inputs, arrays


def load(name: str, **options: Any) -> Model:
    """A checkpoint as what it is: a classifier or a language model."""
    return load_pretrained(str(DATA / name), task="language" if name in LANGUAGE else "classification", **options)
