# Everything EAGLE does from its checkout. `make` lists the targets; each sets up its environment first if it has to.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
SHELL := /bin/bash

# The environment is done when it holds a file named after the hash of requirements.txt: another hash, another install.
hash = $(shell $(PYTHON) -c "import hashlib; print(hashlib.sha256(open('$(1)', 'rb').read()).hexdigest()[:16])")
KEY := $(call hash,requirements.txt)
LMMS_EVAL_KEY = requirements-$(call hash,requirements-lmms-eval.txt)
READY := $(VENV)/requirements-$(KEY)

# Nothing is fetched after the install, and nothing is written outside the checkout.
export HF_HUB_OFFLINE ?= 1
export HF_HOME ?= $(CURDIR)/build/huggingface
export MPLCONFIGDIR ?= $(CURDIR)/build/matplotlib

.PHONY: help setup demo test test-slow test-all conformance lint assets eval skills lmms-eval train-tiny full-size gguf key

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

eval: setup ## Measure the checkpoint at the root on the mini suite (10 minutes; ARGS="--tasks chartqa --data-root data")
	$(RUN) -m eval.run --num-processes 2 $(ARGS)

skills: setup ## Score the checkpoint at the root on held-out items of every skill (45 minutes; ARGS="--count 50")
	$(RUN) -m eval.skills $(ARGS)

lmms-eval: setup ## Install lmms-eval into build/lmms-eval, for cross-checks
	test -f build/lmms-eval/$(LMMS_EVAL_KEY) || rm -rf build/lmms-eval
	test -d build/lmms-eval || $(RUN) -m pip install --disable-pip-version-check -q --no-deps --target build/lmms-eval.part -r requirements-lmms-eval.txt
	test -d build/lmms-eval || (touch build/lmms-eval.part/$(LMMS_EVAL_KEY) && mv build/lmms-eval.part build/lmms-eval)

# Towers first, each on its own core, and what the language model learns without them, on the core that is free sooner;
# then the stages of the paper, in two processes.
TEXT = OMP_NUM_THREADS=1 $(RUN) -m training.sft --config training/recipes
SFT = OMP_NUM_THREADS=1 $(RUN) -m torch.distributed.run --nproc-per-node 2 -m training.sft --config training/recipes
TOWERS = OMP_NUM_THREADS=1 $(RUN) -m training.towers --config training/recipes/towers
SYNTHESIS = $(RUN) -m training.synthesis
ENCODE = OMP_NUM_THREADS=1 $(RUN) -m training.encode --model runs/pretrain --output runs/encoded

train-tiny: setup ## Train eagle-tiny from nothing into runs/function-calling (7.6 hours, stages summed); a killed run goes on where it stood
	$(RUN) -m training.assemble --preset eagle-tiny --output runs/text
	($(TOWERS)/audio.yaml && $(TEXT)/copy/tiny.yaml && $(TEXT)/respell/tiny.yaml) & \
	$(TOWERS)/patches.yaml && $(TOWERS)/vision.yaml && \
	$(TOWERS)/vision.yaml --steps 8000 --easiest 0.8 --decay_fraction 0.4 && wait %1
	$(RUN) -m training.assemble --preset eagle-tiny --weights runs/respell runs/towers-vision runs/towers-audio --output runs/start
	$(SFT)/look-up/tiny.yaml
	$(SFT)/in-context/tiny.yaml
	$(SFT)/language/tiny.yaml
	$(SFT)/align/tiny.yaml
	$(SFT)/pretrain/tiny.yaml
	$(SYNTHESIS).expressive_speech --rows 4096 --output data/tiny/speech
	$(SYNTHESIS).documents --rows 1024 --output data/tiny/documents
	$(SYNTHESIS).interleaved --rows 512 --output data/tiny/interleaved
	$(ENCODE) --rows 3840 --paths world:sign world:chart world:scene && \
	$(ENCODE) --rows 1280 --paths world:multimodal_request data/tiny/documents && \
	$(ENCODE) --rows 512 --paths data/tiny/interleaved && $(ENCODE) --rows 4096 --paths data/tiny/speech & \
	$(ENCODE) --rows 2560 --paths world:code world:sentence world:clip world:spoken_picture world:spoken_fact && \
	$(ENCODE) --rows 640 --paths world:page world:dictation world:bars && wait %1
	$(SFT)/instruct/tiny.yaml
	$(SFT)/chat/tiny.yaml
	$(SFT)/function-calling/tiny.yaml

full-size: setup ## Assemble EAGLE from its published parts (10 GB; HF_HUB_OFFLINE=0, or ARGS="--from ..." or "--random-init")
	$(RUN) -m training.assemble --preset eagle --output checkpoints/eagle $(ARGS)

FORMAT ?= q8_0
gguf: setup ## Export the root's checkpoint for llama.cpp, checked against torch, and ask it the demo's questions (FORMAT=q4_0)
	$(RUN) -m export.gguf --model . --format $(FORMAT) --output export/out/eagle-tiny $(ARGS)
	$(RUN) -m export.run_gguf --gguf export/out/eagle-tiny/eagle-tiny-$(FORMAT).gguf

key:
	@echo $(KEY)
