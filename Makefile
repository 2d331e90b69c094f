# make demo: set up, then the main job on real input. make test: set up, then every check.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint types house unit notebooks docs system clean bench-peers

demo: $(VENV)/.demo
	$(BIN)/bge demo $(ARGS)

test: $(VENV)/.test system lint types house unit notebooks

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: asked for by another package, the newest build comes with several GB of CUDA.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[all]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[all,test]'
	touch $@

system: $(VENV)/.test
	sh scripts/system-packages.sh $(VENV)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

house: $(VENV)/.test
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile -ra -q

notebooks: $(VENV)/.test
	@if ls notebooks/*.ipynb >/dev/null 2>&1; then $(BIN)/python -m pytest --nbmake notebooks -q -p no:cacheprovider; else echo "no notebooks yet"; fi

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .venv-peers build dist site artefacts
