"""The BGE Embedding API Space: ``POST /embed {texts, normalize, is_query}``.

The server adds the instruction when ``is_query`` is true; the client then must not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import BadAnswerError
from ..vectors import check_count, describe_shape
from .wire import Answer, Request, WireProtocol

__all__ = ["SPACE"]


def payload(request: Request) -> dict[str, Any]:
    """Return the JSON of a request."""
    return {"texts": request.texts, "normalize": True, "is_query": request.instruct}


def parse(answer: Any, count: int) -> Answer:
    """Return the embeddings; a Space counts no tokens.

    Raises:
        BadAnswerError: no ``embeddings``, a wrong number of them, or a ``dimension`` that is not theirs.
    """
    rows = answer.get("embeddings") if isinstance(answer, Mapping) else None
    if not isinstance(rows, list):
        shape = describe_shape(answer)
        raise BadAnswerError(f"the response has no embeddings{shape}", retryable=not shape)
    check_count(rows, count)
    return Answer(rows, model=answer.get("model"))


def explain(health: Any) -> str:
    """Say of a Space that does not answer whether it sleeps."""
    if health is None:
        return "its /health does not answer either: it may be asleep, building or paused; open its page to wake it"
    loaded = isinstance(health, Mapping) and health.get("model_loaded")
    return "its /health says it is up" if loaded else "its /health says that the model is not loaded yet"


SPACE = WireProtocol("space", "/embed", payload, parse, instructs=True, health="/health", explain=explain)
