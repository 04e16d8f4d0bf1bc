"""`tljax convert`: a checkpoint of any known kind as a Hugging Face folder, no weight changed."""

from pathlib import Path

from tljax import models, trees
from tljax.errors import ConfigError
from tljax.weights import checkpoint, export, hub
from tljax.weights.families import FAMILIES
from tljax.weights.load import POOLING, Model, load_pretrained


def convert(ref: str, output: Path, format: str = "hf", revision: str = "") -> str:
    """Writes a checkpoint as transformers opens it, with the head that it has; gives a sentence on what was done.

    Args:
      ref: as `load_pretrained` takes it.
      output: a new folder, or an earlier export.
      format: of export.FORMATS.
      revision: of a Hugging Face id.

    Raises:
      ConfigError: another format.
      WeightsError: see `load_pretrained`.
      WriteError: the place is taken or cannot be written.
    """
    if format not in export.FORMATS:
        raise ConfigError("--format", f"{format!r}", f"one of {', '.join(export.FORMATS)}")
    model, head, pooling = as_it_is(ref, revision)
    kept, _ = trees.partition(trees.flatten(model.params), lambda path: path not in model.reinitialised)
    card = f"---\nbase_model: {ref}\n---\n\n{model.config['model_type']}, converted by tljax from `{ref}`.\n"
    export.export_hf(output, params=kept, config=model.config, labels=model.labels, pooling=pooling, card=card,
                     copy=export.companions(model.folder), resize="", head=head, format=format)  # fmt: skip
    lost = f"; not taken over: {', '.join(model.dropped)}" if model.dropped else ""
    what = {"classifier": f"classifier of {len(model.labels)} labels", "language": "language model", "none": "trunk"}
    return f"{model.config['model_type']}, {what[head]}, {trees.count(kept):,} parameters in {output}{lost}"


def as_it_is(ref: str, revision: str = "") -> tuple[Model, str, str]:
    """A checkpoint with the head that it has, which of export.HEADS that is, and the pooling that its folder declares.

    Of a head that tljax does not know the trunk is taken, with its pooler where there is one.
    """
    folder = hub.resolve(ref, revision).folder
    config, weights, _ = checkpoint.opened(folder)
    table = FAMILIES[config["model_type"]]
    classes = {name.removeprefix("Flax") for name in config.get("architectures", ())}
    if models.family_of(config).decoder and table.language in classes:
        return load_pretrained(ref, revision=revision, task="language"), "language", "pooler"
    model = load_pretrained(ref, revision=revision)
    if not any(table.in_head(path) for path in model.reinitialised):
        return model, "classifier", model.pooling
    pooler = table.pooler and any(f"{table.pooler}." in name.replace("/", ".") for name in weights.tensors)
    declared = model.pooling if (folder / POOLING).is_dir() else "pooler"
    if pooler and model.pooling != "pooler":
        model = load_pretrained(ref, revision=revision, pooling="pooler")
    return model, "none", declared
