"""The server keeps what its own OpenAPI document promises."""

import subprocess
import sys

import pytest

from bge_integrations.server import background, create_app
from serving import EveryOutput, ServedEncoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder():
    with ServedEncoder() as encoder:
        yield encoder


# Every request that the document allows or forbids, at the server that has most to answer; at the other, a choice.
@pytest.mark.parametrize(
    ("make", "keys", "phases"),
    [(EveryOutput, ["k"], "examples,coverage,fuzzing"), (ServedEncoder, [], "examples,fuzzing")],
    ids=["all outputs, locked", "dense, open"],
)
def test_schemathesis_finds_nothing(make, keys, phases, tmp_path):
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    options = ["--max-examples=25", f"--phases={phases}", "--seed=1", "--no-color"]
    options += ["--generation-database=none", "--request-timeout=30", "--workers=2"]
    options += ["--header=Authorization: Bearer k"] if keys else []
    with make() as encoder, background(encoder, api_keys=keys) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
    assert done.returncode == 0, "\n".join(line[:300] for line in done.stdout.splitlines()[-80:])
    assert "Tested: " in done.stdout


def test_the_document_states_what_is_served(encoder):
    document = create_app(encoder, api_keys=["k"]).openapi()
    dimensions = document["components"]["schemas"]["EmbeddingsRequest"]["properties"]["dimensions"]["anyOf"][0]
    assert dimensions["const"] == 32
    paths = ["/embed", "/health", "/info", "/metrics", "/ready", "/tokens", "/v1/embeddings", "/v1/models"]
    assert sorted(document["paths"]) == paths
    locked = [path for path in paths for verb in document["paths"][path].values() if verb.get("security")]
    assert locked == ["/embed", "/metrics", "/tokens", "/v1/embeddings", "/v1/models"]
