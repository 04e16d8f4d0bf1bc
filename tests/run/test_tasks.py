"""What a run learns: the objective and the scores that each config asks for."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from tljax.config import AdaptConfig, Config, EventsConfig, OptimConfig
from tljax.data.batching import OneAnswer
from tljax.data.events import EventExamples, Histories
from tljax.data.ledger import Ledger
from tljax.evaluate import answers, metrics
from tljax.run import tasks
from tljax.train.objectives import Adaptation, Classification, Prediction, Ranking
from tljax.transfer.activations import Activations

NETWORK = {"vocab_size": 50, "fields": [["shop", 9, False], ["amount", 7, True]], "foretold": ["amount", "shop"]}


class Labelled(OneAnswer):
    def __init__(self, labels: list[int]):
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)


def events(kind: str = "each", labels: tuple[int, ...] = (0, 1, 0, 0)) -> EventExamples:
    n = len(labels)
    columns = {"who": np.array(["a"] * n), "when": np.arange(n) * 86400.0}
    own = Ledger("mine.csv", columns, "who", "when", np.arange(n), np.array([0, n]), np.array(["a"]))
    return EventExamples(Histories("mine.csv", own, np.ones(n, bool), {"shop": np.arange(2, n + 2, dtype=np.int32)},
                                   np.array(labels, np.int32)), kind, ("shop",), 8, 2)  # fmt: skip


def settings(**changes: Any) -> Config:
    return dataclasses.replace(Config(), **changes)


OBJECTIVES = [
    # name, config, training examples, objective
    ("classes", settings(), Labelled([0, 1, 1]), Classification()),
    ("smoothed", settings(optim=OptimConfig(label_smoothing=0.1)), Labelled([0, 1, 1]), Classification(0.1)),
    ("balanced", settings(optim=OptimConfig(class_weights="balanced")), Labelled([0, 1, 1]),
     Classification(0.0, (1.5, 0.75))),
    ("balanced, of events", settings(task="events", optim=OptimConfig(class_weights="balanced")), events(),
     Classification(0.0, (2 / 3, 2.0))),
    ("few negatives", settings(task="events", events=EventsConfig(negatives=0.25)), events(labels=(1, 1, 0, 1)),
     Classification(shares=(1.0, 0.25))),
    ("few negatives, of no events", settings(events=EventsConfig(negatives=0.25)), Labelled([0, 1]), Classification()),
    ("balanced, and nothing to count", settings(optim=OptimConfig(class_weights="balanced")), None, Classification()),
    ("hidden words", settings(objective="masked"), None, Prediction((50,))),
    ("the next word", settings(objective="next"), None, Prediction((50,))),
    ("the next event", settings(task="events", objective="next"), events("next"), Prediction((7, 9))),
    ("the next item", settings(task="events", objective="item"), events("item"), Ranking()),
    ("two domains", settings(adapt=AdaptConfig(target="b.csv", method="dann", weight=0.5),
                             optim=OptimConfig(label_smoothing=0.1)), Labelled([0, 1, 1] * 11),
     Adaptation("dann", 0.5, 6, 0.1)),  # 33 examples by 32, 3 epochs
]  # fmt: skip


@pytest.mark.parametrize(("config", "train", "objective"), [r[1:] for r in OBJECTIVES], ids=[r[0] for r in OBJECTIVES])
def test_the_objective(config, train, objective):
    assert tasks.of(config, NETWORK, ("no", "yes"), train).objective == objective


PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)


def test_scores_of_a_classification():
    found = tasks.of(settings(), NETWORK, ("no", "yes"), Labelled([0, 1])).score(Labelled([0, 1, 1, 1]), PROBS)
    assert found.summary() == metrics.classification(np.array([0, 1, 1, 1]), PROBS, ("no", "yes")).summary()
    assert "roc_auc" not in found.summary()


def test_scores_of_two_classes_of_events_are_those_of_rare_ones():
    own = events()
    score = tasks.of(settings(task="events"), NETWORK, ("no", "yes"), own).score
    assert score(own, PROBS).summary()["roc_auc"] == 1.0
    kept = Activations((), {}, 1, own)  # of which the events are known still
    assert score(kept, PROBS).summary() == score(own, PROBS).summary()


def test_three_classes_of_events_are_an_ordinary_classification():
    own = events(labels=(0, 1, 2))
    probs = np.eye(3, dtype=np.float32)
    found = tasks.of(settings(task="events"), NETWORK, ("a", "b", "c"), own).score(own, probs)
    assert found.summary()["accuracy"] == 1.0
    assert "roc_auc" not in found.summary()


def test_scores_of_what_is_foretold_have_the_names_of_the_fields():
    outputs = np.array([[1, 2, 1, 0], [3, 4, 1, 1]], np.float32)
    found = tasks.of(settings(task="events", objective="next"), NETWORK, (), None).score(events("next"), outputs)
    assert found == answers.likelihood(outputs, ("amount", "shop"))
    words = tasks.of(settings(objective="masked"), NETWORK, (), None).score(None, outputs[:, [0, 2]])
    assert words.fields.keys() == {"words"}


def test_scores_of_items_are_ranks():
    found = tasks.of(settings(task="events", objective="item"), NETWORK, (), None).score(None, np.ones((3, 1)))
    assert found == answers.ranks(np.ones((3, 1)))


SHOWN = [
    (metrics.classification(np.array([0, 1]), PROBS[:2], ("a", "b")), "accuracy 1.000, macro-F1 1.000, loss 0.164"),
    (answers.likelihood(np.array([[1.0, 1.0]]), ("words",)), "loss 1.000, perplexity 2.718, accuracy 1.000"),
    (answers.ranks(np.array([[3.0]])), "HR@1 0.000, HR@10 1.000, NDCG@10 0.500, MRR 0.333"),
    (answers.ranks(np.zeros((0, 1))), "HR@1 undefined, HR@10 undefined, NDCG@10 undefined, MRR undefined"),
]


@pytest.mark.parametrize(("scores", "words"), SHOWN, ids=[row[1] for row in SHOWN])
def test_scores_in_words(scores, words):
    assert tasks.shown(scores) == words
