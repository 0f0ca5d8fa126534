# make demo, make test and make check do all their own set-up in .venv, once.
# PYTHON=/path/to/python picks the interpreter; TARGET= what the demo builds for.

.PHONY: demo test check format docs clean

STAMP := .venv/.installed
BIN := .venv/bin

# LCE has no wheel for Linux on ARM, so there the demo measures an ONNX file.
SYSTEM := $(shell uname -sm)
ifeq ($(SYSTEM),Linux aarch64)
TARGET ?= onnx
else ifeq ($(SYSTEM),Darwin arm64)
TARGET ?= macos-arm64
else
TARGET ?= x86-64
endif

demo: $(STAMP)
	$(BIN)/dmsflow run --preset digits --target $(TARGET) --out runs/demo --force

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The parts of docs/ that the code itself can tell; tests fail where they are stale.
docs: $(STAMP)
	$(BIN)/python docs/cli.py

# A version manager's shim can stand on the path and still not run, so each candidate is tried.
$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.11 python3.12 python3.10 python3 \
	        $$(ls -d $$HOME/.pyenv/versions/3.1[012].*/bin/python 2>/dev/null); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "dmsflow needs Python 3.10, 3.11 or 3.12 with venv (Debian: apt install python3 python3-venv; macOS: brew install python@3.11), or say make PYTHON=/path/to/it" >&2; \
	    exit 1; \
	fi; \
	echo "setting up .venv with $$found (once; PyTorch is a large download)" >&2; \
	if ! [ -x $(BIN)/python ] || ! $(BIN)/python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))'; then \
	    $$found -m venv --clear .venv || exit 1; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,lce,onnx,dev]'
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
