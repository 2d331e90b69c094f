"""The one retry layer: exponential with jitter, a host's own wish obeyed by all, the deadline kept."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, wait_random_exponential

from ..errors import BadAnswerError, HostError, HostUnavailableError, RateLimitError
from .endpoint import Limits
from .rate_limit import Gate

log = logging.getLogger("bge_integrations.remote")

LONGEST_BACKOFF = 30.0


class Attempts:
    """When one request is sent again.

    Args:
        limits: how often, and how long to wait by default.
        gate: closed for all where the host asks for time.
        in_time: whether so long a wait ends before the call does; never, once the call has failed.
        suspect: whether the request holds a text that may be what the host fails at.
        retried: called for each request that is sent again.
    """

    def __init__(
        self,
        limits: Limits,
        gate: Gate,
        in_time: Callable[[float], bool],
        *,
        suspect: bool,
        retried: Callable[[], None],
    ) -> None:
        self._gate, self._in_time, self._retried = gate, in_time, retried
        self._most = min(limits.max_retries, 1) if suspect else limits.max_retries
        self._backoff = wait_random_exponential(multiplier=limits.backoff, max=LONGEST_BACKOFF)
        self._broken = 0
        self._wait = 0.0

    def retrying(self) -> AsyncRetrying:
        """Return the loop of attempts, which raises the last error."""
        return AsyncRetrying(retry=self._again, wait=self._pause)

    def _again(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, HostError) or state.attempt_number > self._most or not self._helps(error):
            return False
        self._wait = error.retry_after or self._backoff(state)
        return self._in_time(self._wait)

    def _helps(self, error: HostError) -> bool:
        if isinstance(error, BadAnswerError) and error.retryable:
            self._broken += 1
            return self._broken == 1
        return isinstance(error, (HostUnavailableError, RateLimitError))

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, HostError)
        if error.retry_after or isinstance(error, RateLimitError):
            self._gate.close_for(self._wait, error)
        log.info("%s: %s %s; again in %.1f s", error.provider, type(error).__name__, error.status or "", self._wait)
        self._retried()
        return self._wait
