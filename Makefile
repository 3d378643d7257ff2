# Everything EAGLE does from its checkout. `make` lists the targets; each sets up its environment first if it has to.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
SHELL := /bin/bash

# The environment is done when it holds a file named after the hash of requirements.txt: another hash, another install.
KEY := $(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('requirements.txt', 'rb').read()).hexdigest()[:16])")
READY := $(VENV)/requirements-$(KEY)

# Nothing is fetched after the install, and nothing is written outside the checkout.
export HF_HUB_OFFLINE ?= 1
export HF_HOME ?= $(CURDIR)/build/huggingface
export MPLCONFIGDIR ?= $(CURDIR)/build/matplotlib

.PHONY: help setup demo test test-slow test-all conformance lint assets eval train-tiny key

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## Create .venv and install the pinned requirements into it (6 GB, some minutes; once)

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "EAGLE needs Python 3.11 or newer; this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/requirements-*
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

demo: setup ## Answer five questions about files in assets/; your own: ARGS="--image my.png --text '...'"
	@$(RUN) demo.py $(ARGS)

test: setup ## Run the core tests (CPU, offline, at most 12 minutes on two cores)
	$(RUN) -m pytest -m "not slow" $(ARGS)

test-slow: setup ## Run the long tests only
	$(RUN) -m pytest -m slow $(ARGS)

test-all: test test-slow ## Run the core tests and the long ones (at most 40 minutes)

conformance: setup ## Run transformers' own model tests on our classes (fetches them once: needs the network)
	$(RUN) -m pytest tests/conformance.py $(ARGS)

lint: setup ## Check the code's style
	$(RUN) -m ruff check .

assets: setup ## Draw the demo's files in assets/ again
	$(RUN) -m training.synthesis.make_assets

eval: setup ## Score the checkpoint at the root on held-out items of every skill (hours on two cores; ARGS="--count 50")
	$(RUN) -m eval.skills $(ARGS)

train-tiny: setup ## Train eagle-tiny from nothing into runs/language; a killed run goes on where it stood
	$(RUN) -m training.towers --config training/recipes/towers/patches.yaml
	$(RUN) -m training.towers --config training/recipes/towers/vision.yaml
	$(RUN) -m training.towers --config training/recipes/towers/audio.yaml
	$(RUN) -m training.assemble --preset eagle-tiny --weights runs/towers-vision runs/towers-audio --output runs/start
	$(RUN) -m training.sft --config training/recipes/pretrain/tiny.yaml
	$(RUN) -m training.sft --config training/recipes/instruct/tiny.yaml
	test -d runs/encoded || $(RUN) -m training.encode --model runs/instruct --rows 2560 --output runs/encoded
	$(RUN) -m training.sft --config training/recipes/instruct/language.yaml

key:
	@echo $(KEY)
