# Everything needs only Python 3.11 or newer and make; the first target makes .venv and installs into it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The one place that decides which torch: without a GPU the version that has a small CPU build, else what pyproject says.
TORCH := $(if $(shell command -v nvidia-smi),torch,torch==2.13.0)

.PHONY: demo test test-slow test-isa test-integrations test-stores test-browser check lint aot faults docs lock clean
.DEFAULT_GOAL := check

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m tests.demo .demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: $(VENV)/.installed
	$(PYTEST)

# What takes too long for every day, and all cases of what `make test` samples.
test-slow: $(VENV)/.installed
	FASTVEC_TESTS=thorough $(PYTEST) -m 'slow or sampled'

# What is computed, as a processor with fewer instructions computes it: SSE4.1 alone, then AVX2. One that has no more than
# these runs the second as it runs `make test`.
NUMERIC := tests/kernels tests/operators tests/training tests/decoders tests/test_encoder.py tests/test_sentence_transformers.py \
	tests/checkpoints/test_remote_code.py tests/embedding/test_first_texts.py tests/output/test_vector_column.py --ignore=tests/training/test_ranks.py
test-isa: $(VENV)/.installed
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) -m '' -k 'not triton' $(NUMERIC)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) -m '' -k 'not triton' $(NUMERIC)

# The recipes of docs/integrations.md, what runs on Ray and the encoder for mteb, whose libraries `make test` does not install and skips.
test-integrations: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[integrations,mteb,ray]'
	$(PYTEST) tests/docs/test_integrations.py tests/docs/test_reading.py tests/encoding/test_inputs.py tests/embedding/test_inputs.py \
		tests/test_ray.py tests/jobs/test_ray_data.py tests/test_mteb.py

# Inputs and outputs in object stores, on a real S3 server of this machine, which `make test` does not install and skips.
test-stores: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[stores]'
	$(PYTEST) -m '' tests/stores

# Maps in headless Chromium, which `make test` does not install and skips.
test-browser: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	$(PYTEST) -n 0 -m '' -rs tests/maps/test_browser.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# Every kernel configuration, compiled for every architecture without a GPU; benchmarks/aot.py says what is refused.
aot: $(VENV)/.installed
	$(BIN)/python -m benchmarks.aot

# Random faults against the real command: kills, power cuts, full disks, damaged files. The seed, if
# none is given, is a new one each time, and printed with the command that repeats a failure.
faults: $(VENV)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=.:kernels $(BIN)/python -m benchmarks.faults --faults 1000 --minutes 5 $(if $(SEED),--seed $(SEED))

# The documentation as a site; a warning, such as one about a broken link, fails.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs site

# The newest versions that pyproject.toml allows, with the hashes of all their files.
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-header
lock: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lock]'
	(sed -n 1p requirements.lock; $(COMPILE)) > lock.new && mv lock.new requirements.lock
	(sed -n 1p requirements-cpu.lock; echo torch | $(COMPILE) --constraints requirements.lock --excludes -) > lock.new \
		&& mv lock.new requirements-cpu.lock

clean:
	rm -rf $(VENV) .demo site .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
