"""``bge serve --model bge-m3``: all outputs at /embed, TEI's /embed_sparse, and the package's own client of both."""

from __future__ import annotations

import numpy as np
import pytest

import models
from bge_integrations import errors, load_encoder, load_reranker
from bge_integrations.load import load_m3
from bge_integrations.server import Limits, background, create_app
from server_processes import http
from serving import EveryOutput, ServedEncoder

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TEXTS = ["What is the capital of France?", "the the the cat", "a passage about packing", "x"]
QUIET = {"show_progress": False, "query_instruction": ""}


@pytest.fixture(scope="module")
def inner():
    with load_encoder(models.m3(), **QUIET) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(inner):
    with background(inner, limits=Limits(multivector_tokens=60)) as url:
        yield url


@pytest.fixture(scope="module")
def wanted(inner):
    return inner.encode_outputs(TEXTS, role="document")


def client(url, **options):
    return load_encoder(models.m3(), base_url=url, **{**QUIET, "timeout": 60.0, **options})


def post(url, path, **body):
    return http.post(url + path, json=body)


def same(found, wanted):
    np.testing.assert_allclose(found.dense, wanted.dense, atol=1e-6)
    assert found.sparse == [pytest.approx(row, abs=1e-5) for row in wanted.sparse]
    for rows, right in zip(found.multivector, wanted.multivector, strict=True):
        np.testing.assert_allclose(rows, right, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"dialect": "bge"}, {"provider": "space"}],
    ids=["the server tells", "said", "as a Space"],
)
def test_the_packages_own_client_gets_what_the_model_gives(url, wanted, options):
    with client(url, **options) as encoder:
        same(encoder.encode_outputs(TEXTS, role="document"), wanted)
        assert encoder.describe()["dialect"] == "bge"
        assert encoder.outputs == ("dense", "sparse", "multivector")


def test_a_base_url_with_v1_will_do(url, wanted):
    with client(f"{url}/v1", wire_model=models.m3().name) as encoder:
        same(encoder.encode_outputs(TEXTS, role="query"), wanted)
        np.testing.assert_allclose(encoder.encode(TEXTS, role="query"), wanted.dense, atol=1e-6)


def test_teis_client_gets_the_sparse_vectors(url, wanted):
    with client(url, dialect="tei") as encoder:
        found = encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"]).sparse
    assert found == [pytest.approx(row, abs=1e-5) for row in wanted.sparse]


def test_teis_shape(url, wanted):
    rows = post(url, "/embed_sparse", inputs=TEXTS, truncate=True).json()
    assert [{entry["index"]: entry["value"] for entry in row} for row in rows] == [
        pytest.approx(row, abs=1e-5) for row in wanted.sparse
    ]
    assert post(url, "/embed_sparse", inputs=TEXTS[0]).json() == [rows[0]]


def test_only_the_outputs_that_were_asked_for(url, wanted):
    answer = post(url, "/embed", texts=TEXTS, outputs=["sparse"]).json()
    assert sorted(answer) == ["dimension", "model", "sparse"]
    assert {int(token) for token in answer["sparse"][1]} == wanted.sparse[1].keys()
    assert sorted(post(url, "/embed", texts=TEXTS).json()) == ["dimension", "embeddings", "model"]
    assert post(url, "/embed", texts=[], outputs=["multivector"]).json()["multivector"] == []


def test_one_pass_answers_all(url, inner):
    post(url, "/embed", texts=["warm"])
    before = inner.describe()["forward_passes"]
    post(url, "/embed", texts=TEXTS, outputs=["multivector", "dense", "sparse"])
    assert inner.describe()["forward_passes"] == before + 1


def test_token_vectors_have_a_limit_of_their_own(url, wanted, inner):
    texts = TEXTS * 4
    refused = post(url, "/embed", texts=texts, outputs=["multivector"])
    assert refused.status_code == 422
    assert "tokens for token vectors in one request are too many: at most 60" in refused.json()["detail"]
    assert post(url, "/embed", texts=texts, outputs=["sparse"]).status_code == 200
    with client(url) as encoder:  # which splits what is too large
        found = encoder.encode_outputs(texts, role="document", outputs=["multivector"]).multivector
    assert [len(rows) for rows in found] == [count - 1 for count in inner.count_tokens(texts)]


def too_long(encoder):
    with encoder, background(encoder) as url:  # a text as long as bge-m3 reads takes it seconds
        refused = post(url, "/embed_sparse", inputs=["a", "word " * 20], truncate=False)
    assert refused.status_code == 413
    assert "text 1 is too long: 'BAAI/bge-small-en-v1.5' reads 16 tokens" in refused.json()["detail"]
    return any("word" in text for text in encoder.seen)


def test_too_long_a_text_is_refused_before_it_is_computed_where_that_is_asked_for():
    assert not too_long(EveryOutput())


def test_without_a_tokenizer_it_is_refused_when_the_model_has_truncated_it():
    class Uncounted(EveryOutput):
        def count_tokens(self, texts):
            raise errors.ConfigError("no tokenizer")

    encoder = Uncounted()
    encoder.max_words = 14
    assert too_long(encoder)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"texts": ["a"], "outputs": []}),
        ("/embed", {"texts": ["a"], "outputs": ["colbert"]}),
        ("/embed", {"texts": ["a"], "outputs": "sparse"}),
        ("/embed_sparse", {"inputs": []}),
        ("/embed_sparse", {"inputs": [" "]}),
        ("/embed_sparse", {"inputs": ["a"], "prompt_name": "passage"}),
        ("/embed_sparse", {"texts": ["a"]}),
    ],
)
def test_what_means_nothing_is_refused(url, path, body):
    assert post(url, path, **body).status_code == 422


def test_what_is_served_is_told(url, inner):
    assert http.get(f"{url}/info").json()["outputs"] == ["dense", "sparse", "multivector"]
    counts = http.get(f"{url}/metrics").text
    assert 'route="/embed_sparse"' in counts
    paths = create_app(inner, api_keys=["k"]).openapi()["paths"]
    assert paths["/embed_sparse"]["post"]["security"]


def test_a_model_of_dense_vectors_says_what_to_do(inner):
    with background(ServedEncoder()) as url:
        for answer in (post(url, "/embed_sparse", inputs=["a"]), post(url, "/embed", texts=["a"], outputs=["sparse"])):
            assert answer.status_code == 422
            assert "has no sparse output here: it has only dense; BAAI/bge-m3 has" in answer.json()["detail"]
        assert http.get(f"{url}/info").json()["outputs"] == ["dense"]
        told = pytest.raises(errors.HostError, match="BAAI/bge-m3 has dense, sparse, multivector")
        with client(url) as encoder, told:
            encoder.encode_outputs(["a"], role="document", outputs=["sparse"])
    assert "/embed_sparse" not in create_app(ServedEncoder()).openapi()["paths"]


def test_a_key_is_needed_for_sparse_vectors_too(inner):
    with background(inner, api_keys=["secret"]) as url:
        assert post(url, "/embed_sparse", inputs=["a"]).status_code == 401
        with client(url, api_key="secret") as encoder:
            assert encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"]).sparse[1]


# ---- a second stage


def test_bge_m3_as_the_reranker_of_a_server(inner):
    weights = (0.4, 0.2, 0.4)
    with load_reranker(models.m3(), weights=weights) as reranker, background(inner, reranker=reranker) as url:
        scores = reranker.score(TEXTS[0], TEXTS[1:])
        rows = post(url, "/rerank", query=TEXTS[0], texts=TEXTS[1:]).json()
        jina = post(url, "/v1/rerank", query=TEXTS[0], documents=TEXTS[1:]).json()["results"]
        with load_reranker(models.m3(), base_url=url, weights=weights) as remote:  # vectors come, and are scored here
            np.testing.assert_allclose(remote.score(TEXTS[0], TEXTS[1:]), scores, atol=1e-5)
    expected = dict(enumerate(pytest.approx(score, abs=1e-5) for score in scores.tolist()))
    assert {row["index"]: row["score"] for row in rows} == expected  # similarities, of which no sigmoid is made
    assert {row["index"]: row["relevance_score"] for row in jina} == expected


def test_a_hybrid_store_asks_the_server_once(url, inner):
    with load_m3(models.m3(), base_url=url, **QUIET) as encoder:
        encoder.use("dense", "sparse")
        dense = encoder.encode(TEXTS, role="document")
        before = inner.describe()["forward_passes"]
        sparse = encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"]).sparse
        assert inner.describe()["forward_passes"] == before
    assert dense.shape == (4, 1024)
    assert len(sparse) == 4
