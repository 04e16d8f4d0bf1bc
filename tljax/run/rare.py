"""Scores of rare events by entity and day: how the Fraud Detection Handbook scores a week of transactions."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tljax.data.derived import DAY
from tljax.data.events import EventExamples
from tljax.evaluate import detection, metrics

MOST_CARDS = 100  # that can be looked into in a day


def scores(train: EventExamples, examples: EventExamples, probs: np.ndarray, classes: Sequence[str],
           leave_out: bool) -> metrics.Scores:  # fmt: skip
    """Scores of two classes, of which the second is the rare one: besides the usual ones the ROC AUC, the average
    precision and the card precision@100 (Le Borgne et al. 2022, chapter 4).

    Args:
      train: what was learned from.
      probs: (N, 2).
      leave_out: whether events of entities whose rare events are known by then are left out, as a bank blocks a card.
    """
    ledger, truth, places = examples.histories.ledger, examples.truth, examples.places
    keep = np.ones(len(places), bool)
    days = (ledger.times // DAY).astype(np.int64)
    entity = np.repeat(np.arange(len(ledger.entities)), np.diff(ledger.offsets))
    known = train.histories.labels
    if leave_out and ledger.time and ledger is train.histories.ledger and known is not None:
        spans = [_span(days[part]) for part in (train.histories.asked, examples.histories.asked)]
        if spans[0][1] <= spans[1][0]:
            keep = ~detection.known_compromised(days, entity, known, *spans)[places]
    rare = probs[keep, 1]
    found, _ = detection.card_precision(days[places][keep], entity[places][keep], truth[keep], rare, MOST_CARDS)
    usual = metrics.classification(truth[keep], probs[keep], classes)
    return dataclasses.replace(usual, more={
        "roc_auc": detection.roc_auc(truth[keep], rare),
        "average_precision": detection.average_precision(truth[keep], rare),
        "card_precision_100": found,
    })  # fmt: skip


def _span(days: np.ndarray) -> tuple[int, int]:
    return int(days.min()), int(days.max()) + 1
