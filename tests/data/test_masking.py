"""Hidden words: how many and which, the same wherever a text stands, anew with each seed, and each answer once."""

from typing import Any

import numpy as np
import pytest

from tljax.data import batching, text
from tljax.data.masking import FollowingExamples, MaskedExamples
from tljax.data.text import Ragged, Words
from tljax.errors import WeightsError

V, PAD, MASK, BEGIN, END = 60, 0, 4, 2, 3
SPECIAL = np.arange(V) < 5
GOES_ON = np.arange(V) >= 40  # a third of all pieces
WORDS = Words(MASK, SPECIAL, GOES_ON)
LENGTHS = (3, 9, 4, 30, 12, 5, 64, 3, 21, 17)


def ragged(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Ragged:
    """Texts between a token that begins and one that ends, with a special one within now and then."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        inner = rng.integers(5, V, length - 2)
        inner[1::7] = END  # as between two sentences; never the first word
        rows.append(np.concatenate([[BEGIN], inner, [END]]))
    return Ragged(np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def examples(rate: float = 0.15, whole: bool = False, **options: Any) -> MaskedExamples:
    return MaskedExamples(ragged(**options), str, PAD, WORDS, rate, whole)


def words(ids: np.ndarray) -> list[list[int]]:
    """The places of each word of a text: a special token ends one."""
    found: list[list[int]] = []
    for place, token in enumerate(ids.tolist()):
        if SPECIAL[token]:
            continue
        if GOES_ON[token] and found:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def asked(own: MaskedExamples, i: int, seed: int | None, length: int = 64) -> set[int]:
    """The places of text i that are asked about."""
    made = own.gather(np.array([i]), length, seed)
    weights = own.targets(np.array([i]), length, seed).weights[0]
    places = made["predicted"][0][weights > 0]
    assert np.diff(places).min(initial=1) > 0  # rising, none twice
    return set(places.tolist())


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 0.9])
def test_how_many_are_hidden(rate, whole):
    own = examples(rate, whole)
    assert own.places(64) == int(rate * 64)
    assert own.places(3) == max(int(rate * 3), 1)
    for i in range(len(own)):
        ids = own.ragged.row(i)
        most = max(int(rate * (~SPECIAL[ids]).sum()), 1)
        counts = {len(asked(own, i, seed)) for seed in range(20)}
        assert max(counts) <= most
        assert min(counts) >= 1
        if not whole:
            assert counts == {most}


def test_whole_words_are_hidden_nearly_as_often():
    own = examples(0.3, whole=True)
    counts = [len(asked(own, i, seed)) for i in range(len(own)) for seed in range(50)]
    wanted = [max(int(0.3 * (~SPECIAL[own.ragged.row(i)]).sum()), 1) for i in range(len(own)) for seed in range(50)]
    assert sum(counts) > 0.95 * sum(wanted)


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_all_pieces_of_a_word_are_hidden_together(rate):
    """But where even the shortest word has more of them than may be hidden."""
    own, whole = examples(rate, whole=True), 0
    for i in range(len(own)):
        ids = own.ragged.row(i)
        known, most = words(ids), max(int(rate * (~SPECIAL[ids]).sum()), 1)
        for seed in range(30):
            hidden = asked(own, i, seed)
            parts = [(len(hidden & set(word)), len(word)) for word in known if hidden & set(word)]
            if most < min(map(len, known)):
                assert [part for part, _ in parts] == [most]
            else:
                assert all(part == size for part, size in parts)
                whole += len([size for _, size in parts if size > 1])
    assert whole > 30
    alone = examples(rate, whole=False)  # which does not keep words together
    assert any(0 < len(asked(alone, 6, seed) & set(word)) < len(word) for seed in range(10)
               for word in words(alone.ragged.row(6)))  # fmt: skip


def test_a_word_that_is_too_long_is_cut():
    own = MaskedExamples(Ragged(np.array([BEGIN, 10, 41, 42, 43, END], np.int32), np.array([0, 6])), str, PAD, WORDS,
                         0.5, True)  # fmt: skip
    assert {frozenset(asked(own, 0, seed, 6)) for seed in range(9)} == {frozenset({1, 2})}


def test_a_word_that_fits_goes_before_one_that_does_not():
    own = MaskedExamples(Ragged(np.array([BEGIN, 10, 41, 42, 43, 11, 44, END], np.int32), np.array([0, 8])), str, PAD,
                         WORDS, 0.4, True)  # fmt: skip
    assert {frozenset(asked(own, 0, seed, 8)) for seed in range(30)} == {frozenset({5, 6})}


def test_the_first_word_of_a_byte_level_text_is_one_by_itself():
    """Nothing marks its beginning there."""
    own = MaskedExamples(Ragged(np.array([BEGIN, 45, 46, 10, 45, END], np.int32), np.array([0, 6])), str, PAD, WORDS,
                         0.6, True)  # fmt: skip
    assert {frozenset(asked(own, 0, seed, 6)) for seed in range(30)} == {frozenset({1, 2}), frozenset({3, 4})}


@pytest.mark.parametrize("whole", [False, True])
def test_special_tokens_are_never_hidden(whole):
    own = examples(0.9, whole)
    at = np.arange(len(own))
    for seed in range(20):
        made, labels = own.gather(at, 64, seed), own.targets(at, 64, seed)
        plain = text.TextExamples(own.ragged, None, str, PAD).gather(at, 64)
        special = SPECIAL[plain["input_ids"]]
        assert np.array_equal(made["input_ids"][special], plain["input_ids"][special])
        assert not SPECIAL[labels.labels[..., 0][labels.weights > 0]].any()
        for name in ("attention_mask", "token_type_ids"):
            assert np.array_equal(made[name], plain[name])


def test_what_is_not_asked_about_stays_and_what_is_asked_is_mostly_masked():
    own = examples(0.5)
    at, shown, true = np.arange(len(own)), [], []
    plain = text.TextExamples(own.ragged, None, str, PAD).gather(at, 64)["input_ids"]
    for seed in range(400):
        made, wanted = own.gather(at, 64, seed), own.targets(at, 64, seed)
        rows, which = np.nonzero(wanted.weights)
        places = made["predicted"][rows, which]
        assert np.array_equal(wanted.labels[rows, which, 0], plain[rows, places])
        shown.append(made["input_ids"][rows, places])
        true.append(plain[rows, places])
        rest = np.ones_like(plain, bool)
        rest[rows, places] = False
        assert np.array_equal(made["input_ids"][rest], plain[rest])
    told, was = np.concatenate(shown), np.concatenate(true)
    kept, masked = (told == was).mean(), (told == MASK).mean()
    # 25,000 draws at 0.8 and 0.1: a standard deviation is 0.003; one swap in 60 gives the token itself, or the mask
    assert len(told) > 20_000
    assert masked == pytest.approx(0.8 + 0.1 / V, abs=0.015)
    assert kept == pytest.approx(0.1 + 0.1 / V, abs=0.012)
    swapped = told[(told != MASK) & (told != was)]
    assert len(np.unique(swapped)) == V - 1  # any but the mask


def test_hidden_anew_with_each_seed_and_as_before_with_the_same():
    own, again = examples(), examples()
    at = np.arange(len(own))
    made = {seed: own.gather(at, 64, seed)["input_ids"].tobytes() for seed in (None, 0, 1, 2, 2**32 - 1)}
    assert len(set(made.values())) == 5
    for seed, ids in made.items():
        assert again.gather(at, 64, seed)["input_ids"].tobytes() == ids
    places = [frozenset(asked(own, 6, seed)) for seed in range(50)]
    assert len(set(places)) > 45
    often = np.bincount([place for one in places for place in one], minlength=64)
    real = ~SPECIAL[own.ragged.row(6)]
    assert (often[real] > 0).all()  # each word's turn comes
    assert not often[~real].any()


@pytest.mark.parametrize("whole", [False, True])
def test_the_same_wherever_a_text_stands(whole):
    """In any batch, of any order, padded to any length: hosts and resumed runs make other batches of other shapes."""
    own = examples(0.3, whole)
    at = np.arange(len(own))
    for seed in (None, 5):
        whole_batch, wanted = own.gather(at, 64, seed), own.targets(at, 64, seed)
        for i in at:
            length = int(own.lengths[i])
            for indices, T in (([i], length), ([i], 64), ([0, i, 3], 64), ([i, i], max(length, 20))):
                row, made = indices.index(i), own.gather(np.array(indices), T, seed)
                assert np.array_equal(made["input_ids"][row][:length], whole_batch["input_ids"][i][:length])
                some = own.targets(np.array(indices), T, seed)
                assert made["predicted"].shape == some.weights.shape == (len(indices), own.places(T))
                assert some.labels.shape == (len(indices), own.places(T), 1)
                real, expected = some.weights[row] > 0, wanted.weights[i] > 0
                assert np.array_equal(made["predicted"][row][real], whole_batch["predicted"][i][expected])
                assert np.array_equal(some.labels[row][real], wanted.labels[i][expected])


def each_answer_once(own: Any) -> None:
    """Labels where something is asked are the truth at the spots, in batches as an evaluation makes them."""
    seen = np.zeros(len(own.truth), int)
    plans = batching.plan_evaluation(len(own), own.lengths, 4, batching.buckets(own.lengths, 3))
    for plan in plans:
        batch = batching.collate(own, plan, 4)
        rows = batch["rows"][batch["rows"] >= 0]
        spots = own.spots(rows, plan.length)
        real = batch["weights"][batch["rows"] >= 0] > 0
        assert np.array_equal(spots >= 0, real)
        assert not batch["weights"][batch["rows"] < 0].any()
        labels = batch["labels"][batch["rows"] >= 0][..., 0]
        assert np.array_equal(labels[real], own.truth[spots[real]])
        np.add.at(seen, spots[real], 1)
    assert (seen == 1).all()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("rate", [0.15, 0.9])
def test_each_hidden_word_is_answered_once(rate, whole):
    own = examples(rate, whole)
    assert len(own.truth) == sum(len(asked(own, i, None)) for i in range(len(own)))
    each_answer_once(own)


@pytest.mark.parametrize("whole", [False, True])
def test_texts_of_one_word_and_of_none(whole):
    ids = np.array([BEGIN, 17, END, BEGIN, END, 23, BEGIN, 30, 41, 42, END], np.int32)
    own = MaskedExamples(Ragged(ids, np.array([0, 3, 5, 6, 11])), str, PAD, WORDS, 0.15, whole)
    assert [len(asked(own, i, 1, 5)) for i in range(4)] == [1, 0, 1, 1]
    assert sorted(own.truth.tolist())[:2] == [17, 23]
    assert len(own.truth) == 3
    each_answer_once(own)


def test_what_follows_each_token():
    own = FollowingExamples(ragged((3, 6, 4)), str, PAD)
    found = own.targets(np.array([1, 0]), 7)
    ids = own.ragged.row(1).tolist()
    assert found.labels.shape == (2, 7, 1)
    assert found.labels[0, :5, 0].tolist() == ids[1:]
    assert found.weights.tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    assert found.labels[1, :2, 0].tolist() == own.ragged.row(0).tolist()[1:]
    assert own.truth.tolist() == [token for i in range(3) for token in own.ragged.row(i).tolist()[1:]]
    assert own.spots(np.array([1, 0]), 7).tolist() == [[2, 3, 4, 5, 6, -1, -1], [0, 1, -1, -1, -1, -1, -1]]
    inputs = own.gather(np.array([1]), 7)
    assert inputs["input_ids"][0].tolist() == [*ids, PAD]  # nothing is hidden: a decoder does not look ahead
    assert found.weights.dtype == np.float32


@pytest.mark.parametrize("lengths", [LENGTHS, (3, 3), (64,)])
def test_each_following_token_is_answered_once(lengths):
    own = FollowingExamples(ragged(lengths), str, PAD)
    assert len(own.truth) == sum(lengths) - len(lengths)
    each_answer_once(own)


def test_a_text_of_one_token_has_nothing_that_follows():
    own = FollowingExamples(Ragged(np.array([7, 8, 9, 7], np.int32), np.array([0, 1, 3, 4])), str, PAD)
    assert own.truth.tolist() == [9]
    assert own.targets(np.array([0, 1, 2]), 2).weights.tolist() == [[0, 0], [1, 0], [0, 0]]
    each_answer_once(own)


def tokenizer(kind: str, names: list[str], special: list[str]) -> text.FastTokenizer:
    import tokenizers
    from tokenizers import models

    ids = {name: i for i, name in enumerate([*special, *names])}
    model = models.WordPiece(ids, unk_token=special[0]) if kind == "wordpiece" else models.WordLevel(ids, special[0])
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(special)
    return text.FastTokenizer("tokenizer.json", made.to_str(), None)


MARKED = [
    ("wordpiece", ["[PAD]", "[MASK]"], ["a", "##b", "c", "##d"], "[MASK]", ["##b", "##d"]),
    ("byte-level", ["<pad>", "<mask>"], ["Ġa", "b", "Ġc", ","], "<mask>", ["b", ","]),
    ("sentencepiece", ["<pad>", "<mask>"], ["▁a", "b", "▁c"], "<mask>", ["b"]),
]


@pytest.mark.parametrize(("kind", "special", "names", "mask", "goes_on"), MARKED, ids=[row[0] for row in MARKED])
def test_words_of_a_tokenizer(kind, special, names, mask, goes_on):
    found, every = tokenizer(kind, names, special).words(), [*special, *names]
    assert every[found.mask] == mask
    assert [every[i] for i in np.flatnonzero(found.special)] == special
    assert [every[i] for i in np.flatnonzero(found.goes_on)] == goes_on
    assert found.special.shape == found.goes_on.shape == (len(every),)


def test_a_tokenizer_that_hides_nothing():
    with pytest.raises(WeightsError, match=r"no token for a hidden word; expected one of \[MASK\], <mask>"):
        tokenizer("wordpiece", ["a"], ["[PAD]"]).words()
