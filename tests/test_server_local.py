"""The server on the bundled model: true counts, merged batches, and the same vectors as without it."""

import threading
import time

import httpx
import numpy as np
import pytest

from bge_integrations.load import load_encoder
from bge_integrations.server import background

pytest.importorskip("tokenizers", reason="the local engine is not installed")

pytestmark = pytest.mark.slow
TEXTS = [f"Passage {i} about " + "compression of files " * (i % 7) for i in range(48)]


@pytest.fixture(scope="module")
def encoder():
    with load_encoder("demo") as encoder:
        encoder.encode(["hello"], role="document")
        yield encoder


@pytest.fixture(scope="module")
def url(encoder):
    with background(encoder) as url:
        yield url


def test_vectors_are_those_of_the_encoder(encoder, url):
    for role, is_query in (("query", True), ("document", False)):
        rows = httpx.post(f"{url}/embed", json={"texts": TEXTS, "is_query": is_query}, timeout=60).json()["embeddings"]
        np.testing.assert_allclose(np.float32(rows), encoder.encode(TEXTS, role=role), atol=2e-6)


def test_usage_is_what_the_tokenizer_counts(encoder, url):
    body = {"model": "demo", "input": TEXTS, "input_type": "query"}
    usage = httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).json()["usage"]
    before = encoder.usage.tokens
    encoder.encode(TEXTS, role="query")
    assert usage["prompt_tokens"] == encoder.usage.tokens - before


@pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")
def test_a_cut_text_counts_as_far_as_it_was_read(encoder, url):
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "demo", "input": "word " * 2000}, timeout=60)
    assert answer.json()["usage"]["prompt_tokens"] == encoder.card.max_tokens
    assert answer.headers["x-truncated-positions"] == "0"


def test_requests_that_arrive_together_are_one_batch(encoder, url):
    wanted = encoder.encode(TEXTS, role="document")
    got, gate = {}, threading.Event()
    with httpx.Client(base_url=url, timeout=60) as client:

        def ask(i):
            got[i] = client.post("/embed", json={"texts": [TEXTS[i]]}).json()["embeddings"][0]

        held = encoder.submit(["hold"], role="document", on_batch=lambda *_: gate.wait(60))
        passes = encoder.describe()["forward_passes"]
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(TEXTS))]
        for thread in threads:
            thread.start()
        while f"bge_queue_texts {len(TEXTS)}.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        gate.set()
        for thread in threads:
            thread.join(60)
        held.result(60)
    assert encoder.describe()["forward_passes"] - passes < len(TEXTS) / 4
    np.testing.assert_allclose(np.float32([got[i] for i in range(len(TEXTS))]), wanted, atol=2e-6)
