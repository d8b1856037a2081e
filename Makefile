# kdpipe from a fresh clone, without root. `make run` and `make test` set up all that they need by themselves.
#
#   make run       install, then run the default pipeline (pipeline.yaml)
#   make test      install, then run the tests that take seconds
#   make test-all  the slow tests too
#   make lint      style, types, import contracts
#   make clean     remove the environment, the store and the runs
#
# PYTHON=...     the interpreter to use instead of the first one on PATH that is new enough
# PIP_ARGS=...   further arguments of `pip install`, such as the address of PyTorch's CPU builds
# PYTEST_ARGS=.. further arguments of pytest

VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
PYTEST_ARGS ?=
PIPELINE ?= pipeline.yaml
PYTHON ?= $(shell for p in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help run test test-all lint clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

run: $(VENV)/.installed-all
	$(BIN)/kdpipe run $(PIPELINE)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev
	$(BIN)/pytest -q $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamps are newer than what they were made from, so that nothing is installed twice.
$(VENV)/.installed-all: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[all]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $(VENV)/.installed-all $@

$(BIN)/python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "kdpipe needs Python 3.11 or newer, and found none on PATH. Install one, or name it: make run PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) can't make virtual environments. Debian and Ubuntu have that in python3-venv; any other Python 3.11 does too: make run PYTHON=..." >&2; exit 1; }

clean:
	rm -rf $(VENV) .kdpipe runs
