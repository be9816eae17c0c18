# make demo      install and run the main job on the built-in model and data (about a quarter of an hour on two cores)
# make test      install and run the tests (not the slow ones)
# make test-all  every test (installs Ray, 70 MB, for those that need a cluster)
# make lint      ruff, format check, mypy
# make docs      build the documentation site into site/
#
# Tests run in WORKERS=2 processes (about 3 GB each).
# On a machine where pip would fetch the CUDA build of torch, choose the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
TORCH_INDEX ?=
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(INDEX) -c constraints/cpu.txt
# A file's tests stay in one process: they share models.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: install demo test test-all lint format types docs clean

install: $(VENV)/.installed

# torch goes first and alone: a later package must find it and not ask for the newest build.
$(VENV)/.torch: constraints/cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -e '.[demo]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/regrow demo -o runs/demo

test: install
	$(PYTEST) -m "not slow" --cov --cov-report=
	@echo "coverage: $$($(BIN)/python -m coverage report --format=total) % of lines and branches"

test-all: install
	$(PIP) -e '.[ray]'
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
