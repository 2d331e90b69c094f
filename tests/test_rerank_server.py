"""``/rerank`` of ``bge serve``: TEI's, Jina's and Cohere's shapes, and the package's own client in each."""

from __future__ import annotations

import argparse

import httpx
import numpy as np
import pytest

import models
from bge_integrations import errors, load_reranker
from bge_integrations.cli import main, serve
from bge_integrations.server import Limits, background
from rerank_host import RerankServer, sigmoid
from serving import ServedEncoder

pytestmark = pytest.mark.slow

QUERY = "What is the capital of France?"
PASSAGES = ["Paris is the capital of France.", "A plum", "", "Rome is old", "A plum"]


@pytest.fixture(scope="module")
def inner():
    with load_reranker(models.reranker("xlm-roberta"), blank="keep") as loaded:  # one of the passages is blank
        yield loaded


@pytest.fixture(scope="module")
def url(inner):
    with background(ServedEncoder(), reranker=inner) as url:
        yield url


@pytest.fixture(scope="module")
def ranks(inner):
    return inner.rank(QUERY, PASSAGES)


def ask(url, path, **body):
    return httpx.post(url + path, json={"query": QUERY, **body}, timeout=60)


def test_teis_shape(url, ranks, inner):
    rows = ask(url, "/rerank", texts=PASSAGES, return_text=True).json()
    assert [row["index"] for row in rows] == [one.position for one in ranks]
    assert [row["score"] for row in rows] == pytest.approx([one.score for one in ranks], abs=1e-5)
    assert [row["text"] for row in rows] == [PASSAGES[one.position] for one in ranks]
    raw = ask(url, "/rerank", texts=PASSAGES, raw_scores=True, truncate=True, truncation_direction="Right").json()
    logits = inner.score(QUERY, PASSAGES, scale="logit")
    assert {row["index"]: row["score"] for row in raw} == pytest.approx(dict(enumerate(logits.tolist())), abs=1e-4)
    assert "text" not in raw[0]
    some = ask(url, "/rerank", texts=PASSAGES, top_n=2, return_documents=True, model=inner.card.id).json()
    assert some == rows[:2]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_jinas_and_coheres_shape(url, ranks, path, inner):
    answer = ask(url, path, documents=PASSAGES, top_n=2, return_documents=True, model=inner.card.id).json()
    assert [row["index"] for row in answer["results"]] == [one.position for one in ranks[:2]]
    assert answer["results"][0]["document"] == {"text": PASSAGES[ranks[0].position]}
    assert answer["results"][0]["relevance_score"] == pytest.approx(ranks[0].score, abs=1e-5)
    assert answer["usage"]["total_tokens"] > 0
    if path == "/rerank":
        assert ask(url, path, documents=PASSAGES, top_n=2, return_text=True).json()["results"] == answer["results"]
    plain = ask(url, path, documents=[{"text": text} for text in PASSAGES]).json()
    assert [row["index"] for row in plain["results"]] == [one.position for one in ranks]


@pytest.mark.parametrize("dialect", [None, "tei", "jina", "cohere", "infinity"])
def test_the_packages_own_client(url, inner, dialect):
    options = {"wire_model": inner.card.id} if dialect else {}
    with load_reranker(models.reranker("xlm-roberta"), base_url=url, dialect=dialect, **options) as client:
        if dialect in ("jina", "cohere"):
            with pytest.warns(errors.UnverifiedWarning, match="sigmoids"):
                found = client.score(QUERY, PASSAGES, scale="logit")
        else:
            found = client.score(QUERY, PASSAGES, scale="logit")
        np.testing.assert_allclose(found, inner.score(QUERY, PASSAGES, scale="logit"), atol=1e-4)
        assert client.describe()["dialect"] == (dialect or "tei")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rerank", {}, 422),
        ("/rerank", {"texts": ["a"], "documents": ["b"]}, 422),
        ("/rerank", {"texts": ["a"], "query": " "}, 422),
        ("/rerank", {"texts": ["a"], "query": None}, 422),
        ("/rerank", {"texts": "a"}, 422),
        ("/rerank", {"texts": [1]}, 422),
        ("/rerank", {"texts": ["a"], "raw_score": True}, 422),
        ("/rerank", {"texts": ["a"], "model": "another"}, 404),
        ("/rerank", {"texts": ["a"], "truncation_direction": "Left"}, 422),
        ("/v2/rerank", {"documents": ["a"], "rank_fields": ["title"]}, 422),
        ("/rerank", {"texts": ["a", "a word " * 600], "truncate": False}, 413),
        ("/v1/rerank", {"documents": ["a"], "top_n": -1}, 400),
        ("/v1/rerank", {"documents": ["a"], "model": "another"}, 404),
        ("/v2/rerank", {"texts": ["a"]}, 422),
        ("/v2/rerank", {"documents": [{"title": "a"}]}, 422),
    ],
)
def test_what_is_wrong_is_refused(url, path, body, status):
    answer = ask(url, path, **body)
    assert answer.status_code == status
    assert answer.json()


def test_no_passages_give_no_rows(url):
    assert ask(url, "/rerank", texts=[]).json() == []
    assert ask(url, "/v2/rerank", documents=[]).json()["results"] == []


def test_truncated_positions_are_in_a_header(url):
    answer = ask(url, "/rerank", texts=["a", "a word " * 600])
    assert answer.headers["x-truncated-positions"] == "1"


def test_limits_and_keys_hold_for_reranking_too(inner):
    with background(ServedEncoder(), reranker=inner, limits=Limits(items=3), api_keys=["k"]) as url:
        assert ask(url, "/rerank", texts=["a"]).status_code == 401
        headers = {"authorization": "Bearer k"}
        body = {"query": QUERY, "texts": ["a", "b", "c"]}
        assert httpx.post(url + "/rerank", json=body, headers=headers).status_code == 422
        with load_reranker(models.reranker("xlm-roberta"), base_url=url, api_key="k") as client:
            passages = [f"passage {i}" for i in range(9)]
            np.testing.assert_allclose(client.score(QUERY, passages), inner.score(QUERY, passages), atol=1e-5)


@pytest.mark.parametrize("dialect", ["tei", "infinity", "vllm", "llama.cpp", "xinference"])
def test_a_reranker_at_a_host_is_served_in_every_shape(dialect):
    with (
        RerankServer(dialect) as host,
        load_reranker("bge-reranker-v2-m3", base_url=host.url) as remote,
        background(ServedEncoder(), reranker=remote) as url,
    ):
        logits = [host.logit(QUERY, passage) for passage in PASSAGES]
        raw = ask(url, "/rerank", texts=PASSAGES, raw_scores=True).json()
        assert {row["index"]: row["score"] for row in raw} == pytest.approx(dict(enumerate(logits)), abs=1e-3)
        rows = ask(url, "/v2/rerank", documents=PASSAGES, model="bge-reranker-v2-m3").json()["results"]
        assert [row["index"] for row in rows] == sorted(range(len(PASSAGES)), key=lambda i: (-logits[i], i))
        assert [row["relevance_score"] for row in rows] == pytest.approx(
            [sigmoid(logits[row["index"]]) for row in rows]
        )


def test_what_a_rerankers_host_says_is_not_hidden():
    with (
        RerankServer("tei") as host,
        load_reranker("bge-reranker-v2-m3", base_url=host.url, max_retries=0) as remote,
        background(ServedEncoder(), reranker=remote) as url,
    ):
        ask(url, "/rerank", texts=PASSAGES)
        host.faults = [lambda handler: handler.reply(429, {}, Retry_After="7")]
        answer = ask(url, "/rerank", texts=PASSAGES)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "7"


def parsed_by_serve(arguments):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_command_line_names_the_rerankers_own_host(monkeypatch):
    monkeypatch.setenv("RERANK_KEY", "k-rerank")
    with RerankServer("jina") as host:
        arguments = ["--model", "demo", "--truncate", "error", "--reranker", "bge-reranker-v2-m3"]
        place = ["--reranker-base-url", host.url, "--reranker-dialect", "jina", "--reranker-verify", "first-use"]
        parsed = parsed_by_serve(
            [*arguments, *place, "--reranker-wire-model", "mine", "--reranker-key-env", "RERANK_KEY"]
        )
        with serve.reranker_to_serve(parsed)() as made:
            logits = made.score(QUERY, PASSAGES, scale="logit")
            np.testing.assert_allclose(logits, [host.logit(QUERY, passage) for passage in PASSAGES], atol=1e-3)
        assert made.truncate == "error"
        assert {body["model"] for _, body, _ in host.requests} == {"mine"}
        assert {headers["authorization"] for *_, headers in host.requests} == {"Bearer k-rerank"}


def test_a_rerankers_host_without_a_reranker_is_refused(capsys):
    assert main(["serve", "--model", "demo", "--reranker-base-url", "http://localhost:1"]) == 2
    assert "--reranker-base-url needs --reranker MODEL" in capsys.readouterr().err


def test_without_a_reranker_there_is_no_such_path():
    with background(ServedEncoder()) as url:
        assert ask(url, "/rerank", texts=["a"]).status_code == 404
        assert "reranker" not in httpx.get(url + "/info").json()


def test_info_and_document_tell_of_it(url, inner):
    assert httpx.get(url + "/info").json()["reranker"]["model"] == inner.card.id
    assert {"/rerank", "/v1/rerank", "/v2/rerank"} <= httpx.get(url + "/openapi.json").json()["paths"].keys()


def test_jinas_own_langchain_client(url, ranks, monkeypatch):
    from langchain_community.document_compressors import jina_rerank
    from langchain_core.documents import Document

    monkeypatch.setattr(jina_rerank, "JINA_API_URL", f"{url}/v1/rerank")
    client = jina_rerank.JinaRerank(jina_api_key="none", model=models.reranker("xlm-roberta").name, top_n=3)
    found = client.compress_documents([Document(text) for text in PASSAGES], QUERY)
    assert [one.page_content for one in found] == [PASSAGES[one.position] for one in ranks[:3]]


def test_coheres_own_client(url, ranks):
    cohere = pytest.importorskip("cohere", reason="cohere is not installed")
    client = cohere.ClientV2(api_key="none", base_url=url)
    found = client.rerank(model=models.reranker("xlm-roberta").name, query=QUERY, documents=PASSAGES, top_n=3)
    assert [one.index for one in found.results] == [one.position for one in ranks[:3]]


def test_infinitys_own_langchain_client(url, ranks):
    client = pytest.importorskip("infinity_client.client", reason="infinity_client is not installed")
    from langchain_community.document_compressors.infinity_rerank import InfinityRerank
    from langchain_core.documents import Document

    with client.Client(base_url=url) as connection:
        asks = InfinityRerank(client=connection, model=models.reranker("xlm-roberta").name, top_n=3)
        found = asks.compress_documents([Document(text) for text in PASSAGES], QUERY)
    assert [one.page_content for one in found] == [PASSAGES[one.position] for one in ranks[:3]]


def test_llama_indexs_own_tei_client(url, ranks):
    tei = pytest.importorskip(
        "llama_index.postprocessor.tei_rerank", reason="llama-index-postprocessor-tei-rerank is not installed"
    )
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in PASSAGES]
    found = tei.TextEmbeddingInference(base_url=url, top_n=3).postprocess_nodes(nodes, query_str=QUERY)
    assert [one.text for one in found] == [PASSAGES[one.position] for one in ranks[:3]]
    assert [one.score for one in found] == pytest.approx([one.score for one in ranks[:3]], abs=1e-5)
