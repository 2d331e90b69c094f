"""The engine for hosts and the server hold their promises with the oldest openai SDK that is allowed, too.

All other tests run with the newest. ``make test`` lays the oldest beside the environment. Of pytest's plugins, whose
imports take seconds, those that the tests need are loaded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
OLDEST = Path(sys.prefix) / "openai-oldest"
TESTS = ("tests/test_remote_engine.py", "tests/test_host_way.py")


FOUND = "from importlib import metadata, util; print(metadata.version('openai'), util.find_spec('openai').origin)"
PYTEST = ("pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "asyncio", "-p", "timeout", "-m", "not slow")


def run(*command: str) -> str:
    path = os.pathsep.join([str(OLDEST), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.timeout(320)
def test_the_engine_holds_with_the_oldest_sdk():
    if not OLDEST.is_dir():
        pytest.skip(f"no {OLDEST.name} in the environment: make test lays it there")
    allowed = re.search(r'"openai>=([\d.]+),', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert allowed
    version, place = run("-c", FOUND).split(maxsplit=1)
    assert version.startswith(allowed[1])
    assert place.startswith(str(OLDEST))
    assert " passed" in run("-m", *PYTEST, *TESTS)
