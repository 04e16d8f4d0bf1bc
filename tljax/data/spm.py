"""A SentencePiece model (tokenizer.model) as a tokenizer.json of the tokenizers library, with the ids of SentencePiece.

transformers opens a bare tokenizer.model of a Llama without a leading space and without the token that begins a text,
and never drops the spaces that the model says to drop: other ids than the network was trained with.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tljax.data import wire

Fields = dict[int, tuple[str, Any]]
Word = tuple[str, float, int]  # text, score, type

SPACE = "▁"
BPE = 2  # of TrainerSpec.ModelType; UNIGRAM, which is 1, stands where nothing does
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # of SentencePiece.Type
# fields of sentencepiece_model.proto by number -> (name, default)
PIECE: Fields = {1: ("piece", b""), 2: ("score", 0.0), 3: ("type", NORMAL)}
TRAINER: Fields = {3: ("model_type", 1), 24: ("treat_whitespace_as_suffix", 0), 35: ("byte_fallback", 0),
                   40: ("unk", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("pad", -1)}  # fmt: skip
NORMALIZER: Fields = {2: ("precompiled_charsmap", b""), 3: ("add_dummy_prefix", 1),
                      4: ("remove_extra_whitespaces", 1)}  # fmt: skip


def converted(path: Path, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json by name, of which transformers makes the same tokenizer.

    Nothing for what is no SentencePiece model, or one that is not byte-pair encoding.

    Args:
      path: the model.
      options: the checkpoint's tokenizer_config.json. add_bos_token is true where it is left out, as Llama and
        Mistral were trained, and add_eos_token false.
    """
    try:
        model = list(wire.fields(path.read_bytes()))
        pieces = [_message(value, PIECE) for number, value in model if number == 1]
        trainer, rules = (_message(next((v for n, v in model if n == part), b""), known)
                          for part, known in ((2, TRAINER), (3, NORMALIZER)))  # fmt: skip
        words = [(str(piece["piece"], "utf-8"), piece["score"], piece["type"]) for piece in pieces]
    except (ValueError, TypeError):  # Llama 3 keeps a tiktoken table under this name
        return {}
    strange = {kind for _, _, kind in words} - {NORMAL, UNKNOWN, CONTROL, BYTE}
    if trainer["model_type"] != BPE or trainer["treat_whitespace_as_suffix"] or strange or not words:
        return {}
    tokens = {name: words[trainer[name]][0] for name in ("unk", "bos", "eos", "pad") if 0 <= trainer[name] < len(words)}
    named = {f"{name}_token": token for name, token in {"pad": tokens.get("eos"), **tokens}.items() if token}
    wanted = {"bos": options.get("add_bos_token", True), "eos": options.get("add_eos_token", False)}
    before, after = ([tokens[name]] if on and name in tokens else [] for name, on in wanted.items())
    ids = {text: i for i, (text, _, _) in enumerate(words)}
    made = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _special(words),
            "normalizer": _normalizer(rules), "pre_tokenizer": None, "post_processor": _template(before, after, ids),
            "decoder": _decoder(rules),
            "model": {"type": "BPE", "vocab": ids, "merges": _merges(ids, words), "unk_token": tokens.get("unk"),
                      "byte_fallback": bool(trainer["byte_fallback"]), "fuse_unk": True}}  # fmt: skip
    settings = {**named, **options, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": made, "tokenizer_config.json": settings}


def _message(content: Any, known: Fields) -> dict[str, Any]:
    """The known fields of a message by name, with defaults; ValueError or TypeError where it is none."""
    found = {known[number][0]: value for number, value in wire.fields(content) if number in known}
    message = dict(known.values()) | found
    if any(type(message[name]) is not type(default) for name, default in known.values()):
        raise TypeError("a field of another type")
    return message


def _special(words: list[Word]) -> list[dict[str, Any]]:
    plain = dict.fromkeys(("normalized", "single_word", "lstrip", "rstrip"), False)
    return [{"id": i, "content": text, "special": True, **plain}
            for i, (text, _, kind) in enumerate(words) if kind in (UNKNOWN, CONTROL)]  # fmt: skip


def _merges(ids: Mapping[str, int], words: list[Word]) -> list[list[str]]:
    """Every way to put a piece together from two, best score first: SentencePiece joins by the score of the result."""
    found = []
    for i, (text, score, kind) in enumerate(words):
        if kind == NORMAL:
            splits = ((text[:k], text[k:]) for k in range(1, len(text)))
            found += [(-score, i, [a, b]) for a, b in splits if a in ids and b in ids]
    return [pair for _, _, pair in sorted(found, key=lambda row: row[:2])]


def _normalizer(rules: Mapping[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if rules["precompiled_charsmap"]:
        charsmap = base64.b64encode(rules["precompiled_charsmap"]).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    drop = rules["remove_extra_whitespaces"]
    if drop:
        steps += [_replace({"Regex": " {2,}"}, " "), _replace({"Regex": r"\A "}, "")]
    if rules["add_dummy_prefix"]:
        steps.append({"type": "Prepend", "prepend": " "})  # nothing before an empty text
    steps.append(_replace({"String": " "}, SPACE))
    if drop:  # as SentencePiece does, at the end even where the text itself has this character
        steps.append(_replace({"Regex": rf"{SPACE}+\z"}, ""))
    return {"type": "Sequence", "normalizers": steps}


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _template(before: list[str], after: list[str], ids: Mapping[str, int]) -> dict[str, Any] | None:
    if not before + after:
        return None

    def parts(sequence: str, kind: int) -> list[dict[str, Any]]:
        around = [[{"SpecialToken": {"id": token, "type_id": kind}} for token in side] for side in (before, after)]
        return [*around[0], {"Sequence": {"id": sequence, "type_id": kind}}, *around[1]]

    tokens = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in before + after}
    single = parts("A", 0)
    return {"type": "TemplateProcessing", "single": single, "pair": single + parts("B", 1), "special_tokens": tokens}


def _decoder(rules: Mapping[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [_replace({"String": SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules["add_dummy_prefix"]:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
