"""What a protocol is: where a request goes, what it holds, and how its answer is read, as data and pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Request", "WireProtocol"]


@dataclass(frozen=True)
class Request:
    """One request for embeddings.

    Attributes:
        texts: as they are sent.
        model: what the host calls the model.
        instruct: the server is to put its instruction in front of each text.
        encoding: ``"float"``, ``"base64"``, or None to leave that out.
    """

    texts: list[str]
    model: str
    instruct: bool = False
    encoding: str | None = "float"


@dataclass(frozen=True)
class Answer:
    """One answer, read.

    Attributes:
        rows: what came for each text, in their order.
        model: the model that the host names.
        tokens: tokens that the host counted; 0 where it did not.
        numbered: whether rows came with their positions.
    """

    rows: list[Any]
    model: Any = None
    tokens: int = 0
    numbered: bool = True


@dataclass(frozen=True)
class WireProtocol:
    """How one kind of host is spoken to.

    Attributes:
        name: as in a provider's record.
        path: after the base URL.
        payload: returns the JSON of a request.
        parse: returns the rows of an answer's JSON for so many texts; raises BadAnswerError.
        instructs: the server adds the model's own query instruction, so the client must not.
        encodings: whether ``encoding_format`` is understood.
        health: path that says how the host is, or None.
        explain: returns what to add to an error, from the health's JSON (None where it does not answer).
    """

    name: str
    path: str
    payload: Callable[[Request], dict[str, Any]]
    parse: Callable[[Any, int], Answer]
    instructs: bool = False
    encodings: bool = False
    health: str | None = None
    explain: Callable[[Any], str] = lambda health: ""  # noqa: ARG005
