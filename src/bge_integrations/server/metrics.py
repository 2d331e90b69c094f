"""Counters for Prometheus: of one app, or of all worker processes together."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters of one app, in a registry of its own, so that two apps in one process do not mix.

    Args:
        folder: where the workers of one server keep their values (``PROMETHEUS_MULTIPROC_DIR``); None for one process.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("bge_requests", "Requests answered", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "bge_request_seconds", "Time from head to answer", ["route"], buckets=_SECONDS, registry=registry
        )
        self.texts = Counter("bge_texts", "Texts embedded", ["role"], registry=registry)
        self.tokens = Counter("bge_tokens", "Tokens that the model read", ["role"], registry=registry)
        self.truncated = Counter("bge_truncated_texts", "Texts longer than the model reads", registry=registry)
        self.waiting = _gauge("bge_queue_texts", "Texts waiting or being embedded", registry)
        self.held = _gauge("bge_queue_bytes", "Bytes of request bodies in memory", registry)
        self.request_texts = Histogram("bge_request_texts", "Texts per request", buckets=_SIZES, registry=registry)
        self.batch_texts = Histogram(
            "bge_batch_texts", "Texts per batch that the encoder finished", buckets=_SIZES, registry=registry
        )

    def text(self) -> bytes:
        """Return all counters in Prometheus' text format; of all workers, whichever of them answers."""
        if self._folder is None:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(self._folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _gauge(name: str, about: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, about, registry=registry, multiprocess_mode="livesum")


def _forget_dead_workers(folder: Path) -> None:
    """Drop the gauges of killed workers, whose queues are gone; their counters stay."""
    if os.name == "nt":
        return  # os.kill(pid, 0) sends Ctrl-C there
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        try:
            with contextlib.suppress(PermissionError):  # it lives, as another user
                os.kill(pid, 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
