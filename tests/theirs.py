"""The other side of a comparison: transformers and PyTorch, which are here for the tests alone."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = ("AutoConfig", "AutoImageProcessor", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageClassification",
         "AutoModelForSequenceClassification", "AutoTokenizer", "BertConfig", "BertForMaskedLM",
         "BertForSequenceClassification", "BertModel", "RobertaConfig", "RobertaForMaskedLM", "ViTConfig",
         "ViTForImageClassification", "ViTModel")  # fmt: skip


def load() -> SimpleNamespace:
    """torch and classes of transformers by name; skips the test where PyTorch is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        torch = pytest.importorskip("torch", exc_type=ImportError)
        transformers = pytest.importorskip("transformers", exc_type=ImportError)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        return SimpleNamespace(torch=torch, **{name: getattr(transformers, name) for name in NAMES})


def answers(side: SimpleNamespace, model: Any, inputs: Mapping[str, np.ndarray], **options: Any) -> dict[str, Any]:
    """transformers' outputs in evaluation mode, as numpy."""
    with side.torch.no_grad():
        tensors = {name: side.torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array)
                   for name, array in inputs.items()}  # fmt: skip
        found = model.eval()(**tensors, **options).items()
        return {name: value.numpy() for name, value in found if hasattr(value, "numpy")}  # decoders return a cache too


def opened(side: SimpleNamespace, auto: str, folder: Path, **options: Any) -> Any:
    """The model as transformers opens it, after seeing that every key was used and none was wanting."""
    model, info = getattr(side, auto).from_pretrained(folder, output_loading_info=True, **options)
    assert {name: list(found) for name, found in info.items() if found} == {}
    return model
