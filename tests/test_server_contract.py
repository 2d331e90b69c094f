"""The server keeps what its own OpenAPI document promises."""

import subprocess
import sys

import httpx
import pytest

from bge_integrations.server import background
from serving import ServedEncoder


@pytest.fixture(scope="module")
def url():
    with ServedEncoder() as encoder, background(encoder) as url:
        yield url


def test_schemathesis_finds_nothing(url, tmp_path):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    options = ["--max-examples=25", "--phases=examples,coverage,fuzzing,stateful", "--seed=1", "--no-color"]
    options += ["--generation-database=none", "--request-timeout=30", "--workers=2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=110, cwd=tmp_path)
    assert done.returncode == 0, "\n".join(line[:300] for line in done.stdout.splitlines()[-80:])
    assert "Tested: " in done.stdout


def test_the_document_states_what_is_served(url):
    document = httpx.get(f"{url}/openapi.json").json()
    dimensions = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]["dimensions"]["anyOf"][0]
    assert dimensions["const"] == 32
    paths = ["/embed", "/health", "/info", "/metrics", "/ready", "/tokens", "/v1/embeddings", "/v1/models"]
    assert sorted(document["paths"]) == paths
