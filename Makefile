# Every target does its own set-up: `make demo` and `make test` work on a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup check format test demo clean

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-from-pyproject
DEMO := build/demo

help: ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## Make .venv with everything that development needs

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

check: $(STAMP) ## Lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) ## Run every test that this machine can run
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(STAMP) ## Export a generated checkpoint and ask it about a picture
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	@echo "== 1. A checkpoint of the real architecture with RANDOM weights (nothing is downloaded)"
	$(BIN)/python examples/random_checkpoint.py $(DEMO)/checkpoint
	@echo "== 2. Export: two ONNX graphs, the weights beside them"
	$(BIN)/qv-export export $(DEMO)/checkpoint --output $(DEMO)/bundle
	@echo "== 3. Run a picture and a question through the graphs. The weights are random: the words mean nothing."
	$(BIN)/qv-export run $(DEMO)/bundle --image examples/pictures/street.png --prompt "What is in this picture?" --max-new-tokens 32
	@echo "== Done. With a real checkpoint: $(BIN)/qv-export export path/to/Qwen2-VL-2B-Instruct -o bundle"

clean: ## Remove what was built (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
