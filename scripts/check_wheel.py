"""Install each extra alone from the wheel, in a fresh environment, and use what it is for.

Then run README's first blocks, and look at the page that PyPI will show:

python scripts/check_wheel.py dist [EXTRA ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def readme_block(number: int) -> str:
    """Return a Python block of README that checks what it promises, with the bundled model for one to download."""
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[number]
    checked = re.sub(r"^print\((.*)\)  # (.+)$", r"assert \1 == '\2', \1", block, flags=re.MULTILINE)
    assert checked != block
    return checked.replace("BAAI/bge-small-en-v1.5", "demo")


USES = {
    "": "from bge_integrations import load_encoder; load_encoder('bge-m3', base_url='http://localhost:1/v1')",
    "langchain": "from bge_integrations.langchain import BGEEmbeddings; BGEEmbeddings(base_url='http://localhost:1/v1')",
    "llama-index": "from bge_integrations.llama_index import BGEEmbedding; BGEEmbedding(base_url='http://localhost:1/v1')",
    "local": "from bge_integrations import load_encoder; load_encoder('demo').encode(['a text'], role='query')",
    "onnx": "import bge_integrations.local.backends.onnx, onnxruntime",
    "server": "import bge_integrations.server.app",
    "cli": "from bge_integrations.cli import main; assert main(['completion', 'bash']) == 0",
    "fast": "import aiohttp, pybase64, simdjson",
    "eval": "from bge_integrations.evaluate.measures import check_measures; check_measures(['nDCG@10'])",
    "bulk": "import bge_integrations.bulk.parquet_shards as shards; shards.need_pyarrow()",
    "urls": "from bge_integrations.bulk.urls import *; import fsspec, aiohttp",
    "documents": "import bs4, markdownify, pypdf",
    "export": "from bge_integrations.cli import main; assert main(['export', 'demo', '-o', 'exported']) == 0",
    "ray": "import ray, bge_integrations.ray",
    "docs": "import material, mkdocstrings",
    "all": "import langchain_core, llama_index.core, torch, onnxruntime, uvicorn, rich, aiohttp, pyarrow, pypdf",
    "langchain,local": readme_block(0),
    "llama-index,local": readme_block(1),
}
"""What is run with each extra."""


def check(wheel: Path, extra: str, folder: Path) -> str:
    """Return what went wrong, or nothing."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    if {"local", "export", "all"} & set(extra.split(",")):  # first and pinned, so that no CUDA comes with it
        subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, f"{wheel}[{extra}]" if extra else str(wheel)], check=True)
    done = subprocess.run([str(python), "-c", USES[extra]], capture_output=True, text=True, check=False, cwd=folder)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def broken_links(wheel: Path) -> list[str]:
    """Return what PyPI's page links to that is not on it."""
    with zipfile.ZipFile(wheel) as archive:
        page = archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))).decode()
    return re.findall(r"(?:\]\(|\bsrc(?:set)?=\")(?!https?:|#)([^)\"]+)", page)


def main() -> int:
    """Print a line for each extra; 1 where one does not work."""
    wheel = next(Path(sys.argv[1]).resolve().glob("*.whl"))
    broken = broken_links(wheel)
    print(f"[the page on PyPI] {', '.join(broken) or 'works'}", flush=True)
    failed = bool(broken)
    for extra in sys.argv[2:] or USES:
        with tempfile.TemporaryDirectory() as folder:
            wrong = check(wheel, extra, Path(folder) / "environment")
        failed |= bool(wrong)
        print(f"[{extra}] {wrong or 'works'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
