"""`tljax export`: the model of a finished workdir for other programs."""

import importlib.util
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as jax_export

from tljax import trees
from tljax.errors import ConfigError, WriteError, printable
from tljax.models.adapted import AdaptedBackbone
from tljax.run import adapting
from tljax.run.predict import open_model
from tljax.run.workdir import read_config
from tljax.train.step import make_eval_step
from tljax.weights import adapter_folder, peft
from tljax.weights import export as weights_export
from tljax.weights.load import Model

FORMATS = (*weights_export.FORMATS, "peft", "stablehlo")


def export(path: Path, output: Path, format: str = "hf") -> None:
    """Writes the model of a workdir into a new folder.

    Args:
      format: "hf": the Hugging Face folder; "flax_msgpack": the same with flax_model.msgpack, as transformers 4 had it,
        in place of model.safetensors; "stablehlo": the first, and `predict.stablehlo`, the compiled function
        (params, inputs) -> probabilities for any batch size, as jax.export serialises it; "peft": of a run with
        adapters, these and the head alone, as PEFT saves them.

    The folder appears when it is whole.

    Raises:
      ConfigError: another format, one that needs a package that is not here, or the output exists.
      DataError, WriteError.
    """
    if format not in FORMATS:
        raise ConfigError("--format", f"{format!r}", f"one of {', '.join(FORMATS)}")
    if output.exists():
        raise ConfigError("--output", f"{output} exists", "a new folder")
    if format == "peft":
        _peft(path, output)
        return
    if not (path / "model").is_dir() and (path / "adapter").is_dir():
        raise ConfigError("--format", f"{format!r}, and the adapter of this run cannot be merged into the weights",
                          "tljax predict, which uses adapter/ of the workdir as it is")  # fmt: skip
    model, _ = open_model(path)
    if format == "flax_msgpack":
        weights_export.check_format(format, model.config["model_type"])
    compiled = serialised(model) if format == "stablehlo" else b""
    draft = output.with_name(f".{output.name}.draft-{os.getpid()}")
    try:
        if format == "flax_msgpack":
            card = path / "model" / "README.md"
            weights_export.export_hf(draft, params=trees.flatten(model.params), config=model.config,
                                     card=card.read_text(encoding="utf-8") if card.is_file() else "",
                                     labels=model.labels, copy=weights_export.companions(path / "model"),
                                     pooling=model.pooling, resize="", format=format)  # fmt: skip
        else:
            shutil.copytree(path / "model", draft)
        if compiled:
            (draft / "predict.stablehlo").write_bytes(compiled)
        draft.rename(output)
    except OSError as error:  # copytree raises a list of them that has no strerror
        found = f"cannot be written ({error.strerror or printable(error)})"
        raise WriteError(str(output), found, fix="take another --output") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _peft(path: Path, output: Path) -> None:
    """Adapters and head in PEFT's layout."""
    if not (path / "adapter" / adapter_folder.CONFIG).is_file():
        raise ConfigError("--format", "peft, and this run has no adapters", "hf, or a run with strategy=lora")
    _, config = read_config(path)
    model, plain, _ = adapting.opened(path / "adapter", config)
    if not isinstance(model.backbone, AdaptedBackbone):
        raise ConfigError("--format", "peft, and this run has no adapters")
    peft.write(output, model.backbone, trees.flatten(model.params), model.config, base=str(plain.folder),
               pooling=model.pooling, original=trees.flatten(plain.params))  # fmt: skip


def serialised(model: Model) -> bytes:
    """(params, inputs) -> probabilities as serialised StableHLO, for CPU, CUDA and TPU.

    The number of rows is free, and so is the number of tokens; images have the model's size.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("--format", "stablehlo needs the package flatbuffers, which is not installed",
                          fix="pip install flatbuffers")  # fmt: skip
    scope = jax_export.SymbolicScope()
    inputs = {}
    for name, leaf in model.backbone.example().items():
        sizes = "batch, tokens" if len(leaf.shape) == 2 else ", ".join(("batch", *map(str, leaf.shape[1:])))
        inputs[name] = jax.ShapeDtypeStruct(jax_export.symbolic_shape(sizes, scope=scope), leaf.dtype)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), model.params)
    exported = jax_export.export(make_eval_step(model.backbone), platforms=("cpu", "cuda", "tpu"))(params, inputs)  # type: ignore[arg-type]
    return bytes(exported.serialize())
