"""Spans by OpenTelemetry's conventions, without a text in them, and usage that is counted once."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import models
from bge_integrations import load_encoder, load_reranker
from bge_integrations.cache import CachedEncoder
from bge_integrations.core.encoder import Batch, Usage
from bge_integrations.errors import HostUnavailableError
from bge_integrations.wrappers.progress import ProgressEncoder
from encoders import CARD, HashEncoder

TEXTS = ["a private text", "another private text"]


@pytest.fixture
def exporter(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


class Counting(HashEncoder):
    """Counts seven tokens a call."""

    def work(self, texts, role, stream, long):
        stream.put(Batch(range(len(texts)), self.vectors(texts, role), 7))


def run(encoder, how):
    if how == "sync":
        return encoder.encode(TEXTS, role="query")
    return asyncio.run(encoder.aencode(TEXTS, role="query"))


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_call_is_a_span_by_the_conventions(exporter, how):
    run(Counting(), how)
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("embeddings test/hash", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "local",
        "gen_ai.request.model": "test/hash",
        "gen_ai.embeddings.dimension.count": CARD.dimensions,
        "gen_ai.usage.input_tokens": 7,
        "bge.role": "query",
        "bge.texts": 2,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert "private" not in span.to_json()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_real_host_is_named_and_its_tokens_are_counted(exporter, demo_url, tmp_path, how):
    url = f"{demo_url}/v1"
    with load_encoder("demo", base_url=url, wire_model="demo", cache=tmp_path / "v.sqlite") as encoder:
        encode = encoder.encode if how == "sync" else lambda *a, **k: asyncio.run(encoder.aencode(*a, **k))
        encode(TEXTS, role="query")
        assert encoder.usage.tokens > 0
        tokens = encoder.usage.tokens
    spans = [dict(span.attributes) for span in exporter.get_finished_spans()]
    (mine,) = [
        span for span in spans if {"bge.role", "server.address"} <= span.keys()
    ]  # the server's own has no address
    assert (mine["server.address"], mine["server.port"]) == ("127.0.0.1", int(demo_url.rpartition(":")[2]))
    assert mine["gen_ai.request.model"] == "demo"
    assert mine["gen_ai.provider.name"] != "local"
    assert mine["gen_ai.usage.input_tokens"] == tokens


@pytest.mark.slow
def test_the_local_engine_counts_its_tokens(exporter):
    with load_encoder("demo") as encoder:
        encoder.encode(TEXTS, role="document")
        (span,) = exporter.get_finished_spans()
        assert span.attributes["gen_ai.usage.input_tokens"] == encoder.usage.tokens > 0
        assert span.attributes["gen_ai.provider.name"] == "local"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_error_is_named_and_not_quoted(exporter, how):
    def fail(rows, texts):
        raise HostUnavailableError("the host answered: 'a private text'")

    with pytest.raises(HostUnavailableError):
        run(HashEncoder(before_batch=fail), how)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["error.type"] == "bge_integrations.errors.HostUnavailableError"
    assert span.status.status_code is StatusCode.ERROR
    assert span.events == ()
    assert "private" not in span.to_json()


def test_wrappers_add_no_spans_and_tokens_of_one_call_stay_its_own(exporter, tmp_path):
    with ProgressEncoder(CachedEncoder(Counting(), tmp_path / "v.sqlite")) as encoder:
        encoder.encode(TEXTS, role="document")
        encoder.encode(TEXTS, role="document")
    first, second = exporter.get_finished_spans()
    assert first.attributes["gen_ai.usage.input_tokens"] == 7
    assert "gen_ai.usage.input_tokens" not in second.attributes


def test_a_span_is_the_child_of_the_callers_and_the_parent_of_the_engines(exporter, tmp_path):
    tracer = trace.get_tracer_provider().get_tracer("test")

    class Traced(HashEncoder):
        def batches(self, texts, role, stream):
            with tracer.start_as_current_span("http"):
                super().batches(texts, role, stream)

    with tracer.start_as_current_span("request"), CachedEncoder(Traced(), tmp_path / "v.sqlite") as encoder:
        encoder.encode(TEXTS, role="document")
    http, call, request = exporter.get_finished_spans()
    assert call.parent.span_id == request.context.span_id
    assert http.parent.span_id == call.context.span_id


def test_without_a_provider_nothing_is_recorded():
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    HashEncoder().encode(TEXTS, role="document")


def test_opentelemetry_is_not_imported_by_itself(request):
    code = (
        "import sys; from encoders import HashEncoder; HashEncoder().encode(['a'], role='query');"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=request.path.parent, check=False
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("how", ["sync", "async"])
def test_usage_counts_each_thing_once_through_all_wrappers(tmp_path, how):
    inner = HashEncoder(delay=0.05, batch=1)
    with ProgressEncoder(CachedEncoder(inner, tmp_path / "v.sqlite")) as encoder:
        run(encoder, how)
        run(encoder, how)
        assert encoder.usage is inner.usage
    usage = inner.usage
    assert (usage.texts, usage.requests, usage.tokens, usage.cache_hits) == (2, 2, 6, 2)
    assert usage.seconds >= 0.1


def test_seconds_count_failed_calls_too():
    def fail(rows, texts):
        raise HostUnavailableError("down")

    encoder = HashEncoder(delay=0.05, before_batch=fail)
    with pytest.raises(HostUnavailableError):
        encoder.encode(TEXTS, role="document")
    assert encoder.usage.seconds >= 0.05
    assert isinstance(encoder.usage, Usage)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sync", "async"])
def test_reranking_is_a_span_too(exporter, how):
    with load_reranker(models.reranker("bert")) as reranker:
        if how == "sync":
            reranker.rank("a private query", TEXTS)
        else:
            asyncio.run(reranker.arank("a private query", TEXTS))
        (span,) = exporter.get_finished_spans()
        assert span.name == f"rerank {reranker.card.id}"
        assert span.attributes["gen_ai.usage.input_tokens"] == reranker.usage.tokens > 0
        assert {"gen_ai.operation.name": "rerank", "bge.role": "query", "bge.texts": 2}.items() <= dict(
            span.attributes
        ).items()
        assert "gen_ai.embeddings.dimension.count" not in span.attributes
        assert "private" not in span.to_json()
