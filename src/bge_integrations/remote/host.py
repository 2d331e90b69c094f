"""What all calls of one encoder share about its host, on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from .endpoint import Endpoint, HostLimits
from .rate_limit import PortableLimiter, RateLimiter
from .requests import RequestLimits
from .transport import Transport

DEFAULT_INPUTS = 64
"""Texts per request: more gain nothing where several are in flight."""

PROBE_AFTER = 64
"""Texts answered in floats before base64, two to four times as fast, is tried at a host that is not known.

One full request: requests that are under way while base64 is tried still come in floats.
"""

OUTPUT_INPUTS = 32
"""Texts per request for several outputs."""

MULTIVECTOR_TOKENS = 4096
"""Tokens per request for token vectors: 1024 numbers each, so that such an answer is some 50 MB of JSON."""

WARN_AGAIN = 60.0
"""Seconds before a host's failures are worth another warning in the log."""

LEAD_SECONDS = 3.0
"""How long other requests wait for the first one; a hanging host is then asked by all."""


class HostSession:
    """Per-host state shared by concurrent calls.

    Connection pool, concurrency limit, rate limiter, and what was learned about the host.

    Attributes:
        limits: how much one request may hold.
        output_dialect: how sparse and multivector output is asked for; ``""`` where it is not, None while unknown.
        base64: whether the host answers base64 well; None while unknown.
        base64_works: it has, so that what is wrong with an answer is not its encoding.
        no_format: the host refuses ``encoding_format``, which is not sent any more.
        answered: requests that were answered well.
        counts_tokens: it has counted as many tokens as the model's tokenizer.
        counted_texts: how many texts were counted here to find that out.
        warned_truncating: the user knows that it truncates.
        warned_unnumbered: the user knows that rows come without an index.
        keeps_special: special tokens were in sparse rows, and dropped.
        closing: the encoder is being closed.
        name: the host and its address, for the log.
    """

    def __init__(self, endpoint: Endpoint, limits: HostLimits, limiter: PortableLimiter | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.name = f"{endpoint.name} at {endpoint.address}"
        self.transport = Transport(endpoint, limits)
        self.rate_limiter = RateLimiter(limits.requests_per_minute, limits.tokens_per_minute, limiter)
        self.slots = asyncio.Semaphore(limits.max_concurrency)
        inputs = limits.max_inputs or DEFAULT_INPUTS
        inputs = min(inputs, endpoint.provider.max_inputs or inputs)
        self.limits = RequestLimits(inputs, limits.max_bytes, limits.max_tokens)
        self._output_limits: dict[bool, RequestLimits] = {}
        self.output_dialect = endpoint.provider.output_dialect
        self.keeps_special = False
        self.base64 = endpoint.provider.base64
        self.base64_works = False
        self.no_format = False
        self.answered = 0
        self.counts_tokens = False
        self.counted_texts = 0
        self.warned_truncating = False
        self.warned_unnumbered = False
        self.closing = False
        self._warned = -WARN_AGAIN
        self._led = False
        self._texts = 0
        self._probe_at = PROBE_AFTER
        self._background: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()

    def output_limits(self, *, multivector: bool, inputs: int) -> RequestLimits:
        """Return how much one request for several outputs may hold; what a host refuses there is learned apart.

        Args:
            multivector: whether a vector per token is wanted.
            inputs: texts per request that the dialect takes.
        """
        if multivector not in self._output_limits:
            tokens = min(self.limits.tokens, MULTIVECTOR_TOKENS) if multivector else self.limits.tokens
            most = RequestLimits(min(self.limits.inputs, inputs), self.limits.bytes, tokens)
            self._output_limits[multivector] = most
        return self._output_limits[multivector]

    def may_probe(self, texts: int) -> bool:
        """Tell whether it is time to try base64, when so many more texts have been answered in floats.

        Requests meanwhile go on in floats. Failures make it rarer.
        """
        self._texts += texts
        if self.base64 is not None or self._texts < self._probe_at:
            return False
        self.base64, self._probe_at = False, 2 * self._texts
        return True

    def log_level(self) -> int:
        """Return how loudly a failure is logged that is waited for: the first one of a minute as a warning."""
        now = self.loop.time()
        if now - self._warned < WARN_AGAIN:
            return logging.INFO
        self._warned = now
        return logging.WARNING

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the calls."""
        task = self.loop.create_task(work)
        self._background.add(task)  # the loop holds its tasks weakly
        task.add_done_callback(self._background.discard)

    async def wait_for_lead(self) -> None:
        """Hold other requests back until the first one has returned.

        A bad key or a small batch limit then costs one request, not as many as are in flight.
        """
        if self._led and not self._open.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAD_SECONDS):
                    await self._open.wait()
            self._open.set()
        self._led = True  # the first request comes here without an await, so that only one leads

    def release(self) -> None:
        """Release the requests that wait for the first one."""
        self._open.set()
