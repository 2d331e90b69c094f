"""A span per call by OpenTelemetry's conventions for generative AI, where the program uses OpenTelemetry.

No text is ever in a span. Conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/#embeddings
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..catalog.records import ModelCard

__all__ = ["Described", "span"]


class Described(Protocol):
    """What a span tells of an encoder."""

    @property
    def card(self) -> ModelCard:
        """The model."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return how the encoder works, as plain data without secrets."""
        ...


def span(
    encoder: Described, role: str, items: object, *, operation: str = "embeddings"
) -> AbstractContextManager[Callable[[int], None]]:
    """Put the enclosed call into a span, where a tracer provider is set; else cost next to nothing.

    Args:
        encoder: an encoder or a reranker.
        role: of the texts.
        items: the texts.
        operation: ``"embeddings"`` or ``"rerank"``.

    Returns:
        A context manager whose value sets the number of tokens that the call took.
    """
    tracer = _tracer()
    return nullcontext(_ignore) if tracer is None else _traced(tracer, encoder, role, items, operation)


@contextmanager
def _traced(
    tracer: Any, encoder: Described, role: str, items: object, operation: str
) -> Iterator[Callable[[int], None]]:
    name, kind = f"{operation} {encoder.card.id}", sys.modules["opentelemetry.trace"].SpanKind.CLIENT
    quiet = {"record_exception": False, "set_status_on_exception": False}  # messages may quote a host's answer
    about = {
        "gen_ai.operation.name": operation,
        **_before(encoder, role, len(items) if isinstance(items, Sized) else None),
    }
    if operation == "embeddings":
        about["gen_ai.embeddings.dimension.count"] = encoder.card.dimensions
    with tracer.start_as_current_span(name, kind=kind, attributes=about, **quiet) as current:

        def set_tokens(tokens: int) -> None:
            if tokens:
                current.set_attribute("gen_ai.usage.input_tokens", tokens)

        try:
            yield set_tokens
        except BaseException as error:
            _mark(current, error)
            raise


def _ignore(tokens: int) -> None:
    del tokens


def _tracer() -> Any:
    # A program that has not imported the API itself cannot have set a provider: no import is ever needed here.
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    return None if isinstance(provider, api.ProxyTracerProvider) else _tracer_of(provider)


@lru_cache(maxsize=4)
def _tracer_of(provider: Any) -> Any:
    from importlib.metadata import version

    return provider.get_tracer("bge_integrations", version("bge-integrations"))


def _before(encoder: Described, role: str, count: int | None) -> dict[str, Any]:
    about = encoder.describe()
    host = urlsplit(about.get("base_url") or "")
    known = {
        "gen_ai.provider.name": about.get("provider") or "local",
        "gen_ai.request.model": about.get("wire_model") or encoder.card.id,
        "server.address": host.hostname,
        "server.port": host.port,
        "bge.role": role,
        "bge.texts": count,
    }
    return {name: value for name, value in known.items() if value is not None}


def _mark(current: Any, error: BaseException) -> None:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    current.set_attribute("error.type", name)
    current.set_status(sys.modules["opentelemetry.trace"].StatusCode.ERROR)
