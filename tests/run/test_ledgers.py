"""Event tables of a config: what training may know, what is refused, and in which words."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from tljax.config import Config, DataConfig, EventsConfig, ModelConfig
from tljax.data import derived
from tljax.data.derived import DAY
from tljax.data.fields import Vocabulary
from tljax.errors import ConfigError, DataError, TljaxError, WeightsError
from tljax.run import ledgers

HEADER = ("card", "time", "shop", "amount", "fraud")
FIELDS = (("shop", "category"), ("amount", "number"), ("gap", "delta"), ("hour", "hour"), ("weekday", "weekday"))
RISK = ("risk", "mean", "fraud", "shop", 5.0, 3.0)
COUNT = ("often", "count", "", "card", 2.0, 0.0)
ARCHITECTURE = {"model_type": "tljax_events", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16}


def rows(cards: int = 12, days: int = 30, seed: int = 0) -> list[list[Any]]:
    """An event of every card on most days, in the order of time."""
    rng = np.random.default_rng(seed)
    made = [[f"c{card}", day * DAY + rng.integers(0, DAY), f"s{rng.integers(6)}", round(rng.exponential(20), 2),
             int(rng.random() < 0.2)]
            for card in range(cards) for day in range(days) if rng.random() < 0.8]  # fmt: skip
    return sorted(made, key=lambda row: row[1])


def config(root: Path, table: list[list[Any]] | None = None, header: tuple[str, ...] = HEADER,
           **changes: Any) -> Config:  # fmt: skip
    """Trained on days 0 to 9, tested from day 14 on; `changes` by section."""
    tiny.table(root / "events.csv", rows() if table is None else table, header)
    (root / "network").mkdir(exist_ok=True)
    (root / "network" / "config.json").write_text(json.dumps(ARCHITECTURE))
    made = Config(
        task="events",
        model=ModelConfig(ref=str(root / "network")),
        data=DataConfig(train=f"{root}/events.csv#..10", test=f"{root}/events.csv#14..", validation_fraction=0.0,
                        label_column="fraud", max_length=12),
        events=EventsConfig(entity="card", time="time", fields=FIELDS, derived=(RISK, COUNT), delay_days=3.0,
                            context=4),
    )  # fmt: skip
    return tiny.changed(made, **changes)


@pytest.fixture(autouse=True)
def read_anew():
    """Tables are read once in a process; a test that writes other ones to the same place has to see them."""
    ledgers._table.cache_clear()


def seen(found: ledgers.Read, c: Config, split: str = "train") -> dict[str, Any]:
    """All that training sees: inputs, labels and weights of every window."""
    own = ledgers.examples(found.splits[split], {**ARCHITECTURE, **found.fields}, c, split == "train")
    at, length = np.arange(len(own)), int(own.lengths.max())
    labels, weights = own.targets(at, length)
    return {**own.gather(at, length), "labels": labels, "weights": weights}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_what_a_config_comes_to(tmp_path):
    c = config(tmp_path)
    found = ledgers.read(c)
    assert found.classes == ("0", "1")
    assert [field.name for field in found.vocabulary.fields] == [
        "shop",
        "amount",
        "gap",
        "hour",
        "weekday",
        "risk",
        "often",
    ]
    kinds = {name: (size, numeric) for name, size, numeric in found.fields["fields"]}
    assert kinds["shop"] == (2 + 6, False)
    assert kinds["weekday"] == (2 + 7, False)
    assert kinds["amount"][1]
    assert kinds["gap"][1]
    assert kinds["risk"][1]
    assert found.fields["foretold"] == [field.name for field in found.vocabulary.fields]
    assert (found.fields["answers"], found.fields["item"]) == ("each", "")
    train, test = found.splits["train"], found.splits["test"]
    assert train.ledger is test.ledger  # read once
    assert (train.ledger.times[train.asked] < 10 * DAY).all()
    assert (test.ledger.times[test.asked] >= 14 * DAY).all()
    assert train.asked.sum() + test.asked.sum() < len(train.ledger)
    columns = set(train.columns)
    assert columns == {*kinds, *(f"{name}.number" for name, (_, numeric) in kinds.items() if numeric)}
    own = train.ledger
    assert train.labels.tolist() == own.columns["fraud"].tolist()
    risk = derived.rolling(own.columns["shop"], own.times, own.columns["fraud"].astype(float), "mean", 5 * DAY, 3 * DAY)
    ids, _ = found.vocabulary.fields[5].encode(risk)
    assert train.columns["risk"].tolist() == ids.tolist()
    weekday = derived.day_of_week(own.times).astype(str)
    names = np.array(["", "", *found.vocabulary.fields[4].values])
    assert names[train.columns["weekday"]].tolist() == weekday.tolist()


CHANGED = [
    ("another shop", 2, "elsewhere"),
    ("a large amount", 3, 1e9),
    ("an empty amount", 3, ""),
    ("another label", 4, None),
]


@pytest.mark.parametrize(("column", "value"), [row[1:] for row in CHANGED], ids=[row[0] for row in CHANGED])
def test_nothing_after_training_changes_what_is_learned(tmp_path, column, value):
    """Whatever is written in the events from day 10 on: vocabulary, inputs, labels and classes are the same."""
    table = rows()
    c = config(tmp_path / "a", table)
    one = ledgers.read(c)
    for row in table:
        if row[1] >= 10 * DAY:
            row[column] = 1 - row[4] if value is None else value
    d = config(tmp_path / "b", table)
    other = ledgers.read(d)
    assert one.vocabulary == other.vocabulary
    assert (one.classes, one.fields) == (other.classes, other.fields)
    assert equal(seen(one, c), seen(other, d))
    assert not equal(seen(one, c, "test"), seen(other, d, "test"))


def test_events_after_training_are_not_needed_to_learn(tmp_path):
    table = rows()
    c = config(tmp_path / "a", table)
    d = config(tmp_path / "b", [row for row in table if row[1] < 10 * DAY], data={"test": ""})
    assert ledgers.read(c).vocabulary == ledgers.read(d).vocabulary
    assert equal(seen(ledgers.read(c), c), seen(ledgers.read(d), d))


def test_a_value_that_training_has_not_is_unknown_and_so_is_a_missing_one(tmp_path):
    table = rows()
    late = [row for row in table if row[1] >= 14 * DAY]
    late[0][2], late[1][2] = "elsewhere", ""
    found = ledgers.read(config(tmp_path, table))
    own = found.splits["test"]
    odd = np.isin(own.ledger.columns["shop"], ["elsewhere", ""])
    assert odd.sum() == 2
    assert set(own.columns["shop"][odd].tolist()) == {1}
    assert 1 not in own.columns["shop"][~odd]


def test_items_are_a_catalogue(tmp_path):
    """Every item of the file has an id, however rare it is and whenever it comes; the other fields are of training."""
    table = rows()
    late = [row for row in table if row[1] >= 14 * DAY]
    late[0][2] = "elsewhere"
    changes = {"objective": "item", "events": {"fields": (*FIELDS, ("card", "category")), "item": "shop", "least": 5}}
    found = ledgers.read(config(tmp_path, table, **changes))
    shop, card = found.vocabulary.fields[0], found.vocabulary.fields[5]
    assert set(shop.values) == {*(f"s{i}" for i in range(6)), "elsewhere"}
    assert card.name == "card"
    assert found.classes == ()
    assert found.fields["item"] == "shop"
    assert found.fields["answers"] == "item"
    plain = ledgers.read(config(tmp_path, table, **{**changes, "objective": "next"}))
    assert "elsewhere" in plain.vocabulary.fields[0].values  # a catalogue in pretraining too


def test_rare_values_have_no_id_of_their_own(tmp_path):
    table = rows()
    table[0][2] = "rare"
    assert "rare" in ledgers.read(config(tmp_path, table)).vocabulary.fields[0].values
    ledgers._table.cache_clear()
    assert "rare" not in ledgers.read(config(tmp_path, table, events={"least": 2})).vocabulary.fields[0].values


DELAYS = [
    # part of the test, delay in days, whether it is enough: training ends within day 9
    ("14..", 4.0, True),
    ("14..", 5.5, False),
    ("10..", 0.0, True),
    ("10..", 1.5, False),
    ("5..", 0.0, False),
]


@pytest.mark.parametrize(("part", "delay", "fits"), DELAYS)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_delay_until_labels_are_known(tmp_path, part, delay, fits, split):
    c = config(tmp_path, data={"test": "", split: f"{tmp_path}/events.csv#{part}"},
               events={"delay_days": delay, "derived": (COUNT,)})  # fmt: skip
    if fits:
        assert split in ledgers.read(c).splits
        return
    with pytest.raises(DataError) as caught:
        ledgers.read(c)
    assert caught.value.where == f"{tmp_path}/events.csv#{part}"
    said = str(caught.value)
    assert f"{split} begins " in said
    assert f"days after training ends; expected at least --config.events.delay_days={delay:g}" in said


REFUSED: list[tuple[str, dict[str, Any], type[TljaxError], str]] = [
    ("no entity", {"events": {"entity": ""}}, ConfigError, "no entity or no fields"),
    ("no fields", {"events": {"fields": ()}}, ConfigError, "no entity or no fields"),
    ("a name with a dot", {"events": {"fields": (("a.b", "category"),)}}, ConfigError, "the name 'a.b'"),
    ("a name of the network's own", {"events": {"fields": (("attention_mask", "category"),)}}, ConfigError,
     "the name 'attention_mask'"),
    ("a computed name with a space", {"events": {"derived": (("a b", *COUNT[1:]),)}}, ConfigError, "the name 'a b'"),
    ("a name twice", {"events": {"fields": (*FIELDS, ("shop", "number"))}}, ConfigError, "a name stands there twice"),
    ("a computed name twice", {"events": {"derived": (COUNT, COUNT)}}, ConfigError, "a name stands there twice"),
    ("an item that is no field", {"events": {"item": "fraud"}}, ConfigError, "--config.events.item: 'fraud'"),
    ("no item", {"objective": "item"}, ConfigError, "--config.events.item"),
    ("an item that is a number", {"objective": "item", "events": {"item": "amount"}}, ConfigError,
     "--config.events.item"),
    ("what is foretold is no field", {"objective": "next", "events": {"foretold": "shop|shops"}}, ConfigError,
     "--config.events.foretold"),
    ("hours without a time", {"events": {"time": "", "derived": ()}}, ConfigError, "--config.events.time: none, and"),
    ("windows without a time", {"events": {"time": "", "fields": FIELDS[:2]}}, ConfigError,
     "--config.events.time: none, and"),
    ("labels that are known at once", {"events": {"derived": ((*RISK[:5], 2.9),)}}, ConfigError,
     "--config.events.derived, risk: knows labels sooner than --config.events.delay_days=3"),
    ("the event's own label, counted", {"events": {"derived": ((*RISK[:5], 0.0),), "delay_days": 0.0}}, ConfigError,
     "--config.events.derived, risk: counts the label of the event itself"),
    ("the event's own label, as it is", {"events": {"fields": (*FIELDS, ("fraud", "category"))}}, ConfigError,
     "--config.events.fields: 'fraud' is the label"),
    ("no such column", {"events": {"fields": (("shops", "category"),)}}, DataError, "did you mean 'shop'"),
    ("no such label", {"data": {"label_column": "frauds"}, "events": {"derived": ()}}, DataError,
     "did you mean 'fraud'"),
    ("text for a number", {"events": {"fields": (("shop", "number"),)}}, DataError, "expected a number"),
    ("no event in a part", {"data": {"train": "{file}#..0"}}, DataError, "0 of"),
    ("no entity in a share", {"events": {"entities": (0.0, 1e-9)}}, DataError, "--config.events.entities"),
    ("no part at all", {"data": {"train": "{file}#ten"}}, DataError, "the part 'ten' is none"),
    ("no second event of anyone", {"data": {"train": "{file}#0..1"}}, DataError, "field 'gap': found no number"),
    ("one class", {"data": {"train": "{file}#0..2"}}, DataError, "one class only"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(tmp_path, changes, kind, words):
    made = {section: {name: value.replace("{file}", f"{tmp_path}/events.csv") if isinstance(value, str) else value
                      for name, value in values.items()} if isinstance(values, dict) else values
            for section, values in changes.items()}  # fmt: skip
    table = [[*row[:4], row[4] if row[1] >= 2 * DAY else 0] for row in rows()]
    with pytest.raises(kind) as caught:
        ledgers.read(config(tmp_path, table, **made))
    assert words in str(caught.value)


def test_a_label_as_a_field_is_no_leak_where_no_label_is_learned(tmp_path):
    c = config(tmp_path, objective="next", events={"fields": (*FIELDS, ("fraud", "category"))})
    assert "fraud" in ledgers.read(c).fields["foretold"]


def test_a_class_that_training_has_not(tmp_path):
    table = rows()
    next(row for row in table if row[1] >= 14 * DAY)[4] = 7
    with pytest.raises(DataError, match=r"the class '?7'? is unknown; expected one of the 2 classes of training"):
        ledgers.read(config(tmp_path, table, events={"derived": ()}))
    ledgers._table.cache_clear()
    table = rows()
    next(row for row in table if 10 * DAY <= row[1] < 14 * DAY)[4] = 7  # of what is neither learned nor scored
    assert ledgers.read(config(tmp_path, table, events={"derived": ()})).classes == ("0", "1")


@pytest.mark.parametrize("day", [2, 15])
def test_a_label_that_is_missing(tmp_path, day):
    table = rows()
    next(row for row in table if row[1] >= day * DAY)[4] = ""
    with pytest.raises(DataError, match=r"1 of [0-9]+ labels are missing"):
        ledgers.read(config(tmp_path, table, events={"derived": ()}))


def test_the_fields_of_a_checkpoint_are_all_needed(tmp_path):
    c = config(tmp_path)
    (tmp_path / "network" / ledgers.FILE).write_text(ledgers.read(c).vocabulary.to_json())
    fewer = tiny.changed(c, events={"fields": FIELDS[1:]})
    with pytest.raises(ConfigError, match="no field 'shop'; expected all that the checkpoint has: shop, amount, gap"):
        ledgers.read(fewer)


def test_the_vocabulary_of_a_checkpoint_is_used_as_it_is(tmp_path):
    """Not fitted anew to the training events of the next run, which may be few."""
    c = config(tmp_path)
    known = ledgers.read(c).vocabulary
    (tmp_path / "network" / ledgers.FILE).write_text(known.to_json())
    later = tiny.changed(c, data={"train": f"{tmp_path}/events.csv#14..16", "test": f"{tmp_path}/events.csv#20.."},
                         events={"bins": 4, "least": 3})  # fmt: skip
    found = ledgers.read(later)
    assert found.vocabulary == known
    assert found.fields == ledgers.read(c).fields
    assert equal(dict(found.splits["test"].columns), dict(ledgers.read(c).splits["test"].columns))
    (tmp_path / "network" / ledgers.FILE).unlink()
    assert ledgers.read(later).vocabulary != known


@pytest.mark.parametrize("text", ["{", "[]", '{"fields": [{"name": "a"}]}'])
def test_a_vocabulary_that_cannot_be_read(tmp_path, text):
    c = config(tmp_path)
    (tmp_path / "network" / ledgers.FILE).write_text(text)
    with pytest.raises(WeightsError, match=r"events\.json: cannot be read as a vocabulary"):
        ledgers.read(c)


def test_another_order_of_fields_makes_no_difference_to_a_checkpoint(tmp_path):
    c = config(tmp_path)
    known = ledgers.read(c)
    (tmp_path / "network" / ledgers.FILE).write_text(known.vocabulary.to_json())
    other = ledgers.read(tiny.changed(c, events={"fields": FIELDS[::-1]}))
    assert other.fields["fields"] == known.fields["fields"]
    assert equal(dict(other.splits["train"].columns), dict(known.splits["train"].columns))


def asked_of(found: ledgers.Read, split: str) -> set[str]:
    own = found.splits[split]
    return set(own.ledger.columns["card"][own.asked].tolist())


def test_held_out_entities(tmp_path):
    """By name and seed: none is in both, all are in one, and what is fitted does not see them."""
    table = rows(cards=60)
    for row in table:
        row[2] = f"s of {row[0]}"  # a shop for each card
    held = []
    for seed in range(4):
        c = config(tmp_path, table, data={"validation_fraction": 0.3}, seed=seed)
        found = ledgers.read(c)
        train, validation = asked_of(found, "train"), asked_of(found, "validation")
        assert not train & validation
        assert train | validation == {row[0] for row in table if row[1] < 10 * DAY}
        assert 6 <= len(validation) <= 30  # 18 expected, deviation 3.5
        assert set(found.vocabulary.fields[0].values) == {f"s of {card}" for card in train}
        assert (found.splits["validation"].ledger.times[found.splits["validation"].asked] < 10 * DAY).all()
        assert asked_of(found, "test") == {row[0] for row in table if row[1] >= 14 * DAY}
        held.append(frozenset(validation))
        assert frozenset(asked_of(ledgers.read(c), "validation")) == held[-1]
    assert len(set(held)) == 4


def test_a_share_held_out_that_leaves_none(tmp_path):
    """With one card, that is in the share or not."""
    outcomes = set()
    for seed in range(12):
        c = config(tmp_path, rows(cards=1, days=60), data={"validation_fraction": 0.5, "test": ""}, seed=seed,
                   events={"derived": ()})  # fmt: skip
        try:
            outcomes.add(frozenset(ledgers.read(c).splits))
        except DataError as error:
            outcomes.add(frozenset({error.found}))
    assert outcomes == {frozenset({"train"}), frozenset({"no entity is left to train on"})}  # never both of the same


def test_shares_of_the_entities(tmp_path):
    table = rows(cards=60)
    parts = []
    for low, high in ((0.0, 0.25), (0.25, 0.5), (0.5, 1.0)):
        found = ledgers.read(config(tmp_path, table, events={"entities": (low, high)}))
        parts.append(asked_of(found, "train"))
    assert set.union(*parts) == {row[0] for row in table if row[1] < 10 * DAY}
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert all(parts)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_share_of_the_labels(tmp_path, share):
    c = config(tmp_path, rows(cards=60), events={"labelled": share})
    found, whole = ledgers.read(c), tiny.changed(c, events={"labelled": 1.0})
    weights = seen(found, c)["weights"]
    everything = seen(found, whole)["weights"]
    n = everything.sum()
    assert abs(weights.sum() - share * n) < 5 * np.sqrt(n * share * (1 - share))
    assert seen(found, c)["weights"].tolist() == weights.tolist()
    other = seen(found, dataclasses.replace(c, seed=1))
    assert other["weights"].shape != weights.shape or other["weights"].tolist() != weights.tolist()
    assert equal(seen(found, c, "test"), seen(found, whole, "test"))  # what is scored is scored whole
    unlabelled = dataclasses.replace(c, objective="next")
    of_next = ledgers.read(unlabelled)
    assert equal(seen(of_next, unlabelled), seen(of_next, dataclasses.replace(whole, objective="next")))


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_share_of_the_negatives(tmp_path, share):
    c = config(tmp_path, rows(cards=60), events={"negatives": share})
    found = ledgers.read(c)
    own = found.splits["train"]

    def made(c, training=True):
        return ledgers.examples(own, {**ARCHITECTURE, **found.fields}, c, training)

    whole, few, scored = made(tiny.changed(c, events={"negatives": 1.0})), made(c), made(c, False)
    common = ledgers.commonest(own)
    assert common == np.bincount(whole.truth).argmax()
    assert (few.truth != common).sum() == (whole.truth != common).sum() > 0
    assert set(few.places) < set(whole.places) == set(scored.places)
    n = (whole.truth == common).sum()
    assert abs((few.truth == common).sum() - share * n) < 5 * np.sqrt(n * share * (1 - share))
    assert made(dataclasses.replace(c, seed=1)).places.tolist() != few.places.tolist()


def test_a_larger_share_of_the_labels_holds_the_smaller(tmp_path):
    c = config(tmp_path)
    found = ledgers.read(c)

    def places(share: float) -> set[int]:
        return set(ledgers.examples(found.splits["train"], {**ARCHITECTURE, **found.fields},
                                    tiny.changed(c, events={"labelled": share}), True).places.tolist())  # fmt: skip

    assert places(0.2) < places(0.5) < places(1.0)


def test_nothing_that_is_asked_about(tmp_path):
    """The first event of each card has none before it, from which it could be foretold."""
    table = [[f"c{i}", i * 100.0, "s", 1.0, i % 2] for i in range(20)]
    c = config(tmp_path, table, objective="next", data={"test": ""}, events={"derived": (), "fields": FIELDS[:2]})
    found = ledgers.read(c)
    with pytest.raises(DataError, match="20 events, and none that anything is asked about"):
        ledgers.examples(found.splits["train"], {**ARCHITECTURE, **found.fields}, c, True)


@pytest.mark.parametrize(("most", "places", "length"), [(12, 16, 12), (100, 16, 16)])
def test_windows_fit_the_network(tmp_path, most, places, length):
    c = config(tmp_path, data={"max_length": most}, events={"context": 50})
    found = ledgers.read(c)
    own = ledgers.examples(found.splits["test"], {**ARCHITECTURE, **found.fields, "n_positions": places}, c, False)
    assert own.lengths.max() == length


def test_the_latest_events_alone(tmp_path):
    """Fields are computed before the others are left out: their windows reach back as far as ever."""
    c = config(tmp_path, data={"train": f"{tmp_path}/events.csv#:-1", "test": f"{tmp_path}/events.csv#-1:"})
    (tmp_path / "network" / ledgers.FILE).write_text(ledgers.read(c).vocabulary.to_json())
    whole, cut = (ledgers.read(tiny.changed(c, events={"recent": most})).splits["test"] for most in (0, 5))
    assert np.diff(cut.ledger.offsets).tolist() == [5] * 12
    assert cut.asked.sum() == whole.asked.sum() == 12
    keep = np.isin(whole.ledger.rows, cut.ledger.rows)
    assert equal({name: value[keep] for name, value in whole.columns.items()}, dict(cut.columns))


def jsonl(path: Path, table: list[list[Any]]) -> None:
    lines = [{name: float(cell) if name == "time" else cell for name, cell in zip(HEADER, row, strict=True)}
             for row in table]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def npz(path: Path, table: list[list[Any]]) -> None:
    columns = zip(HEADER, zip(*table, strict=True), strict=True)
    np.savez(path, **{name: np.array(column) for name, column in columns})


FILES = {"csv": lambda path, table: tiny.table(path, table, HEADER), "npz": npz, "jsonl": jsonl}


@pytest.mark.parametrize("kind", FILES)
def test_kinds_of_files(tmp_path, kind):
    c = config(tmp_path)
    expected = ledgers.read(c)
    FILES[kind](tmp_path / f"other.{kind}", rows())
    other = tiny.changed(c, data={"train": f"{tmp_path}/other.{kind}#..10", "test": f"{tmp_path}/other.{kind}#14.."})
    found = ledgers.read(other)
    assert (found.vocabulary, found.classes) == (expected.vocabulary, expected.classes)
    for split in ("train", "test"):
        assert equal(seen(found, other, split), seen(expected, c, split))


def test_dates_are_times(tmp_path):
    table = rows()
    c = config(tmp_path / "a", table)
    for row in table:
        row[1] = f"{np.datetime64(0, 's') + np.timedelta64(int(row[1]), 's')}Z"
    d = config(tmp_path / "b", table, data={"train": f"{tmp_path}/b/events.csv#..1970-01-11",
                                            "test": f"{tmp_path}/b/events.csv#1970-01-15T00:00.."})  # fmt: skip
    assert ledgers.read(c).vocabulary == ledgers.read(d).vocabulary
    assert equal(seen(ledgers.read(c), c), seen(ledgers.read(d), d))


def test_a_file_without_a_header(tmp_path):
    table = [[row[0], int(row[1]), row[2], row[3], row[4]] for row in rows()]
    c = config(tmp_path, table)
    (tmp_path / "plain.txt").write_text("".join(" ".join(map(str, row)) + "\n" for row in table))
    other = tiny.changed(c, data={"train": f"{tmp_path}/plain.txt#..10", "test": f"{tmp_path}/plain.txt#14.."},
                         events={"columns": "|".join(HEADER)})  # fmt: skip
    assert ledgers.read(other).vocabulary == ledgers.read(c).vocabulary
    assert equal(seen(ledgers.read(other), other), seen(ledgers.read(c), c))


def test_files_of_their_own(tmp_path):
    table = rows()
    c = config(tmp_path, table)
    tiny.table(tmp_path / "late.csv", [row for row in table if row[1] >= 14 * DAY], HEADER)
    found = ledgers.read(tiny.changed(c, data={"test": f"{tmp_path}/late.csv"}))
    assert found.splits["test"].asked.all()
    assert found.vocabulary == ledgers.read(c).vocabulary


def test_a_vocabulary_goes_to_json_and_back(tmp_path):
    found = ledgers.read(config(tmp_path)).vocabulary
    assert Vocabulary.from_json(found.to_json(), "") == found
