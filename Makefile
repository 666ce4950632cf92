# `make` or `make help` lists the targets.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
JOBS    ?= 2

# The most important first.
RUNS  := $(addprefix cifar10-resnet18-,standard at at-clustering trades mart at-awp)

BIN   := $(VENV)/bin
READY := $(VENV)/.installed
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

unexport PYTHONDONTWRITEBYTECODE
.PHONY: help book html test lint types units notebooks format store check zoo runs studies architectures constraints clean
.DELETE_ON_ERROR:

help:  ## this list
	@echo "usage: make TARGET [PROFILE=quick|cifar|paper] [CHAPTERS=03] [JOBS=2] [PYTHON=python3]"
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "  %-13s%s\n", $$1, $$2}' Makefile

book: $(READY)  ## execute all chapters in PROFILE, print the scorecard, build the pages from what came out
	@$(BIN)/python tools/chapters.py execute --profile $(PROFILE) --jobs $(JOBS) $(CHAPTERS); status=$$?; \
	[ $$status -le 1 ] && $(call pages,_build/$(PROFILE)) && exit $$status

html: $(READY)  ## build the pages from the stored outputs, without executing anything
	@$(BIN)/python tools/chapters.py stage _build/stored && $(call pages,_build/stored)

test: lint types units notebooks  ## lint, types, doctests and tests, chapters as tests; each of the four is a target too

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

units: $(READY)
	$(PYTEST)

notebooks: $(READY)
	$(PYTEST) --nbval book

format: $(READY)  ## bring code and notebooks into the one format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

store: $(READY)  ## execute the chapters in the cifar profile and store their outputs (CHAPTERS=03 for some)
	$(BIN)/python tools/chapters.py store --jobs $(JOBS) $(CHAPTERS)

check: $(READY)  ## are the stored outputs whole, of the cifar profile, and of the code as it is?
	$(BIN)/python tools/chapters.py check

zoo: $(READY)  ## train the shipped networks again (hours on a CPU)
	$(BIN)/lrc zoo make
	$(BIN)/python tools/figure.py

runs: $(READY)  ## train ResNet-18 by the paper's recipe and record it (hours on a GPU; what was broken off goes on)
	$(BIN)/lrc zoo make $(RUNS)
	$(BIN)/lrc study resnet18-subpopulations resnet18-boosting

studies: $(READY)  ## train, measure and record what is missing of the tables of chapters 9 and 10 (hours on a CPU)
	$(BIN)/lrc study subpopulations boosting

architectures: $(READY)  ## linearize every classification network of torchvision, and write what came out into the book
	$(BIN)/python tools/architectures.py

constraints:  ## bring constraints.txt up to date from a fresh environment
	rm -rf _build/fresh && $(PYTHON) -m venv _build/fresh && _build/fresh/bin/pip install -U pip
	_build/fresh/bin/pip install -e '.[book,test,dev]'
	{ sed '/^[^#]/,$$d' constraints.txt; _build/fresh/bin/pip freeze --all --exclude-editable; } > _build/constraints.txt
	mv _build/constraints.txt constraints.txt && rm -rf _build/fresh

clean:  ## remove what was built, except environment and trained networks
	rm -rf $(addprefix _build/,quick cifar paper stored fresh) .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The folder of a staged book; says where its first page is.
define pages
$(BIN)/jupyter-book build $(1) --all -q -W -n --keep-going >/dev/null && echo "First page: $(CURDIR)/$(1)/_build/html/index.html"
endef

# Bytecode is left to the first import: the packages are large and most of their modules are never used.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lrc needs Python 3.11 or newer: make PYTHON=python3.12, or another"; exit 1; }
	@echo "Setting up $(VENV): PyTorch and the tools of the book, some 6 GB, in a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -U pip
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[book,test,dev]'
	@touch $@
