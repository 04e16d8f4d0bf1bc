"""Fields: what is fitted, that encoding stays in range, and every oddity of a file."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from tljax.data import fields
from tljax.data.fields import Field, Vocabulary, fit
from tljax.errors import ConfigError, DataError, WeightsError

NAN = float("nan")


@pytest.mark.parametrize(
    ("label", "training", "options", "values", "given_", "ids"),
    [
        ("by frequency", ["b", "a", "c", "b", "c", "b"], {}, ("b", "c", "a"), ["a", "b", "x", "c"], [4, 2, 1, 3]),
        ("ties by text", ["b", "10", "9", "a"], {}, ("10", "9", "a", "b"), ["b"], [5]),
        ("least", ["b", "a", "b"], {"least": 2}, ("b",), ["a", "b"], [1, 2]),
        ("most", ["b", "a", "b", "c", "c"], {"most": 2}, ("b", "c"), ["a", "c"], [1, 3]),
        ("missing", ["", "", "a"], {}, ("a",), ["", "a"], [1, 2]),
        ("missing numbers", [NAN, NAN, 7.0], {}, ("7",), [NAN, 7.0], [1, 2]),
        ("numbers", np.array([7, 300, 7], np.uint16), {}, ("7", "300"), [300, 7, 8], [3, 2, 1]),
        ("bool", [True, True, False], {}, ("1", "0"), [False, True], [3, 2]),
        ("text of numbers", [7, 300, 7], {}, ("7", "300"), ["300", "7", "07"], [3, 2, 1]),
        ("numbers with gaps", [7, 300, 7], {}, ("7", "300"), [300.0, NAN, 7.5, -0.0], [3, 1, 1, 1]),
        ("numbers for text", ["x", "3", "3"], {}, ("3", "x"), np.array([3, -3], np.int8), [2, 1]),
        ("fractions", [0.5, 1e300, 0.5], {}, ("0.5", str(int(1e300))), [0.5, 1e300, np.inf], [2, 3, 1]),
        ("long text", ["a"], {}, ("a",), ["a" * 300, "a"], [1, 2]),
        ("no events to encode", ["a"], {}, ("a",), np.array([], np.str_), []),
    ],
)
def test_category(
    label: str, training: Any, options: dict[str, int], values: tuple[str, ...], given_: Any, ids: list[int]
) -> None:
    field = fit("x", "category", np.asarray(training), **options)
    assert field == Field("x", "category", 2 + len(values), values)
    found, scaled = field.encode(np.asarray(given_))
    assert found.tolist() == ids
    assert found.dtype == np.int32
    assert scaled is None


@pytest.mark.parametrize(
    ("label", "training", "bins", "edges"),
    [
        ("even", [1, 2, 3, 4], 4, (2.0, 3.0, 4.0)),
        ("halves", [1, 2, 3, 4], 2, (3.0,)),
        ("more bins than values", [1, 2, 3], 99, (2.0, 3.0)),
        ("one bin", [1, 2, 3], 1, ()),
        ("constant", [5, 5, 5], 8, ()),
        ("mostly zero", [0] * 90 + [1] * 5 + [2] * 5, 20, (1.0, 2.0)),
        ("mostly the least but one", [-1] + [0] * 98 + [7], 10, (0.0, 7.0)),
        ("rarely anything", [0] * 96 + [0.1, 0.2, 0.5, 1.0], 6, (0.1, 0.2, 0.5, 1.0)),
        ("missing", [NAN, 1.0, NAN, 2.0], 2, (2.0,)),
        ("negative", [-4.0, -2.0, 0.0, 2.0], 4, (-2.0, 0.0, 2.0)),
    ],
)
def test_edges(label: str, training: list[float], bins: int, edges: tuple[float, ...]) -> None:
    field = fit("x", "number", np.array(training), bins=bins)
    assert field.edges == edges
    assert field.size == 3 + len(edges)


def test_number_by_hand() -> None:
    training = np.array([-10.0, 0.0, 10.0, 30.0, 0.0, NAN])
    field = fit("x", "number", training, bins=3)
    logs = np.array([-np.log(2), 0, np.log(2), np.log(4), 0])  # the scale is the middle size of what is not 0
    assert (field.scale, field.mean, field.sd) == pytest.approx((10.0, logs.mean(), logs.std()))
    ids, scaled = field.encode(training)
    assert scaled is not None
    np.testing.assert_allclose(scaled[:5], (logs - logs.mean()) / logs.std(), rtol=1e-6)
    assert scaled[5] == 0
    assert ids.tolist() == [2, 3, 4, 4, 3, 1]
    assert (ids.dtype, scaled.dtype) == (np.int32, np.float32)
    ids, scaled = field.encode(np.array([1e308, -1e308, np.inf, -np.inf, 10.0, 9.999]))
    assert ids.tolist() == [4, 2, 4, 2, 4, 3]
    assert scaled is not None
    assert scaled[:4].tolist() == [5, -5, 5, -5]


@pytest.mark.parametrize("unit", [1e-6, 100.0, 1e6])
def test_the_unit_does_not_matter(unit: float) -> None:
    x = np.random.default_rng(0).lognormal(3, 2, 5000)
    one, other = (fit("x", "number", x * u).encode(x * u) for u in (1.0, unit))
    assert np.array_equal(one[0], other[0])
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)  # float32
    assert abs(one[1].mean()) < 1e-2  # a few values are cut at 5
    assert abs(one[1].std() - 1) < 1e-2


def test_bins_are_about_equally_full() -> None:
    x = np.random.default_rng(0).normal(size=32_000)
    ids, _ = fit("x", "number", x).encode(x)
    assert abs(np.bincount(ids)[2:] - 1000).max() <= 1
    assert np.bincount(ids)[:2].tolist() == [0, 0]


def test_delta_is_a_number_of_its_own_kind() -> None:
    gaps = np.array([NAN, 5.0, 60.0, NAN, 3600.0])
    a, b = fit("gap", "delta", gaps), fit("gap", "number", gaps)
    assert (a.kind, a.edges, a.mean) == ("delta", b.edges, b.mean)
    assert a.encode(gaps)[0].tolist() == [1, 2, 3, 1, 4]


floats = st.floats(allow_nan=True, allow_infinity=False)
numbers = hn.arrays(np.float64, st.integers(1, 60), elements=st.one_of(floats, st.integers(-3, 3).map(float)))
texts = st.lists(st.sampled_from(["", "a", "b", "c", "é", "7", "07", "\U0001f600", " "]), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(numbers, hn.arrays(np.float64, 20, elements=st.floats()), st.integers(1, 40))
def test_numbers_stay_in_range(training: np.ndarray, others: np.ndarray, bins: int) -> None:
    if np.isnan(training).all():
        return
    field = fit("x", "number", training, bins=bins)
    assert field.size <= 3 + bins
    assert set(field.encode(training)[0][~np.isnan(training)].tolist()) == set(range(2, field.size)), "an empty bin"
    x = np.sort(np.concatenate([training, others]))  # NaN last
    ids, scaled = field.encode(x)
    assert scaled is not None
    known = ~np.isnan(x)
    assert (ids[~known] == 1).all()
    assert (scaled[~known] == 0).all()
    assert ((ids[known] >= 2) & (ids[known] < field.size)).all()
    assert (np.diff(ids[known]) >= 0).all()
    assert (np.diff(scaled[known]) >= 0).all()
    assert (abs(scaled) <= 5).all()
    again = Vocabulary.from_json(Vocabulary((field,)).to_json(), "f.json")
    assert again.fields == (field,)
    assert np.array_equal(again.fields[0].encode(x)[1], scaled)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(texts, texts, st.integers(1, 4), st.integers(1, 5))
def test_categories_stay_in_range(training: list[str], others: list[str], least: int, most: int) -> None:
    counts = {text: training.count(text) for text in training if text}
    often = [text for text in counts if counts[text] >= least]
    if not often:
        with pytest.raises(DataError, match="none of"):
            fit("x", "category", np.array(training), least=least, most=most)
        return
    field = fit("x", "category", np.array(training), least=least, most=most)
    assert len(field.values) == min(most, len(often))
    assert min(counts[v] for v in field.values) >= max([counts[v] for v in often if v not in field.values], default=0)
    ids, _ = field.encode(np.array(others))
    for text, i in zip(others, ids.tolist(), strict=True):
        assert field.values[i - 2] == text if i >= 2 else i == 1 and text not in field.values
    assert Vocabulary.from_json(Vocabulary((field,)).to_json(), "f.json") == Vocabulary((field,))


@pytest.mark.parametrize(
    ("label", "arguments", "options", "error", "words"),
    [
        ("name", ("a b-c", "number", [1.0]), {}, ConfigError, "A-Z, a-z, 0-9 and _; rename the column to 'a_b_c'"),
        ("no name", ("", "number", [1.0]), {}, ConfigError, "rename the column to 'field'"),
        ("line end", ("a\n", "number", [1.0]), {}, ConfigError, "cannot be one of a field"),
        ("é", ("é", "number", [1.0]), {}, ConfigError, "cannot be one of a field"),
        ("kind", ("x", "text", [1.0]), {}, ConfigError, "found the kind 'text'; expected one of category, num"),
        ("bins", ("x", "number", [1.0]), {"bins": 0}, ConfigError, "found bins = 0"),
        ("least", ("x", "category", ["a"]), {"least": 0}, ConfigError, "found least = 0"),
        ("most", ("x", "category", ["a"]), {"most": 10**7 + 1}, ConfigError, "found most = 10000001"),
        ("rare", ("x", "category", ["a", "b"]), {"least": 2}, DataError, "none of 2 values is seen 2 times in 2"),
        ("no category", ("x", "category", np.array([], np.int64)), {}, DataError, "none of 0 values"),
        ("all missing", ("x", "number", [NAN]), {}, DataError, "found no number in 1 training events"),
        ("no number", ("x", "number", np.array([])), {}, DataError, "found no number in 0"),
        ("infinite", ("x", "number", [1.0, np.inf]), {}, DataError, "found 1 infinite values in 2"),
        ("text", ("x", "number", ["free"]), {}, DataError, "for example 'free'; expected numbers"),
        ("axes", ("x", "category", [[1]]), {}, DataError, r"found int64 \(1, 1\)"),
        ("objects", ("x", "category", np.array([None])), {}, DataError, r"found object \(1,\)"),
    ],
)  # fmt: skip
def test_refused(label: str, arguments: tuple[Any, ...], options: dict[str, int], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        fit(arguments[0], arguments[1], np.asarray(arguments[2]), **options)


def test_encoding_refuses_other_kinds_of_values() -> None:
    with pytest.raises(DataError, match="field 'x': found <U1"):
        fit("x", "delta", np.array([1.0])).encode(np.array(["a"]))
    with pytest.raises(DataError, match="field 'x': found complex"):
        fit("x", "category", np.array(["a"])).encode(np.array([1j]))


def vocabulary() -> Vocabulary:
    rng = np.random.default_rng(0)
    return Vocabulary((
        fit("item", "category", np.array(["b", "\u2028é", "a", "b", "\ud800"])),
        fit("price", "number", rng.lognormal(size=100) / 3),
        fit("gap", "delta", rng.exponential(size=100)),
    ))  # fmt: skip


def test_round_trip_is_exact() -> None:
    one = vocabulary()
    again = Vocabulary.from_json(one.to_json(), "f.json")
    assert again == one
    assert again.to_json() == one.to_json()
    assert again.digest() == one.digest()


def test_digest_knows_every_value() -> None:
    one, found = vocabulary(), set()
    for change in (
        {},
        {"name": "other"},
        {"scale": 2.0},
        {"mean": 0.5},
        {"sd": 3.0},
        {"edges": (1.0,)},
        {"kind": "delta"},
    ):
        price = Field(**{**{f: getattr(one.fields[1], f) for f in Field.__dataclass_fields__}, **change})
        found.add(Vocabulary((one.fields[0], price, one.fields[2])).digest())
    found.add(Vocabulary(one.fields[::-1]).digest())
    assert len(found) == 8


def test_names_are_unique() -> None:
    field = vocabulary().fields[0]
    with pytest.raises(ConfigError, match="field 'item': the name stands there twice"):
        Vocabulary((field, field))


ITEM, PRICE = 0, 1
ODD: list[tuple[int, str, Any, str]] = [  # (field, key, value, words); ... takes the key away
    (ITEM, "name", "a b", "called 'a b'"),
    (ITEM, "name", "", "called ''"),
    (ITEM, "name", 3, "called 3"),
    (ITEM, "name", "price", "stands there twice"),
    (ITEM, "name", ..., "not what a category has"),
    (ITEM, "kind", "text", "unknown kind, 'text'"),
    (ITEM, "kind", ["category"], "unknown kind"),
    (ITEM, "kind", ..., "unknown kind, None"),
    (ITEM, "kind", "number", "not what a number has"),
    (ITEM, "more", 1, "not what a category has"),
    (ITEM, "size", 7, "has size 7, expected 6"),
    (ITEM, "size", 6.0, "has size 6.0"),
    (ITEM, "size", "6", "has size '6'"),
    (ITEM, "size", True, "has size True"),
    (ITEM, "values", ["a", "b", "b", "c"], "a value stands there twice"),
    (ITEM, "values", ["a", "b", "", "c"], "values holds ''"),
    (ITEM, "values", ["a", "b", None, "c"], "values holds None"),
    (ITEM, "values", ["a", "b", 3, "c"], "values holds 3"),
    (ITEM, "values", "abcd", "values is a str"),
    (ITEM, "values", ["a"], "has size 6, expected 3"),
    (PRICE, "edges", [1.0, 1.0], "do not rise"),
    (PRICE, "edges", [2.0, 1.0], "do not rise"),
    (PRICE, "edges", [1.0, NAN], "edges holds nan"),
    (PRICE, "edges", [1.0, float("inf")], "edges holds inf"),
    (PRICE, "edges", [1.0, None], "edges holds None"),
    (PRICE, "edges", [1.0, True], "edges holds True"),
    (PRICE, "edges", [1.0, "2"], "edges holds '2'"),
    (PRICE, "edges", {"a": 1.0}, "edges is a dict"),
    (PRICE, "scale", 0.0, "scale is 0.0"),
    (PRICE, "scale", -1.0, "scale is -1.0"),
    (PRICE, "scale", NAN, "scale is nan"),
    (PRICE, "scale", 10**400, "scale is 1000"),
    (PRICE, "mean", NAN, "mean is nan"),
    (PRICE, "mean", None, "mean is None"),
    (PRICE, "sd", 0.0, "sd is 0.0"),
    (PRICE, "sd", float("inf"), "sd is inf"),
    (PRICE, "sd", ..., "not what a number has"),
]


@pytest.mark.parametrize(("field", "key", "value", "words"), ODD)
def test_odd_files(field: int, key: str, value: Any, words: str) -> None:
    data = json.loads(vocabulary().to_json())
    data["fields"][field][key] = value
    if value is ...:
        del data["fields"][field][key]
    with pytest.raises(WeightsError) as caught:
        Vocabulary.from_json(json.dumps(data), "run/fields.json")
    assert caught.value.where == "run/fields.json"
    assert words in caught.value.found


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "Expecting value"), ("[]", "no list of fields"), ('{"fields": {}}', "no list of fields"), ("[" * 100_000, ""),
     ('{"fields": [3]}', "unknown kind"), ('{"fields": [], "x": 1}', "no list of fields"), ("9" * 5000, "")],
)  # fmt: skip
def test_files_that_hold_no_vocabulary(text: str, words: str) -> None:
    with pytest.raises(WeightsError, match=r"f\.json: cannot be read as a vocabulary.*" + words):
        Vocabulary.from_json(text, "f.json")


def test_files_with_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    text = vocabulary().to_json()  # 4 values, and 31 edges twice
    for most, words in ((66, ""), (65, "found 66 entries, expected at most 65"), (30, "edges is 31 entries")):
        monkeypatch.setattr(fields, "MOST", most)
        if words:
            with pytest.raises(WeightsError, match=words):
                Vocabulary.from_json(text, "f.json")
        else:
            Vocabulary.from_json(text, "f.json")
