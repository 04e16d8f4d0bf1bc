"""SentencePiece models: the ids that SentencePiece itself gives, here and in what transformers opens."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tljax.data import spm
from tljax.data.text import FastTokenizer, load_tokenizer, tokenizer_json

WORDS = (
    "the card is lost",
    "transfer $1,234.50 to savings",
    "what's my balance",
    "naïve café 你好 ½ ﬁne",
    "book two seats",
)
ODD = ["", " ", "  two   spaces ", "\t\n", "a\n\n b\t c ", "ends ", "▁under▁", "UPPER", "nai\u0308ve", "👩‍👩‍👧 🇪🇺",
       "a\x00b", "a\u200bb\ufeffc", "nb\u00a0sp\u3000", "x" * 300, "word " * 200, "مرحبا"]  # fmt: skip
# of the stories' model, by SentencePiece 0.2.3
STORIES = {"Once upon a time": [1, 403, 407, 261, 378], "  two  spaces ": [1, 259, 424, 414, 262, 427, 412, 331, 419],
           "zoë": [1, 410, 451, 414, 198, 174], "": [1]}  # fmt: skip


def texts() -> list[str]:
    rng = random.Random(0)
    mixed = ["".join(rng.choice("acehilnorstuv  \n\t,.X1é你▁") for _ in range(rng.randrange(30))) for _ in range(500)]
    return [*WORDS, *ODD, *mixed]


def train(path: Path, **options: Any) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = path.with_name("corpus.txt")
    corpus.write_text("\n".join(WORDS * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path.with_suffix("")), minloglevel=2, num_threads=1, hard_vocab_limit=False,
        **{"model_type": "bpe", "vocab_size": 340, "byte_fallback": True, **options},
    )  # fmt: skip
    return path


@pytest.mark.parametrize("rules", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("spaces", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("bytes_too", [True, False])
def test_the_ids_are_sentencepieces(tmp_path: Path, rules: str, spaces: bool, prefix: bool, bytes_too: bool) -> None:
    options = {"normalization_rule_name": rules, "remove_extra_whitespaces": spaces, "add_dummy_prefix": prefix}
    size = 340 if bytes_too else 90
    path = train(tmp_path / "tokenizer.model", **options, byte_fallback=bytes_too, vocab_size=size)
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == reference.vocab_size()
    found = tokenizer.encode(texts(), 4096)
    for i, (text, expected) in enumerate(zip(texts(), reference.encode(texts()), strict=True)):
        assert found.row(i).tolist() == [1, *expected], text


def test_the_stories_model(testdata, tmp_path: Path) -> None:
    copied(testdata, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, FastTokenizer)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (512, 2)
    found = tokenizer.encode(list(STORIES), 64)
    assert [found.row(i).tolist() for i in range(len(STORIES))] == list(STORIES.values())


def copied(testdata, folder: Path) -> None:
    source = testdata("stories260k_llama")
    (folder / "tokenizer.model").write_bytes((source / "tok512.model").read_bytes())
    (folder / "config.json").write_bytes((source / "hf" / "config.json").read_bytes())


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [({}, [1], []), ({"add_bos_token": False}, [], []), ({"add_eos_token": True}, [1], [2])],
)
def test_the_tokens_around_a_text(testdata, tmp_path: Path, options: dict, first: list, last: list) -> None:
    copied(testdata, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **options}))
    assert load_tokenizer(tmp_path).encode(["Once upon a time"], 64).ids.tolist() == [*first, 403, 407, 261, 378, *last]


def test_transformers_makes_the_same_tokenizer(testdata, tmp_path: Path) -> None:
    import transformers

    copied(testdata, tmp_path)
    own = load_tokenizer(tmp_path).encode(texts(), 4096)
    for name, content in spm.converted(tmp_path / "tokenizer.model", {}).items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert (theirs.bos_token, theirs.eos_token, theirs.unk_token, theirs.pad_token) == ("<s>", "</s>", "<unk>", "</s>")
    assert theirs(texts())["input_ids"] == [own.row(i).tolist() for i in range(len(own))]
    assert theirs.decode(own.row(0), skip_special_tokens=True) == WORDS[0]
    assert load_tokenizer(tmp_path).encode(texts(), 4096).ids.tolist() == own.ids.tolist()


@pytest.mark.parametrize(
    "content",
    [b"IQ== 0\nIg== 1\n", b"", b"\x0a\x03abc", b"\x0a\x02\x0a\x09", b"\x0a\x02\x08\x01\x12\x02\x18\x02", b"\xff" * 40],
)
def test_what_is_no_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    assert tokenizer_json(tmp_path) == ""


@pytest.mark.parametrize("options", [{"model_type": "unigram"}, {"user_defined_symbols": "<mark>"},
                                     {"treat_whitespace_as_suffix": True}], ids=str)  # fmt: skip
def test_kinds_that_are_left_to_transformers(tmp_path: Path, options: dict) -> None:
    assert spm.converted(train(tmp_path / "tokenizer.model", **options), {}) == {}
