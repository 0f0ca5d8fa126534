# make demo, make test and make check do all their own set-up in .venv, once.
# PYTHON=/path/to/python picks the interpreter; TARGET= what the demo builds for.

.PHONY: demo test test-fast test-without-torch campaign witness check size format docs site wheels native clean

STAMP := .venv/.installed
NATIVE := .venv/.native
WITNESS := .witness/.installed
LEAN := .venv-without-torch
BIN := .venv/bin
SOURCES := $(wildcard dmsflow/native/*.cc dmsflow/native/*.h dmsflow/native/CMakeLists.txt)

SYSTEM := $(shell uname -sm)
ifeq ($(SYSTEM),Linux aarch64)
TARGET ?= arm64
else ifeq ($(SYSTEM),Darwin arm64)
TARGET ?= macos-arm64
else
TARGET ?= x86-64
endif
TENSORFLOW := $(if $(filter Linux%,$(SYSTEM)),tensorflow-cpu,tensorflow)

demo: $(NATIVE)
	$(BIN)/dmsflow run --preset digits --target $(TARGET) --out runs/demo --force

# Two processes share the files of tests, each with one thread for its sums: more of either gains nothing on two cores.
PARALLEL := --numprocesses 2 --dist loadfile
test: $(NATIVE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(OPTIONS)

# For daily work: what is not marked slow, in one to four minutes on two cores.
test-fast: $(NATIVE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

# What needs no torch and is not marked slow, in an environment without it, of Python 3.13 (or PYTHON=).
test-without-torch: $(NATIVE) $(LEAN)/.installed
	$(LEAN)/bin/python -m pytest --without-torch -m 'not slow' $(OPTIONS)

# Damaged files, kills, limits, and the native parts under sanitizers, thousands of times: half an hour.
# OPTIONS="--share 0.1 --only mutations" does less.
campaign: $(NATIVE)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/campaign.py --out docs/results/campaign.json $(OPTIONS)

# The environment of larq-compute-engine, which needs NumPy 1 and Python 3.11 or 3.12 (or WITNESS_PYTHON=).
witness: $(WITNESS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python benchmarks/size.py --check

# Lines and lines of code of each package; make check limits the core.
size: $(STAMP)
	$(BIN)/python benchmarks/size.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The C++ part, where its sources are newer than what is installed.
native: $(NATIVE)

# Wheels for this machine and, on an x86-64 Linux, for aarch64 too, which needs Debian's g++-aarch64-linux-gnu.
WHEEL := $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist/wheels .
wheels: $(STAMP)
	rm -rf dist/wheels
	$(WHEEL)
ifeq ($(SYSTEM),Linux x86_64)
	CMAKE_TOOLCHAIN_FILE=$(CURDIR)/dmsflow/native/aarch64-linux-gnu.cmake $(WHEEL)
	@ls dist/wheels/dmsflow-*-py3-none-manylinux2014_x86_64.whl dist/wheels/dmsflow-*-py3-none-manylinux2014_aarch64.whl || \
	    { echo "a library needs more than manylinux2014 has: see the tags in dist/wheels" >&2; exit 1; }
endif

# The parts of docs/ and README.md that are made from code and results; tests fail where they are stale.
docs: $(STAMP)
	$(BIN)/python docs/cli.py
	$(BIN)/python docs/settings_page.py
	$(BIN)/python docs/results.py
	$(BIN)/python docs/tree.py

# The documentation as a site, in dist/site.
site: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs dist/site

# A version manager's shim can stand on the path and still not run, so each candidate is tried.
$(STAMP): pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 \
	        $$(ls -d $$HOME/.pyenv/versions/3.1[1234].*/bin/python 2>/dev/null); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "dmsflow needs Python 3.11 or newer with venv (Debian: apt install python3 python3-venv; macOS: brew install python@3.11), or say make PYTHON=/path/to/it" >&2; \
	    exit 1; \
	fi; \
	echo "setting up .venv with $$found (once; PyTorch is a large download)" >&2; \
	if ! [ -x $(BIN)/python ] || ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	    $$found -m venv --clear .venv || exit 1; \
	fi; \
	DMSFLOW_NO_NATIVE=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,onnx,device,report,tensorboard,slurm,dev]'
	@touch $@

# A cross compiler that was installed since: the program for phones can be built now.
ifneq ($(shell command -v aarch64-linux-gnu-g++ 2>/dev/null),)
ifeq ($(wildcard dmsflow/native/dmsflow-benchmark-aarch64),)
.PHONY: $(NATIVE)
endif
endif

# DMSFLOW_NO_NATIVE=1 leaves the C++ part out.
$(NATIVE): $(STAMP) hatch_build.py $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# The versions are those of constraints.txt, but for NumPy's. dmsflow and other runtimes are there to be compared with it.
$(WITNESS): pyproject.toml constraints.txt
	@for python in $(WITNESS_PYTHON) python3.11 python3.12 python3 \
	        $$(ls -d $$HOME/.pyenv/versions/3.1[12].*/bin/python 2>/dev/null); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "larq-compute-engine needs Python 3.11 or 3.12 with venv; name one: make witness WITNESS_PYTHON=/path/to/it" >&2; \
	    exit 1; \
	fi; \
	echo "setting up .witness with $$found (once; TensorFlow is a large download)" >&2; \
	$$found -m venv --clear .witness && grep -v '^numpy' constraints.txt > .witness/constraints.txt && \
	DMSFLOW_NO_NATIVE=1 .witness/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint .witness/constraints.txt --editable '.[onnx,device]' \
	    'numpy<2' larq-compute-engine==0.16.0 $(TENSORFLOW)==2.21.0
	@touch $@

$(LEAN)/.installed: pyproject.toml constraints.txt
	@for python in $(PYTHON) python3.13 python3 $$(ls -d $$HOME/.pyenv/versions/3.13.*/bin/python 2>/dev/null); do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 13))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then echo "there is no Python 3.13 here; name one: make $(MAKECMDGOALS) PYTHON=/path/to/it" >&2; exit 1; fi; \
	$$found -m venv --clear $(LEAN) && DMSFLOW_NO_NATIVE=1 $(LEAN)/bin/python -m pip install --quiet \
	    --disable-pip-version-check --constraint constraints.txt --editable '.[onnx,device,report,dev]' scikit-learn
	@touch $@

clean:
	rm -rf .venv $(LEAN) .witness build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f dmsflow/native/*.so dmsflow/native/dmsflow-benchmark-*
