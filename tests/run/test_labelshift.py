"""Other shares of the classes than in training: what the network was trained with, and predictions corrected for it."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny

from tljax import cli
from tljax.config import Config, OptimConfig
from tljax.data import sources
from tljax.errors import ConfigError, DataError
from tljax.run import labelshift, predict
from tljax.run.inputs import Tables
from tljax.run.workdir import read_config
from tljax.transfer import shift

CLASSES = ("fruit", "metal", "sky")
SHARES = {"fruit": 2, "metal": 3, "sky": 25}


@pytest.fixture(scope="module")
def place(tmp_path_factory, text_run) -> Path:
    """shifted.csv: mostly sky; unseen.csv: labelled, as the training data are."""
    root = tmp_path_factory.mktemp("labelshift")
    rows, left = [], Counter(SHARES)
    for text, name in tiny.texts(100, skip=80):
        if left[name]:
            left[name] -= 1
            rows.append((text, name))
    tiny.table(root / "shifted.csv", rows)
    tiny.table(root / "unseen.csv", tiny.texts(36, skip=200))
    return root


def probs_of(path: Path, source: Path) -> np.ndarray:
    model, config = predict.open_model(path)
    return predict.answering(model, config)(sources.read_records(str(source), config.data, "text"))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_says_the_shares_that_it_was_trained_with(text_run):
    found = read_config(text_run.path)[0]["resolved"]
    labels = Counter(text_run.done.tables.train.labels)
    assert labels.total() == 39
    assert found["class_shares"] == [labels[name] / 39 for name in found["classes"]]
    assert labelshift.class_shares(Tables(object(), None, None, ())) == []


@pytest.mark.parametrize("method", labelshift.METHODS)
def test_probabilities_are_corrected(text_run, place, tmp_path, monkeypatch, method):
    monkeypatch.setattr(predict, "CHUNK", 8)  # several parts, and one estimate of all of them
    said: list[str] = []
    given = {"label_shift": method, "labelled": str(place / "unseen.csv") if method == "bbse" else ""}
    predict.predict(text_run.path, str(place / "shifted.csv"), tmp_path / "out.csv", said.append, **given)
    probs, shares = probs_of(text_run.path, place / "shifted.csv"), read_config(text_run.path)[0]["resolved"]
    before = np.array(shares["class_shares"])
    if method == "em":
        after = shift.em(before, probs)
    else:
        truth = np.array([CLASSES.index(name) for _, name in tiny.texts(36, skip=200)])
        after = shift.bbse(truth, probs_of(text_run.path, place / "unseen.csv"), probs) / 3  # as many of each there
    want = shift.reweighted(probs, after / before)
    rows = read(tmp_path / "out.csv")
    assert len(rows) == 30
    for row, own in zip(rows, want, strict=True):
        first, second = np.argsort(-own, kind="stable")[:2]
        assert (row["label"], row["runner_up"]) == (CLASSES[first], CLASSES[second])
        assert float(row["probability"]) == pytest.approx(own[first], abs=1e-4)  # four decimals
    named = [f"{CLASSES[c]} {after[c]:.3f} ({before[c]:.3f})" for c in np.argsort(-abs(after - before))]
    assert said == [f"class shares of the input by {method} (of training): {', '.join(named)}"]


def test_the_shares_are_found_and_the_likelihood_of_the_truth_is_better(text_run, place):
    probs = probs_of(text_run.path, place / "shifted.csv")
    found = labelshift.estimate(
        "em", probs, Config(), {"class_shares": [1 / 3] * 3}, CLASSES, None, lambda records: probs
    )
    np.testing.assert_allclose(found.after_C, np.array(list(SHARES.values())) / 30, atol=0.07)  # of 30 examples
    truth = np.array([CLASSES.index(row["label"]) for row in read(place / "shifted.csv")])
    better = shift.reweighted(probs, found.weights_C)
    at = np.arange(len(truth))
    assert np.log(better[at, truth]).mean() > np.log(probs[at, truth]).mean()


PROBS = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
BALANCED = Config(optim=OptimConfig(class_weights="balanced"))
PRIORS = [  # (name, method, config, class_shares, whether a labelled file is given, the shares before)
    ("of the run", "em", Config(), [0.9, 0.1], False, [0.9, 0.1]),
    ("a loss that weighs classes alike", "em", BALANCED, [0.9, 0.1], False, [0.5, 0.5]),
    ("weighs alike, whatever the file", "em", BALANCED, [0.9, 0.1], True, [0.5, 0.5]),
    ("of a file, where the run says none", "em", Config(), None, True, [0.75, 0.25]),
    ("of a file that is given", "em", Config(), [0.9, 0.1], True, [0.75, 0.25]),
    ("bbse corrects what the run was trained with", "bbse", Config(), [0.9, 0.1], True, [0.9, 0.1]),
    ("bbse, where the run says none", "bbse", Config(), None, True, [0.75, 0.25]),
    ("bbse, with classes that weigh alike", "bbse", BALANCED, None, True, [0.5, 0.5]),
    ("shares of other classes", "em", Config(), [0.2, 0.3, 0.5], True, [0.75, 0.25]),
]


@pytest.mark.parametrize(("method", "config", "known", "given", "before"), [r[1:] for r in PRIORS],
                         ids=[r[0] for r in PRIORS])  # fmt: skip
def test_what_the_network_was_trained_with(method, config, known, given, before):
    labelled = sources.from_arrays(list("abcdefgh"), ["no"] * 6 + ["yes"] * 2, "file")
    sure = np.where(np.arange(8)[:, None] < 6, [[0.9, 0.1]], [[0.1, 0.9]])
    found = labelshift.estimate(method, PROBS, config, {} if known is None else {"class_shares": known}, ("no", "yes"),
                                labelled if given else None, lambda records: sure)  # fmt: skip
    assert found.before_C.tolist() == before
    if method == "em":
        after = shift.em(np.array(before), PROBS)
    else:
        after = shift.bbse(np.repeat([0, 1], [6, 2]), sure, PROBS) * [0.75, 0.25]
        assert after.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.after_C, after, rtol=1e-12)
    np.testing.assert_allclose(found.weights_C, after / before, rtol=1e-12)


def test_many_classes_are_told_by_those_that_moved():
    before, after = np.full(20, 0.05), np.full(20, 0.05)
    after[[3, 7]] = 0.10, 0.01
    told = labelshift.Shifted(before, after, after / before).told("em", tuple(f"c{i}" for i in range(20)))
    assert told.startswith("class shares of the input by em (of training): c3 0.100 (0.050), c7 0.010 (0.050), ")
    assert told.endswith(", and 12 more")


def test_a_run_that_does_not_say_its_shares(text_run, place, tmp_path):
    path = tiny.copied(text_run.path, tmp_path / "w")
    told = json.loads((path / "config.json").read_text())
    del told["resolved"]["class_shares"]
    (path / "config.json").write_text(json.dumps(told))
    source, output = str(place / "shifted.csv"), tmp_path / "out.csv"
    with pytest.raises(ConfigError, match="does not say the shares of the classes; expected --labelled=FILE"):
        predict.predict(path, source, output, label_shift="em")
    assert not output.exists()
    said: list[str] = []
    predict.predict(path, source, output, said.append, label_shift="em", labelled=str(place / "unseen.csv"))
    assert "(0.333)" in said[0]


def test_a_labelled_file_without_a_class(text_run, place, tmp_path):
    few = tiny.table(tmp_path / "few.csv", [row for row in tiny.texts(12, skip=200) if row[1] != "sky"])
    with pytest.raises(DataError, match=r"no validation rows of 1 of 3 classes.*\n.*sky"):
        predict.predict(text_run.path, str(place / "shifted.csv"), tmp_path / "out.csv", label_shift="bbse",
                        labelled=str(few))  # fmt: skip


FLAGS = [("--label_shift=magic", "'magic'; expected one of em, bbse"), ("--label_shift=bbse", "--labelled: empty"),
         ("--labelled=a.csv", "found without --label_shift")]  # fmt: skip


@pytest.mark.parametrize(("flag", "words"), FLAGS)
def test_flags_that_are_refused(text_run, place, tmp_path, capsys, flag, words):
    command = ["predict", f"--workdir={text_run.path}", f"--input={place / 'shifted.csv'}",
               f"--output={tmp_path / 'out.csv'}"]  # fmt: skip
    assert cli.main([*command, flag]) == 64
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command(text_run, place, tmp_path, capsys):
    command = ["predict", f"--workdir={text_run.path}", f"--input={place / 'shifted.csv'}",
               f"--output={tmp_path / 'out.csv'}", "--label_shift=bbse", f"--labelled={place}/unseen.csv"]  # fmt: skip
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("class shares of the input by bbse (of training): sky ")
    assert said.endswith(f"30 predictions in {tmp_path / 'out.csv'}\n")
