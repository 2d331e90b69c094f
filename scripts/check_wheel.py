"""Install each extra alone from the wheel, in a fresh environment, and use what it is for.

python scripts/check_wheel.py dist [EXTRA ...]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
    "bulk": "import bge_integrations.bulk.formats as formats; formats.need_pyarrow()",
}
"""What is run with each extra; extras that only add packages for a build or a cluster are not here."""


def check(wheel: Path, extra: str, folder: Path) -> str:
    """Return what went wrong, or nothing."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    if extra == "local":  # first and pinned, so that no CUDA comes with it
        subprocess.run([*pip, "torch==2.13.0"], check=True)
    subprocess.run([*pip, f"{wheel}[{extra}]" if extra else str(wheel)], check=True)
    done = subprocess.run([str(python), "-c", USES[extra]], capture_output=True, text=True, check=False, cwd=folder)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def main() -> int:
    """Print a line for each extra; 1 where one does not work."""
    wheel = next(Path(sys.argv[1]).resolve().glob("*.whl"))
    failed = 0
    for extra in sys.argv[2:] or USES:
        with tempfile.TemporaryDirectory() as folder:
            wrong = check(wheel, extra, Path(folder) / "environment")
        failed += bool(wrong)
        print(f"[{extra}] {wrong or 'works'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
