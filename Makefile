# `make demo` runs the product, `make test` everything that CI runs. Both set up all they need by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More arguments for pytest: make test-unit PYTEST="-k claim -x"
PYTEST ?=

.PHONY: help venv demo test test-machine test-unit test-pythons test-ray test-integration soak lint types docs format bench release clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(VENV)/.made-run: pyproject.toml constraints.txt scripts/make-venv.sh
	@scripts/make-venv.sh "$(PYTHON)" "$(VENV)" run

$(VENV)/.made-dev: pyproject.toml constraints.txt scripts/make-venv.sh
	@scripts/make-venv.sh "$(PYTHON)" "$(VENV)" dev

venv: $(VENV)/.made-dev ## Make the virtual environment for development

demo: $(VENV)/.made-run ## Train on real data through a queue and an agent, and show the table
	@$(BIN)/prefect-launch demo

test: test-machine $(VENV)/.made-dev ## Set up, then run every check and every test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-integration

test-machine: ## Install what the integration tests need (Docker Engine, PostgreSQL, Kubernetes, git)
	@scripts/setup-test-machine.sh

test-unit: $(VENV)/.made-dev ## Run the tests that need nothing but Python
	$(BIN)/python -m pytest tests/unit -n 3 $(PYTEST)

test-pythons: $(VENV)/.made-dev ## Run them on the lowest and the newest Python of this machine that the package takes
	@scripts/test-pythons.sh "$(BIN)" $(PYTEST)

test-ray: test-machine $(VENV)/.made-dev ## Install the Ray of the tests into a cache, if it is not there
	@$(BIN)/python -m tests.support.ray

test-integration: test-ray ## Run the tests on a real server and real engines
	$(BIN)/python -m pytest tests/acceptance tests/integration -n 3 --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST)

soak: test-machine $(VENV)/.made-dev ## Run the long cases: hundreds of items, agents killed at random
	$(BIN)/python -m pytest tests/unit tests/integration -m soak --durations=10 $(PYTEST)

lint: $(VENV)/.made-dev ## Check style, format, and which part imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.made-dev ## Check types
	$(BIN)/mypy

docs: $(VENV)/.made-dev ## Build the documentation site into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

format: $(VENV)/.made-dev ## Put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.made-dev ## Measure the product against its floors
	$(BIN)/python -m benchmarks

release: $(VENV)/.made-dev ## Build, check and tag a version: make release VERSION=1.2.0 (DRY=1 keeps nothing)
	@$(BIN)/python scripts/release.py "$(VERSION)" $(if $(DRY),--dry-run)

clean: ## Remove what the other targets made
	rm -rf $(VENV) site .cache .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
