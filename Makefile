# Everything one needs to work on Atoll. `make` alone says what there is.
#
# It needs Python 3.11 or newer, pip and make. Packages go into .venv, never into your system.
# There is one environment with three sizes, each a stamp file in it:
#   demo  what a federation on this machine needs, and scikit-learn: no PyTorch, so that it starts soon
#   dev   what tests and checks need, PyTorch included
#   edge  the same and what machines need that report: MQTT and, without mosquitto, a broker from PyPI
#   docs  what builds the documentation
# A size is installed once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/installed-demo
EDGE := $(VENV)/installed-edge
DEV := $(VENV)/installed-dev
DOCS := $(VENV)/installed-docs
# Exact tested versions. Modules are compiled when first imported, which PyTorch's thousands repay.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	--constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-edge test lint types bench faults nightly docs format clean

help: ## say what there is
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 chooses the interpreter, WORKERS=4 the test processes,"
	@echo "ATOLL_DATA=folder where the data sets are that some tests and benchmarks read."

demo: $(DEMO) ## a real federation on this machine: start, train, export, predict, compare, end
	rm -rf build/federation
	$(BIN)/atoll demo --folder build/federation

demo-edge: $(EDGE) ## engines report over MQTT; nodes learn, serve, notice, renew, take a bad model back
	rm -rf build/edge
	$(BIN)/atoll demo-edge --folder build/edge

test: $(DEV) ## run every test
	$(BIN)/python -m pytest --numprocesses $(WORKERS)

lint: $(DEV) ## check style and layout (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## check types (mypy, strict)
	$(BIN)/mypy

bench: $(DEV) ## measure speed against a bare PyTorch loop; minutes
	$(BIN)/python -m bench simulate

faults: $(DEV) ## break whole federations in every way we know; hours
	$(BIN)/python -m bench faults --json faults.json

nightly: $(DEV) ## ten thousand seeds of the deterministic world, every combination of parts; four hours of a core
	$(BIN)/python -m tests.worlds.product
	$(BIN)/python -m tests.worlds.moves 10000
	$(BIN)/python -m bench faults --only worlds --worlds 10000 --cores $(WORKERS)

docs: $(DOCS) ## build the documentation into site/
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

format: $(DEV) ## lay out the code as `make lint` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and everything that was built
	-test -d build/federation && $(BIN)/atoll down --folder build/federation
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Atoll needs Python 3.11 or newer, and '$(PYTHON)' is not:"; $(PYTHON) --version; \
		echo "name another, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[edge,export,server,sklearn]'
	@touch $@

$(EDGE): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[demo,edge,export,mqtt,server]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[dev,torch]'
	@touch $(DEMO) $@

$(DOCS): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[docs]'
	@touch $@
