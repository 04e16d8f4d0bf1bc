"""`tljax calibrate`: what it fits and writes, and that predictions and scores follow it."""

import csv
import json

import numpy as np
import pytest
import tiny

from tljax import cli
from tljax.errors import ConfigError
from tljax.evaluate import calibrator
from tljax.run import calibrate, predict


@pytest.fixture
def path(text_run, tmp_path):
    return tiny.copied(text_run.path, tmp_path / "run")


@pytest.fixture
def labelled(tmp_path):
    """With labels of which some are wrong: the network is too sure."""
    rows = [(text, "sky" if number % 5 == 0 else name) for number, (text, name) in enumerate(tiny.texts(60, skip=200))]
    return str(tiny.table(tmp_path / "labelled.csv", rows))


def test_predictions_and_scores_follow_it(path, labelled, tmp_path):
    before = predict.evaluate(path, labelled)[0]
    labels, probs = predict.answered(path, labelled)
    said: list[str] = []
    calibrate.calibrate(path, labelled, "temperature", said.append)
    told = json.loads((path / "calibration.json").read_text())
    made = calibrator.fit("temperature", labels, probs)
    assert told["temperature"] == made.temperature > 1
    assert (told["n"], told["source"]) == (60, labelled)
    after = predict.evaluate(path, labelled)[0]
    assert after.accuracy == before.accuracy
    assert after.loss < before.loss
    assert after.more == told["scores"]["after"] != told["scores"]["before"] == before.more
    assert said[0].startswith(f"temperature {made.temperature:.3g} on {labelled}, 60 examples: calibration error ")
    predict.predict(path, labelled, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        found = [float(row["probability"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, made(probs).max(1), atol=1e-4)  # four decimals
    # the fit itself is of what the network says, and not of what an earlier one made of it
    calibrate.calibrate(path, labelled, "temperature", said.append)
    assert json.loads((path / "calibration.json").read_text())["temperature"] == told["temperature"]


def test_isotonic_by_the_command(path, labelled, capsys):
    assert cli.main(["calibrate", f"--workdir={path}", f"--labelled={labelled}", "--method=isotonic"]) == 0
    assert capsys.readouterr().out.startswith(f"isotonic on {labelled}, 60 examples: calibration error ")
    assert cli.main(["eval", f"--workdir={path}", f"--data={labelled}"]) == 0
    assert ", calibration error 0.0" in capsys.readouterr().out


def test_what_is_refused(path, labelled):
    with pytest.raises(ConfigError, match="--method: 'platt'; expected one of temperature, isotonic"):
        calibrate.calibrate(path, labelled, "platt")
    with pytest.raises(ConfigError, match=r"--labelled: empty, and the run has no data\.validation"):
        calibrate.calibrate(path)
    assert not (path / "calibration.json").exists()
