# Two commands matter: `make demo` and `make test`. Both create .venv and install into it first.
#
# PyTorch ships CPU and CUDA builds under one name. TORCH is what this project is tested with; TORCH_ARGS
# goes to the pip call that installs it, so `make demo TORCH_ARGS="--index-url URL"` takes another build
# (PyTorch's CPU index saves gigabytes on Linux) and `make demo TORCH=torch` takes the newest.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
DEMO_DIR ?= nsn-edge-demo

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types unit install clean

demo: $(STAMP)
	$(BIN)/nsn-edge demo -o $(DEMO_DIR)

test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	$(BIN)/python -m pytest

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "nsn-edge needs python >= 3.10, this is %d.%d; set PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[demo,train,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
