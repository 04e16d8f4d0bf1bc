"""`tljax export`: the model of a finished workdir for other programs."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export as jax_export

from tljax.errors import ConfigError, WriteError
from tljax.run.predict import open_model
from tljax.train.step import make_eval_step
from tljax.weights.load import Model

FORMATS = ("hf", "stablehlo")


def export(path: Path, output: Path, format: str = "hf") -> None:
    """Writes the model of a workdir into a new folder.

    Args:
      format: "hf": the Hugging Face folder; "stablehlo": that, and `predict.stablehlo`, the compiled function
        (params, inputs) -> probabilities for any batch size, as jax.export serialises it.

    Raises:
      ConfigError: another format, or the output exists.
      DataError, WriteError.
    """
    if format not in FORMATS:
        raise ConfigError("--format", f"{format!r}", f"one of {', '.join(FORMATS)}")
    if output.exists():
        raise ConfigError("--output", f"{output} exists", "a new folder")
    model, _ = open_model(path)
    try:
        shutil.copytree(path / "model", output)
        if format == "stablehlo":
            (output / "predict.stablehlo").write_bytes(serialised(model))
    except OSError as error:
        raise WriteError(str(output), f"cannot be written ({error.strerror})", fix="take another --output") from None


def serialised(model: Model) -> bytes:
    """(params, inputs) -> probabilities as serialised StableHLO, for CPU, CUDA and TPU.

    The number of rows is free, and so is the number of tokens; images have the model's size.
    """
    sizes = jax_export.symbolic_shape("batch, tokens", constraints=["batch >= 1", "tokens >= 1"])
    inputs = {}
    for name, leaf in model.backbone.example().items():
        shape = (sizes[0], sizes[1]) if len(leaf.shape) == 2 else (sizes[0], *leaf.shape[1:])
        inputs[name] = jax.ShapeDtypeStruct(shape, leaf.dtype)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), model.params)
    exported = jax_export.export(make_eval_step(model.backbone), platforms=("cpu", "cuda", "tpu"))(params, inputs)  # type: ignore[arg-type]
    return bytes(exported.serialize())
