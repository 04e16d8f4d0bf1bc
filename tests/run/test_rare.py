"""Rare events as the Fraud Detection Handbook scores them: by hand on few, and its own numbers on its own data."""

import numpy as np
import pytest

from tljax.data import derived, ledger
from tljax.data.derived import DAY
from tljax.data.events import EventExamples, Histories
from tljax.data.ledger import Ledger
from tljax.evaluate import detection, metrics
from tljax.run import rare

CLASSES = ("0", "1")


def small() -> Ledger:
    """Cards a, b, c over 6 days, an event of each every day."""
    who, day = np.repeat(["a", "b", "c"], 6), np.tile(np.arange(6), 3)
    columns = {"card": who, "time": day * DAY + 100.0}
    return Ledger(
        "mine.csv", columns, "card", "time", np.arange(18), np.array([0, 6, 12, 18]), np.array(["a", "b", "c"])
    )


FRAUDS = {("a", 0), ("b", 1), ("b", 4), ("c", 5)}


def examples(own: Ledger, low: int, high: int, labels: np.ndarray) -> EventExamples:
    days = own.times // DAY
    return EventExamples(Histories(f"mine.csv#{low}..{high}", own, (days >= low) & (days < high), {}, labels), "each",
                         (), 8, 2)  # fmt: skip


def labels_of(own: Ledger) -> np.ndarray:
    days = (own.times // DAY).astype(int)
    pairs = zip(own.columns["card"].tolist(), days.tolist(), strict=True)
    return np.array([pair in FRAUDS for pair in pairs], np.int32)


def probs_of(own: EventExamples, seed: int = 0) -> np.ndarray:
    score = np.random.default_rng(seed).random(len(own.truth))
    return np.stack([1 - score, score], axis=1).astype(np.float32)


def test_events_of_known_cards_are_not_scored():
    """Trained on days 0 and 1, tested on 3 to 5: a's and b's frauds of the training are known by then."""
    own = small()
    train, test = (examples(own, low, high, labels_of(own)) for low, high in ((0, 2), (3, 6)))
    probs = probs_of(test)
    found = rare.scores(train, test, probs, CLASSES, leave_out=True)
    kept = own.columns["card"][test.places] == "c"
    assert found.n == kept.sum() == 3
    truth, score = test.truth[kept], probs[kept, 1]
    assert truth.tolist() == [0, 0, 1]
    expected = metrics.classification(truth, probs[kept], CLASSES)
    assert (found.accuracy, found.macro_f1, found.loss) == (expected.accuracy, expected.macro_f1, expected.loss)
    assert found.more == {
        "roc_auc": detection.roc_auc(truth, score),
        "average_precision": detection.average_precision(truth, score),
        "card_precision_100": 1 / 100 / 3,
    }  # one card is found on one of three days
    assert found.summary().keys() >= {"accuracy", "roc_auc", "average_precision", "card_precision_100", "n"}


def test_news_of_a_fraud_takes_as_long_as_the_gap():
    """Of a day here: a fraud of day 2, between training and test, is known from day 4 on."""
    own, labels = small(), np.zeros(18, np.int32)
    labels[[2, 17]] = 1  # a's on day 2, c's on day 5
    train, test = (examples(own, low, high, labels) for low, high in ((0, 2), (3, 6)))
    found = rare.scores(train, test, probs_of(test), CLASSES, leave_out=True)
    assert found.n == 9 - 2  # a's events of days 4 and 5


def test_all_are_scored_where_that_is_asked_for():
    own = small()
    train, test = (examples(own, low, high, labels_of(own)) for low, high in ((0, 2), (3, 6)))
    found = rare.scores(train, test, probs_of(test), CLASSES, leave_out=False)
    assert found.n == len(test.truth) == 9
    assert found.more["roc_auc"] == detection.roc_auc(test.truth, probs_of(test)[:, 1])


@pytest.mark.parametrize("case", ["another table", "no time", "not after training"])
def test_where_nothing_can_be_known_all_are_scored(case):
    own, other = small(), small()
    if case == "no time":
        own = other = Ledger(own.name, own.columns, "card", "", own.rows, own.offsets, own.entities)
    labels = labels_of(small())
    asked = np.arange(18) % 6 >= 3
    train = Histories("a", own, ~asked if case != "not after training" else asked, {}, labels)
    test = Histories("b", other if case == "another table" else own, asked, {}, labels)
    made = [EventExamples(one, "each", (), 8, 2) for one in (train, test)]
    assert rare.scores(*made, probs_of(made[1]), CLASSES, leave_out=True).n == 9


PUBLISHED = {"roc_auc": 0.871, "average_precision": 0.606, "card_precision_100": 0.291}  # of logistic regression, ch. 5
OURS = {"roc_auc": 0.8703, "average_precision": 0.6055, "card_precision_100": 0.2914}  # with its features made anew


def test_the_handbooks_own_numbers(testdata):
    """Logistic regression on the handbook's fifteen features, a week of training and a week of test, 7 days apart."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    file = testdata("fraud_handbook") / "fraud_handbook.npz"
    own = ledger.read(str(file), "customer_id", "time_seconds", ["terminal_id", "amount_cents", "fraud"])
    times, labels = own.times, own.columns["fraud"].astype(np.int32)
    days = (times // DAY).astype(int)
    near = (days >= 115 - 38) & (days < 136)  # a window of 30 days that ends 7 days ago sees no further
    customer, terminal = own.columns["customer_id"][near], own.columns["terminal_id"][near]
    amount, fraud, when = own.columns["amount_cents"][near] / 100.0, labels[near].astype(np.float64), times[near]
    start = 1522540800  # 1 April 2018, a Sunday, where the handbook's seconds begin
    columns = [amount, derived.day_of_week(when + start) >= 5, derived.hour_of_day(when) <= 6]
    for window in (1, 7, 30):
        columns.append(derived.rolling(customer, when, None, "count", window * DAY))
        columns.append(derived.rolling(customer, when, amount, "mean", window * DAY))
        columns.append(derived.rolling(terminal, when, None, "count", window * DAY, 7 * DAY))
        columns.append(derived.rolling(terminal, when, fraud, "mean", window * DAY, 7 * DAY))
    features = np.zeros((len(own), len(columns)))
    features[near] = np.stack(columns, axis=1)
    train, test = (EventExamples(Histories("handbook", own, (days >= low) & (days < high), {}, labels), "each", (), 64,
                                 8) for low, high in ((115, 122), (129, 136)))  # fmt: skip
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(features[train.places], train.truth)
    found = rare.scores(train, test, model.predict_proba(features[test.places]), CLASSES, leave_out=True)
    assert found.n == 58264  # as many as the handbook counts
    for name, score in OURS.items():
        assert found.more[name] == pytest.approx(score, abs=5e-4), name  # solvers differ in the fifth digit
        assert found.more[name] == pytest.approx(PUBLISHED[name], abs=1.5e-3), name
