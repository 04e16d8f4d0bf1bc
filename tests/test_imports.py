"""What a fresh interpreter loads: `import tljax` and `tljax --help` stay quick because slow libraries come late."""

import subprocess
import sys

SLOW = {"transformers", "tensorflow_datasets", "matplotlib", "sklearn", "tensorflow", "torch", "pyarrow", "grain"}
ARRAYS = {"jax", "jaxlib", "flax", "optax", "orbax", "numpy", "scipy"}
REPORT = "; import sys; print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))"


def loaded(code: str) -> set[str]:
    """The top-level modules in sys.modules after `code` ran in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code + REPORT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("loaded:", 1)[1].split())


def test_import_leaves_slow_libraries_out():
    assert loaded("import tljax") & SLOW == set()


def test_settings_and_errors_need_no_arrays():
    assert loaded("import tljax.errors, tljax.config") & (SLOW | ARRAYS) == set()


def test_help_loads_no_arrays():
    command = [sys.executable, "-X", "importtime", "-m", "tljax", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in imported or "tljax" in imported  # the listing is what we think it is
    assert imported & (SLOW | ARRAYS | {"tqdm", "rich"}) == set()


def test_importing_the_evaluation_stays_quick():
    code = "import tljax.evaluate.metrics, tljax.evaluate.plots, tljax.evaluate.report"
    assert loaded(code) & {"sklearn", "matplotlib", "rich", "flax", "orbax", "tensorflow_datasets"} == set()
