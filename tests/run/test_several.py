"""The file of what is finished: begun once, found again by the same settings alone, and never another's."""

import pytest

from tljax.config import Config, DataConfig, TrainConfig
from tljax.errors import ConfigError, WriteError
from tljax.run import several

CONFIG = Config(data=DataConfig(train="a.csv"))


def test_begun_written_and_found_again(tmp_path):
    file = tmp_path / "deep" / "verdict.json"
    told = several.begun(file, CONFIG, "verdict", ("runs",))
    assert told["runs"] == {}
    assert not file.exists()
    told["runs"]["one"] = {"score": 0.5}
    several.write(file, told)
    assert several.begun(file, CONFIG, "verdict", ("runs",)) == told
    assert several.read(file, "verdict", ("runs",)) == told
    assert several.read(tmp_path / "none.json", "verdict", ()) is None


@pytest.mark.parametrize(("config", "words"), [
    (Config(seed=3, data=DataConfig(train="a.csv")), "--config.seed: was 0, is 3"),
    (Config(data=DataConfig(train="a.csv"), train=TrainConfig(epochs=9)), "--config.train.epochs: was 3, is 9"),
    (Config(data=DataConfig(train="a.csv", threads=7)), ""),  # nothing depends on it
])  # fmt: skip
def test_other_settings(tmp_path, config, words):
    file = tmp_path / "verdict.json"
    several.write(file, several.begun(file, CONFIG, "verdict", ("runs",)))
    if not words:
        assert several.begun(file, config, "verdict", ("runs",))["runs"] == {}
        return
    with pytest.raises(ConfigError, match=r"belongs to a verdict with 1 other setting") as caught:
        several.begun(file, config, "verdict", ("runs",))
    assert caught.value.details == (words,)


@pytest.mark.parametrize(("text", "words"), [
    ("", "no JSON"), ("[]", "no verdict"), ('{"settings": {}}', "no verdict"),
    ('{"settings": {}, "runs": 3}', "no verdict"),
])  # fmt: skip
def test_files_of_something_else(tmp_path, text, words):
    (tmp_path / "verdict.json").write_text(text)
    with pytest.raises(WriteError, match=rf"{words}; expected what tljax verdict wrote"):
        several.read(tmp_path / "verdict.json", "verdict", ("runs",))


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for attempt in (several.begun, lambda *of: several.write(of[0], {})):
        with pytest.raises(WriteError):
            attempt(tmp_path / "file" / "verdict.json", CONFIG, "verdict", ("runs",))
