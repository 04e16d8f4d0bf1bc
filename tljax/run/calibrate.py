"""`tljax calibrate`: probabilities of a finished run that can be taken at their word, from labelled examples."""

from collections.abc import Callable
from pathlib import Path

from tljax.errors import ConfigError, DataError
from tljax.evaluate import calibrator, metrics
from tljax.run import predict, sequences, several
from tljax.run.workdir import read_config


def calibrate(path: Path, source: str = "", method: str = "temperature", say: Callable[[str], None] = print) -> None:
    """Fits a calibration and writes it to workdir/calibration.json: `predict` and `eval` use it from then on.

    Args:
      path: a finished workdir of a classifier.
      source: labelled examples that the run did not learn from; "": its data.validation.
      say: is told what was fitted, and the calibration error and Brier score before and after.

    Raises:
      ConfigError: an unknown method, no source, a run that classifies nothing.
      DataError, WriteError.
    """
    if method not in calibrator.METHODS:
        raise ConfigError("--method", f"{method!r}", f"one of {', '.join(calibrator.METHODS)}")
    _, config = read_config(path)
    if config.objective != "classes":
        raise ConfigError("tljax calibrate", f"a model of --config.objective={config.objective}", "classes")
    source = source or config.data.validation
    if not source:
        raise ConfigError("--labelled", "empty, and the run has no data.validation", "labelled examples that it did "
                          "not learn from")  # fmt: skip
    if sequences.needed(config):
        labels_n, probs_nC = sequences.answered(path, config, source)
    else:
        labels_n, probs_nC = predict.answered(path, source, say)
    if not len(labels_n):
        raise DataError(source, "no examples", "at least one to fit a calibration to")
    made = calibrator.fit(method, labels_n, probs_nC)
    both = {"before": probs_nC, "after": made(probs_nC)}
    scores = {when: calibrator.scored(labels_n, own) for when, own in both.items()}
    several.write(path / calibrator.FILE, {**made.to_json(), "source": source, "n": len(labels_n), "scores": scores})
    say(f"{made.told()} on {source}, {len(labels_n):,} examples: calibration error "
        f"{_change(scores, 'calibration_error')}, Brier score {_change(scores, 'brier')}\non the examples that it was "
        f"fitted to; tljax eval measures it on others\nin {path / calibrator.FILE}; predict and eval use it from now "
        "on, until it is removed")  # fmt: skip


def _change(scores: dict[str, dict[str, float | None]], name: str) -> str:
    return " → ".join(metrics.shown(scores[when][name], 4) for when in ("before", "after"))
