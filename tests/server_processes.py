"""Starts ``bge serve``, or the tests' own encoder, as a process."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

import bge_integrations

SCRIPT = Path(__file__).with_name("serving.py")
SOURCE = Path(bge_integrations.__file__).parent.parent
RUN = "import sys; from bge_integrations.cli import main; sys.exit(main(sys.argv[1:]))"


def served(host="127.0.0.1", workers=1, delay=0.0, python=sys.executable):
    """Run the server with the tests' own encoder."""
    command = [python, str(SCRIPT), host, str(workers), str(delay)]
    return started(command, PYTHONPATH=os.pathsep.join([str(SOURCE), str(SCRIPT.parent)]))


@contextmanager
def started(command, **environment):
    """Run a command and give its process, its URL and the lines up to the one with the URL."""
    environment = {**os.environ, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            first = []
            while not (url := re.search(r"at (http://\S+)", first[-1]) if first else None):
                first.append(process.stderr.readline())
                assert process.poll() is None or first[-1], f"it ended: {first}"
            wait_for(f"{url[1]}/ready")
            yield process, url[1], first
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(url)


def children(pid):
    """The worker processes of a server."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
