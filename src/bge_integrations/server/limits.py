"""What the server takes before it says no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on one request and on everything that waits.

    Attributes:
        body_bytes: size of a request's body.
        items: texts in one request.
        characters: characters of all texts of a request together.
        tokens: tokens of all texts of a request together, counted before anything is cut.
        queued_texts: texts that may wait for the encoder; a request that finds more waiting gets a 429.
        queued_bytes: bytes of bodies held in memory, over all requests; beyond it, 429.
        connections: open connections.
        header_seconds: time for the head of a request to arrive.
        body_seconds: time for its body to arrive.
        answer_seconds: time for the encoder to answer; beyond it, 504.
        idle_seconds: time between two requests of a connection; longer than clients keep theirs, so that it is they
            who hang up.
        send_seconds: time in which the client takes nothing of its answer.
        drain_seconds: time that requests in flight get after SIGTERM.
    """

    body_bytes: int = 4 << 20
    items: int = 2048
    characters: int = 1_000_000
    tokens: int = 300_000
    queued_texts: int = 4096
    queued_bytes: int = 64 << 20
    connections: int = 1024
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    answer_seconds: float = 300.0
    idle_seconds: int = 75
    send_seconds: float = 30.0
    drain_seconds: int = 30


LIMITS = Limits()
"""What holds where nothing else is said."""
