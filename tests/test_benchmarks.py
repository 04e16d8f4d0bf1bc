"""The benchmarks, which no test runs, name what the package has."""

import ast
import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_imported_is_there(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    taken = [(node.module, alias.name) for node in ast.walk(tree) for alias in getattr(node, "names", ())
             if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tljax"]  # fmt: skip
    for module, name in taken:
        found = importlib.import_module(module)
        if not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    assert taken or file.stem.startswith("_") or "launch" in file.read_text()
