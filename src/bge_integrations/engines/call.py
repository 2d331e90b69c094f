"""One call to a host on its way, what its requests share, and when to send one again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential

from ..cards import ModelCard, Role
from ..encoder import OnBatch, Vectors
from ..errors import BadAnswerError, HostError, HostUnavailableError, RateLimitError
from .connection import Connection
from .endpoint import Endpoint, Limits
from .gate import Gate

log = logging.getLogger("bge_integrations.remote")

DEFAULT_INPUTS = 64
LONGEST_BACKOFF = 30.0


class Call:
    """One call: the texts as sent, the rows so far, and what is finished."""

    def __init__(
        self, texts: list[str], tokens: list[int], role: Role, dimensions: int, limits: Limits, on_batch: OnBatch | None
    ) -> None:
        self.texts, self.tokens, self.role, self._on_batch = texts, tokens, role, on_batch
        self.rows = np.empty((len(texts), dimensions), np.float32)
        self.done = np.zeros(len(texts), bool)
        self.failure: BaseException | None = None
        self._deadline = None if limits.timeout is None else time.monotonic() + limits.timeout

    def in_time(self, seconds: float) -> bool:
        """Tell whether so long a wait ends before the deadline."""
        return self._deadline is None or time.monotonic() + seconds < self._deadline

    def finish(self, indices: list[int], vectors: Vectors) -> None:
        """Keep the vectors of one request and tell whoever listens."""
        self.rows[indices] = vectors
        self.done[indices] = True
        if self._on_batch is not None:
            self._on_batch(indices, vectors)

    def mark(self, error: HostError) -> HostError:
        """Write into an error what was finished and what was not."""
        error.finished = tuple(np.flatnonzero(self.done).tolist())
        error.unfinished = tuple(np.flatnonzero(~self.done).tolist())
        return error


class Line:
    """What belongs to one event loop: the pool, the gate, and what was learned about the host."""

    def __init__(self, endpoint: Endpoint, limits: Limits, card: ModelCard, rate_limiter: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.connection = Connection(endpoint, limits, card)
        self.gate = Gate(limits.requests_per_minute, limits.tokens_per_minute, rate_limiter)
        self.slots = asyncio.Semaphore(limits.max_concurrency)
        self.first = asyncio.Lock()
        self.answered = 0
        self.base64 = endpoint.provider.base64
        self.max_inputs = min(filter(None, (limits.max_inputs or DEFAULT_INPUTS, endpoint.provider.max_inputs)))


def retrying(line: Line, call: Call, limits: Limits, host: str, on_retry: Callable[[], None]) -> AsyncRetrying:
    """Return the one retry layer: exponential with jitter, a host's own wish obeyed by all, the deadline kept."""

    def again(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, BadAnswerError):
            return bool(getattr(error, "broken", False)) and state.attempt_number < 2
        if not isinstance(error, (HostUnavailableError, RateLimitError)) or state.attempt_number > limits.max_retries:
            return False
        return call.in_time(error.retry_after or 0.0)

    def pause(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        stated = getattr(error, "retry_after", None)
        seconds = wait_random_exponential(multiplier=limits.backoff, max=LONGEST_BACKOFF)(state)
        if stated is not None:
            seconds = stated
        if stated is not None or isinstance(error, RateLimitError):
            line.gate.close_for(seconds)
        log.info("%s: %s; again in %.1f s", host, type(error).__name__, seconds)
        on_retry()
        return seconds

    return AsyncRetrying(retry=again, wait=pause)
