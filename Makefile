# `make` or `make help` lists the targets.
PYTHON  ?= python3
VENV    ?= .venv
PROFILE ?= quick
JOBS    ?= 2

# The most important first.
RUNS  := $(addprefix cifar10-resnet18-,brief-fast brief-at brief-standard standard at at-clustering trades mart at-awp)

BIN   := $(VENV)/bin
READY := $(VENV)/.installed
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

unexport PYTHONDONTWRITEBYTECODE
.PHONY: help book html lab test lint types units notebooks coverage wheel format store check zoo runs studies reference architectures bench constraints clean
.DELETE_ON_ERROR:

help:  ## this list
	@echo "usage: make TARGET [PROFILE=quick|cifar|paper] [CHAPTERS=03] [JOBS=2] [PYTHON=python3]"
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "  %-13s%s\n", $$1, $$2}' Makefile

book: $(READY)  ## execute all chapters in PROFILE, print the scorecard, build the pages from what came out
	@$(BIN)/python tools/chapters.py execute --profile $(PROFILE) --jobs $(JOBS) $(CHAPTERS); status=$$?; \
	[ $$status -le 1 ] && $(call pages,_build/$(PROFILE)) && exit $$status

html: $(READY)  ## build the pages from the stored outputs, without executing anything
	@$(BIN)/python tools/chapters.py stage _build/stored && $(call pages,_build/stored)

lab: $(READY)  ## open the chapters in JupyterLab, which is installed when it is first asked for
	$(BIN)/python -m pip install -q -c constraints.txt jupyterlab
	$(BIN)/jupyter lab book

test: $(READY)  ## lint, types, doctests and tests, chapters as tests; each of the four is a target too
	@status=0; for part in lint types units notebooks; do \
		start=$$(date +%s); $(MAKE) --no-print-directory $$part || status=1; \
		took="$$took$$(printf '%-10s %5d s' $$part $$(($$(date +%s) - start)))\n"; \
	done; printf "\n$$took"; exit $$status

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

units: $(READY)
	$(PYTEST)

notebooks: $(READY)
	$(PYTEST) --nbval book

coverage: $(READY)  ## which lines and branches of the package no test reaches; 95 % or more must be
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

wheel: $(READY)  ## build the wheel, and try it alone: README's first lines and `lrc zoo list` from an empty folder
	rm -rf dist _build/wheel && $(BIN)/python -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m venv _build/wheel && _build/wheel/bin/pip install -q -c constraints.txt dist/*.whl
	mkdir _build/wheel/empty && awk '/^```python/ {on = 1; next} /^```/ {on = 0} on' README.md > _build/wheel/readme.py
	cd _build/wheel/empty && ../bin/python -I ../readme.py && ../bin/lrc zoo list

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

runs: $(READY)  ## train ResNet-18 and record it: briefly, then by the paper's recipe (hours on a GPU; what was broken off goes on)
	$(BIN)/lrc zoo make $(RUNS)
	$(BIN)/lrc study paper-size resnet18-subpopulations resnet18-boosting

studies: $(READY)  ## train, measure and record what is missing of the tables of chapters 9 and 10 (hours on a CPU)
	$(BIN)/lrc study subpopulations boosting

reference: $(READY)  ## measure the shipped networks that `lrc inspect` shows a network among (minutes on a CPU)
	$(BIN)/python tools/reference.py

architectures: $(READY)  ## linearize the networks of torchvision, timm and transformers (hours), and write what came out into the book
	$(BIN)/python tools/architectures.py

bench:  ## time attacks, evaluation and training beside other packages, and write it into the book (LRC_DATA; an hour)
	$(PYTHON) -m venv _build/peers && _build/peers/bin/pip install -q -e '.[peers]'
	_build/peers/bin/python tools/bench.py

constraints:  ## bring constraints.txt up to date from a fresh environment
	rm -rf _build/fresh && $(PYTHON) -m venv _build/fresh && _build/fresh/bin/pip install -U pip
	_build/fresh/bin/pip install -e '.[book,test,dev]'
	{ sed '/^[^#]/,$$d' constraints.txt; _build/fresh/bin/pip freeze --all --exclude-editable; } > _build/constraints.txt
	mv _build/constraints.txt constraints.txt && rm -rf _build/fresh

clean:  ## remove what was built, except environment and trained networks
	rm -rf dist $(addprefix _build/,quick cifar paper stored fresh wheel peers) .mypy_cache .pytest_cache .ruff_cache .hypothesis

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
