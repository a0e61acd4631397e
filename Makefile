# `make demo` and `make test` set themselves up: they make .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# One BLAS thread a process: parallelism is Beam's business, and threads of several workers would fight.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all check format clean

demo: $(VENV)/.installed
	$(BIN)/python -m pipelines.demo

test: $(VENV)/.tested
	$(BIN)/python -m pytest

check: $(VENV)/.checked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.checked
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	  || { echo 'beam_dp needs Python 3.10 to 3.13; say which: make PYTHON=python3.11 ...' >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo 'annoy is compiled at installation: a C++ compiler is needed (Debian: apt-get install g++)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	  || { echo 'Python has no venv module here (Debian: apt-get install python3-venv python3-dev)' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	@touch $@

$(VENV)/.checked: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@
