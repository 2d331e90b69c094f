"""Programs that tests run, each a process of its own, forked from one that has imported what most of them need.

Starting Python and importing torch and the rest takes seconds, which is most of the time of a small program.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

FORKS = multiprocessing.get_context("forkserver")
# Not huggingface_hub, nor what imports it: it reads the environment then.
HEAVY = ["torch._dynamo", "torch.distributed.tensor", "sklearn.metrics", "scipy.stats", "pandas", "jinja2", "trio"]
SERVERS = ["fastapi", "uvicorn.supervisors", "openai"]  # not prometheus_client, which reads the environment then
# With "programs", no child imports the test's own module, and with "pytest" none starts it again.
FORKS.set_forkserver_preload(
    [*HEAVY, *SERVERS, "rich.progress", "pytest", "programs", "bge_integrations.local.backends.packed"]
)


class Ended(NamedTuple):
    """How a program ended: its exit code, negative for a signal, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


def _run(code: str, arguments: list[str], environment: dict[str, str], shown: str, failed: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing's has a descriptor that no program of this one's inherits
    # The descriptors themselves: native code and programs that this one starts write to them.
    for path, number in ((shown, 1), (failed, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    sys.path[:0] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part not in sys.path]
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def run(code: str, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 120) -> Ended:
    """Run code as ``python -c`` would, with ``sys.argv[1:]`` and an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        shown, failed = Path(folder, "shown"), Path(folder, "failed")
        whole = dict(os.environ) if environment is None else environment
        program = FORKS.Process(target=_run, args=(code, [*map(str, arguments)], whole, str(shown), str(failed)))
        program.start()
        program.join(timeout)
        if program.exitcode is None:
            program.kill()
            raise TimeoutError(f"the program did not end in {timeout:g} s: {failed.read_text('utf-8', 'replace')}")
        return Ended(program.exitcode, *(path.read_text("utf-8", "replace") for path in (shown, failed)))
