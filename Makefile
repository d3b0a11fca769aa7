# The whole contributor interface. Needs Python >= 3.11, git and make; everything else is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
STAMP := $(VENV)/.synced

.PHONY: help setup demo test slow soak check fix bench docs lock protos clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv with everything the other targets need

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
		--target .uv --require-hashes -r requirements/bootstrap.lock

$(STAMP): requirements/dev.lock pyproject.toml | $(filter .uv/bin/uv,$(UV))
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python requirements/dev.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# other projects' clients, for tests that point them at our doors: an environment of their own
.venv-clients/.synced: requirements/clients.lock $(STAMP)
	test -x .venv-clients/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-clients
	$(UV) pip sync --quiet --python .venv-clients/bin/python requirements/clients.lock
	touch $@

demo: setup  ## start the manager with a real model and call it through every door (DEMO_EXIT=1: then end)
	$(BIN)/python -m tools.demo $(if $(DEMO_EXIT),--exit)

test: setup .venv-clients/.synced  ## run the test suite
	$(BIN)/python -m pytest

slow: setup .venv-clients/.synced  ## run the longer forms of some tests
	$(BIN)/python -m pytest -m slow

soak: setup  ## put mixed load on the engine for an hour or 100 000 requests (SOAK_REQUESTS, SOAK_SECONDS)
	$(BIN)/python -m pytest -m soak -s tests/soak

check: setup  ## format, lint, types, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/generate_docs.py --check

fix: setup  ## format and apply safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## run the benchmarks (quick form)
	$(BIN)/python -m benchmarks

docs: setup  ## regenerate the reference pages that are drawn from the code
	$(BIN)/python tools/generate_docs.py

protos: setup  ## regenerate the gRPC stubs from the .proto files
	$(BIN)/python tools/generate_protos.py

lock:  ## recompile requirements/*.lock from pyproject.toml
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header requirements/bootstrap.in -o requirements/bootstrap.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements/base.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --override requirements/torch-free.override \
		--extra demo --extra test --extra dev pyproject.toml -o requirements/dev.lock
	$(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header requirements/clients.in -o requirements/clients.lock

clean:  ## remove everything the targets made
	rm -rf $(VENV) .venv-clients .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .state build dist
