# make demo: set up, then the main job on real input. make quick: the checks of a minute, without models, Ray, browser
# or database. make test: every check. make system: the Debian packages that some tests use (CI installs them by itself).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Some machines set it; then the modules of this package are compiled again in each of the hundred programs of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo quick test lint types house unit unit-quick notebooks docs system clean wheel release-check bench-peers real-servers

demo: $(VENV)/.demo
	$(BIN)/bge demo $(ARGS)

quick: $(VENV)/.test
	$(MAKE) --no-print-directory --jobs 2 lint types house unit-quick

# All at once: a good part of the units waits for servers, hubs and clusters.
test: $(VENV)/.test $(if $(CI),system)
	$(MAKE) --no-print-directory --jobs 2 unit lint types house notebooks

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: asked for by another package, the newest build comes with several GB of CUDA.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade "pip>=25.1" # dependency groups
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[all]'
	touch $@

# The oldest SDK that pyproject.toml allows lies beside, for test_openai_range.py.
$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[all,export,ray,docs]' --group test
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade --no-deps --target $(VENV)/openai-oldest openai==2.0.0
	touch $@

system: $(VENV)/.test
	sh scripts/system-packages.sh $(VENV)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/zizmor --quiet --offline .github
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml

types: $(VENV)/.test
	$(BIN)/mypy

house: $(VENV)/.test
	$(BIN)/lint-imports --no-cache

# In the order of their names: by itself xdist begins the files of few tests last, and these are the long ones.
unit: $(VENV)/.test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -ra -q

unit-quick: $(VENV)/.test
	PYTHON=$(BIN)/python scripts/quick.sh installed

# PASSIVE as in tests/conftest.py: torch's threads that wait for one another sleep, and leave the cores to the units.
notebooks: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --nbmake notebooks -q -p no:cacheprovider

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Build, check the metadata and the page on PyPI, install each extra alone from the wheel, and run README's first blocks.
wheel: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m pip --disable-pip-version-check install --quiet build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python scripts/check_wheel.py dist

release-check: wheel
	$(BIN)/python scripts/release_check.py $(TAG)

# Servers that are not ours, in an environment of their own: 1 GB, and llama.cpp is compiled.
real-servers: $(VENV)/.test .venv-servers/.done
	BGE_TEST_SERVERS=$(CURDIR)/.venv-servers $(BIN)/python -m pytest -q -ra tests/test_real_servers.py

.venv-servers/.done:
	$(PYTHON) -m venv .venv-servers
	.venv-servers/bin/python -m pip --disable-pip-version-check install --quiet \
	    "litellm[proxy]==1.108.7" "llama-cpp-python[server]==0.3.36" gguf==0.19.0
	touch $@

# The peers of benchmarks/local.py and rerank.py, each in an environment of its own: their versions clash. FlagEmbedding
# imports with transformers up to 5.23.
bench-peers: $(VENV)/.test
	for peer in \
	    "frameworks langchain-huggingface==1.2.3 llama-index-embeddings-huggingface==0.8.0 sentence-transformers==6.2.0" \
	    "flag FlagEmbedding==1.4.2 transformers==5.23.0" "fastembed fastembed==0.9.1" \
	    "rerankers rerankers[transformers]==0.10.0" \
	    "openvino sentence-transformers==6.2.0 optimum-intel[openvino]==2.2.0"; do \
	  set -- $$peer; folder=.venv-peers/$$1; shift; \
	  test -d $$folder || $(PYTHON) -m venv $$folder; \
	  $$folder/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 && \
	  $$folder/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 "$$@" || exit 1; \
	done

clean:
	rm -rf $(VENV) .venv-peers .venv-servers build dist site artefacts
