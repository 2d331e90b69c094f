"""The OpenAPI document: what is known only once there is a model, limits and keys."""

from __future__ import annotations

from typing import Any

from ..catalog.records import ModelCard
from .answers import CUT_HEADER, OPENAI_PATHS
from .gate import OPEN_PATHS
from .limits import Limits


def complete(document: dict[str, Any], card: ModelCard, limits: Limits, *, locked: bool) -> None:
    """Put into the document what this server does, so that it does not promise more than is kept."""
    _state_model(document["components"]["schemas"], card, limits)
    cut = {"description": "Positions of texts that are longer than the model reads.", "schema": {"type": "string"}}
    for path in ("/embed", "/v1/embeddings"):
        document["paths"][path]["post"]["responses"]["200"]["headers"] = {CUT_HEADER: cut}
    if locked:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            if path not in OPEN_PATHS:
                _lock(path, operations)


def _state_model(schemas: dict[str, Any], card: ModelCard, limits: Limits) -> None:
    openai = schemas["EmbeddingsRequest"]
    openai["examples"] = [{"model": card.id, "input": ["What is BGE?"]}]
    openai["properties"]["dimensions"]["anyOf"][0] = {"type": "integer", "const": card.dimensions}
    openai["properties"]["input"]["description"] += f" At most {limits.items} texts."
    for name in ("EmbedRequest", "TokensRequest"):
        schemas[name]["properties"]["texts"]["anyOf"][1]["maxItems"] = limits.items


def _lock(path: str, operations: dict[str, Any]) -> None:
    shape = "OpenAIError" if path.startswith(OPENAI_PATHS) else "Detail"
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    for operation in operations.values():
        operation["security"] = [{"key": []}]
        operation["responses"]["401"] = {"description": "No key, or not one of ours.", "content": content}
