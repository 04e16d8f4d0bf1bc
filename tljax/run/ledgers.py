"""From a config's event tables to histories: fields, derived fields, vocabulary, classes, and parts without leakage."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax.config import Config, EventsConfig
from tljax.data import derived, fields, ledger, parts
from tljax.data.events import EventExamples, Histories
from tljax.data.ledger import Ledger
from tljax.errors import ConfigError, DataError, WeightsError, printable
from tljax.models.events import number
from tljax.weights import hub

FILE = "events.json"  # the vocabulary, beside the weights
TAKEN = ("attention_mask", "position_ids")  # inputs of a network that are no fields
FROM_TIME = {"hour": derived.hour_of_day, "weekday": derived.day_of_week}


@dataclasses.dataclass(frozen=True)
class Read:
    """What a config's event tables hold.

    Attributes:
      splits: train, and validation and test where there are any.
      classes: names, in the order of the logits; none where nothing is classified.
      vocabulary: of the fields.
      fields: of config.json, which the data decides.
    """

    splits: dict[str, Histories]
    classes: tuple[str, ...]
    vocabulary: fields.Vocabulary
    fields: dict[str, Any]


def read(c: Config) -> Read:
    """Reads the tables, computes the fields, and checks that nothing of what is scored was known in training.

    Raises:
      ConfigError: columns that are not named, or contradict each other.
      DataError: see `ledger.read`; a part that is empty; training that ends later than `delay_days` before what is
        scored; a derived field that knows labels sooner than that.
    """
    _check(c, c.events, c.data.label_column)
    named = {"train": c.data.train, "validation": c.data.validation, "test": c.data.test}
    raw = {name: _part(c, source) for name, source in named.items() if source}
    if "validation" not in raw and c.data.validation_fraction:
        raw |= _held_out(c, raw["train"])
    for name in ("validation", "test"):
        if name in raw and c.events.time:
            _check_delay(c, raw["train"], raw[name], name)
    vocabulary = known(c.model.ref, c.model.revision) or _fitted(c, raw["train"])
    classes, labels = _classes(c, raw) if c.objective == "classes" else ((), {})
    splits = {name: Histories(part.source, part.table.ledger, part.asked, part.table.encoded(vocabulary),
                              labels.get(name)) for name, part in raw.items()}  # fmt: skip
    return Read(splits, classes, vocabulary, _fields(c, vocabulary))


def examples(own: Histories, model_config: Mapping[str, Any], c: Config, training: bool) -> EventExamples:
    """The windows of a part, as the network takes them."""
    kind = str(model_config["answers"])
    asked_for = {"next": tuple(model_config["foretold"]), "item": (str(model_config["item"]),)}.get(kind, ())
    drawn = None
    if training and c.objective == "classes" and own.labels is not None:
        drawn = _unit(own.ledger.rows, c.seed, 7) < c.events.labelled
        few = _unit(own.ledger.rows, c.seed, 8) < c.events.negatives
        drawn &= few | (own.labels != commonest(own))
    length = min(c.data.max_length, int(model_config["n_positions"]))
    made = EventExamples(own, kind, asked_for, length, min(c.events.context, length - 1), drawn)
    if not len(made):
        raise DataError(printable(own.name), f"{len(own)} events, and none that anything is asked about",
                        "at least one; what is foretold needs an event before it")  # fmt: skip
    return made


def commonest(own: Histories) -> int:
    """The class that most events of a labelled part have."""
    return int(np.bincount(own.labels[own.asked]).argmax()) if own.labels is not None else 0


def known(ref: str, revision: str) -> fields.Vocabulary | None:
    """The vocabulary that a checkpoint has; None where it has none."""
    file = Path(hub.resolve(ref, revision).folder) / FILE
    try:
        return fields.Vocabulary.from_json(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise WeightsError(str(file), f"cannot be read ({error.strerror})") from None


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """A file's events, and the values of their fields before any vocabulary."""

    ledger: Ledger
    values: dict[str, np.ndarray]

    def encoded(self, vocabulary: fields.Vocabulary) -> dict[str, np.ndarray]:
        made: dict[str, np.ndarray] = {}
        for field in vocabulary.fields:
            if field.name not in self.values:
                raise ConfigError("--config.events.fields", f"no field {field.name!r}", "all that the checkpoint has: "
                                  f"{', '.join(f.name for f in vocabulary.fields)}")  # fmt: skip
            ids, numbers = field.encode(self.values[field.name])
            made[field.name] = ids
            if numbers is not None:
                made[number(field.name)] = numbers
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    source: str
    table: _Table
    asked: np.ndarray


def _part(c: Config, source: str) -> _Part:
    path, _, text = source.partition("#")
    e = c.events
    label = c.data.label_column if c.objective == "classes" else ""
    named = tuple(e.columns.split("|")) if e.columns else ()
    table = _table(path, e.entity, e.time, named, _pairs(e.fields), _pairs(e.derived), label, c.data.encoding, e.recent)
    asked = parts.part_of(table.ledger, text, source)
    low, high = e.entities
    if (low, high) != (0.0, 1.0):
        asked &= parts.of_share(table.ledger, "entities", low, high)
    if not asked.any():
        raise DataError(printable(source), f"0 of {len(asked):,} events", "at least one",
                        "look at the part, and at --config.events.entities")  # fmt: skip
    return _Part(source, table, asked)


def _pairs(value: Any) -> Any:
    return tuple(map(tuple, value))


@functools.lru_cache(maxsize=4)
def _table(path: str, entity: str, time: str, named: tuple[str, ...], wanted: tuple[tuple[str, str], ...],
           computed: tuple[tuple[Any, ...], ...], label: str, encoding: str, recent: int) -> _Table:  # fmt: skip
    """A file, read once for all of its parts."""
    numbers = [name for name, kind in wanted if kind == "number"]
    numbers += [column for _, statistic, column, *_ in computed if statistic != "count"]
    columns = [name for name, kind in wanted if kind == "category"] + [key for _, _, _, key, *_ in computed]
    columns += [label] if label else []
    own = ledger.read(path, entity, time, list(named) or columns, numbers=numbers, encoding=encoding)
    values: dict[str, np.ndarray] = {}
    for name, kind in wanted:
        if kind == "delta":
            values[name] = derived.since_last(own.columns[entity], own.times)
        elif kind in FROM_TIME:
            values[name] = FROM_TIME[kind](own.times)
        else:
            values[name] = own.columns[name]
    for name, statistic, column, key, window, delay in computed:
        of = None if statistic == "count" else own.columns[column].astype(np.float64)
        values[name] = derived.rolling(own.columns[key], own.times, of, statistic, window * derived.DAY,
                                       delay * derived.DAY)  # fmt: skip
    if recent:
        own, keep = parts.latest(own, recent)
        values = {name: x[keep] for name, x in values.items()}
    return _Table(own, values)


def _held_out(c: Config, train: _Part) -> dict[str, _Part]:
    """A share of the entities for validation."""
    held = parts.of_share(train.table.ledger, f"validation {c.seed}", 0.0, c.data.validation_fraction)
    split = {"train": train.asked & ~held, "validation": train.asked & held}
    if not split["train"].any():
        raise DataError(printable(train.source), "no entity is left to train on", "one at least",
                        "lower --config.data.validation_fraction, or take another --config.seed")  # fmt: skip
    return {name: dataclasses.replace(train, asked=asked) for name, asked in split.items() if asked.any()}


def _unit(rows: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """A number from 0 to 1 for each event of a file, drawn by its row."""
    raw = np.random.Philox(np.random.SeedSequence([seed, purpose])).random_raw(int(rows.max()) + 1)
    return (raw[rows] >> np.uint64(11)) * 2.0**-53


def _fitted(c: Config, train: _Part) -> fields.Vocabulary:
    """The vocabulary of the training events; of the items, which are a catalogue, of all."""
    e, made = c.events, []
    kinds = dict(e.fields) | {name: "number" for name, *_ in e.derived}
    for name, kind in kinds.items():
        own = train.table.values[name]
        seen = own if name == e.item else own[train.asked]
        kind = "category" if kind in FROM_TIME else kind
        made.append(fields.fit(name, kind, seen, bins=e.bins, least=1 if name == e.item else e.least))
    return fields.Vocabulary(tuple(made))


def _fields(c: Config, vocabulary: fields.Vocabulary) -> dict[str, Any]:
    named = [name for name in c.events.foretold.split("|") if name]
    return {
        "fields": [[field.name, field.size, field.kind != "category"] for field in vocabulary.fields],
        "foretold": named or [field.name for field in vocabulary.fields],
        "answers": c.events.answers if c.objective == "classes" else c.objective,
        "item": c.events.item,
    }


def _classes(c: Config, raw: Mapping[str, _Part]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    column = c.data.label_column
    values = {name: part.table.ledger.columns[column] for name, part in raw.items()}
    for name, own in values.items():
        given = own[raw[name].asked]
        if lacks := int((given == "" if given.dtype.kind == "U" else np.isnan(given)).sum()):
            raise DataError(printable(raw[name].source), f"{lacks:,} of {len(given):,} labels are missing",
                            "one for each event", "leave such events out of the file")  # fmt: skip
    seen = np.unique(values["train"][raw["train"].asked])
    # a column that a field is computed from is read as numbers: its 1.0 is the 1 of the same column elsewhere
    whole = [int(value) if isinstance(value, float) and value.is_integer() else value for value in seen.tolist()]
    classes = tuple(map(str, whole))
    if len(classes) < 2:
        raise DataError(raw["train"].source, f"one class only ({classes[0]!r})", "at least two",
                        "look at --config.data.label_column")  # fmt: skip
    for name, own in values.items():
        if odd := sorted(set(np.unique(own[raw[name].asked]).tolist()) - set(seen.tolist())):
            raise DataError(raw[name].source, f"the class {odd[0]!r} is unknown",
                            f"one of the {len(classes)} classes of training")  # fmt: skip
    ids = {name: np.searchsorted(seen, own).clip(0, len(seen) - 1).astype(np.int32) for name, own in values.items()}
    return classes, ids


def _check(c: Config, e: EventsConfig, label: str) -> None:
    if not e.entity or not e.fields:
        raise ConfigError("--config.events", "no entity or no fields", "the columns of an event table: "
                          "--config.events.entity and .fields")  # fmt: skip
    names = [name for name, *_ in (*e.fields, *e.derived)]
    if odd := [name for name in names if not fields.NAME.fullmatch(name) or name in TAKEN]:
        raise ConfigError(
            "--config.events.fields", f"the name {odd[0]!r}", "letters, digits and _", "rename the column"
        )
    if len(set(names)) < len(names):
        raise ConfigError("--config.events.fields", "a name stands there twice", "each field once")
    categories = [name for name, kind in e.fields if kind == "category"]
    if (e.item or c.objective == "item") and e.item not in categories:
        raise ConfigError("--config.events.item", f"{e.item!r}", f"one of the categories {', '.join(categories)}")
    if odd := [name for name in e.foretold.split("|") if name and name not in names]:
        raise ConfigError("--config.events.foretold", f"{odd[0]!r}", f"some of the fields {', '.join(names)}")
    if c.objective == "classes" and label in dict(e.fields):
        raise ConfigError("--config.events.fields", f"{label!r} is the label", "what is known without it")
    if not e.time and (e.derived or {kind for _, kind in e.fields} & {"delta", "hour", "weekday"}):
        raise ConfigError("--config.events.time", "none, and fields that need it", "the column of the time")
    if leaks := [name for name, _, column, _, _, delay in e.derived if column == label and delay < e.delay_days]:
        raise ConfigError(f"--config.events.derived, {leaks[0]}", "knows labels sooner than --config.events.delay_days="
                          f"{e.delay_days:g}", "a delay as long as that")  # fmt: skip
    if leaks := [name for name, _, column, _, _, delay in e.derived if column == label and not delay]:
        raise ConfigError(f"--config.events.derived, {leaks[0]}", "counts the label of the event itself", "a delay")


def _check_delay(c: Config, train: _Part, later: _Part, name: str) -> None:
    if name == "validation" and not c.data.validation:
        return  # other entities, at the same time
    ends = float(train.table.ledger.times[train.asked].max())
    begins = float(later.table.ledger.times[later.asked].min())
    gap = (begins - ends) / derived.DAY
    part = later.source.partition("#")[2]
    by_place = ":" in part and ".." not in part
    if gap < c.events.delay_days and not by_place:
        raise DataError(printable(later.source), f"{name} begins {gap:.2f} days after training ends",
                        f"at least --config.events.delay_days={c.events.delay_days:g}: until then its labels are not "
                        "known", "a later part, or an earlier one to train on")  # fmt: skip
