"""The verdict on a transfer: decision tables, intervals by hand and by simulation, and the words of the curve."""

import math

import numpy as np
import pytest
from scipy import stats

from tljax.errors import DataError
from tljax.transfer import verdict
from tljax.transfer.verdict import NEGATIVE, NONE, PAYS, Verdict, curve_sentence, judge

CASES = [  # (name, transferred, control, n, words)
    ("far apart", [0.86, 0.87, 0.86], [0.31, 0.32, 0.31], 4500, PAYS),
    ("far apart, the other way", [0.31, 0.32, 0.31], [0.86, 0.87, 0.86], 4500, NEGATIVE),
    ("alike", [0.80, 0.82, 0.81], [0.81, 0.80, 0.82], 4500, NONE),
    ("identical", [0.9, 0.9, 0.9], [0.9, 0.9, 0.9], 4500, NONE),
    ("identical, without examples", [0.9, 0.9], [0.9, 0.9], 0, NONE),
    ("equal but for rounding", [0.1 + 0.2, 0.1 + 0.2], [0.3, 0.3], 0, NONE),
    ("no spread over seeds", [0.9, 0.9], [0.8, 0.8], 0, PAYS),
    ("steady over seeds, but few examples", [0.82, 0.82, 0.82], [0.80, 0.80, 0.80], 100, NONE),
    ("many examples, but unsteady", [0.9, 0.7, 0.8], [0.7, 0.75, 0.7], 10**6, NONE),
    ("two seeds say little", [0.90, 0.80], [0.80, 0.75], 10**6, NONE),  # t of 1 degree of freedom
    ("ten seeds say it", [0.90, 0.80] * 5, [0.80, 0.75] * 5, 10**6, PAYS),
    ("paired: all seeds go one way", [0.5, 0.7, 0.9], [0.45, 0.65, 0.85], 0, PAYS),
    ("the same numbers in other pairs", [0.5, 0.7, 0.9], [0.85, 0.45, 0.65], 0, NONE),
    ("one seed, clear", [0.9], [0.5], 500, PAYS),
    ("one seed, negative", [0.5], [0.9], 500, NEGATIVE),
    ("one seed, not clear", [0.52], [0.5], 500, NONE),
    ("one seed, one example", [1.0], [0.0], 1, NONE),
    ("three of ten", [1.0], [0.7], 10, NONE),  # plain p: ±0.284; McNemar's exact test: p = 0.25
    ("one seed, and nothing else", [0.9], [0.5], 0, NONE),
    ("no shares", [7.0, 7.1, 7.2], [3.0, 3.1, 3.3], 0, PAYS),
]


@pytest.mark.parametrize(
    ("transferred", "control", "n", "words"), [row[1:] for row in CASES], ids=[r[0] for r in CASES]
)
def test_words(transferred, control, n, words):
    found = judge(transferred, control, n)
    assert found.words == words
    assert found.low <= found.difference <= found.high
    assert (found.transferred, found.control) == (pytest.approx(np.mean(transferred)), pytest.approx(np.mean(control)))
    mirrored = judge(control, transferred, n)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    assert verdict.RANK[mirrored.words] == -verdict.RANK[words]


def test_seeds_part_is_the_paired_t_test_of_scipy():
    random = np.random.default_rng(0)
    for k in (2, 3, 10, 31):
        a, b = random.normal(5, 1, k), random.normal(4, 1, k)
        low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
        found = judge(a.tolist(), b.tolist(), 0)
        assert (found.low, found.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))  # 3 decimals


def test_quantiles_are_those_of_scipy():
    for df in range(1, 31):
        assert verdict.quantile(df) == round(stats.t.ppf(0.975, df), 3)
    assert verdict.quantile(31) == verdict.quantile(1000) == 1.96


@pytest.mark.parametrize(("p1", "p2", "n"), [(0.864, 0.312, 4500), (0.5, 0.4, 50), (1.0, 1.0, 20), (1.0, 0.0, 3)])
def test_examples_part_by_hand(p1, p2, n):
    found = judge([p1], [p2], n)
    a, b = (p1 * n + 1) / (n + 2), (p2 * n + 1) / (n + 2)
    half = 1.96 * math.sqrt(a * (1 - a) / n + b * (1 - b) / n)
    assert found.by_examples == pytest.approx(half)
    assert half >= 1.96 * math.sqrt(p1 * (1 - p1) / n + p2 * (1 - p2) / n)  # never narrower than with the plain shares
    assert (found.low, found.high) == (pytest.approx(max(p1 - p2 - half, -1)), pytest.approx(min(p1 - p2 + half, 1)))


def test_both_parts_add_up_in_squares_and_seeds_do_not_lessen_the_examples():
    a, b = [0.8, 0.82, 0.85], [0.7, 0.75, 0.73]
    both, seeds, twice = judge(a, b, 400), judge(a, b, 0), judge(a * 2, b * 2, 400)
    assert (both.high - both.low) / 2 == pytest.approx(math.hypot(seeds.high - seeds.difference, both.by_examples))
    assert twice.by_examples == pytest.approx(both.by_examples)
    assert twice.by_seeds < both.by_seeds


SIMULATED = [  # (k, n, spread over seeds)
    (1, 300, 0.0), (2, 0, 0.03), (3, 0, 0.03), (10, 0, 0.03), (3, 300, 0.02), (5, 1000, 0.02), (3, 100, 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("k", "n", "spread"), SIMULATED)
def test_no_difference_is_found_where_there_is_none(k, n, spread):
    """Two models that are equally good (0.8) but for seeds and test examples, drawn 2,000 times."""
    random = np.random.default_rng(1000 * k + n)
    found = []
    for _ in range(2000):
        scores = 0.8 + random.normal(0, spread, (2, k))
        if n:  # the luck that each model has with the examples, which all its seeds share
            scores += (random.binomial(n, 0.8, (2, 1)) / n - 0.8).repeat(k, 1)
        found.append(judge(*scores.clip(0, 1).tolist(), n).words == NONE)
    assert np.mean(found) >= 0.93
    if not n:  # the t-interval is exact
        assert np.mean(found) <= 0.97


def test_a_difference_is_found_where_there_is_one():
    random = np.random.default_rng(0)
    found = [judge(random.normal(0.85, 0.01, 3).tolist(), random.normal(0.75, 0.01, 3).tolist(), 1000).words
             for _ in range(200)]  # fmt: skip
    assert np.mean([words == PAYS for words in found]) > 0.9


SENTENCES = [  # (transferred, control, n, unit, sentence)
    ([0.86, 0.87, 0.862], [0.31, 0.32, 0.306], 4500, "accuracy",
     "transfer pays: 0.864 against 0.312 from scratch at the same budget, +0.552 (95 % interval 0.533 to 0.571, "
     "3 seeds, 4,500 test examples)."),
    ([0.5], [0.9], 500, "accuracy",
     "negative transfer: 0.500 against 0.900 from scratch at the same budget, -0.400 (95 % interval -0.451 to -0.349, "
     "one seed, 500 test examples). It is the verdict of one seed: what another would change is not in the interval."),
    ([0.9, 0.9], [0.9, 0.9], 0, "AUC",
     "no difference found: AUC 0.900 against 0.900 from scratch at the same budget, +0.000 (95 % interval 0.000 to "
     "0.000, 2 seeds). The interval is over seeds: what other test examples would change is not in it."),
    ([0.8999], [0.9], 0, "NDCG",
     "no difference found: NDCG 0.900 against 0.900 from scratch at the same budget, +0.000 (one seed and no count of "
     "test examples, so no interval)."),
]  # fmt: skip


@pytest.mark.parametrize(("transferred", "control", "n", "unit", "sentence"), SENTENCES)
def test_sentence(transferred, control, n, unit, sentence):
    assert judge(transferred, control, n, unit=unit).sentence() == sentence


ADVISED = [  # (transferred, control, n, tried, what is named, what is not)
    ([0.5, 0.5], [0.9, 0.9], 500, (), ["train from scratch", "nearer to the target", "fewer frozen", "rate"], []),
    ([0.5, 0.5], [0.9, 0.9], 500, ("layers", "rate"), ["train from scratch"], ["fewer frozen", "rate"]),
    ([0.8, 0.8], [0.8, 0.8], 500, (), ["the cheaper", "more test examples", "fewer labels"], ["more seeds"]),
    ([0.9, 0.7], [0.7, 0.8], 500, (), ["the cheaper", "more seeds, which make up"], ["more test examples"]),
    ([0.8], [0.8], 500, (), ["more seeds, to see", "more test examples"], []),
    ([0.9], [0.8], 0, (), ["more seeds, to see"], ["more test examples"]),
    ([0.9], [0.5], 500, (), ["two more seeds"], ["scratch"]),
]


@pytest.mark.parametrize(("transferred", "control", "n", "tried", "named", "unnamed"), ADVISED)
def test_advice(transferred, control, n, tried, named, unnamed):
    advice = judge(transferred, control, n).advice(tried)
    assert [text for text in named if text not in advice] == []
    assert [text for text in unnamed if text in advice] == []


def test_advice_is_empty_where_nothing_needs_to_change():
    paid = judge([0.9, 0.9], [0.5, 0.5], 500)
    assert paid.advice() == ""
    with pytest.raises(ValueError, match="'layer'"):
        paid.advice(["layer"])


REFUSED = [  # (transferred, control, n, words)
    ([], [], 10, "0 scores"),
    ([0.5], [0.5, 0.6], 10, "1 scores of the pretrained model and 2 from scratch"),
    ([0.5], [0.5], -1, "-1 test examples"),
    ([86.4, 0.5], [0.5, -0.1], 10, "2 scores out of range; expected accuracy from 0 to 1; for scores that are no"),
    ([86.4, 0.5], [0.5, -0.1], 10, "from scratch, seed 1: -0.1"),
    ([math.nan], [0.5], 10, "pretrained, seed 0: nan"),
    ([math.inf], [0.5], 0, "expected finite numbers"),
]


@pytest.mark.parametrize(("transferred", "control", "n", "words"), REFUSED)
def test_refused(transferred, control, n, words):
    with pytest.raises(DataError) as caught:
        judge(transferred, control, n)
    assert words in str(caught.value)


def point(words: str, seeds: int = 3) -> Verdict:
    d = {PAYS: 0.3, NONE: 0.001, NEGATIVE: -0.2}[words]
    return Verdict(words, d, d - 0.1, d + 0.1, seeds, 100, 0.5 + d, 0.5, 0.1, 0.1)


CURVES = [  # (points, sentence)
    ([], ""),
    ([(1, PAYS)], "transfer pays at 1 example a class (+0.300); no other number was measured. Measured with 3 seeds "
                  "each."),
    ([(1, PAYS), (5, PAYS), (1000, PAYS)],
     "transfer pays at each of 3 numbers, 1 to 1,000 examples a class (+0.300 at 1, +0.300 at 1,000); beyond them "
     "nothing was measured. Measured with 3 seeds each."),
    ([(50, NONE), (1, PAYS), (10, PAYS), (20, NONE)],
     "transfer pays up to 10 examples a class (+0.300 at 1, +0.300 at 10); from 20 on no difference is found (+0.001 "
     "at 20, +0.001 at 50). Measured with 3 seeds each."),
    ([(1, PAYS), (20, NONE), (50, NEGATIVE)],
     "transfer pays up to 1 example a class (+0.300 at 1); from 20 on no difference is found (+0.001 at 20); from 50 "
     "on transfer is negative (-0.200 at 50). Measured with 3 seeds each."),
    ([(1, NONE), (5, PAYS)],
     "no difference is found up to 1 example a class (+0.001 at 1); from 5 on transfer pays (+0.300 at 5). Measured "
     "with 3 seeds each."),
    ([(1, PAYS), (5, NEGATIVE)],
     "transfer pays up to 1 example a class (+0.300 at 1); from 5 on transfer is negative (-0.200 at 5). Measured with "
     "3 seeds each."),
    ([(1, NONE), (2, PAYS), (5, PAYS), (10, NONE)],
     "no difference is found at 1 example a class (+0.001 at 1); transfer pays at 2 and 5 examples a class (+0.300 at "
     "2, +0.300 at 5); no difference is found at 10 examples a class (+0.001 at 10). The verdicts do not run in one "
     "direction, so no limit is claimed: of 4 intervals of 95 % each, one may miss by chance. Measured with 3 seeds "
     "each."),
    ([(1, NONE), (2, NEGATIVE), (5, PAYS)],
     "no difference is found at 1 example a class (+0.001 at 1); transfer is negative at 2 examples a class (-0.200 at "
     "2); transfer pays at 5 examples a class (+0.300 at 5). The verdicts do not run in one direction, so no limit is "
     "claimed: of 3 intervals of 95 % each, one may miss by chance. Measured with 3 seeds each."),
]  # fmt: skip


@pytest.mark.parametrize(("points", "sentence"), CURVES)
def test_curve_sentence(points, sentence):
    assert curve_sentence([(size, point(words)) for size, words in points]) == sentence


@pytest.mark.parametrize(("seeds", "words"), [((1, 1), "with one seed each"), ((1, 3), "with 1 to 3 seeds each")])
def test_curve_says_its_seeds(seeds, words):
    assert words in curve_sentence([(size, point(PAYS, k)) for size, k in enumerate(seeds, start=1)])


@pytest.mark.parametrize("sizes", [(1, 1), (0, 5)])
def test_curve_refuses_numbers_twice_or_below_1(sizes):
    with pytest.raises(DataError, match="each number once, at least 1"):
        curve_sentence([(size, point(PAYS)) for size in sizes])
