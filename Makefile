# Everything on a fresh machine, set-up included: `make demo` (the main job) and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Plain `torch` from PyPI brings gigabytes of CUDA on Linux. This pin takes the CPU build (2.13.0+cpu goes before 2.13.0) where pip is told of an index
# that has it, for example by PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu. TORCH= (empty) leaves the choice to the resolver,
# TORCH="torch==2.8.0 --index-url ..." takes another build.
TORCH ?= torch==2.13.0

.PHONY: help venv test slow lint docs demo bench clean

help:
	@echo "make demo   lip-sync the sample that ships with the package, by the model that ships with it"
	@echo "make test   linters, type checker and tests"
	@echo "make slow   the slowest tests, which make test leaves out: memory of a long job, Ray, the planted folder"
	@echo "make venv   only set up $(VENV)"
	@echo "make docs   write docs/cli.md from the command's help, and the metrics of docs/evaluate.md"
	@echo "make bench  measure, and write docs/benchmarks.md"

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(BIN)/python -m pip install --quiet $(TORCH))
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal --durations=20

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal --durations=5

docs: $(READY)
	$(BIN)/python tools/make_cli_docs.py docs/cli.md
	$(BIN)/python tools/make_metric_docs.py docs/evaluate.md

demo: $(READY)
	$(BIN)/latentsync demo -o demo --overwrite

bench: $(READY)
	$(BIN)/python bench/run.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
