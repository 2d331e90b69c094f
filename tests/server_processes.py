"""Starts ``bge serve``, or the tests' own encoder, as a process: forked from one that has imported what servers need.

Workers are new processes of their own, as they are for a user.
"""

import os
import re
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

import bge_integrations

SCRIPT = Path(__file__).with_name("serving.py")
SOURCE = Path(bge_integrations.__file__).parent.parent
PATHS = {"PYTHONPATH": os.pathsep.join([str(SOURCE), str(SCRIPT.parent)])}
BGE = "import sys; from bge_integrations.cli import main; sys.exit(main(sys.argv[1:]))"
# As a module, under whose name workers find its class.
OWN = "import sys, serving; serving.main(sys.argv[1:])"
# Each request on a connection of its own, as with httpx.get(), which reads all certificates each time.
http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


class Forked:
    """A program that ``programs`` forks, with the face of ``subprocess.Popen``."""

    def __init__(self, code, arguments, environment):
        import programs  # not on Windows

        with tempfile.TemporaryDirectory() as folder:
            errors = Path(folder, "stderr")
            os.mkfifo(errors)
            given = (code, [*map(str, arguments)], environment, os.devnull, str(errors))
            self._process = programs.FORKS.Process(target=programs._run, args=given)
            self._process.start()
            self.pid, self.stderr = self._process.pid, errors.open(encoding="utf-8")

    @property
    def returncode(self):
        return self._process.exitcode

    poll = returncode.fget

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("the forked program", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self._process.terminate()

    def kill(self):
        self._process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self.stderr.close()


def served(host="127.0.0.1", workers=1, delay=0.0, python=None):
    """Run the server with the tests' own encoder; forked, unless a Python is named to start."""
    arguments, environment = [host, str(workers), str(delay)], {**os.environ, **PATHS}
    if python is None:
        return running(Forked(OWN, arguments, environment))
    command = [python, str(SCRIPT), *arguments]
    return running(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))


def started(*arguments, probe="/ready", **environment):
    """Run ``bge serve`` until the probe succeeds."""
    return running(Forked(BGE, ["serve", *arguments], {**os.environ, **PATHS, **environment}), probe)


@contextmanager
def running(process, probe="/ready"):
    """Give a server's process, its URL and the lines up to the one with the URL."""
    with process:
        try:
            first = []
            while not (url := re.search(r"at (http://\S+)", first[-1]) if first else None):
                first.append(process.stderr.readline())
                assert first[-1], f"it ended: {first}"
            wait_for(f"{url[1]}{probe}")
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
            if http.get(url, timeout=10).status_code == 200:
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
