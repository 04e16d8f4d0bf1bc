"""Texts: the ids that transformers gives, whatever the text; padding only where the mask says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tljax.data.text import FastTokenizer, Ragged, TextExamples, check_vocabulary, load_tokenizer
from tljax.errors import ConfigError, DataError, WeightsError

ODD = [
    "the card is lost",
    "",
    "   ",
    "\t\n",
    "UPPER Case",
    "naïve café",
    "nai\u0308ve",  # decomposed
    "مرحبا بالعالم",
    "שלום עולם",
    "你好世界",
    "👩‍👩‍👧‍👦 🇪🇺",
    "a\x00b",
    "a\u200bb\ufeffc",
    "\ufffd",
    "[CLS] [SEP] [PAD] [MASK]",
    "x" * 5000,
    "word " * 3000,
    "don't -- stop… (please)",
    "1,5 3.14 1e-5 $€£",
    "\u202eright to left override",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
]


@pytest.mark.parametrize("max_length", [4, 16, 128, 512])
def test_same_ids_as_transformers(minilm: Path, max_length: int) -> None:
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(str(minilm), trust_remote_code=False)
    expected = reference(ODD, truncation=True, max_length=max_length)["input_ids"]
    found = load_tokenizer(minilm).encode(ODD, max_length)
    assert [found.row(i).tolist() for i in range(len(ODD))] == expected
    assert (found.ids.dtype, found.offsets.dtype) == (np.int32, np.int64)


def test_properties_of_a_real_tokenizer(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    assert isinstance(tokenizer, FastTokenizer)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30522, 0)
    check_vocabulary(tokenizer.vocab_size, 30522)
    with pytest.raises(WeightsError, match="ids up to 30521; expected at most 30520"):
        check_vocabulary(tokenizer.vocab_size, 30521)


def test_lone_surrogates_are_replaced(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    texts = ["a\ud800b", "a \udc80 b", "\ud83d"]
    found, expected = tokenizer.encode(texts, 32), tokenizer.encode([t.replace("\ud800", "\ufffd").replace(
        "\udc80", "\ufffd").replace("\ud83d", "\ufffd") for t in texts], 32)  # fmt: skip
    assert found.ids.tolist() == expected.ids.tolist()


def test_no_room_beside_the_special_tokens(minilm: Path) -> None:
    with pytest.raises(ConfigError, match="more than the 2 special tokens"):
        load_tokenizer(minilm).encode(["a"], 2)


def test_chunks_and_order(minilm: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    texts = [f"text {i} " + "x " * (i % 7) for i in range(5000)]
    whole, single = tokenizer.encode(texts, 32), [tokenizer.encode([texts[i]], 32).ids for i in (0, 2047, 2048, 4999)]
    assert [whole.row(i).tolist() for i in (0, 2047, 2048, 4999)] == [ids.tolist() for ids in single]
    assert len(whole) == 5000
    assert len(tokenizer.encode([], 32)) == 0


def test_without_tokenizer_json(minilm: Path, tmp_path: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"):
        shutil.copy(minilm / name, tmp_path / name)
    slow, fast = load_tokenizer(tmp_path), load_tokenizer(minilm)
    assert not isinstance(slow, FastTokenizer)
    assert (slow.vocab_size, slow.pad_id) == (fast.vocab_size, fast.pad_id)
    texts = [*ODD, "a\ud800b"]
    assert slow.encode(texts, 24).ids.tolist() == fast.encode(texts, 24).ids.tolist()
    assert slow.encode(texts, 24).offsets.tolist() == fast.encode(texts, 24).offsets.tolist()


def word_level(folder: Path, **more: object) -> None:
    """A tokenizer of four words and no special tokens."""
    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "[END]": 5}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    content = {"version": "1.0", "model": model, "pre_tokenizer": {"type": "Whitespace"}, "truncation": None,
               "padding": None, "added_tokens": [], "normalizer": None, "post_processor": None,
               "decoder": None}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps({**content, **more}))


PADDING = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0}


@pytest.mark.parametrize(
    ("files", "padding", "expected"),
    [
        ({}, None, 0),
        ({"config.json": {"pad_token_id": 2}}, None, 2),
        ({"config.json": {"pad_token_id": None, "eos_token_id": 5}}, None, 5),
        ({"config.json": {"pad_token_id": 2}}, {**PADDING, "pad_id": 1, "pad_token": "a"}, 1),
        ({"tokenizer_config.json": {"pad_token": "[END]"}}, {**PADDING, "pad_id": 1, "pad_token": "a"}, 5),
        ({"tokenizer_config.json": {"pad_token": {"content": "b"}}}, None, 2),
        ({"tokenizer_config.json": {"pad_token": "not there"}}, None, 0),
    ],
)
def test_padding_token(tmp_path: Path, files: dict[str, object], padding: object, expected: int) -> None:
    word_level(tmp_path, padding=padding)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_id, tokenizer.vocab_size) == (expected, 6)  # ids have a hole: the largest counts


def test_the_file_s_own_truncation_and_padding_do_not_count(tmp_path: Path) -> None:
    short = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Left"}
    fixed = {**PADDING, "strategy": {"Fixed": 9}, "pad_id": 0, "pad_token": "[UNK]"}
    word_level(tmp_path, truncation=short, padding=fixed)
    found = load_tokenizer(tmp_path).encode(["a b a b", "a"], 3)
    assert [found.row(i).tolist() for i in range(2)] == [[2, 1, 2], [1]]  # its side of cutting is kept: left


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", "{", "cannot be read as a tokenizer"),
        ("tokenizer.json", '{"model": 3}', "cannot be read as a tokenizer"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        ("config.json", '{"pad_token_id": 77}', "the padding id is 77; expected 0 to 5"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    word_level(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(WeightsError, match=words):
        load_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"expected tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_code_of_the_checkpoint_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    with pytest.raises(WeightsError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def where(i: int) -> str:
    return f"a.csv, row {i + 2}"


def ragged(*rows: list[int]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Ragged(np.array([v for row in rows for v in row], np.int32), offsets)


def test_gather() -> None:
    examples = TextExamples(ragged([5, 6, 7], [8], [9, 10]), np.array([1, 0, 1]), where, 99)
    found = examples.gather(np.array([2, 0]), 4)
    assert found["input_ids"].tolist() == [[9, 10, 99, 99], [5, 6, 7, 99]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert found["token_type_ids"].tolist() == [[0] * 4] * 2
    assert {x.dtype.name for x in found.values()} == {"int32"}
    assert examples.lengths.tolist() == [3, 1, 2]
    assert len(examples) == 3
    assert examples.gather(np.array([0, 1]), 3)["input_ids"].tolist() == [[5, 6, 7], [8, 99, 99]]
    with pytest.raises(ValueError, match="3 tokens in a batch of length 2"):
        examples.gather(np.array([0, 1]), 2)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 3: the tokenizer makes no token") as caught:
        TextExamples(ragged([5], [], [6], []), None, where, 0)
    assert caught.value.details == ("a.csv, row 3", "a.csv, row 5")


def test_digest() -> None:
    labels = np.array([0, 1])
    same = TextExamples(ragged([5, 6], [7]), labels, where, 0).digest()
    assert TextExamples(ragged([5, 6], [7]), labels, where, 0).digest() == same
    others = [
        TextExamples(ragged([5], [6, 7]), labels, where, 0),
        TextExamples(ragged([5, 6], [8]), labels, where, 0),
        TextExamples(ragged([5, 6], [7]), labels[::-1], where, 0),
        TextExamples(ragged([5, 6], [7]), None, where, 0),
    ]
    assert len({same, *(other.digest() for other in others)}) == 5


def test_labels_must_match() -> None:
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        TextExamples(ragged([5], [6]), np.array([0]), where, 0)
