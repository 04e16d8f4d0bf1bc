"""The house rules that a reader of one module relies on, held over every module of the package by its syntax tree."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tljax"

# A room may import itself and the rooms on the floors below; rooms on one floor do not know each other.
FLOORS = (
    {"errors", "trees", "checks", "mesh"},
    {"config"},
    {"models", "data"},
    {"weights"},
    {"transfer"},
    {"train"},
    {"evaluate"},
    {"run"},
    {"cli"},
    {"launch"},
    {"__main__"},
)
NEIGHBOURS = {("trees", "errors")}  # trees speaks in the one error family
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# library -> the only places that may import it, so that a new release of it is one file's matter
IMPORTERS = {
    "flax": ("models/",),
    "orbax": ("train/checkpoint.py", "weights/orbax_folder.py"),
    "safetensors": ("weights/safetensors_file.py",),
    "msgpack": ("weights/msgpack_file.py",),
    "tensorflow_datasets": ("data/sources.py",),
    "tokenizers": ("data/text.py", "weights/hub.py"),
    "transformers": ("data/text.py", "weights/hub.py"),
}
SLOW = {"transformers", "tensorflow_datasets", "sklearn", "matplotlib", "pyarrow", "grain", "huggingface_hub"}
EXECUTES_FILES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FOREIGN = {"torch", "tensorflow", "chex", "clu", "jaxtyping"}  # no part of an ordinary installation
MOST_LINES = 300

REASON = re.compile(r"# noqa: BLE001 - \w.*")  # on an `except Exception` that a library leaves no other way

Import = tuple[str, int, bool]  # (absolute dotted name, line, whether at module level)


def room_of(name: str) -> str:
    """'data' for "tljax/data/text.py" as for "data/text.py" and "tljax.data.text"; '' for the package itself."""
    parts = name.removesuffix(".py").replace("/", ".").removeprefix("tljax").strip(".").split(".")
    return "" if parts[0] in ("", "__init__") else parts[0]


def imports(tree: ast.Module, name: str) -> Iterator[Import]:
    """Every import of the module at `name` ("data/text.py"), those inside functions too."""
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    package = ["tljax", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from tljax import data` imports a room, `from jax import numpy` a module
                yield f"{module}.{alias.name}", node.lineno, id(node) not in late
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno, id(node) not in late


def type_checking_only(tree: ast.Module) -> set[int]:
    """Lines inside `if TYPE_CHECKING:`, which never run."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in node.body
        for line in range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)
    }


def faults(source: str, name: str) -> list[str]:
    """What is wrong with the module `name` ("data/text.py"), a line each."""
    tree = ast.parse(source)
    room, found = room_of(name), []
    typing_lines = type_checking_only(tree)
    if room and room not in FLOOR:
        found.append(f"{name}: {room} stands on no floor; add it to FLOORS")
    if (lines := len(source.splitlines())) > MOST_LINES:
        found.append(f"{name}: {lines} lines, at most {MOST_LINES}")
    for imported, line, at_module_level in imports(tree, name):
        place, top = f"{name}:{line}", imported.split(".")[0]
        if top == "tljax":
            other = room_of(imported)
            if room in FLOOR and other not in FLOOR and not imported.startswith("tljax.__"):
                found.append(f"{place}: imports {imported} from the package's door, expected the room that holds it")
            elif room in FLOOR and other in FLOOR and other != room and (room, other) not in NEIGHBOURS:
                if FLOOR[other] >= FLOOR[room]:
                    found.append(f"{place}: {room} imports {other}, which is not below it")
        allowed = IMPORTERS.get(top)
        if allowed and not any(name == at or (at.endswith("/") and name.startswith(at)) for at in allowed):
            found.append(f"{place}: imports {top}, which only {' and '.join(allowed)} may")
        if top in SLOW and at_module_level and line not in typing_lines:
            found.append(f"{place}: imports {top} at module level, expected inside the function that needs it")
        if top in EXECUTES_FILES:
            found.append(f"{place}: imports {top}, which runs code from the files it opens")
        if top in FOREIGN and line not in typing_lines:
            found.append(f"{place}: imports {top}, which an ordinary installation does not have")
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append(f"{name}:{node.lineno}: bare assert, expected an error that says what to do")
        elif isinstance(node, ast.ExceptHandler):
            kinds = {ast.unparse(kind) for kind in getattr(node.type, "elts", [node.type]) if kind}
            excused = kinds == {"Exception"} and REASON.search(source.splitlines()[node.lineno - 1])
            if (not kinds or kinds & {"Exception", "BaseException"}) and not excused:
                found.append(f"{name}:{node.lineno}: catches everything, expected the errors that are meant")
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append(f"{name}:{node.value.lineno}: {node.arg}={ast.unparse(node.value)}, expected False")
    return found


def modules() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", modules())
def test_module(name: str):
    found = faults((PACKAGE / name).read_text(encoding="utf-8"), name)
    assert not found, "\n".join(found)


BREACHES = [  # (the rule it breaks, module, source, words of the fault)
    ("upwards", "data/text.py", "from tljax.train import loop", "data imports train"),
    ("upwards, of the package", "data/text.py", "from tljax import train", "data imports train"),
    ("upwards, plainly", "models/bert.py", "import tljax.weights.files", "models imports weights"),
    ("upwards, late", "data/text.py", "def f():\n    from tljax.evaluate import metrics", "data imports evaluate"),
    ("upwards, relative", "data/text.py", "from ..weights import hub", "data imports weights"),
    ("upwards, by name", "data/text.py", "import importlib\nimportlib.import_module('tljax.cli')", "data imports cli"),
    ("siblings", "models/bert.py", "from tljax.data import images", "models imports data"),
    ("siblings, late", "data/images.py", "def f():\n    import tljax.models", "data imports models"),
    ("config looks down only", "config.py", "from tljax.models import FAMILIES", "config imports models"),
    ("errors know nothing", "errors.py", "from tljax.trees import match", "errors imports trees"),
    ("the door", "train/loop.py", "from tljax import train_model", "the package's door"),
    ("an unknown room", "extras/a.py", "", "stands on no floor"),
    ("flax", "train/step.py", "import flax.linen as nn", "imports flax"),
    ("orbax", "train/state.py", "from orbax import checkpoint", "imports orbax"),
    ("safetensors", "weights/hub.py", "import safetensors", "imports safetensors"),
    ("msgpack", "weights/convert.py", "import msgpack", "imports msgpack"),
    ("tensorflow_datasets", "data/images.py", "def f():\n    import tensorflow_datasets", "only data/sources.py"),
    ("tokenizers", "data/batching.py", "import tokenizers", "imports tokenizers"),
    ("slow", "weights/hub.py", "import transformers", "at module level"),
    ("slow, in a class", "evaluate/metrics.py", "class A:\n    from sklearn import metrics", "at module level"),
    ("slow, tried", "evaluate/plots.py", "try:\n    import matplotlib\nexcept ImportError:\n    pass", "module level"),
    ("pickle", "weights/files.py", "def f():\n    import pickle", "runs code"),
    ("pickle in numpy", "data/sources.py", "np.load(path, allow_pickle=True)", "expected False"),
    ("remote code", "weights/hub.py", "f(trust_remote_code=flag)", "expected False"),
    ("torch", "weights/export.py", "def f():\n    import torch", "ordinary installation"),
    ("catch-all", "train/loop.py", "try:\n    f()\nexcept Exception:\n    pass", "catches everything"),
    ("catch-all among others", "cli/main.py", "try:\n    f()\nexcept (OSError, Exception) as e:\n    pass", "catches"),
    ("bare except", "cli/main.py", "try:\n    f()\nexcept:\n    raise", "catches everything"),
    ("catch-all without a reason", "cli/main.py",
     "try:\n    f()\nexcept Exception:  # noqa: BLE001\n    pass", "catches"),
    ("assert", "trees.py", "assert x", "bare assert"),
    ("too long", "trees.py", "x = 1\n" * 301, "301 lines"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "words"), [row[1:] for row in BREACHES], ids=[row[0] for row in BREACHES])
def test_breach_is_found(name: str, source: str, words: str):
    found = faults(source, name)
    assert len(found) == 1, found
    assert words in found[0]


ALLOWED = [  # (why, module, source)
    ("downwards", "train/loop.py", "from tljax import trees\nfrom tljax.data.batching import plan"),
    ("within a room", "data/text.py", "from tljax.data import batching\nfrom . import images\nfrom .images import x"),
    ("trees raise errors", "trees.py", "from tljax.errors import ConfigError"),
    ("slow, late", "evaluate/metrics.py", "def f():\n    from sklearn import metrics"),
    ("slow, for types", "data/sources.py",
     "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyarrow as pa"),
    ("flax at home", "models/bert.py", "from flax import linen as nn"),
    ("the version", "cli/main.py", "from tljax import __version__"),
    ("the door re-exports", "__init__.py", "from tljax.weights.load import load_pretrained"),
    ("300 lines", "trees.py", "x = 1\n" * 300),
    ("named errors", "cli/main.py", "try:\n    f()\nexcept (OSError, ValueError):\n    raise"),
    ("catch-all with a reason", "data/text.py",
     "try:\n    f()\nexcept Exception:  # noqa: BLE001 - the library raises nothing better\n    raise"),
    ("no pickle", "data/sources.py", "np.load(path, allow_pickle=False)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source"), [row[1:] for row in ALLOWED], ids=[row[0] for row in ALLOWED])
def test_allowed(name: str, source: str):
    assert faults(source, name) == []


def test_every_importer_is_a_place_of_the_house():
    for places in IMPORTERS.values():
        assert all(room_of(place.rstrip("/")) in FLOOR for place in places)


def test_the_package_is_there():
    assert {"errors.py", "trees.py", "config/__init__.py"} <= set(modules())
