"""What all tests share: a clean environment, the demo encoder, and a real server over it."""

from __future__ import annotations

import os

import pytest

from bge_integrations import PROVIDERS, load_encoder
from bge_integrations.environment import VARIABLES

NAMES = {name for provider in PROVIDERS for name in provider.key_env}
NAMES |= {variable for provider in PROVIDERS for _, variable in provider.url_env}
NAMES |= {provider.base_url_env for provider in PROVIDERS if provider.base_url_env}
NAMES |= set(VARIABLES)

# Third-party packages phone home unless told not to; no test may leave this machine.
os.environ.update(ANONYMIZED_TELEMETRY="False", LANGSMITH_TRACING="false")


@pytest.fixture(scope="session")
def home_of_tests(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, home_of_tests):
    """No test sees the developer's keys, hosts or caches, or writes into them."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home_of_tests))


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
