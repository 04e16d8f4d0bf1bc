"""README.md of an exported model: a Hugging Face model card that says what the model is and what it is not."""

import json
import re
from collections.abc import Sequence
from typing import Any

from tljax.errors import printable
from tljax.evaluate.metrics import Scores, interval, shown

PIPELINES = {"text": "text-classification", "image": "image-classification", "events": "tabular-classification"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    *, title: str, task: str, base_model: str, dataset: str, classes: Sequence[str], scores: Any, strategy: str,
    split: str = "test", revision: str = "", license: str = "", pooling: str = "", transformers_class: str = "",
    version: str = "",
) -> str:  # fmt: skip
    """The text of README.md: YAML front matter, then Markdown.

    Args:
      task: text or image.
      base_model: the checkpoint's reference; it becomes metadata only where it is a Hugging Face id.
      license: SPDX-like id of the base model's licence if it is known; left out otherwise, never guessed.
      pooling: text: how tokens become one vector.
      transformers_class: the class of transformers that opens the folder with its head; empty: only tljax does.
      version: of tljax.
    """
    parts = [
        _front_matter(title, task, base_model, dataset, scores, split, license, bool(transformers_class)),
        f"# {_plain(title)}",
        f"A classifier of {task}s into {len(classes)} classes, fine-tuned with tljax{version and f' {version}'}.",
        _table([
            ("base model", _code(base_model) + (f" at revision {_code(revision)}" if revision else "")),
            ("data", _code(dataset)),
            ("what was trained", _plain(strategy)),
            *([("pooling", _plain(pooling))] if pooling else []),
        ]),
        "## Scores",
        _scores(scores, split),
        "## How to load it",
        _loading(task, transformers_class),
        "## Classes",
        _classes(classes),
        "## Limits",
        "The scores hold for data like that above. An input of none of the classes still gets one of them. "
        + ("" if license else "The licence of the base model and of the data was not recorded: look it up before "
           "you pass this model on."),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def pretrained_card(*, title: str, base_model: str, dataset: str, scores: Any, strategy: str, split: str = "test",
                    version: str = "", **others: Any) -> str:  # fmt: skip
    """README.md of a model that was pretrained, or pretrained further, and classifies nothing; as `model_card`."""
    rows = [(name.replace("_", " "), shown(value)) for name, value in scores.summary().items() if name != "n"]
    parts = [
        "---\nlibrary_name: tljax\ntags:\n- tljax\n- jax\n---",
        f"# {_plain(title)}",
        f"A model pretrained with tljax{version and f' {version}'}, to be fine-tuned.",
        _table([("base model", _code(base_model)), ("data", _code(dataset)), ("what was trained", _plain(strategy))]),
        f"## Scores\n\nOn {_plain(split)}, {scores.n:,} answers:\n\n{_table(rows)}",
        "## How to load it\n\n`--config.model.ref=path/to/this/folder`, or its workdir",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    title: str, task: str, base_model: str, dataset: str, scores: Scores, split: str, license: str, transformers: bool
) -> str:
    """YAML, with every value written as JSON, which YAML contains: no name can break out of its quotes."""
    pipeline = PIPELINES[task]
    lines = [f"license: {_quoted(license)}"] if license else []
    library = "transformers" if transformers else "tljax"
    lines += [f"library_name: {library}", f"pipeline_tag: {pipeline}", "tags:", "- tljax", "- jax", "- fine-tuned"]
    if HUB_ID.fullmatch(base_model) and not base_model.startswith("."):
        lines += [f"base_model: {_quoted(base_model)}", "base_model_relation: finetune"]
    values = [("accuracy", scores.accuracy), ("f1", scores.macro_f1)]
    known = [(name, value) for name, value in values if value is not None]
    if known:
        lines += ["metrics:", *(f"- {name}" for name, _ in known)]
        lines += [
            "model-index:",
            f"- name: {_quoted(title)}",
            "  results:",
            f"  - task:\n      type: {pipeline}",
            "    dataset:",
            *(
                f"      {key}: {_quoted(value)}"
                for key, value in (("name", dataset), ("type", dataset), ("split", split))
            ),
            "    metrics:",
            *(f"    - type: {name}\n      value: {value:.6f}" for name, value in known),
        ]
    return "\n".join(["---", *lines, "---"])


def _scores(scores: Scores, split: str) -> str:
    rows = [("accuracy", shown(scores.accuracy)), ("macro-F1", shown(scores.macro_f1)), ("loss", shown(scores.loss))]
    text = f"On {_plain(split)}, {scores.n:,} examples:\n\n{_table(rows)}"
    if scores.accuracy is not None:
        low, high = interval(scores.accuracy, scores.n)
        text += f"\n\n95 % interval of the accuracy for this number of examples: {low:.3f} to {high:.3f}."
    return text


def _loading(task: str, transformers_class: str) -> str:
    own = '```python\nimport tljax\n\nmodel = tljax.load_pretrained("path/to/this/folder")\n```'
    if not transformers_class:
        return own
    processor = "AutoTokenizer" if task == "text" else "AutoImageProcessor"
    other = (
        f"from transformers import {processor}, {transformers_class}\n\n"
        f'processor = {processor}.from_pretrained("path/to/this/folder")\n'
        f'model = {transformers_class}.from_pretrained("path/to/this/folder")'
    )
    return f"{own}\n\nor with PyTorch:\n\n```python\n{other}\n```"


def _classes(classes: Sequence[str], most: int = 200) -> str:
    listed = ", ".join(_code(name) for name in classes[:most])
    return listed + (f" and {len(classes) - most} more: see `id2label` in config.json" if len(classes) > most else "")


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = ((name, value.replace("|", "\\|")) for name, value in rows)
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])


def _quoted(text: str) -> str:
    return json.dumps(printable(text, 500))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, with no markup of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#!&~])", r"\\\1", printable(text, 500))


def _code(text: str) -> str:
    """Text as code, between more backticks than it holds in a row."""
    text = printable(text, 500)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"
