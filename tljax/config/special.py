"""The parts of a config for one kind of work: sequences of events, continued pretraining, domain adaptation."""

import dataclasses
from typing import Any

from tljax.checks import number, one_of, setting

KINDS = ("category", "number", "delta", "hour", "weekday")
STATISTICS = ("count", "sum", "mean")
METHODS = ("none", "coral", "mmd", "dann", "cdan", "adda")


def fields(value: Any) -> str:
    """(column, kind) pairs."""
    fits = all(isinstance(v, tuple | list) and len(v) == 2 and isinstance(v[0], str) and v[1] in KINDS for v in value)
    return "" if fits else f"pairs of a column and its kind, {', '.join(KINDS)}"


def derived(value: Any) -> str:
    """(name, statistic, column, key, window, delay) of each field that is computed."""
    fits = all(isinstance(v, tuple | list) and len(v) == 6 and v[1] in STATISTICS
               and all(isinstance(x, str) for x in v[:4]) and all(isinstance(x, int | float) for x in v[4:])
               and v[4] > 0 and v[5] >= 0 for v in value)  # fmt: skip
    return "" if fits else f"(name, {' | '.join(STATISTICS)}, column, key column, window in days, delay in days) each"


def share(value: Any) -> str:
    """A part of the whole, from and to."""
    fits = len(value) == 2 and all(isinstance(x, int | float) for x in value) and 0 <= value[0] < value[1] <= 1
    return "" if fits else "0 <= from < to <= 1"


@dataclasses.dataclass
class EventsConfig:
    """Sequences of events: what the columns of a table mean (task events)."""

    entity: str = setting("", "column that tells whose events are one sequence: a customer, a card, a user")
    time: str = setting("", "column of the time, in seconds or as ISO 8601; empty: the order of the file")
    columns: str = setting("", "names of the columns of a file that has no header, joined by '|'")
    fields: tuple[tuple[str, str], ...] = setting(
        (), "(column, kind) of what an event consists of: category; number, binned and scaled; delta: since the "
            "entity's last event; hour and weekday of the time (for these three the column is a name of your choice)",
        check=fields)  # fmt: skip
    derived: tuple[tuple[Any, ...], ...] = setting(
        (), "(name, count | sum | mean, column, key column, window in days, delay in days): numbers computed from the "
            "past of the key; with a delay, as known that much later", check=derived)  # fmt: skip
    foretold: str = setting("", "objective next: the fields that are foretold, joined by '|'; empty: all")
    item: str = setting("", "objective item: the field that is ranked")
    answers: str = setting("each", "objective classes: a label for each event, or for the last one of a sequence",
                           check=one_of("each", "last"))  # fmt: skip
    bins: int = setting(32, "of a number, as many quantiles of the training events", check=number(2, 4096))
    least: int = setting(1, "how often a category has to occur in training to get an id of its own", check=number(1))
    context: int = setting(32, "before an event that is asked about, so many are always seen with it", "events",
                           number(0, 65536))  # fmt: skip
    delay_days: float = setting(0.0, "time between training and what is scored, until which its labels are not known",
                                "days", number(0, 36500))  # fmt: skip
    known_left_out: bool = setting(True, "two classes, each event: entities known to be of the second class then, as "
                                         "blocked cards, are not scored")  # fmt: skip
    entities: tuple[float, float] = setting((0.0, 1.0), "share of the entities that is used, from and to, in an order "
                                                        "drawn by their names", check=share)  # fmt: skip
    labelled: float = setting(1.0, "share of the training labels that is used, drawn with --config.seed",
                              check=number(0, 1, above=True))  # fmt: skip
    negatives: float = setting(1.0, "objective classes: share of the training labels of the commonest class that is "
                                    "used, drawn with --config.seed; the probabilities are corrected for it",
                               check=number(0, 1, above=True))  # fmt: skip
    recent: int = setting(0, "of each entity the latest events of the file alone, so many; 0: all", "events", number(0))


@dataclasses.dataclass
class PretrainConfig:
    """Pretraining, or more of it, on unlabelled data before the run itself, in workdir/pretrain/."""

    data: str = setting("", "source, as data.train; empty: no such stage")
    objective: str = setting("masked", "what is learned from it", check=one_of("masked", "next", "item"))
    strategy: str = setting("full", "what trains; scratch: from random values",
                            check=one_of("full", "embeddings_frozen", "scratch"))  # fmt: skip
    epochs: int = setting(3, "passes over the data", check=number(1, 100000))
    batch_size: int = setting(32, "examples in each optimizer step", check=number(1, 65536))
    learning_rate: float = setting(1e-4, "peak rate", check=number(0, 100, above=True))
    masked: float = setting(
        0.15, "objective masked: share of the words that is hidden", check=number(0, 0.9, above=True)
    )
    whole_words: bool = setting(True, "objective masked: all pieces of a word are hidden together")
    entities: tuple[float, float] = setting((0.0, 1.0), "events: as events.entities", check=share)


@dataclasses.dataclass
class AdaptConfig:
    """Unsupervised domain adaptation: labelled source (data.train), unlabelled target."""

    target: str = setting("", "source of unlabelled examples of the target domain; empty: no adaptation")
    method: str = setting("none", "what draws the domains together: Deep CORAL, multi-kernel MMD, DANN, CDAN, ADDA",
                          check=one_of(*METHODS))  # fmt: skip
    weight: float = setting(1.0, "of the domain loss beside the classes' loss", check=number(0, 1e4))
    width: int = setting(256, "of the domain discriminator's two hidden layers", check=number(1, 65536))
    discriminator_factor: float = setting(1.0, "learning-rate factor of the domain discriminator",
                                          check=number(0, 1e4, above=True))  # fmt: skip
