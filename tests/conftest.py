"""What all tests share: a clean environment, the demo encoder, and a real server over it."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from bge_integrations import PROVIDERS, load_encoder
from bge_integrations.environment import VARIABLES
from postgres import find_postgres, postgres

NAMES = {name for provider in PROVIDERS for name in provider.key_env}
NAMES |= {variable for provider in PROVIDERS for _, variable in provider.url_env}
NAMES |= {provider.base_url_env for provider in PROVIDERS if provider.base_url_env}
NAMES |= set(VARIABLES)

# Before any test module is imported: some libraries read these once, and child processes inherit them.
HOME = Path(tempfile.mkdtemp(prefix="bge-home-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(HOME=str(HOME), XDG_CACHE_HOME=str(HOME / "cache"), HF_HOME=str(HOME / "huggingface"))
# Where tests share the cores, torch's threads that wait for one another sleep: they would spin for most of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Third-party packages phone home unless told not to; no test may leave this machine.
os.environ.update(ANONYMIZED_TELEMETRY="False", LANGSMITH_TRACING="false", HF_HUB_DISABLE_TELEMETRY="1")


_SLOW_MODULE = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.(slow|ray)\b", re.MULTILINE)

# Where these tests run in the background or below nohup, both are ignored, and programs that they start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Where slow tests are left out (``make quick``), nothing may need torch or Ray: importing them fails."""
    if "not slow" in config.getoption("markexpr"):
        sys.modules.update(dict.fromkeys(["torch", "ray"]))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where slow tests are left out, do not even import a module that holds no other: each worker would."""
    left_out = "not slow" in config.getoption("markexpr") and collection_path.suffix == ".py"
    return True if left_out and _SLOW_MODULE.search(collection_path.read_text("utf-8")) else None


# What a fixture needs, its tests need. The bundled model runs on torch.
MARKS = {"demo": "slow", "demo_url": "slow", "driver": "browser", "socket_folder": "postgres", "cluster": "ray"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their fixtures, and those whose store is in PostgreSQL by its name."""
    for item in items:
        fixtures = set(item.fixturenames)
        for fixture in fixtures & MARKS.keys():
            item.add_marker(MARKS[fixture])
        if fixtures & {"store", "place", "uploaded"} and "pgvector" in item.name:
            item.add_marker("postgres")


def pytest_collection_finish() -> None:
    """Keep what was imported out of later garbage collections, which would scan all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No test sees the developer's keys or hosts, or where another one sent the log."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    # A test may call serve(), which takes the log away from the root's handlers, and from caplog.
    log = logging.getLogger("bge_integrations.server")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)


@pytest.fixture(scope="session")
def socket_folder():
    """The folder of a PostgreSQL's socket, to be given as ``host``; pgvector is created in it."""
    if find_postgres() is None:
        pytest.skip("no PostgreSQL with pgvector is installed")
    with postgres() as folder:
        import psycopg

        with psycopg.connect(host=folder, user="postgres", dbname="postgres", autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        yield folder


@pytest.fixture(scope="session")
def demo():
    """The bundled model, loaded once."""
    encoder = load_encoder("demo", show_progress=False)
    yield encoder
    encoder.close()


@pytest.fixture(scope="session")
def demo_url(demo):
    """Base URL, without ``/v1``, of a real server over the bundled model."""
    from bge_integrations.server import background

    with background(demo) as url:
        yield url
