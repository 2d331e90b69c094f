"""Counters for Prometheus, in a registry of the app's own, so that two apps in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("bge_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "bge_request_seconds", "Time from head to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.texts = Counter("bge_texts", "Texts embedded", ["role"], registry=registry)
        self.tokens = Counter("bge_tokens", "Tokens that the model read", ["role"], registry=registry)
        self.cut = Counter("bge_truncated_texts", "Texts longer than the model reads", registry=registry)
        self.waiting = Gauge("bge_queue_texts", "Texts that wait for the encoder or are in it", registry=registry)
        self.held = Gauge("bge_queue_bytes", "Bytes of request bodies in memory", registry=registry)
        self.request_texts = Histogram("bge_request_texts", "Texts per request", buckets=_SIZES, registry=registry)
        self.batch_texts = Histogram(
            "bge_batch_texts", "A request's texts per part that the encoder finished", buckets=_SIZES, registry=registry
        )
