# `make bench` and `make test` need nothing but Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install bench test lint pages docs docs-serve clean

install: $(STAMP)

$(STAMP): setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,nuts]'
	touch $(STAMP)

bench: $(STAMP)
	$(BIN)/python -m benchmarks run quick --out results/quick --resume

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pages: $(STAMP)
	$(BIN)/python -m docs.writer

DOCS_STAMP := $(VENV)/.docs-installed

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $(DOCS_STAMP)

docs: $(DOCS_STAMP) pages
	rm -rf docs/reference
	$(BIN)/python -m sphinx -E -W --keep-going -b html docs docs/_build/html
	@echo "The site: docs/_build/html/index.html"

docs-serve: docs
	$(BIN)/python -m http.server --directory docs/_build/html 8000

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/project docs/reference
