"""What PEFT calls the leaves of an adapter, how their axes lie, and which modules of PyTorch's they belong to."""

import re
from collections.abc import Mapping

import numpy as np

from tljax.models.adapters import Site
from tljax.weights import rules

PREFIX = "base_model.model."
_DINOV2 = (
    (r"attention\.attention\.(q|k|v)[a-z]+", r"attention.\1_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"mlp\.weights_out", "mlp.down_proj"),
)
IN_MEMORY = {  # base -> (pattern, what stands there in a model of transformers 5 and in none of its files)
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "swin": (
        (r"attention\.self\.(q|k|v)[a-z]+", r"attention.\1_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    ),
}
HALVED = re.compile(r".*/mlp/weights_in/kernel")  # one kernel in the files, two modules in memory
LEAVES = {  # leaf -> what PEFT appends to the module's name, the written one first
    "lora_a": ("lora_A.weight",),
    "lora_b": ("lora_B.weight",),
    "lora_magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight"),
    "ia3": ("ia3_l",),
}
END = re.compile(rf"(.*)\.({'|'.join(re.escape(end) for ends in LEAVES.values() for end in ends)})")
LEAF = {end: leaf for leaf, ends in LEAVES.items() for end in ends}


def module(family: rules.Family, path: str, rank: int) -> str:
    """What the module of a kernel is called in a model in memory, which is where PEFT looks for it.

    >>> from tljax.weights.families import FAMILIES
    >>> module(FAMILIES["vit"], "vit/encoder/layer/3/attention/attention/query/kernel", 2)
    'vit.layers.3.attention.q_proj'
    """
    spellings, _ = rules.lookup(family, path, rank)
    return _in_memory(family, spellings[-1].removesuffix(".weight"))  # the last spelling is that of transformers 5


def modules(family: rules.Family, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Name of a module, as any version has it and with or without the base's prefix -> path of its kernel."""
    named: dict[str, str] = {}
    for path, shape in shapes.items():
        if path.endswith("/kernel"):
            spellings, _ = rules.sources(family, "safetensors", path, len(shape))
            names = [spelling.removesuffix(".weight") for spelling in spellings]
            named |= dict.fromkeys((*names, *(_in_memory(family, name) for name in names)), path)
    return named


def _in_memory(family: rules.Family, name: str) -> str:
    for pattern, other in IN_MEMORY.get(family.base, ()):
        name = re.sub(pattern, other, name)
    return name


def to_torch(leaf: str, array: np.ndarray, site: Site) -> np.ndarray:
    """A leaf as PEFT has it: factors turned like weights, vectors with the axes that they scale."""
    if leaf == "lora_b" and len(site.shape) == 4:
        array = array[None, None]  # a convolution over 1 x 1
    if leaf in ("lora_a", "lora_b"):
        return np.asarray(np.transpose(array, np.argsort(rules.KERNELS[len(site.shape)])), order="C")
    if len(site.shape) == 4:
        return array.reshape(1, -1, 1, 1)
    return array if leaf == "lora_magnitude" else array.reshape((1, -1) if site.inputs else (-1, 1))


def from_torch(leaf: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_torch`; of a shape that no leaf has, the array as it is."""
    if leaf not in ("lora_a", "lora_b"):
        return array.reshape(-1)
    turned = np.transpose(array, rules.KERNELS[array.ndim]) if array.ndim in rules.KERNELS else array
    return turned[0, 0] if leaf == "lora_b" and turned.ndim == 4 and turned.shape[:2] == (1, 1) else turned
