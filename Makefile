# Everything a contributor runs, with python3, git and make alone. `make` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two workers suit the smallest machine; tests marked gpu share one of them, so that they never run side by side.
PYTEST_ARGS ?= -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help env test test-gpu check launches programs mutants format demo constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(STAMP)  ## create .venv from constraints.txt (PYTHON=python3.12 picks another Python; `make clean` first)

# What builds the project comes first and is pinned too: an isolated build would fetch the newest.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade \
		pip hatchling editables
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

test: $(STAMP)  ## run the tests that are not slow
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not slow and not programs'

test-gpu: $(STAMP)  ## run the tests that need a CUDA device, one after the other
	$(BIN)/python -m pytest -m gpu

check: $(STAMP)  ## before every commit: lint, formatting, types, import contracts, every test that starts no Ray
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m 'not programs and not ray'

launches: $(STAMP)  ## runs under Ray: what fails, hangs and is stopped in them, on one node and on two; CI runs it, too
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m ray

programs: $(STAMP)  ## start and record small programs of every kind, as users start theirs; CI runs it, too
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m programs

mutants: $(STAMP)  ## change the code at random and see whether a test fails; MUTANTS="--area sql --num 100 --seed 7"
	$(BIN)/python scripts/mutants.py $(MUTANTS)

format: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(STAMP)  ## record a tiny model on two CPU ranks, from the launch to a report
	$(BIN)/python -m ray_memprof.launch configs/cpu2.yaml
	@echo
	@echo "That was a whole run. Worth trying next:"
	@echo "  $(BIN)/ray-memprof open latest                  # its report in the browser"
	@echo "  $(BIN)/ray-memprof query alive_at_peak latest   # what was alive at the peak of each rank"
	@echo "  $(BIN)/ray-memprof open --sample                # the same of a real run: 14B on two H200s"

constraints:  ## resolve every version anew and rewrite constraints.txt
	$(PYTHON) scripts/pin_constraints.py

clean:  ## remove the environment, builds and caches; outputs/ and profiler_logs/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
