"""How far two sources are apart, by a checkpoint's features: the distance of the vectors that its head reads."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from tljax import cli
from tljax.config import DataConfig
from tljax.data import sources
from tljax.errors import DataError, WeightsError
from tljax.run import apart, inputs
from tljax.transfer import distance
from tljax.weights.load import load_pretrained


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """bert/, vit/, two halves of some texts, and texts of another kind; photos and other ones."""
    root = tmp_path_factory.mktemp("apart")
    tiny.checkpoint(root / "bert", "bert")
    tiny.checkpoint(root / "vit", "vit")
    for name, skip in (("one", 0), ("other", 60)):
        tiny.table(root / f"{name}.csv", tiny.texts(60, skip))
    tiny.table(root / "sky.csv", [row for row in tiny.texts(150) if row[1] == "sky"], ("message", "topic"))
    tiny.photos(root / "photos", 8)
    return root


def vectors(place: Path, name: str) -> np.ndarray:
    model = load_pretrained(str(place / "bert"))
    data = DataConfig(text_column="message" if name == "sky" else "text")
    records = sources.read_records(str(place / f"{name}.csv"), data, "text", labelled=False)
    examples = inputs.make_examples(records, model, apart.Config(data=data), None)
    batch = examples.gather(np.arange(len(examples)), int(examples.lengths.max()))
    return np.asarray(model.backbone.run(model.params, batch, 0, len(model.backbone.stages) - 1)["pooled"])


def numbers(text: str) -> list[float]:
    """Proxy A-distance, MMD²."""
    return [float(text.split(word)[1].split()[0]) for word in ("proxy A-distance ", "MMD² ")]


def test_it_is_the_distance_of_what_the_head_reads(place):
    told = apart.apart(str(place / "bert"), str(place / "one.csv"), str(place / "other.csv"))
    assert told.startswith(f"distance of domains at pooler, 60 of {place}/one.csv and 60 of {place}/other.csv: ")
    # Of all rows in another order: drawn anew, the halves of the classifier are others, and MMD is the same.
    want = distance.mmd(vectors(place, "one"), vectors(place, "other"))[0]
    assert numbers(told)[1] == pytest.approx(want, rel=0.02)  # two digits


def test_near_is_near_and_far_is_far(place):
    near = apart.apart(str(place / "bert"), str(place / "one.csv"), str(place / "other.csv"))
    same = apart.apart(str(place / "bert"), str(place / "one.csv"), str(place / "one.csv"))
    warm = tiny.COLOURS | {"red": (240, 180, 60)}
    photos = place / "other"
    if not photos.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tiny, "COLOURS", {name: (r, 255 - g, b) for name, (r, g, b) in warm.items()})
            tiny.photos(photos, 8, 3)
    far = apart.apart(str(place / "vit"), str(place / "photos"), str(photos))
    assert numbers(same)[1] < 1e-3
    assert numbers(near)[0] < 1.0 < 1.6 < numbers(far)[0]
    assert "almost always" in far
    assert "p < 0.01" in far


def test_columns_and_how_many_are_drawn(place):
    said: list[str] = []
    told = apart.apart(str(place / "bert"), str(place / "sky.csv"), str(place / "sky.csv"),
                       DataConfig(text_column="message"), most=20, say=said.append)  # fmt: skip
    assert f"20 of {place}/sky.csv and 20 of {place}/sky.csv" in told
    assert said == []


def test_what_is_refused(place, tmp_path):
    few = tiny.table(tmp_path / "few.csv", tiny.texts(9))
    rows = [(place / "bert", few, DataError, "9 rows; expected at least 10"),
            (place / "bert", tmp_path / "none.csv", DataError, "there is no such file"),
            (place / "bert", place / "sky.csv", DataError, "no column 'text'"),
            (place / "nothing", few, WeightsError, "nothing")]  # fmt: skip
    for ref, target, kind, words in rows:
        with pytest.raises(kind, match=words):
            apart.apart(str(ref), str(place / "one.csv"), str(target))


def test_the_line_stands_under_the_rest_of_show(place, capsys):
    command = ["show", f"{place / 'bert'}"]
    assert cli.main(command) == 0
    plain = capsys.readouterr().out
    domains = [f"--source={place / 'sky.csv'}", f"--target={place / 'sky.csv'}", "--text_column=message"]
    assert cli.main([*command, *domains]) == 0
    said = capsys.readouterr().out
    assert said.startswith(plain)
    assert said.removeprefix(plain).startswith("\ndistance of domains at pooler, 50 of ")
    assert said.count("\n") == plain.count("\n") + 2
    for flags in (domains[:1], domains[1:2]):
        assert cli.main([*command, *flags]) == 64
        assert "one of --source and --target alone" in capsys.readouterr().err
    assert cli.main(["show", *domains]) == 64
    assert "no checkpoint" in capsys.readouterr().err
