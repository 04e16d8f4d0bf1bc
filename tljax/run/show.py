"""`tljax show`: what a checkpoint is, without training it."""

from tljax import models, trees
from tljax.transfer import freeze
from tljax.weights.load import load_pretrained


def show(ref: str, strategy: str = "full", k: int = 2, revision: str = "") -> str:
    """Family, sizes by stage and the freeze table of a strategy, as text."""
    model = load_pretrained(ref, revision=revision)
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
        f"families: {', '.join(models.FAMILIES)}; strategies: {', '.join(freeze.STRATEGIES)}",
    ]
    return "\n".join(lines)
