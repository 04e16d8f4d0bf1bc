"""Text examples: texts become token ids once, at the start, and batches by slicing.

Shapes: n examples, B batch, T tokens in the padded batch.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tljax.data import spm
from tljax.data.batching import OneAnswer
from tljax.errors import ConfigError, DataError, WeightsError, printable

CHUNK = 2048  # texts encoded at a time: an encoding object takes many times the memory of its ids
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Ragged:
    """n rows of token ids: row i is ids[offsets[i]:offsets[i + 1]]. ids int32 (total,), offsets int64 (n + 1,)."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> np.ndarray:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


class Words(NamedTuple):
    """Of a vocabulary (V,): the id that stands for a hidden token, which ids are no words, which go on with one."""

    mask: int
    special: np.ndarray
    goes_on: np.ndarray


class Tokenizer(Protocol):
    """Texts to ids. `vocab_size` is the largest id + 1; `pad_id` fills rows where the attention mask is 0."""

    vocab_size: int
    pad_id: int

    def encode(self, texts: Sequence[str], max_length: int) -> Ragged:
        """The ids of each text with the checkpoint's special tokens, cut at max_length tokens (special ones
        included). Lone surrogates, which are no characters, become U+FFFD; NUL and everything else goes to the
        tokenizer as it is."""


MASKS = ("[MASK]", "<mask>")
BEGINS = ("Ġ", "▁")


def _ragged(rows: list[Any]) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.concatenate(rows) if rows else np.zeros(0)
    return Ragged(flat.astype(np.int32), offsets)


def _characters(texts: Sequence[str]) -> list[str]:
    return [text if text.isascii() else _SURROGATES.sub("\ufffd", text) for text in texts]


class FastTokenizer:
    """A tokenizer.json, run by the tokenizers library in all cores; `path` is the file for messages."""

    def __init__(self, path: Path, content: str, pad_id: int | None):
        import tokenizers

        try:
            json.loads(content)
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a file it cannot use
            raise WeightsError(str(path), f"cannot be read as a tokenizer ({printable(error)})") from None
        padding = self._tokenizer.padding or {}
        self._direction = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.no_padding()  # the file may pad everything to 128 tokens; batches pad to their bucket
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.pad_id = int(padding.get("pad_id", 0) if pad_id is None else pad_id)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def words(self) -> "Words":
        """What hiding words has to know of this tokenizer.

        Raises:
          WeightsError: it has no token for a word that is hidden.
        """
        tokens = self._tokenizer.get_vocab(with_added_tokens=True)
        mask = next((tokens[name] for name in MASKS if name in tokens), None)
        if mask is None:
            raise WeightsError("tokenizer", "no token for a hidden word", f"one of {', '.join(MASKS)}",
                               "--config.pretrain.objective=next, for a decoder")  # fmt: skip
        special = np.zeros(self.vocab_size, bool)
        added = self._tokenizer.get_added_tokens_decoder().items()
        special[[id for id, token in added if token.special or token.content in MASKS]] = True
        # WordPiece marks the pieces that go on, byte-level BPE and SentencePiece those that begin a word
        marked = sum(name.startswith(BEGINS) for name in tokens) > sum(name.startswith("##") for name in tokens)
        goes_on = np.zeros(self.vocab_size, bool)
        goes_on[[id for name, id in tokens.items() if marked != name.startswith(BEGINS if marked else "##")]] = True
        return Words(mask, special, goes_on & ~special)

    def encode(self, texts: Sequence[str], max_length: int) -> Ragged:
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise ConfigError(
                "--config.data.max_length", f"found {max_length}", f"more than the {special} special tokens"
            )
        self._tokenizer.enable_truncation(max_length, direction=self._direction)
        rows: list[Any] = []
        for i in range(0, len(texts), CHUNK):
            encoded = self._tokenizer.encode_batch_fast(_characters(texts[i : i + CHUNK]))
            rows += [np.array(e.ids, np.int32) for e in encoded]
        return _ragged(rows)


class AutoTokenizer:
    """Any other tokenizer, through transformers: slower, and 6 s to import."""

    def __init__(self, folder: Path, pad_id: int | None):
        import transformers

        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
            found = f"no tokenizer can be loaded ({printable(str(error).strip().splitlines()[0])})"
            lacking = any(folder.glob("*.model")) and importlib.util.find_spec("sentencepiece") is None
            fix = "pip install sentencepiece protobuf" if lacking else ""  # transformers asks for tiktoken then
            raise WeightsError(str(folder), found, "tokenizer.json or the files of a known tokenizer", fix) from None
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        own = self._tokenizer.pad_token_id
        self.pad_id = int(own if own is not None else pad_id or 0)

    def encode(self, texts: Sequence[str], max_length: int) -> Ragged:
        rows: list[Any] = []
        for i in range(0, len(texts), CHUNK):
            chunk = _characters(texts[i : i + CHUNK])
            encoded = self._tokenizer(chunk, truncation=True, max_length=max_length, padding=False,
                                      return_attention_mask=False)  # fmt: skip
            rows += [np.array(ids, np.int32) for ids in encoded["input_ids"]]
        return _ragged(rows)


def tokenizer_json(folder: Path) -> str:
    """The tokenizer.json of a checkpoint's folder, or what its SentencePiece model comes to as one; "" for neither.

    Raises:
      WeightsError: a file that cannot be read.
    """
    path, model = folder / "tokenizer.json", folder / "tokenizer.model"
    try:
        if path.is_file():
            return path.read_text("utf-8")
        made = spm.converted(model, _json(folder / "tokenizer_config.json")) if model.is_file() else {}
        return json.dumps(made["tokenizer.json"]) if made else ""
    except (OSError, ValueError) as error:
        found = f"cannot be read as a tokenizer ({printable(error)})"
        raise WeightsError(str(path if path.is_file() else model), found) from None


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder: see `tokenizer_json`, else whatever transformers makes of the folder.

    The padding token is the one that tokenizer_config.json names, else tokenizer.json's own, else config.json's
    pad_token_id or eos_token_id, else id 0; where the mask is 0 its value does not matter as long as it is in range.

    Raises:
      WeightsError: no tokenizer, or one that cannot be read. No code of the checkpoint is ever run.
    """
    folder = Path(folder)
    named = _json(folder / "tokenizer_config.json").get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    config = _json(folder / "config.json")
    ids = [config.get(key) for key in ("pad_token_id", "eos_token_id")]
    fallback = next((i for i in ids if isinstance(i, int) and i >= 0), None)
    content = tokenizer_json(folder)
    if not content:
        return AutoTokenizer(folder, fallback)
    path = folder / "tokenizer.json"
    tokenizer = FastTokenizer(path, content, None)
    token = tokenizer.token_id(named) if isinstance(named, str) else None
    if token is not None:
        tokenizer.pad_id = token
    elif json.loads(content).get("padding") is None and fallback is not None:
        tokenizer.pad_id = fallback
    if not 0 <= tokenizer.pad_id < tokenizer.vocab_size:
        raise WeightsError(str(path), f"the padding id is {tokenizer.pad_id}", f"0 to {tokenizer.vocab_size - 1}")
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            str(path), f"cannot be read as JSON ({printable(error)})", "the checkpoint's own file"
        ) from None
    return value if isinstance(value, dict) else {}


def check_vocabulary(tokenizer_size: int, rows: int) -> None:
    """Refuses a tokenizer that makes ids beyond the `rows` of the word embedding: on a device an id out of range is
    no error but another token, or NaN.

    Raises:
      WeightsError: tokenizer_size > rows.
    """
    if tokenizer_size > rows:
        raise WeightsError("tokenizer", f"ids up to {tokenizer_size - 1}", f"at most {rows - 1}, as the word embedding "
                           f"has {rows} rows", "use the checkpoint's own tokenizer, or, where words were added to it, "
                           f"--config.model.vocab_size={tokenizer_size}")  # fmt: skip


class TextExamples(OneAnswer):
    """n tokenised texts.

    Args:
      ragged: their ids.
      labels: int32 (n,), or None.
      where: index -> place, for messages.
      pad_id: fills rows up to the length of the batch.

    Raises:
      DataError: texts that hold no token at all, each with its place: a mean over no tokens is NaN.
    """

    def __init__(self, ragged: Ragged, labels: np.ndarray | None, where: Callable[[int], str], pad_id: int):
        if labels is not None and len(labels) != len(ragged):
            raise ValueError(f"{len(ragged)} texts and {len(labels)} labels")
        self.ragged, self.where, self.pad_id = ragged, where, pad_id
        self.labels = None if labels is None else np.asarray(labels, np.int32)
        self.lengths = np.diff(ragged.offsets).astype(np.int32)
        if len(void := np.flatnonzero(self.lengths == 0)):
            raise DataError(where(int(void[0])), "the tokenizer makes no token of the text", "at least one",
                            f"leave out {len(void)} such rows", [where(int(i)) for i in void[:50]])  # fmt: skip

    def __len__(self) -> int:
        return len(self.ragged)

    def gather(self, indices: np.ndarray, length: int, seed: int | None = None) -> dict[str, np.ndarray]:
        """{"input_ids", "attention_mask", "token_type_ids"}, each int32 (B, T) with T = length; seed is not used."""
        lengths = self.lengths[indices]
        if lengths.max() > length:
            raise ValueError(f"a text of {lengths.max()} tokens in a batch of length {length}")
        column = np.arange(length)[None, :]
        mask = column < lengths[:, None]
        at = np.where(mask, self.ragged.offsets[indices][:, None] + column, 0)
        ids = np.where(mask, self.ragged.ids[at], np.int32(self.pad_id))
        return {"input_ids": ids, "attention_mask": mask.astype(np.int32), "token_type_ids": np.zeros_like(ids)}

    def content(self) -> str:
        """SHA-256 over all that a network sees: ids, offsets and the padding."""
        mark = hashlib.sha256(self.ragged.offsets.tobytes() + self.ragged.ids.tobytes())
        mark.update(str(self.pad_id).encode())
        return mark.hexdigest()

    def digest(self) -> str:
        """SHA-256 over ids, offsets and labels."""
        mark = hashlib.sha256(self.ragged.offsets.tobytes() + self.ragged.ids.tobytes())
        mark.update(b"" if self.labels is None else self.labels.tobytes())
        return mark.hexdigest()
