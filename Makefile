# SPDX-License-Identifier: Apache-2.0
# Everything a newcomer needs: `make demo` and `make test` work in a fresh clone with Python 3.11 or newer and make.

PYTHON ?= python3
# Test processes; each computes on one thread, so that two of them do not fight over the same cores.
JOBS ?= 2

# What `make demo` extracts and trains on, and with which ViT: the embedded one, DITR_CACHE_WEIGHTS (a local Hugging Face
# folder), or a name, as in: make demo BACKBONE='-s backbone.name=dinov2-small'
ROOMS ?= synthetic:rooms=16,views=12,val=4
BACKBONE ?= $(if $(DITR_CACHE_WEIGHTS),--weights $(DITR_CACHE_WEIGHTS))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup scatter demo test slow lint format check bench clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install the pinned versions (again only when they change)

# torch comes first and alone: the pin decides its version before any other package can ask for one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ditr-cache needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0 setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,fast]'
	@touch $@

scatter: setup ## torch-scatter beside it, for its tests: compiles for some minutes
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps torch-scatter

demo: setup ## rooms -> features -> verified store -> PTv3 alone and PTv3 + DITR -> table and pictures, in demo/
	$(BIN)/ditr-cache extract $(ROOMS) demo/rooms.store $(BACKBONE)
	$(BIN)/ditr-cache verify demo/rooms.store
	$(BIN)/ditr-cache picture $(ROOMS) demo/rooms.store demo/rooms.png
	$(BIN)/ditr-cache train demo/rooms.store demo/ptv3 --resume -c tiny -s model.injection=none
	$(BIN)/ditr-cache train demo/rooms.store demo/ditr --resume -c tiny
	$(BIN)/ditr-cache evaluate demo/ditr demo/rooms.store --against demo/ptv3 --pictures demo/pictures
	@echo "Look at demo/rooms.png and demo/pictures"

test: setup ## the tests, without the ones that take minutes
	$(PYTEST) $(PARALLEL) -m "not slow"

slow: setup ## the tests that take minutes
	$(PYTEST) -m slow

lint: setup ## style, types, layers, Dockerfile
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy ditr_cache
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check: lint test ## what a change must pass

bench: setup ## every benchmark, one after the other; results go to benchmarks/results
	@set -e; for script in $(wildcard benchmarks/[a-z]*.py); do \
		echo "== $$script"; $(BIN)/python "$$script"; done

clean: ## remove what was built or cached
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## clean, and remove .venv
	rm -rf $(VENV)
