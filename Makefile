# Each target makes .venv by itself when it is absent or pyproject.toml changed. Python >= 3.11 and make are all it needs.
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := dev,peers,ray,lrp
READY := .venv/.ready

.PHONY: demo test lint bench gpu docs readme clean help
.DEFAULT_GOAL := help

help:  ## Says what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1	\2/'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("addis needs Python >= 3.11, $(PYTHON) is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(READY)  ## Re-runs every paper at its tiny scale and writes report/index.html
	$(BIN)/addis run all --scale tiny
	$(BIN)/addis report
	@echo "open report/index.html"

test: $(READY)  ## Runs the tests on two processes and reports the coverage
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --cov --cov-report=term:skip-covered --quiet

lint: $(READY)  ## Checks format, style, types and the floors of the house
	$(BIN)/ruff format --check src tests benchmarks examples docs
	$(BIN)/ruff check src tests benchmarks examples docs
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## Times addis beside its peers
	$(BIN)/addis bench all

gpu: $(READY)  ## Runs the tests that need a GPU, and times the rest on it into gpu/
	$(BIN)/pytest -m gpu
	$(BIN)/addis bench 00 02 16 24 --device cuda --results gpu

docs: $(READY)  ## Builds the pages into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/mkdocs build --strict

readme: $(READY)  ## Writes the table of verdicts in README.md from results/
	$(BIN)/python docs/readme.py

clean:  ## Removes what the other targets made
	rm -rf .venv .addis report site gpu dist .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
