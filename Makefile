# make demo: pictures from the shipped model.  make check: everything that must hold.
# PYTHON=python3.12 chooses the interpreter, PIP_INDEX_URL and its like the package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= outputs/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check format format-check lint types contract emoji-model clean

help:
	@echo "make demo         a few pictures from the shipped model, in $(OUT)"
	@echo "make test         the tests"
	@echo "make check        format, lint, types, import contract, tests"
	@echo "make format       put the code into its one format"
	@echo "make emoji-model  train the shipped model from nothing (hours)"

# Stamp files, so that each set-up runs once, and again when what it installs has changed.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here; name a Python with: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Pellucid needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another with: make PYTHON=python3.11 $(MAKECMDGOALS)" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing Pellucid into $(VENV); the first time takes some minutes."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,data,train]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/pellucid generate "a rabbit" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a slice of pizza" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a red heart on a blue background" --seed 1 --out $(OUT)
	@echo "The pictures are in $(OUT)/. Now your own words: $(BIN)/pellucid generate \"a frog\""

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q

check: format-check lint types contract test

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

contract: $(VENV)/.installed-dev
	$(BIN)/lint-imports

emoji-model: $(VENV)/.installed-dev
	@echo "The recipe is not written yet." >&2; exit 1

clean:
	rm -rf $(VENV)/.installed $(VENV)/.installed-dev build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
