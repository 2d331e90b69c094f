"""Scores are remembered in the file that vectors are, and tell nobody's from another's."""

from __future__ import annotations

import numpy as np
import pytest

import models
from bge_integrations import errors, load_encoder, load_reranker
from bge_integrations.cache import SQLiteStore
from rerank_host import RerankServer

pytestmark = pytest.mark.slow

QUERY = "which fruit is red?"
PASSAGES = ["an apple", "a plum", "", "a pear", "an apple"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.sqlite"


def test_a_second_question_costs_only_new_passages(path):
    with RerankServer("tei") as host, load_reranker(base_url=host.url, dialect="tei", cache=path) as reranker:
        first = reranker.score(QUERY, PASSAGES, scale="logit")
        np.testing.assert_allclose(first, [host.logit(QUERY, passage) for passage in PASSAGES], atol=1e-4)
        host.requests.clear()
        again = reranker.score(QUERY, ["new", *PASSAGES], scale="logit")
        assert host.sent == [["new"]]
        np.testing.assert_array_equal(again[1:], first)
        assert reranker.usage.cache_hits == len(PASSAGES)
        reranker.score("another question", PASSAGES)
        assert len(host.sent) == 2
        assert "cache" in reranker.describe()


def test_a_query_and_a_passage_are_not_each_others(path):
    with RerankServer("tei") as host, load_reranker(base_url=host.url, dialect="tei", cache=path) as reranker:
        reranker.score_pairs([("ab", "c"), ("a", "bc"), ("c", "ab")])
        assert sum(map(len, host.sent)) == 3


def test_models_and_hosts_that_cut_into_chunks_do_not_share(path, monkeypatch):
    monkeypatch.setenv("SILICONFLOW_API_KEY", "k")
    for model, options in (
        ("bge-reranker-v2-m3", {"dialect": "xinference"}),
        ("bge-reranker-large", {"dialect": "xinference"}),
        ("bge-reranker-v2-m3", {"provider": "siliconflow"}),
        ("bge-reranker-v2-m3", {"dialect": "xinference", "wire_model": "somebody's own"}),
    ):
        dialect = options.get("dialect", "siliconflow")
        with RerankServer(dialect) as host, load_reranker(model, base_url=host.url, cache=path, **options) as one:
            one.score(QUERY, ["p"])
            assert len(host.requests) == 1


def test_the_file_holds_vectors_too(path):
    with load_reranker(models.reranker("bert"), cache=path) as reranker:
        scores = reranker.score("a", ["b", "c"])
    with load_encoder(models.folder("bge-small"), cache=path, show_progress=False, query_instruction="") as encoder:
        encoder.encode(["b"], role="document")
    with load_reranker(models.reranker("bert"), cache=SQLiteStore(path)) as again:
        np.testing.assert_array_equal(again.score("a", ["b", "c"]), scores)
        assert again.describe()["forward_passes"] == 0


def test_truncation_is_told_again(path):
    long = "a word " * 600
    for _ in range(2):
        with (
            load_reranker(models.reranker("bert"), cache=path) as reranker,
            pytest.warns(errors.TruncationWarning, match="positions 1"),
        ):
            reranker.score("a", ["b", long])
    with load_reranker(models.reranker("bert"), cache=path, truncate="error") as strict:
        with pytest.raises(errors.TooLongError) as caught:
            strict.score("a", ["b", long])
        assert caught.value.positions == (1,)


def test_an_error_of_the_host_reaches_the_caller_and_finished_scores_stay(path):
    options = {"dialect": "tei", "cache": path, "max_inputs": 2, "max_concurrency": 1, "max_retries": 0}
    with RerankServer("tei") as host, load_reranker(base_url=host.url, **options) as reranker:
        host.faults = [None, lambda handler: handler.reply(400, {"error": "no"})]
        with pytest.raises(errors.RequestRefusedError) as caught:
            reranker.score(QUERY, ["a", "b", "c", "d"])
        assert (caught.value.finished, caught.value.unfinished) == ((0, 1), (2, 3))
        host.requests.clear()
        reranker.score(QUERY, ["a", "b", "c", "d"])
        assert host.sent == [["c", "d"]]
