# Two commands matter: `make demo` runs everything once, `make test` checks a change. `make help` lists all.
# Both make .venv and install into it what constraints.txt pins; nothing is installed again until that file or
# pyproject.toml changes. Any make from GNU make 3.81 on will do.

PYTHON ?= python3
TORCH_INDEX ?=
TENSORRT_RTX ?= 1

# Given on the command line only, so that a variable of the shell's does not slip in.
VENV = .venv
RUN = runs/demo
DATA =
FPS =
TARGET =
FUZZ =
TORTURE =

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test scale fuzz torture gate tensorrt clean

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TENSORRT_RTX
BIN := $(VENV)/bin
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
PIP_INSTALL := $(BIN)/python -m pip install --progress-bar off -c constraints.txt
# Of what pip says, show the packages of a megabyte and more, with their sizes; errors and warnings come by another way.
LARGE := awk '/^ *(Downloading|Using cached) .* [MG]B\)/ { sub(".*/", "", $$(NF - 2)); print "  " $$(NF - 2), $$(NF - 1), $$NF; fflush() }'

help:
	@echo 'make demo     try everything: generated street scenes, this machine; results in $(RUN)'
	@echo '              DATA=FOLDER    your own labelled images (docs/own_data.md)'
	@echo '              FPS=30         frames per second to reach'
	@echo '              TARGET=T       where it is to run, for instance onnxruntime-cpu:fp32'
	@echo '              RUN=FOLDER     where the results go; the same command continues what it began there'
	@echo 'make test     lint, type check and all tests'
	@echo 'make scale    clusters of several Ray nodes on this machine, and how they break (docs/scale.md)'
	@echo 'make fuzz     mutate every kind of file that a command reads, 54,000 times; FUZZ="--seed 1 --seconds 300", FUZZ=--help'
	@echo 'make torture  kill the commands 100 times and take away what they need; TORTURE="--kills 500", TORTURE=--help'
	@echo 'make gate     compile the GPU kernels that changed, for all architectures, and check and record what they need (no GPU)'
	@echo 'make tensorrt build every kind of network with TensorRT-RTX (no GPU), and write tables into benchmarks/results/tensorrt_rtx'
	@echo 'make clean    remove .venv, caches and build products; runs/ stays'
	@echo
	@echo 'TORCH_INDEX=URL   take torch from this package index. Without a GPU, choose CPU on the "Get started" page of'
	@echo '                  pytorch.org and pass the index URL it shows: Linux otherwise gets the CUDA build, several GB.'
	@echo 'TENSORRT_RTX=0    neither fetch TensorRT-RTX for the tests (95 MB, under NVIDIA'"'"'s licence) nor run what needs it.'
	@echo 'PYTHON=python3.12 another Python, 3.11 or newer.'

demo: $(VENV)/.demo
	@$(BIN)/hyctas-demo --run "$(RUN)"$(if $(DATA), --data "$(DATA)")$(if $(FPS), --fps "$(FPS)")$(if $(TARGET), --target "$(TARGET)")

test: $(VENV)/.test $(VENV)/.tensorrt-rtx-$(TENSORRT_RTX)
	$(BIN)/ruff check .
	@$(BIN)/mypy & types=$$!; $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder; tests=$$?; wait $$types && exit $$tests

scale: $(VENV)/.test
	$(BIN)/pytest tests/scale -m scale

# What is found is printed with the command that repeats it. A torture that was stopped goes on where it was.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz $(FUZZ)

torture: $(VENV)/.test
	$(BIN)/python -m tests.fuzz.torture $(TORTURE)

tensorrt: $(VENV)/.test $(VENV)/.tensorrt-rtx-$(TENSORRT_RTX)
	$(BIN)/python -m benchmarks.tensorrt_matrix

# Linux alone: Triton, which is the compiler, has no wheels for other systems.
gate: $(VENV)/.test
	$(BIN)/python -m hyctas.attention.triton.gate --update
	$(BIN)/pytest tests/hyctas/attention

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find hyctas latency export benchmarks tests docs -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'error: hyctas needs Python 3.11 or newer; "$(PYTHON)" is $(shell $(PYTHON) --version 2>&1 | head -n 1).' >&2; \
	  echo 'Install one and name it, for instance: make demo PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'error: venv failed; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@touch $@

# torch by itself, since it alone may come from another index; what it depends on comes with the next step.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo 'installing $(TORCH) (CPU build: about 190 MB; CUDA build: several GB)'
	@set -o pipefail; $(PIP_INSTALL) --no-deps $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") $(TORCH) | $(LARGE)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo 'installing hyctas and what it needs'
	@set -o pipefail; $(PIP_INSTALL) -e '.[cpu,pretrained]' | $(LARGE)
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	@echo 'installing hyctas, what it needs, and the tools for its tests'
	@set -o pipefail; $(PIP_INSTALL) -e '.[cpu,openvino,pretrained,ray,dev]' | $(LARGE)
	@touch $@ $(VENV)/.demo

# NVIDIA's parser and builder for the tests, without what they would bring along: neither needs CUDA. Never part of the wheel or of an
# extra. There are wheels for Linux x86-64; elsewhere the tests that need them skip, and say why.
$(VENV)/.tensorrt-rtx-1: $(VENV)/.test constraints.txt
ifeq ($(shell uname -sm),Linux x86_64)
	@echo 'fetching TensorRT-RTX (95 MB) from the package index, under the NVIDIA TensorRT licence: downloading it means accepting it'
	@echo '(its text: $(VENV)/lib/python*/site-packages/tensorrt_rtx_cu13_libs-*/licenses). make test TENSORRT_RTX=0 does without.'
	@set -o pipefail; $(PIP_INSTALL) --no-deps tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings | $(LARGE) && touch $@ || \
	  echo 'TensorRT-RTX cannot be had here, as pip says above (it has wheels for some Pythons only): tests that need it skip'
else
	@echo 'there is no TensorRT-RTX for this system: tests that need it skip'
	@touch $@
endif

$(VENV)/.tensorrt-rtx-%: $(VENV)/.test
	@echo 'TENSORRT_RTX=$(TENSORRT_RTX): TensorRT-RTX is not fetched, and tests that need it skip'
