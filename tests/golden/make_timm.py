"""Writes data_timm/: tiny checkpoints as timm saves them, a ViT as Google's vision_transformer does, and their outputs.

    python tests/golden/make_timm.py     needs torch, timm and torchvision

The .npz has random values under the names of an augreg checkpoint; timm's own loader says what they compute. Every
parameter is perturbed. The files are committed; nothing makes them again in CI.
"""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models import _hub

DATA = Path(__file__).parent / "data_timm"
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", VIT),
    "resnet": ("resnet50", {"layers": [1, 2, 1, 1], "channels": [8, 16, 24, 32]}),
    "resnet-basic": ("resnet18", {"layers": [1, 2, 1, 1], "channels": [8, 16, 24, 32]}),
    "convnext": ("convnext_tiny", {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}),
    "convnext-atto": ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}),
    "convnextv2": ("convnextv2_tiny", {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}),
}


def perturbed(model: Any) -> Any:
    """The model with every parameter and statistic moved."""
    with torch.no_grad():
        for path, tensor in model.state_dict().items():
            if path.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif tensor.dtype == torch.float32:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model.eval()


def golden(model: Any, folder: Path) -> None:
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels)).numpy()
    np.savez_compressed(folder / "golden.npz", pixel_values=pixels, logits=logits)


def augreg() -> dict[str, np.ndarray]:
    """Random values under the names and in the shapes of an augreg ViT."""
    rng, D, H, M = np.random.default_rng(1), 24, 3, 48
    shapes: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, D),
        "embedding/kernel": (8, 8, 3, D),
        "embedding/bias": (D,),
        "Transformer/posembed_input/pos_embedding": (1, 17, D),
        "Transformer/encoder_norm/scale": (D,),
        "Transformer/encoder_norm/bias": (D,),
        "head/kernel": (D, 5),
        "head/bias": (5,),
    }
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        shapes |= {f"{block}/LayerNorm_{j}/{leaf}": (D,) for j in (0, 2) for leaf in ("scale", "bias")}
        shapes |= {f"{attention}/{part}/kernel": (D, H, D // H) for part in ("query", "key", "value")}
        shapes |= {f"{attention}/{part}/bias": (H, D // H) for part in ("query", "key", "value")}
        shapes |= {f"{attention}/out/kernel": (H, D // H, D), f"{attention}/out/bias": (D,)}
        shapes |= {f"{mlp}/Dense_0/kernel": (D, M), f"{mlp}/Dense_0/bias": (M,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (M, D), f"{mlp}/Dense_1/bias": (D,)}
    return {name: rng.normal(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


if __name__ == "__main__":
    torch.manual_seed(0)
    for name, (architecture, sizes) in SETS.items():
        model = perturbed(timm.create_model(architecture, num_classes=5, **sizes))
        _hub.save_for_hf(model, DATA / name, model_args=sizes, safe_serialization=True)
        golden(model, DATA / name)
    (DATA / "augreg").mkdir(parents=True, exist_ok=True)
    np.savez(DATA / "augreg" / "vit.npz", **augreg())
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, mlp_ratio=2, **VIT)
    model.load_pretrained(str(DATA / "augreg" / "vit.npz"))
    (DATA / "augreg" / "golden").mkdir(exist_ok=True)
    golden(model.eval(), DATA / "augreg" / "golden")
