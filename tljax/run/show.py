"""`tljax show`: what a checkpoint is, without training it; and which there can be."""

import dataclasses

from tljax import models, trees
from tljax.models.adapters import KINDS, Adapter
from tljax.transfer import adapters, freeze
from tljax.weights import big_vision, timm
from tljax.weights.families import FAMILIES
from tljax.weights.load import load_pretrained

FILES = {
    "safetensors": tuple(FAMILIES),
    "Flax msgpack": tuple(name for name, table in FAMILIES.items() if table.flax),
    "Orbax": tuple(FAMILIES),
    "timm": tuple(timm.POOLS),
    "npz": big_vision.FAMILIES,
}  # kind of file -> the families that are opened from it
NOTES = (
    "safetensors, msgpack: one file, or shards with an index; float32, float16 or bfloat16",
    "Orbax: a tree of parameters under Flax's names, beside a config.json",
    "timm: a folder with its config.json; npz: a ViT of augreg or big_vision, the file alone",
    "tljax convert --input=REF --output=DIR makes any of them a Hugging Face folder",
)


def show(ref: str, strategy: str = "full", k: int = 2, revision: str = "") -> str:
    """Family, sizes by stage and the freeze table of a strategy, as text."""
    model = load_pretrained(ref, revision=revision)
    if strategy in KINDS:
        network = adapters.adapted(model.backbone, Adapter(strategy), model.config["model_type"])
        model = dataclasses.replace(model, backbone=network)
    flat = trees.flatten(model.params)
    plan = freeze.plan(model.backbone, strategy, k=k)
    rows = freeze.table(model.backbone, plan)
    lines = [
        f"{ref}: {model.config['model_type']}, {trees.count(flat):,} parameters, {trees.nbytes(flat) / 1e6:,.1f} MB",
        f"{len(model.labels)} labels, pooling {model.pooling}"
        + (f", revision {model.revision}" if model.revision else ""),
        *([f"from random values: {', '.join(model.reinitialised)}"] if model.reinitialised else []),
        *([f"not used: {', '.join(model.dropped)}"] if model.dropped else []),
        "",
        f"strategy {strategy}" + (f", k = {k}" if strategy == "last_k" else ""),
        freeze.render(rows),
        "",
        f"strategies: {', '.join((*freeze.STRATEGIES, *KINDS))}; families: see tljax show without a name",
    ]
    return "\n".join(lines)


def families() -> str:
    """Every family, its heads, and what its checkpoints may lie in, as a table."""
    wide = max(map(len, FAMILIES))
    lines = [f"{'family':{wide}}  {'  '.join(FILES)}  heads"]
    for name in FAMILIES:
        marks = "  ".join(f"{'yes' if name in known else '':{len(file)}}" for file, known in FILES.items())
        heads = "classification" + (", next token" if models.FAMILIES[name].decoder else "")
        lines.append(f"{name:{wide}}  {marks}  {heads}")
    return "\n".join([*lines, "", *NOTES])
