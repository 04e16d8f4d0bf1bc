"""report.html: one file that shows everything, fetches nothing, and cannot be made to run anything."""

import dataclasses
import os
import re

import numpy as np
import pytest
from pages import EVIL, read

from tljax.errors import WriteError
from tljax.evaluate import metrics, page, report

NAMES = ["billing", EVIL, "c"]
LABELS = np.array([0, 1, 0, 1], np.int32)
PROBS = np.array([[0.9, 0.1, 0], [0.95, 0.05, 0], [0.4, 0.6, 0], [0.1, 0.9, 0]], np.float32)


def example(**changes) -> report.Report:
    whole = report.Report(
        title=f"title {EVIL}", dataset=f"data {EVIL}", model=f"model {EVIL}", strategy=f"strategy {EVIL}",
        scores=metrics.classification(LABELS, PROBS, NAMES), split=f"test {EVIL}", freeze_table=f"a\nb {EVIL}",
        verdict=f"verdict {EVIL}", facts={EVIL: EVIL},
        history=[{"kind": "train", "step": 1, "loss": 2.0}, {"kind": "train", "step": 2, "loss": 1.0},
                 {"kind": "evaluation", "step": 2, "loss": 1.5, "accuracy": 0.51}],
        mistakes=report.confident_mistakes(LABELS, PROBS, NAMES, [EVIL] * 4, [f"{EVIL} row {i}" for i in range(4)]),
        config={EVIL: {"path": EVIL}}, versions={EVIL: EVIL}, warnings=[f"warning {EVIL}"],
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def test_no_text_becomes_markup():
    reader = read(report.render(example()))
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "link", "iframe", "object", "form", "base"}
    for tag, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/")
    assert reader.shown.count("<script>alert(1)</script>") >= 15  # shown as text wherever it was given


def test_nothing_is_fetched():
    document = report.render(example())
    assert "Content-Security-Policy" in document
    assert "default-src 'none'" in document
    assert not re.search(r"https?://|@import|url\(", document)


def test_it_says_everything():
    shown = read(report.render(example())).shown
    assert "validation accuracy from 0.510" in shown
    for words in ("title", "data <", "model <", "strategy <", "verdict", "warning", "0.500", "4 examples", "undefined",
                  "macro-F1", "row 1", "0.950", "1 classes have no example"):  # fmt: skip
        assert words in shown, words


def test_headline_is_the_chosen_metric():
    document = report.render(example(metric="macro_f1"))
    assert re.search(r"<div class=first><dt>macro-F1</dt>", document)


def test_pictures_have_a_description():
    images = [attributes for tag, attributes in read(report.render(example())).elements if tag == "img"]
    assert len(images) == 2  # learning curve and confusion matrix
    assert all(attributes["alt"] for attributes in images)


def test_without_anything_optional():
    bare = report.Report(title="t", dataset="d", model="m", strategy="full", scores=example().scores)
    shown = read(report.render(bare)).shown
    assert "Learning curve" not in shown
    assert "Warnings" not in shown


def test_of_no_examples():
    empty = metrics.classification(np.zeros(0, np.int32), np.zeros((0, 3)), NAMES)
    shown = read(report.render(example(scores=empty, mistakes=[]))).shown
    assert "0 examples" in shown
    assert "undefined" in shown


def test_many_classes_are_folded():
    names = [f"class {i:03d}" for i in range(150)]
    labels = np.arange(150, dtype=np.int32)
    scores = metrics.classification(labels, np.eye(150)[np.roll(labels, 1)], names)
    document = report.render(example(scores=scores))
    assert "The 20 with the lowest F1" in document
    assert "<details><summary>All 150 classes</summary>" in document


def test_confident_mistakes_are_sorted_and_limited():
    found = report.confident_mistakes(LABELS, PROBS, NAMES, ["w", "x", "y", "z"])
    assert [(m.where, m.shown, m.true, m.predicted) for m in found] == [
        ("example 1", "x", EVIL, "billing"),
        ("example 2", "y", "billing", EVIL),
    ]
    assert report.confident_mistakes(LABELS, PROBS, NAMES, ["w", "x", "y", "z"], most=1) == found[:1]


PICTURES = [(b"\x89PNG....", "image/png"), (b"\xff\xd8\xff....", "image/jpeg"), (b"<svg onload=x>", ""), (b"", "")]


@pytest.mark.parametrize(("data", "kind"), PICTURES)
def test_only_pictures_are_embedded(data, kind):
    made = page.picture(data, "a'b")
    assert made == "" if not kind else f"data:{kind};base64," in made


def test_write_is_whole_and_readable(tmp_path):
    path = tmp_path / "new" / "report.html"
    report.write(path, example())
    report.write(path, example(title="second"))
    assert "second" in path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == ["report.html"]  # no temporary file is left
    assert path.stat().st_mode & 0o444 == 0o444


def test_write_names_the_place_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"report\.html: cannot be written"):
        report.write(tmp_path / "file" / "report.html", example())


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="No space left on device"):
        report.write(path, example())
    assert os.listdir(tmp_path) == ["report.html"]
    assert path.read_text() == "old"
