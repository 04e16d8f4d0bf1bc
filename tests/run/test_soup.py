"""`tljax soup`: uniform and greedy by hand, chosen by validation, with a word on heads that were drawn apart."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from tljax import cli, trees
from tljax.data import sources
from tljax.errors import ConfigError, DataError, WriteError
from tljax.evaluate import metrics
from tljax.run import compare, inputs, predict, remade, soup
from tljax.run.soup import Soups
from tljax.run.workdir import read_config
from tljax.weights.load import load_pretrained

pytestmark = pytest.mark.usefixtures("compiled_once")
SEEDS, NAME, NEAR = 3, "full:optim.learning_rate=2e-3", "full:optim.learning_rate=5e-4"
SINGLE = [f"seed {seed}" for seed in range(SEEDS)]


@dataclasses.dataclass(frozen=True)
class Done:
    root: Path
    path: Path
    name: str
    text: str
    models: dict[str, trees.Flat]

    def told(self) -> dict:
        return json.loads((self.path / "compare.json").read_text())

    def rows(self) -> dict[str, list[float]]:
        """Of the table: model -> (validation, test)."""
        found = [line.rsplit(maxsplit=2) for line in self.text.splitlines()[1 : 1 + SEEDS + 3]]
        return {name.strip(): [float(first), float(second)] for name, first, second in found}


def finished(root: Path, name: str, **model) -> Done:
    config = tiny.text_config(root, train={"epochs": 3}, model=model)
    compare.compare(config, root / "w", name, SEEDS, say=lambda text: None)
    folder = root / "w" / compare.folder(name)
    models = {f"seed {seed}": trees.flatten(load_pretrained(str(folder / f"seed_{seed}" / "model")).params)
              for seed in range(SEEDS)}  # fmt: skip
    text = soup.soup(root / "w", name, root / "out", lambda text: None)
    return Done(root, root / "w", name, text, models)


@pytest.fixture(scope="module")
def apart(tmp_path_factory, compiled_once) -> Done:
    """Each seed draws its own head."""
    return finished(tmp_path_factory.mktemp("apart"), NAME)


@pytest.fixture(scope="module")
def together(tmp_path_factory, compiled_once) -> Done:
    """As the note of the others says: a run of the head alone, and all seeds from there."""
    root = tmp_path_factory.mktemp("together")
    tiny.run(root, root / "head", tiny.text_config(root, transfer={"strategy": "feature_extraction"}))
    return finished(root, NEAR, ref=str(root / "head"))


@pytest.fixture(params=["apart", "together"])
def done(request) -> Done:
    return request.getfixturevalue(request.param)


def accuracy(done: Done, flat: trees.Flat, split: str) -> float:
    """The network's own answers in one batch."""
    path = done.path / compare.folder(done.name) / "seed_0"
    model, (_, config) = load_pretrained(str(path / "model")), read_config(path)
    records = remade.held_out(config) if split == "validation" else sources.read_records(config.data.test, config.data,
                                                                                         "text")  # fmt: skip
    examples = inputs.make_examples(records, model, config, model.labels)
    batch = examples.gather(np.arange(len(examples)), int(examples.lengths.max()))
    probs = jax.nn.softmax(jax.jit(model.apply)(trees.unflatten(flat), batch).logits)
    return metrics.classification(examples.truth, np.asarray(probs), model.labels).accuracy


def mean(models: list[trees.Flat]) -> trees.Flat:
    return {path: np.mean([np.float64(model[path]) for model in models], axis=0).astype(np.float32)
            for path in models[0]}  # fmt: skip


def greedy(done: Done) -> list[str]:
    """Recipe 1 of the paper, by brute force."""
    own = {name: accuracy(done, flat, "validation") for name, flat in done.models.items()}
    first, *rest = sorted(own, key=lambda name: (-own[name], name))
    taken, best = [first], own[first]
    for name in rest:
        found = accuracy(done, mean([done.models[other] for other in (*taken, name)]), "validation")
        if found >= best:
            taken, best = [*taken, name], found
    return taken


def test_scores_are_those_of_the_means(done):
    rows, taken = done.rows(), greedy(done)
    assert list(rows) == [
        *SINGLE,
        f"mean of {SEEDS} single models",
        "uniform soup",
        f"greedy soup ({', '.join(taken)})",
    ]
    soups = {**done.models, "uniform soup": mean(list(done.models.values())),
             f"greedy soup ({', '.join(taken)})": mean([done.models[name] for name in taken])}  # fmt: skip
    for name, flat in soups.items():
        assert rows[name] == [round(accuracy(done, flat, split), 3) for split in ("validation", "test")], name
    for at, column in enumerate(("validation", "score")):
        told = [done.told()["runs"][f"{done.name}, {name}"][column] for name in SINGLE]
        assert [rows[name][at] for name in SINGLE] == [round(value, 3) for value in told]
        assert rows[f"mean of {SEEDS} single models"][at] == pytest.approx(np.mean(told), abs=6e-4)  # 3 decimals


def test_the_greedy_soup_is_left_as_a_model(done):
    taken, output = greedy(done), done.root / "out"
    scores, _ = predict.evaluate(output)
    assert round(scores.accuracy, 3) == done.rows()[f"greedy soup ({', '.join(taken)})"][1]
    made = trees.flatten(load_pretrained(str(output / "model")).params)
    for path, leaf in mean([done.models[name] for name in taken]).items():
        np.testing.assert_array_equal(made[path], leaf, err_msg=path)
    found, config = read_config(output)
    assert found["resolved"]["soup"] == {"comparison": str(done.path), "strategy": done.name, "models": taken}
    assert config.seed == int(taken[0].split()[1])
    assert f"the mean of {len(taken)} models that differ" in (output / "model" / "README.md").read_text()


def test_heads_that_were_drawn_apart_are_measured_and_named(apart):
    head, body = ([np.concatenate([np.ravel(x) for path, x in sorted(flat.items())
                                   if path.startswith("classifier") == part]).astype(np.float64)
                   for flat in apart.models.values()] for part in (True, False))  # fmt: skip
    near = [np.mean([(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(of) for b in of[:i]])
            for of in (head, body)]  # fmt: skip
    assert abs(near[0]) < 0.3 < 0.9 < near[1]
    assert f"cosine of two models' weights: {near[0]:.3f} in the head, {near[1]:.4f} below it" in apart.text
    rows = apart.rows()
    assert rows["uniform soup"][1] < rows[f"mean of {SEEDS} single models"][1]
    last = apart.text.splitlines()[-1]
    assert last.startswith("The uniform soup is below the mean single model by ")
    assert "each seed drew its own classifier/bias, classifier/kernel" in last


def test_from_one_head_the_seeds_stay_together(together):
    near = float(together.text.split("weights: ")[1].split(" in the head")[0])
    assert near > 0.99
    assert "drew its own" not in together.text
    assert len(greedy(together)) > 1


NOTES = [  # (accuracies of the uniform soup on test, whether the head is the checkpoint's, words)
    (0.5, False, "drew its own"), (0.5, True, "All seeds set out from the same weights"), (0.7, False, ""),
]  # fmt: skip


@pytest.mark.parametrize(("uniform", "own", "words"), NOTES)
def test_why_a_soup_is_worse(apart, uniform, own, words):
    path = apart.path / compare.folder(NAME) / "seed_0"
    model, config = remade.opened(path)
    config = tiny.changed(config, model={"ref": str(path)}) if own else config
    found = Soups({"a": (0.9, 0.6), "b": (0.9, 0.8)}, (0.9, uniform), (0.9, 0.8), ("b",))
    lines = soup._notes(found, config, model, apart.models)
    assert len(lines) == 1 + bool(words)
    assert words in lines[-1]
    assert not words or "by 20.0 points" in lines[-1]


def test_what_is_refused(apart, tmp_path):
    def changed(section: str, name: str, value: str | float) -> Path:
        """A copy whose runs say another setting."""
        path = tiny.copied(apart.path, tmp_path / name)
        for file in path.glob("*/*/config.json"):
            told = json.loads(file.read_text())
            told["config"][section][name] = value
            file.write_text(json.dumps(told))
        return path

    one = tiny.copied(apart.path, tmp_path / "one")
    told = apart.told()
    for seed in (1, 2):
        del told["runs"][f"{NAME}, seed {seed}"]["score"]
    (one / "compare.json").write_text(json.dumps(told))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "compare.json").write_text("[]")
    rows = [
        (apart.path, "head", ConfigError, f"--strategy: 'head'; expected one with two seeds or more, of {NAME}."),
        (one, NAME, ConfigError, "of which 1 seed is finished"),
        (changed("transfer", "strategy", "scratch"), NAME, ConfigError, "no weight in common to start from"),
        (apart.root / "out", NAME, DataError, "no compare.json"),
        (broken, NAME, WriteError, "no comparison"),
        (changed("data", "validation_fraction", 0.0), NAME, ConfigError, "held out no validation data to choose by"),
        (changed("data", "test", ""), NAME, DataError, "names no test data"),
    ]
    for path, strategy, kind, words in rows:
        with pytest.raises(kind) as caught:
            soup.soup(path, strategy, say=lambda text: None)
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="exists; expected a new folder"):
        soup.soup(apart.path, NAME, apart.root / "out")


def test_the_command(apart, tmp_path, capsys):
    command = ["soup", f"--workdir={apart.path}", f"--strategy={NAME}"]
    assert cli.main([*command, f"--output={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert apart.text in said
    assert said.endswith(f"model    {tmp_path}/out/model\n")
    assert cli.main(["soup", f"--workdir={apart.path}", "--strategy=head"]) == 64
    assert cli.main(["soup", f"--workdir={apart.path}"]) == 64
