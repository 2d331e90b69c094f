"""Rerankers at hosts: every dialect over real sockets, one scale, every index once, caps, faults."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import socket
import struct

import numpy as np
import pytest

import models
from bge_integrations import RERANKERS, errors, load_reranker
from bge_integrations.catalog.score_values import published_scores
from rerank_host import PATHS, TELLS, RerankServer, sigmoid

QUERY = "which fruit is red?"
PASSAGES = ["an apple", "a plum", "", "a pear", "an apple", "ünïcode 中文", "a plum"]
DIALECTS = [name for name in PATHS if name != "cloudflare"]


def reranker_at(host, dialect=..., model="bge-reranker-v2-m3", **options):
    dialect = host.dialect if dialect is ... else dialect
    options = {"wire_model": "@cf/baai/bge-reranker-base", **options} if dialect == "cloudflare" else options
    return load_reranker(model, base_url=host.url, dialect=dialect, **options)


def truth(host, passages=PASSAGES, query=QUERY):
    return np.array([host.logit(query, passage) for passage in passages], np.float32)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_logits_and_ranks(dialect):
    with RerankServer(dialect) as host, reranker_at(host, blank="keep") as reranker:  # one passage is blank
        logits = reranker.score(QUERY, PASSAGES, scale="logit")
        np.testing.assert_allclose(logits, truth(host), atol=1e-4)
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES), [sigmoid(x) for x in truth(host)], atol=1e-6)
        ranks = [one.position for one in reranker.rank(QUERY, PASSAGES)]
        assert ranks == sorted(range(len(PASSAGES)), key=lambda i: (-truth(host)[i], i))


def served(card, dialect):
    """Which servers serve which model: gemma's template is put in for vLLM, Xinference has its own."""
    if card.hosts_only:
        return dialect in ("vllm", "vllm-score", "xinference")
    return dialect != "cloudflare" or card.id.endswith("-base")


@pytest.mark.parametrize(
    ("card", "dialect"),
    [(card, dialect) for card in RERANKERS if published_scores(card) for dialect in PATHS if served(card, dialect)],
    ids=lambda value: value if isinstance(value, str) else value.id.rpartition("-")[2],
)
def test_all_published_scores_come_through_every_dialect(card, dialect):
    with RerankServer(dialect, model=card.id) as host, reranker_at(host, model=card.id) as reranker:
        for query, passages, logits in published_scores(card):
            np.testing.assert_allclose(reranker.score(query, passages, scale="logit"), logits, atol=1e-3)
            # One pair is published in float16 and in float32.
            np.testing.assert_allclose(reranker.score(query, passages), [sigmoid(x) for x in logits], atol=5e-6)
        ranks = reranker.rank(*published_scores(card)[0][:2])
        assert [one.position for one in ranks] == [0, 1]


def test_cloudflare_gives_the_same():
    with (
        RerankServer("cloudflare", model="bge-reranker-base") as host,
        reranker_at(host, model="bge-reranker-base") as reranker,
    ):
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        assert reranker.describe()["scale"] == "sigmoid"


@pytest.mark.parametrize("dialect", TELLS)
def test_a_server_is_asked_which_one_it_is(dialect):
    with RerankServer(dialect) as host, reranker_at(host, None) as reranker:
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        assert reranker.describe()["dialect"] == dialect


def test_a_server_that_does_not_tell_wants_its_dialect():
    with RerankServer("jina") as host, reranker_at(host, None) as reranker:
        with pytest.raises(errors.ConfigError, match=r"pass dialect=.*tei.*cloudflare"):
            reranker.score(QUERY, PASSAGES)
        assert host.requests == []


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize("dialect", ["tei", "vllm", "jina", "cohere"])
def test_the_root_is_found_whatever_is_written(dialect, ending):
    with (
        RerankServer(dialect) as host,
        load_reranker("bge-reranker-v2-m3", base_url=host.url + ending, dialect=dialect) as reranker,
    ):
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)


def test_another_path_is_tried_once_after_a_404(monkeypatch):
    monkeypatch.setitem(PATHS, "jina", ("/rerank",))
    with RerankServer("jina") as host, reranker_at(host, max_inputs=2, max_concurrency=1) as reranker:
        reranker.score(QUERY, PASSAGES)
        assert [path for path, *_ in host.requests][:2] == ["/v1/rerank", "/rerank"]
        assert [path for path, *_ in host.requests].count("/v1/rerank") == 1


def test_a_path_that_is_nowhere_says_so():
    with RerankServer("jina") as host, reranker_at(host, "vllm") as reranker:
        host.dialect = "tei"
        PATHS_BEFORE = PATHS["tei"]
        PATHS["tei"] = ()
        try:
            with pytest.raises(errors.RequestRefusedError, match="404"):
                reranker.score(QUERY, PASSAGES)
        finally:
            PATHS["tei"] = PATHS_BEFORE


def test_what_is_sent_is_the_text_and_nothing_else():
    with RerankServer("tei") as host, reranker_at(host) as reranker:
        reranker.score("  A Query\n", ["  a\n\npassage "])
        _, body, _ = host.requests[0]
        assert body == {
            "query": "  A Query\n", "texts": ["  a\n\npassage "], "raw_scores": True, "return_text": False,
            "truncate": True,
        }  # fmt: skip


def test_gemma_gets_its_template_from_here():
    with (
        RerankServer("vllm", model="bge-reranker-v2-gemma") as host,
        reranker_at(host, model="bge-reranker-v2-gemma") as reranker,
    ):
        reranker.score("q", ["p"])
        _, body, _ = host.requests[0]
        assert body["query"] == "A: q\n"
        assert body["documents"][0].startswith("B: p\nGiven a query A and a passage B")
        assert body["documents"][0].endswith("'Yes' or 'No'.")
        with (
            reranker_at(host, "tei", model="bge-reranker-v2-gemma") as other,
            pytest.raises(errors.NotServedError, match="vLLM"),
        ):
            other.score("q", ["p"])


def test_equal_passages_are_sent_once_and_no_passages_not_at_all():
    with RerankServer("tei") as host, reranker_at(host) as reranker:
        assert reranker.score(QUERY, []).shape == (0,)
        assert reranker.rank(QUERY, PASSAGES, top_n=0) == []
        assert host.requests == []
        reranker.score(QUERY, PASSAGES)
        assert sorted(host.sent[0]) == sorted(set(PASSAGES))


def test_a_thousand_passages_are_requests_in_flight_together():
    passages = [f"passage {i}" for i in range(1000)]
    with RerankServer("tei", delay=0.02, cap=32) as host, reranker_at(host) as reranker:
        np.testing.assert_allclose(reranker.score(QUERY, passages, scale="logit"), truth(host, passages), atol=1e-4)
        assert max(map(len, host.sent)) == 32
        assert host.most > 4


def test_a_smaller_cap_is_learned():
    passages = [f"passage {i}" for i in range(200)]
    with RerankServer("infinity", cap=10) as host, reranker_at(host) as reranker:
        np.testing.assert_allclose(reranker.score(QUERY, passages, scale="logit"), truth(host, passages), atol=1e-4)
        refused = len([part for part in host.sent if len(part) > 10])
        host.requests.clear()
        reranker.score(QUERY, [f"other {i}" for i in range(100)])
        assert max(map(len, host.sent)) <= 10
        assert refused < 20


def test_many_queries_in_one_call():
    pairs = [(f"query {i % 3}", f"passage {i}") for i in range(30)]
    with RerankServer("vllm-score") as host, reranker_at(host) as reranker:
        wanted = [host.logit(*pair) for pair in pairs]
        np.testing.assert_allclose(reranker.score_pairs(pairs, scale="logit"), wanted, atol=1e-4)
        assert len(host.requests) == 3


def row_change(change):
    def changed(answer):
        rows = answer if isinstance(answer, list) else answer["results"]
        changed_rows = change([dict(row) for row in rows])
        return changed_rows if isinstance(answer, list) else {**answer, "results": changed_rows}

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "scores were returned for"),
        (lambda rows: [*rows, rows[0]], "scores were returned for"),
        (lambda rows: [{**row, "index": 0} for row in rows], "an index of their own"),
        (lambda rows: [{**row, "index": row["index"] + 1} for row in rows], "indices are not 0"),
        (lambda rows: [{k: v for k, v in row.items() if k != "index"} for row in rows], "an index of their own"),
        (lambda rows: [{**rows[0], "relevance_score": None, "score": None}, *rows[1:]], "not a finite number"),
        (lambda rows: [{**rows[0], "relevance_score": "0.5", "score": "0.5"}, *rows[1:]], "not a finite number"),
        (lambda rows: [{**rows[0], "relevance_score": True, "score": True}, *rows[1:]], "not a finite number"),
        (lambda rows: [{**rows[0], "relevance_score": math.nan, "score": math.nan}, *rows[1:]], "not a finite number"),
        (lambda rows: [{"embedding": [0.1], "index": row["index"]} for row in rows], "embedding model"),
        (lambda rows: "nothing", "no rows of scores"),
    ],
)
@pytest.mark.parametrize("dialect", ["tei", "infinity"])
def test_a_wrong_answer_is_refused(dialect, change, said):
    with RerankServer(dialect) as host, reranker_at(host, max_retries=0) as reranker:
        host.change = row_change(change)
        with pytest.raises(errors.BadAnswerError, match=said) as caught:
            reranker.score(QUERY, PASSAGES)
        assert caught.value.provider in host.url


def test_the_passage_of_a_bad_score_is_named():
    with RerankServer("tei") as host, reranker_at(host, max_retries=0) as reranker:
        bad = host.logit(QUERY, "b")
        host.scale = lambda logits: [None if logit == bad else logit for logit in logits]
        with pytest.raises(errors.BadAnswerError) as caught:
            reranker.score(QUERY, ["a", "b", "c"])
        assert caught.value.positions == (1,)
        assert caught.value.finished == (0, 2)


def test_zeros_that_protobuf_leaves_out_are_read():
    with RerankServer("infinity") as host, reranker_at(host) as reranker:
        host.change = row_change(lambda rows: [{k: v for k, v in row.items() if k != "index" or v} for row in rows])
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)


def test_retries_obey_retry_after_and_errors_carry_what_is_finished():
    with RerankServer("tei") as host, reranker_at(host) as reranker:
        host.faults = [lambda handler: handler.reply(429, {"error": "busy"}, Retry_After="0.1")]
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        assert reranker.usage.retries == 1
    passages = [f"passage {i}" for i in range(10)]
    with RerankServer("tei") as host, reranker_at(host, max_inputs=5, max_concurrency=1, max_retries=0) as reranker:
        host.faults = [None, lambda handler: handler.reply(400, {"error": f"no: {QUERY} {passages[5]}"})]
        with pytest.raises(errors.RequestRefusedError) as caught:
            reranker.score(QUERY, passages)
        assert caught.value.finished == (0, 1, 2, 3, 4)
        assert caught.value.unfinished == (5, 6, 7, 8, 9)
        assert QUERY not in str(caught.value)
        assert passages[5] not in str(caught.value)


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def short(handler):
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'[{"index": 0')
    handler.close_connection = True


@pytest.mark.parametrize(
    "fault", [reset, short, lambda handler: handler.reply(200, b'[{"ind'), lambda handler: handler.reply(503, {})]
)
def test_a_fault_on_the_way_costs_a_retry(fault):
    with RerankServer("tei") as host, reranker_at(host) as reranker:
        host.faults = [fault]
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        assert reranker.usage.retries == 1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_key_is_nowhere(dialect):
    key = "sk-very-secret-0123456789"
    with RerankServer(dialect) as host, reranker_at(host, api_key=key) as reranker:
        host.faults = [lambda handler: handler.reply(401, {"error": f"wrong key: {key}"})]
        with pytest.raises(errors.AuthenticationError) as caught:
            reranker.score(QUERY, PASSAGES)
        for shown in (str(caught.value), repr(caught.value.__cause__), repr(reranker), json.dumps(reranker.describe())):
            assert key not in shown
        assert key.encode() not in pickle.dumps(reranker)
        reranker.score(QUERY, PASSAGES)
        assert host.requests[-1][2]["authorization"] == f"Bearer {key}"


def test_pinecone_gets_its_own_header(monkeypatch):
    monkeypatch.setenv("PINECONE_API_KEY", "pc-secret")
    with (
        RerankServer("pinecone") as host,
        load_reranker("bge-reranker-v2-m3", provider="pinecone", base_url=host.url) as reranker,
    ):
        reranker.score(QUERY, PASSAGES)
        path, body, headers = host.requests[0]
        assert (path, headers["api-key"]) == ("/rerank", "pc-secret")
        assert body["documents"][0] == {"text": PASSAGES[0]}
        assert "pc-secret" not in repr(reranker) + str(reranker.endpoint)
        assert reranker.usage.usd == pytest.approx(0.002)


def softmax(logits):
    shares = [math.exp(x - max(logits)) for x in logits]
    return [share / sum(shares) for share in shares]


SCALES = {
    "sigmoid twice": (lambda logits: [sigmoid(sigmoid(x)) for x in logits], "sigmoid is applied twice"),
    "softmax": (softmax, "softmax"),
    "cosines": (lambda logits: [0.5 + x / 40 for x in logits], "embedding model"),
    "another model": (lambda logits: [x * 0.3 - 1 for x in logits], "not this model's"),
    "swapped": (lambda logits: logits[::-1], "wrong passages"),
}


@pytest.mark.parametrize("cause", SCALES)
def test_verify_names_what_is_wrong_before_a_text_is_sent(cause):
    scale, said = SCALES[cause]
    with RerankServer("tei", scale=scale) as host, reranker_at(host, verify="first-use") as reranker:
        with pytest.raises(errors.SpaceMismatchError, match=said):
            reranker.score(QUERY, PASSAGES)
        assert all("panda" in texts[0] for texts in host.sent)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_verify_accepts_every_dialect_as_it_is(dialect):
    with RerankServer(dialect) as host, reranker_at(host, verify="first-use") as reranker:
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        requests = len(host.requests)
        reranker.score(QUERY, ["one more"])
        assert len(host.requests) == requests + 1  # the pairs are not asked for again


@pytest.mark.parametrize("dialect", ["tei", "vllm", "jina", "cohere"])
def test_a_wish_for_raw_scores_that_is_ignored_is_noticed(dialect):
    ignored = lambda logits: [sigmoid(x) for x in logits]  # noqa: E731
    with RerankServer(dialect, scale=ignored) as host, reranker_at(host) as reranker:
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        assert reranker.describe()["scale"] == "sigmoid"


@pytest.mark.parametrize("dialect", ["jina", "cohere"])
def test_a_host_of_unknown_scale_that_gives_logits_is_measured(dialect):
    with RerankServer(dialect, scale=list) as host, reranker_at(host) as reranker:
        np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), truth(host), atol=1e-4)
        assert reranker.describe()["scale"] == "logit"


def test_a_host_that_normalises_over_the_list_is_refused_without_verify():
    with (
        RerankServer("xinference", scale=softmax) as host,
        reranker_at(host) as reranker,
        pytest.raises(errors.SpaceMismatchError, match="normalises over the list"),
    ):
        reranker.score(QUERY, PASSAGES)


def test_sigmoids_that_happen_to_sum_to_one_are_no_softmax():
    fair = lambda logits: [{3: 0.5}.get(len(logits), 0.5)] + [0.25] * (len(logits) - 1)  # noqa: E731
    with (
        RerankServer("xinference", scale=lambda logits: [0.5, 0.25, 0.25][: len(logits)]) as host,
        reranker_at(host) as reranker,
    ):
        host.scale = lambda logits: fair(logits) if len(logits) > 1 else [0.25]
        np.testing.assert_allclose(reranker.score(QUERY, ["a", "b", "c"]), [0.5, 0.25, 0.25], atol=1e-6)


class Counting:
    """A user's own rate limiter."""

    asked = 0

    async def async_acquire(self, num_tokens=0):
        assert num_tokens > 0
        self.asked += 1


def sums_to_one(logits):
    return [0.5, 0.25, 0.25] if len(logits) == 3 else [0.25]


@pytest.mark.parametrize(
    ("dialect", "options", "requests"),
    [
        ("tei", {"verify": "first-use"}, 2),  # the published pairs, and the caller's
        ("jina", {"scale": list}, 2),  # its scale is measured
        ("xinference", {"scale": sums_to_one}, 2),  # a passage alone, to tell a softmax
        ("vllm", {"missing": 1}, 2),  # at another path
    ],
)
def test_every_request_is_paced(dialect, options, requests):
    limiter, options = Counting(), dict(options)
    missing, scale = options.pop("missing", 0), options.pop("scale", None)
    with RerankServer(dialect, scale=scale) as host, reranker_at(host, rate_limiter=limiter, **options) as reranker:
        host.faults = [lambda handler: handler.reply(404, {"detail": "Not Found"})] * missing
        reranker.score(QUERY, PASSAGES[:3])
        assert limiter.asked == len(host.requests) == requests
        reranker.engine.raw_scores(QUERY, PASSAGES[:3])
        assert limiter.asked == len(host.requests) == requests + 1


def test_logits_from_a_host_of_sigmoids_are_refused():
    with (
        RerankServer("xinference", scale=list) as host,
        reranker_at(host) as reranker,
        pytest.raises(errors.BadAnswerError, match="known to return 0 to 1"),
    ):
        reranker.score(QUERY, PASSAGES)


def test_sigmoids_of_0_and_1_tie_in_their_order():
    with (
        RerankServer("xinference", scale=lambda logits: [1.0, 0.0, 1.0, 0.3, 0.0]) as host,
        reranker_at(host) as reranker,
    ):
        ranks = reranker.rank(QUERY, list("abcde"))
        assert [one.position for one in ranks] == [0, 2, 3, 1, 4]
        assert [one.score for one in ranks] == pytest.approx([1, 1, 0.3, 0, 0])


def test_an_answer_of_another_model_is_refused():
    with RerankServer("infinity") as host, reranker_at(host) as reranker:
        host.change = lambda answer: {**answer, "model": "BAAI/bge-reranker-base"}
        with pytest.raises(errors.BadAnswerError, match="BAAI/bge-reranker-base"):
            reranker.score(QUERY, PASSAGES)


def test_an_embedding_model_at_a_tei_is_refused():
    told = TELLS["tei"]
    TELLS["tei"] = ("/info", {**told[1], "model_type": {"embedding": {"pooling": "cls"}}})
    try:
        with (
            RerankServer("tei") as host,
            reranker_at(host, None) as reranker,
            pytest.raises(errors.NotServedError, match="not a reranker"),
        ):
            reranker.score(QUERY, PASSAGES)
    finally:
        TELLS["tei"] = told


@pytest.mark.slow
def test_pairs_are_truncated_here_where_the_tokenizer_is():
    folder = models.reranker("xlm-roberta")
    from bge_integrations.core.pairs import PairTokenizer
    from bge_integrations.core.reranker import Pair

    long = "the same words come again and again " * 200
    with RerankServer("tei") as host:
        options = {"base_url": host.url, "dialect": "tei"}
        with load_reranker(folder, **options) as reranker:
            with pytest.warns(errors.TruncationWarning, match="positions 1"):
                reranker.score(QUERY, ["short", long, "also short"])
            sent = next(text for text in host.sent[0] if len(text) > 100)
            assert len(sent) < len(long)
            ids = PairTokenizer.read(folder, 512)
            mine = ids.tokenize([Pair(QUERY, sent), Pair(QUERY, long)]).items
            assert mine[0].tolist() == mine[1].tolist()
        with load_reranker(folder, truncate="error", **options) as strict:
            host.requests.clear()
            with pytest.raises(errors.TooLongError) as caught:
                strict.score(QUERY, ["short", long])
            assert caught.value.positions == (1,)
            assert host.requests == []


def test_truncate_error_lets_the_host_refuse():
    with RerankServer("tei") as host, reranker_at(host, truncate="error") as reranker:
        reranker.score(QUERY, ["a"])
        assert host.requests[0][1]["truncate"] is False
    with RerankServer("vllm") as host, reranker_at(host, truncate="error") as reranker:
        reranker.score(QUERY, ["a"])
        assert "truncate_prompt_tokens" not in host.requests[0][1]


def test_usage_and_price():
    with RerankServer("jina") as host, load_reranker(provider="novita", base_url=host.url, api_key="k") as reranker:
        reranker.score(QUERY, PASSAGES)
        unlike = len(set(PASSAGES))
        assert (reranker.usage.texts, reranker.usage.tokens) == (unlike, 7 * unlike)
        assert reranker.usage.usd == pytest.approx(7 * unlike * 0.01 / 1e6)


def test_hosts_say_what_they_serve():
    with pytest.raises(errors.NotServedError, match=r"pinecone does not serve.*cloudflare"):
        load_reranker("bge-reranker-base", provider="pinecone", api_key="k")
    with pytest.raises(errors.UnknownProviderError, match="siliconflow"):
        load_reranker(provider="siliconflo")
    with pytest.raises(errors.ConfigError, match="no dialect"):
        load_reranker(base_url="http://localhost:1", dialect="teii")
    with pytest.raises(errors.InsecureHostError):
        load_reranker(base_url="http://example.com", dialect="tei")


def test_async_calls_do_not_wait_for_each_other():
    async def many(reranker):
        return await asyncio.gather(*(reranker.ascore(f"q{i}", PASSAGES, scale="logit") for i in range(8)))

    with RerankServer("tei", delay=0.05) as host, reranker_at(host) as reranker:
        reranker.score("warm", ["up"])
        for i, logits in enumerate(asyncio.run(many(reranker))):
            np.testing.assert_allclose(logits, truth(host, query=f"q{i}"), atol=1e-4)
        assert host.most > 4
