# Every target does its own set-up: `make demo` and `make test` work on a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup check format test test-slow load-generator demo ci-example tiny clean

PYTHON3 ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-from-pyproject
DEMO := build/demo

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with everything that development needs

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# A whole tritonserver for the tests, and the NumPy that its Python backend is built for, apart from ours.
	{ $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps nvidia-pytriton==0.7.0 \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --upgrade \
	     --target $(VENV)/triton-python numpy==1.26.4; } \
	  || echo "No tritonserver for this machine or Python: the tests that need one are skipped."
	touch $@

check: $(STAMP) ## Lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Format and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) ## Run every test that this machine can run, but those of the second tier
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(STAMP) ## Run the second tier: what takes long and seldom breaks
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

LOAD_GENERATOR := $(VENV)/load-generator
load-generator: $(STAMP) ## Make an environment for guidellm, with which a test of the second tier asks the server
	@# Beside ours, which it sees: it wants another Click, and torch and Transformers need not come twice.
	$(BIN)/python -m venv $(LOAD_GENERATOR)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$($(LOAD_GENERATOR)/bin/python -c 'import site; print(site.getsitepackages()[0])')/outer.pth"
	$(LOAD_GENERATOR)/bin/python -m pip install --quiet --disable-pip-version-check 'guidellm>=0.8,<0.9'

demo: $(STAMP) ## Export the small trained checkpoint and ask it about pictures and videos
	@rm -rf $(DEMO)
	@echo "== 1. Export models/qwen2-vl-tiny: two ONNX graphs, the weights beside them"
	$(BIN)/qv-export export models/qwen2-vl-tiny --output $(DEMO)/bundle
	@echo "== 2. Ask the graphs, on ONNX Runtime, what examples/demo_questions.json asks"
	$(BIN)/python examples/demo.py $(DEMO)/bundle
	@echo "== Done. With a real checkpoint: $(BIN)/qv-export export path/to/Qwen2-VL-2B-Instruct -o bundle"

ci-example: $(STAMP) ## Run what examples/ci/ runs in CI: export, engines for two GPUs, validation, packing
	@rm -rf build/ci
	QV_EXPORT=$(BIN)/qv-export WORK=build/ci examples/ci/steps.sh all

tiny: $(STAMP) ## Train the small model again (hours on two cores)
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 OMP_WAIT_POLICY=passive $(BIN)/python -m examples.tiny.train build/tiny

clean: ## Remove what was built (not .venv)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
