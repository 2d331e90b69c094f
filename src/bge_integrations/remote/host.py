"""What all calls to one host share on one event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from ..catalog.records import ModelCard
from .endpoint import Endpoint, Limits
from .rate_limit import Gate
from .requests import Caps
from .transport import Connection

DEFAULT_INPUTS = 64
"""Texts per request: more gain nothing where several are in flight."""


class Line:
    """The pool of connections, the gate, and what was learned about the host."""

    def __init__(self, endpoint: Endpoint, limits: Limits, card: ModelCard, rate_limiter: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.connection = Connection(endpoint, limits, card)
        self.gate = Gate(limits.requests_per_minute, limits.tokens_per_minute, rate_limiter)
        self.slots = asyncio.Semaphore(limits.max_concurrency)
        inputs = limits.max_inputs or DEFAULT_INPUTS
        self.caps = Caps(min(inputs, endpoint.provider.max_inputs or inputs), limits.max_bytes, limits.max_tokens)
        self.base64 = endpoint.provider.base64
        self.answered = 0
        self.told_unnumbered = False
        self.closing = False
        self._led = False
        self._opened = asyncio.Event()

    async def turn(self) -> None:
        """Let one request go ahead of all others: a wrong key or a small cap is learned once, not by all at a time."""
        if self._led:
            await self._opened.wait()
        self._led = True

    def open(self) -> None:
        """Let all others go."""
        self._opened.set()
