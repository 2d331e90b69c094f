"""bge-m3's outputs at hosts: every dialect gives what the model gives here, and what cannot be true is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from langchain_core.rate_limiters import BaseRateLimiter

import models
from bge_integrations import errors, load_encoder, load_reranker
from bge_integrations.catalog import golden
from bge_integrations.core.token_outputs import Outputs
from bge_integrations.load import load_m3
from m3_host import M3Server, answers_of, status

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

TEXTS = [
    "What is the capital of France?",
    "the the the cat",
    "Paris is the capital and largest city of France.",
    "x",
    "a passage about packing",
]
DIALECTS = ("vllm", "vllm-plugin", "deepinfra", "xinference", "sglang", "tei", "bge")
GIVES = {
    "vllm": ["dense", "sparse", "multivector"],
    "vllm-plugin": ["dense", "sparse"],
    "deepinfra": ["dense", "sparse", "multivector"],
    "xinference": ["dense", "sparse"],
    "sglang": ["sparse"],
    "tei": ["dense", "sparse"],
    "bge": ["dense", "sparse", "multivector"],
}
QUIET = {"show_progress": False, "api_key": "k", "timeout": 30.0}


@pytest.fixture(scope="module")
def local():
    with load_encoder(models.m3(), show_progress=False, query_instruction="") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def served(local):
    return answers_of(local)


def remote(host, *, tokenizer=None, dialect=None, **options):
    """An encoder of the random model at a host; without tokenizer, none is on this machine."""
    dialect = host.dialect if dialect is None else dialect
    said = {"dialect": dialect} if dialect in DIALECTS else {}
    encoder = load_encoder(
        models.m3(), base_url=host.url, wire_model="BAAI/bge-m3", query_instruction="", **said, **{**QUIET, **options}
    )
    engine = encoder.engine
    engine.limits = replace(engine.limits, backoff=0.005)
    if tokenizer is False:
        engine._looked, engine._cutter = True, None
        engine.card = replace(engine.card, vocabulary=250_002)  # bge-m3's own, whose special tokens are known
    return encoder


def same(found, wanted, names):
    for i in range(len(wanted.sparse)):
        if "dense" in names:
            np.testing.assert_allclose(found.dense[i], wanted.dense[i], atol=1e-6)
        if "sparse" in names:
            assert found.sparse[i] == pytest.approx(wanted.sparse[i], abs=1e-6)
            assert all(type(k) is int and type(v) is float for k, v in found.sparse[i].items())
        if "multivector" in names:
            np.testing.assert_allclose(found.multivector[i], wanted.multivector[i], atol=1e-6)


@pytest.mark.parametrize("tokenizer", [None, False], ids=["tokenizer here", "no tokenizer"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_what_the_model_gives(served, dialect, tokenizer):
    names = GIVES[dialect]
    with M3Server(dialect, *served) as host, remote(host, tokenizer=tokenizer) as encoder:
        found = encoder.encode_outputs(TEXTS, role="document", outputs=names)
        alone = encoder.encode_outputs(TEXTS, role="query", outputs=["sparse"])
        assert encoder.describe()["dialect"] == dialect
    same(found, served[0](TEXTS), names)
    same(alone, served[0](TEXTS), ["sparse"])
    assert alone.dense is None


@pytest.mark.parametrize("dialect", ["vllm", "xinference", "sglang", "tei", "bge"])
def test_a_server_tells_which_one_it_is(served, dialect):
    with M3Server(dialect, *served) as host, remote(host, dialect="") as encoder:
        assert encoder.outputs == ("dense", "sparse", "multivector")  # until it is known
        found = encoder.encode_outputs(TEXTS[:2], role="document", outputs=["sparse"])
        assert list(encoder.outputs) == GIVES[dialect]
    same(found, served[0](TEXTS[:2]), ["sparse"])


def test_vllm_is_asked_for_ids_only_where_no_tokenizer_is_here(served):
    with M3Server("vllm", *served) as host:
        with remote(host) as encoder:
            encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])
        assert not host.sent("/tokenize")
        with remote(host, tokenizer=False) as encoder:
            encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])
        assert [body["prompt"] for body in host.sent("/tokenize")] == TEXTS


def test_deepinfra_may_write_a_number_for_each_id(served, local):
    with M3Server("deepinfra", *served, size=local.card.vocabulary) as host, remote(host) as encoder:
        found = encoder.encode_outputs(TEXTS, role="document")
    same(found, served[0](TEXTS), ["dense", "sparse", "multivector"])


def test_only_what_is_wanted_is_asked_for(served):
    with M3Server("deepinfra", *served) as host, remote(host) as encoder:
        encoder.encode_outputs(["a"], role="document", outputs=["sparse"])
        encoder.encode(["a"], role="document")
    asked = host.sent("/v1/inference/BAAI/bge-m3-multi")
    assert [(body["dense"], body["sparse"], body["colbert"]) for body in asked] == [(False, True, False)]
    assert len(host.sent("/v1/openai/embeddings")) == 1


def test_maxsim_is_the_mean_whatever_the_host_would_sum(served, local):
    passages = TEXTS[1:]
    with (
        M3Server("vllm", *served) as host,
        load_reranker(models.m3(), base_url=host.url, dialect="vllm", weights=(0.4, 0.2, 0.4), api_key="k") as reranker,
    ):
        scores = reranker.score(TEXTS[0], passages)
    assert {path for path, _ in host.requests} <= {"/pooling", "/v1/embeddings"}
    with load_reranker(models.m3(), weights=(0.4, 0.2, 0.4)) as here:
        np.testing.assert_allclose(scores, here.score(TEXTS[0], passages), atol=1e-5)


def test_one_request_serves_dense_and_sparse_of_a_hybrid_store(served):
    with (
        M3Server("bge", *served) as host,
        load_m3(models.m3(), base_url=host.url, dialect="bge", query_instruction="", **QUIET) as encoder,
    ):
        encoder.use("dense", "sparse")
        dense = encoder.encode(TEXTS, role="document")
        sparse = encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"]).sparse
    same(Outputs(dense, sparse, None), served[0](TEXTS), ["dense", "sparse"])
    assert [body["outputs"] for body in host.sent("/embed")] == [["dense", "sparse"]]


def test_tokens_are_counted_at_a_host_too(served, local):
    with M3Server("plain", *served) as host, remote(host) as encoder:
        assert encoder.count_tokens(TEXTS) == local.count_tokens(TEXTS)
        assert encoder.words({4: 0.5}) == [(local.tokenizer().token(4), 0.5)]


def test_a_word_or_two_that_a_text_has_not_are_about_that_text(served):
    def spoiled(answer):
        foreign = next(str(token) for token in range(4, 300) if token not in served[1](TEXTS[2]))
        sent = host.requests[-1][1]["texts"]
        for text, row in zip(sent, answer["sparse"], strict=True):
            row.update({foreign: 0.1} if text == TEXTS[2] else {})
        return answer

    with M3Server("bge", *served) as host, remote(host, max_concurrency=1) as encoder:
        host.change = spoiled
        with pytest.raises(errors.BadAnswerError, match=r"1 of \d+ ids are not tokens of its text") as caught:
            encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])
    assert caught.value.unfinished == (2,)


# ---- requests: caps, busy hosts, order


def test_a_request_that_is_too_large_is_halved(served):
    texts = [f"text number {i}" for i in range(11)]
    with M3Server("tei", *served, cap=3) as host, remote(host, max_concurrency=1) as encoder:
        found = encoder.encode_outputs(texts, role="document", outputs=["sparse"])
        assert encoder.usage.texts == 11
    same(found, served[0](texts), ["sparse"])
    assert max(len(body["inputs"]) for body in host.sent("/embed_sparse")[1:]) <= 5


def test_what_is_learned_there_does_not_bound_dense_requests(served):
    texts = [f"text number {i}" for i in range(8)]
    with M3Server("tei", *served, cap=2) as host, remote(host, max_concurrency=1) as encoder:
        encoder.encode_outputs(texts, role="document", outputs=["sparse"])
        host.cap = 0
        encoder.encode(texts, role="document")
    assert [len(body["input"]) for body in host.sent("/v1/embeddings")] == [8]


def test_a_busy_host_is_asked_again(served):
    with M3Server("vllm", *served) as host, remote(host) as encoder:
        host.faults = [status(429, "busy", Retry_After="0"), status(503, "later")]
        found = encoder.encode_outputs(TEXTS, role="document")
        assert encoder.usage.retries == 2
    same(found, served[0](TEXTS), ["dense", "sparse", "multivector"])


def test_every_request_is_paced(served):
    class Counting(BaseRateLimiter):
        count = 0

        def acquire(self, *, blocking=True):
            raise AssertionError("the event loop must not be blocked")

        async def aacquire(self, *, blocking=True):
            self.count += 1
            return True

    limiter = Counting()
    with M3Server("vllm", *served) as host, remote(host, tokenizer=False, rate_limiter=limiter) as encoder:
        encoder.encode_outputs(TEXTS, role="document")
        assert limiter.count == len(host.requests) == encoder.usage.requests == 3 + len(TEXTS)


def test_rows_are_placed_by_index(served):
    def turned(answer):
        return {**answer, "data": answer["data"][::-1]} if "data" in answer else answer

    with M3Server("vllm", *served) as host, remote(host) as encoder:
        host.change = turned
        found = encoder.encode_outputs(TEXTS, role="document")
    same(found, served[0](TEXTS), ["dense", "sparse", "multivector"])


def test_what_is_finished_before_a_failure_is_said(served):
    texts = [f"text number {i}" for i in range(6)]
    kept = {}
    with M3Server("tei", *served) as host, remote(host, max_inputs=2, max_concurrency=1, max_retries=0) as encoder:
        host.faults = [None, None, status(401, "no")]
        with pytest.raises(errors.AuthenticationError) as caught:
            encoder.encode_outputs(
                texts,
                role="document",
                outputs=["sparse"],
                on_batch=lambda at, rows: kept.update(zip(at, rows, strict=True)),
            )
    assert caught.value.finished == (0, 1, 2, 3)
    assert sorted(kept) == [0, 1, 2, 3]


def test_token_vectors_are_asked_for_in_small_requests(served):
    texts = ["a " * 1400, "b " * 1400, "c " * 1400]
    ids = served[1]

    def flat(texts):
        return Outputs(None, None, [np.full((len(ids(text)) - 1, 4), 0.5, np.float32) for text in texts])

    with M3Server("vllm", flat, ids) as host, remote(host) as encoder:
        encoder.engine.card = replace(encoder.engine.card, dimensions=4)
        found = encoder.encode_outputs(texts, role="document", outputs=["multivector"])
    assert [len(rows) for rows in found.multivector] == [len(ids(text)) - 1 for text in texts]
    sizes = [sum(len(ids(text)) for text in body["input"]) for body in host.sent("/pooling")]
    assert len(sizes) > 1
    assert max(sizes) <= 4096


# ---- answers that cannot be true


def of_text(change, name="sparse"):
    """Change the row of the text "x" in a ``bge`` answer."""

    def changed(answer):
        rows = answer.get(name, [])
        answer[name] = [change(row) if len(row) < 4 else row for row in rows]
        return answer

    return changed


NOT_WEIGHTS = {
    "an id beyond the vocabulary": ({"250002": 0.5}, "outside the model's vocabulary"),
    "a negative id": ({"-1": 0.5}, "not token ids"),
    "a word for an id": ({"pump": 0.5}, "not token ids"),
    "a negative weight": ({"700": -0.5}, "negative or not finite"),
    "NaN": ({"700": math.nan}, "negative or not finite"),
    "infinity": ({"700": math.inf}, "negative or not finite"),
    "a string": ({"700": "0.5"}, "not a number"),
    "true": ({"700": True}, "not a number"),
    "no map": (7, "neither a map"),
    "a list of another size": ([0.0] * 30522, "30,522 numbers"),
}


@pytest.mark.parametrize("fault", NOT_WEIGHTS)
def test_a_sparse_row_that_is_none(served, fault):
    row, message = NOT_WEIGHTS[fault]
    with M3Server("bge", *served) as host, remote(host, tokenizer=False, max_concurrency=1) as encoder:
        host.change = lambda answer: {**answer, "sparse": [row] * len(answer["sparse"])}
        with pytest.raises(errors.BadAnswerError, match=message):
            encoder.encode_outputs(["a text"], role="document", outputs=["sparse"])


def test_one_text_that_a_host_fails_at_does_not_fail_its_neighbours(served):
    kept = {}

    def spoiled(answer):
        sent = host.requests[-1][1]["texts"]
        wrong = dict.fromkeys(served[0](["the the the cat"]).sparse[0], -1.0)
        answer["sparse"] = [
            wrong if text == "the the the cat" else row for text, row in zip(sent, answer["sparse"], strict=True)
        ]
        return answer

    with M3Server("bge", *served) as host, remote(host, max_concurrency=1) as encoder:
        host.change = spoiled
        with pytest.raises(errors.BadAnswerError, match="negative") as caught:
            encoder.encode_outputs(
                TEXTS,
                role="document",
                outputs=["sparse"],
                on_batch=lambda at, rows: kept.update(zip(at, rows, strict=True)),
            )
    assert caught.value.positions == (1,)
    assert caught.value.unfinished == (1,)
    assert sorted(kept) == [0, 2, 3, 4]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_too_few_rows(served, dialect):
    def fewer(answer):
        if isinstance(answer, list):
            return answer[1:]
        for name in ("data", "sparse"):
            if isinstance(answer.get(name), list):
                answer[name] = answer[name][1:]
            elif isinstance(answer.get(name), dict):
                answer[name]["data"] = answer[name]["data"][1:]
        return answer

    with M3Server(dialect, *served) as host, remote(host) as encoder:
        host.change = fewer
        with pytest.raises(errors.BadAnswerError, match=r"vectors were returned for \d texts|indices are not"):
            encoder.encode_outputs(TEXTS[:2], role="document", outputs=["sparse"])


@pytest.mark.parametrize("tokenizer", [None, False], ids=["tokenizer here", "no tokenizer"])
def test_splade_is_named(served, tokenizer):
    def expanded(answer):
        return [[{"index": token, "value": 0.5} for token in range(100, 180)] for _ in answer]

    with M3Server("tei", *served) as host, remote(host, tokenizer=tokenizer) as encoder:
        host.change = expanded
        with pytest.raises(errors.SpaceMismatchError, match="SPLADE, which adds words") as caught:
            encoder.encode_outputs(["Hi"], role="document", outputs=["sparse"])
    assert caught.value.verdict == "SPLADE-shaped"


def test_special_tokens_are_dropped_and_told(served):
    def special(answer):
        answer["sparse"] = [{**row, "0": 0.2, "2": 0.1} for row in answer["sparse"]]
        return answer

    with M3Server("bge", *served) as host, remote(host) as encoder:
        host.change = special
        with pytest.warns(errors.RepairWarning, match="returns special tokens"):
            found = encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])
    same(found, served[0](TEXTS), ["sparse"])


COUNTS = {
    "<s> kept": (lambda rows: [rows[0], *rows], "<s> has a vector too"),
    "</s> dropped": (lambda rows: rows[:-1], "</s> has none"),
    "truncated": (lambda rows: rows[:3], "truncates"),
}


@pytest.mark.parametrize("fault", COUNTS)
def test_another_number_of_vectors_than_tokens(served, fault):
    change, message = COUNTS[fault]
    with M3Server("bge", *served) as host, remote(host) as encoder:
        host.change = lambda answer: {**answer, "multivector": [change(rows) for rows in answer["multivector"]]}
        with pytest.raises(errors.BadAnswerError, match=message):
            encoder.encode_outputs(TEXTS[2:3], role="document", outputs=["multivector"])


def test_weights_that_belong_to_no_tokens(served):
    def longer(answer):
        for row in answer.get("data", []):
            row["data"] = row["data"] + [[0.1]] * 4
        return answer

    with M3Server("vllm", *served) as host, remote(host) as encoder:
        host.change = longer
        with pytest.raises(errors.BadAnswerError, match="weights for a text of"):
            encoder.encode_outputs(TEXTS[:1], role="document", outputs=["sparse"])


@pytest.mark.parametrize("ends", [([0.9], []), ([], [0.9]), ([0.9], [0.9])])
def test_a_row_of_more_weights_than_its_neighbours_is_not_shifted(served, ends):
    def longer(answer):
        answer["data"][1]["data"] = [ends[0]] * len(ends[0]) + answer["data"][1]["data"] + [ends[1]] * len(ends[1])
        return answer

    with M3Server("vllm", *served) as host, remote(host, max_retries=0) as encoder:
        host.change = lambda answer: longer(answer) if len(answer["data"]) > 1 else answer
        found = encoder.encode_outputs(TEXTS[:3], role="document", outputs=["sparse"])  # one by one
    same(found, served[0](TEXTS[:3]), ["sparse"])


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_weights_of_vllm_with_and_without_special_tokens(served, left_out):
    def padded(answer):
        for row in answer["data"]:
            row["data"] = [[0.9]] * (left_out < 1) + row["data"] + [[0.9]] * (left_out < 2)
        return answer

    with M3Server("vllm", *served) as host, remote(host) as encoder:
        host.change = padded
        found = encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])
    same(found, served[0](TEXTS), ["sparse"])


def test_a_sglang_without_its_head_says_what_it_needs(served):
    told = pytest.raises(errors.BadAnswerError, match=r"dense vectors were returned.*SGLANG_EMBEDDINGS_SPARSE_HEAD")
    with M3Server("xinference", *served) as host, remote(host, dialect="sglang") as encoder, told:
        encoder.encode_outputs(["a"], role="document", outputs=["sparse"])


REFUSALS = {
    "vllm": (400, "Task token_classify is not supported", "BgeM3EmbeddingModel"),
    "tei": (424, "Model is not an embedding model with SPLADE pooling", "issues/141"),
    "xinference": (400, "return_sparse is not supported", "engine 'flag'"),
}


@pytest.mark.parametrize("dialect", REFUSALS)
def test_a_server_that_was_started_for_less_says_what_it_needs(served, dialect):
    code, said, needs = REFUSALS[dialect]
    with M3Server(dialect, *served) as host, remote(host) as encoder:
        host.faults = [status(code, said)] * 9
        with pytest.raises(errors.HostError, match=needs):
            encoder.encode_outputs(["a"], role="document", outputs=["sparse"])
        assert len(host.requests) == 1


def test_a_back_end_that_failed_once_is_asked_again(served):
    with M3Server("tei", *served) as host, remote(host) as encoder:
        host.faults = [status(424, "Backend error: out of luck")]
        found = encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])
    same(found, served[0](TEXTS), ["sparse"])


# ---- hosts that give dense vectors alone


def test_a_known_host_of_dense_vectors_is_told_at_load():
    with pytest.raises(errors.ConfigError, match=r"novita returns only dense output; served by: .*deepinfra.*vllm"):
        load_m3(provider="novita", api_key="k")
    with pytest.raises(errors.ConfigError, match=r"no dense output here: .* returns only sparse output \(SGLang"):
        load_m3(dialect="sglang", base_url="http://localhost:1", api_key="k").use("dense")
    with pytest.raises(errors.ConfigError, match=r"no multivector output here: tei returns only dense, sparse"):
        load_reranker("bge-m3", provider="tei", base_url="http://localhost:1")


def test_both_adapters_tell_it():
    from bge_integrations.langchain import BGEM3 as LangChain
    from bge_integrations.llama_index import BGEM3 as LlamaIndex

    for adapter in (LangChain, LlamaIndex):
        with pytest.raises(errors.ConfigError, match="openrouter returns only dense output"):
            adapter(provider="openrouter", api_key="k")


def test_an_unknown_host_of_dense_vectors_is_told_at_the_first_call(served):
    with M3Server("plain", *served) as host, remote(host) as encoder:
        assert encoder.encode(TEXTS, role="document").shape == (5, 1024)
        with pytest.raises(
            errors.NotServedError, match=r"returns no sparse output, and does not say which server it is: pass dialect="
        ):
            encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])


def test_a_wrong_key_is_not_taken_for_a_server_that_does_not_tell(served):
    class Locked(M3Server):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            handler = self._server.RequestHandlerClass
            handler.do_GET = lambda one: one.reply(401, {"detail": "wrong key"})

    wrong = pytest.raises(errors.AuthenticationError, match="wrong key")
    with Locked("bge", *served) as host, remote(host, dialect="") as encoder, wrong:
        encoder.encode_outputs(TEXTS, role="document", outputs=["sparse"])


def test_a_dialect_must_be_known_and_have_a_host_and_a_model():
    with pytest.raises(errors.ConfigError, match=r"no dialect 'infinity'.*vllm"):
        load_encoder("bge-m3", base_url="http://localhost:1", dialect="infinity")
    with pytest.raises(errors.ConfigError, match="pass its base_url="):
        load_encoder("bge-m3", dialect="vllm")
    with pytest.raises(errors.ConfigError, match="does not have: leave it out"):
        load_encoder("bge-small", base_url="http://localhost:1", dialect="vllm")


def test_catalogued_hosts_need_no_dialect():
    outputs = {
        name: load_encoder("bge-m3", provider=name, api_key="k", base_url=url).outputs
        for name, url in [("deepinfra", None), ("vllm", "http://localhost:1"), ("novita", None)]
    }
    assert outputs == {
        "deepinfra": ("dense", "sparse", "multivector"),
        "vllm": ("dense", "sparse", "multivector"),
        "novita": ("dense",),
    }


# ---- published values


GOLDEN = json.loads(Path(golden.__file__).with_name("golden_m3.json").read_text("utf-8"))


@cache
def published():
    """Published sparse rows by text, and token vectors whose unknown numbers are made up to length 1."""
    sparse = {}
    for item in GOLDEN["m3_sparse"]:
        if "weights" in item and "int8" not in item["arithmetic"]:
            sparse.setdefault(item["text"], {int(k): v for k, v in item["weights"].items()})
    rows = next(item["rows"] for item in GOLDEN["m3_colbert"] if "rows" in item)
    vectors = np.zeros((8, 1024), np.float32)
    for place, row in rows.items():
        known = np.array([*row["first3"], *row["last3"]])
        vectors[int(place)] = math.sqrt((1 - (known**2).sum()) / 1018)
        vectors[int(place)][:3], vectors[int(place)][-3:] = row["first3"], row["last3"]
    vectors[3:5] = 1 / 32
    return sparse, vectors


def of_published(texts):
    sparse, vectors = published()
    return Outputs(
        dense=np.tile(vectors[:1], (len(texts), 1)),
        sparse=[dict(sparse[text]) for text in texts],
        multivector=[np.concatenate([vectors] * 3)[: len(sparse[text]) + 1] for text in texts],
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_published_values_through_every_dialect(dialect):
    sparse, vectors = published()
    texts = [*sparse]
    ids = {text: [0, *row, 2] for text, row in sparse.items()}
    host = M3Server(dialect, of_published, ids.__getitem__, size=250_002 if dialect == "deepinfra" else 0)
    with host, load_encoder("bge-m3", base_url=host.url, dialect=dialect, wire_model="BAAI/bge-m3", **QUIET) as encoder:
        found = encoder.encode_outputs(texts, role="query", outputs=GIVES[dialect])
    assert found.sparse == [pytest.approx(row, rel=1e-6) for row in sparse.values()]
    if found.multivector is not None:
        rows = found.multivector[texts.index("What is BGE M3?")]
        assert rows.shape == (8, 1024)
        np.testing.assert_allclose(rows, vectors, atol=1e-6)


def test_a_model_of_dense_vectors_is_not_concerned():
    for provider in ("sglang", "tei", "vllm"):
        encoder = load_encoder("bge-small", provider=provider, base_url="http://localhost:1")
        assert encoder.outputs == ("dense",)
        assert "dialect" not in encoder.describe()
