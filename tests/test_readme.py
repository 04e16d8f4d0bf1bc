"""The README's Python runs as it stands there, and names only configs that exist."""

import doctest
import re
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parent.parent


def test_the_library_example_runs(minilm):
    with jax.numpy_dtype_promotion("standard"):  # as a user has it
        failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert tried >= 10
    assert failed == 0


def test_named_files_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in {*re.findall(r"configs/\w+\.py", text), *re.findall(r"\]\((\w+\.md)\)", text)}:
        assert (ROOT / name).is_file(), name
