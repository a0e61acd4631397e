# `make demo` and `make test` set themselves up: they make .venv when there is none.
PYTHON ?= python3
VENV ?= .venv
# Versions to hold back, e.g. PINS='numpy==1.26.*'.
PINS ?=
BIN = $(VENV)/bin
# One BLAS thread a process: parallelism is Beam's business, and threads of several workers would fight.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-faults test-flink test-portable terraform-test replay-image lock check format wheel wheel-check clean

demo: $(VENV)/.installed
	$(BIN)/python -m pipelines.demo

test: $(VENV)/.tested
	$(BIN)/python -m pytest -n auto --dist worksteal

# Kills and interrupts, fills disks (mounted ones, for root), leaves hosts silent: tests/faults, and others of their kind.
test-faults: $(VENV)/.tested
	$(BIN)/python -m pytest -m fault -n auto --dist worksteal

# Needs Java, and Maven where Maven Central has no job server of this Beam version.
test-flink: $(VENV)/.tested
	$(BIN)/python -m pytest -m engine tests/engines/test_flink*.py --durations=0

# Prism and Beam's own job service; Prism is built by Go the first time, which takes minutes.
test-portable: $(VENV)/.tested
	$(BIN)/python -m pytest -m engine tests/engines/test_portable.py tests/engines/test_streams.py --durations=0 -rs

# Builds OpenTofu where there is neither terraform nor tofu; needs no account and no registry of providers.
terraform-test: $(VENV)/.tested
	binary=$$($(BIN)/python tests/terraform/binary.py) && BEAM_DP_TERRAFORM="$$binary" \
	  $(BIN)/python -m pytest tests/terraform -n auto --dist loadfile

# The steps of templates/Dockerfile, downloads included, in a folder; needs python3.11, as the image has it.
replay-image: $(VENV)/.tested
	BEAM_DP_REPLAY_IMAGE=1 $(BIN)/python -m pytest tests/templates/test_image.py

# The versions in the image; PYTHON must be 3.11, too.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet pip-tools
	CUSTOM_COMPILE_COMMAND='make lock' build/lock/bin/pip-compile --quiet --upgrade --strip-extras --generate-hashes \
	  --no-emit-find-links --extra=gcp --extra=postgres --output-file=templates/requirements.lock setup.py

check: $(VENV)/.checked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.checked
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: $(BIN)/python
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The wheel carries the default index and stays small enough for a package index.
wheel-check: wheel
	@$(BIN)/python -c 'import glob, os, sys, zipfile; (w,) = glob.glob("dist/*.whl"); size = os.path.getsize(w); \
	  print(f"{w}: {size / 1e6:.1f} MB"); names = zipfile.ZipFile(w).namelist(); \
	  sys.exit(size >= 12e6 or "beam_dp/embeddings/default/manifest.json" not in names)'

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
	  || { echo 'beam_dp needs Python 3.10 to 3.13; say which: make PYTHON=python3.11 ...' >&2; exit 1; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
	  || { echo 'annoy is compiled at installation: a C++ compiler is needed (Debian: apt-get install g++)' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	  || { echo 'annoy is compiled at installation: the headers of Python are needed (Debian: apt-get install python3-dev)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) \
	  || { echo 'Python has no venv module here (Debian: apt-get install python3-venv python3-dev)' >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel

$(VENV)/.installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e . $(foreach pin,$(PINS),'$(pin)')
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[test]' $(foreach pin,$(PINS),'$(pin)')
	@touch $@

$(VENV)/.checked: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@
