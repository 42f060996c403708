# Everything needs only Python 3.11 or newer and make; the first target makes .venv and installs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The one place that decides which torch: without a GPU the version that has a small CPU build, else what pyproject says.
TORCH := $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)

.PHONY: demo test check lint aot clean
.DEFAULT_GOAL := check

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m tests.demo .demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# Every kernel configuration, compiled for every architecture without a GPU; benchmarks/aot.py says what is refused.
aot: $(VENV)/.installed
	$(BIN)/python -m benchmarks.aot

clean:
	rm -rf $(VENV) .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
