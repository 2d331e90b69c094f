"""One call to a host: its requests in flight, when one is sent again or split, and what is finished."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import count

from ..core.encoder import Batch, Stream
from ..core.outputs import Rows
from ..errors import (
    BadAnswerError,
    HostError,
    HostUnavailableError,
    RateLimitError,
    TooLargeError,
)
from .deadline import Deadline
from .endpoint import HostLimits
from .host import HostSession
from .requests import RequestLimits, RequestPlan

log = logging.getLogger("bge_integrations.remote")

GRACE = 10.0
"""Seconds that requests under way get when the call has failed: they are paid for."""

RETRIES = 6  # with the default backoff, their pauses are 31.5 s at most
RETRIES_UNCONNECTED = 2
"""Retries where no connection can be made to a host that has not answered yet: its address may be wrong."""

LONGEST_BACKOFF = 30.0

Send = Callable[[list[str], int], Awaitable[tuple[Rows, int]]]
"""Sends one request with so many tokens; returns its rows and the tokens that the host counted."""


class Call:
    """One call: the texts as sent and the tasks that send them.

    Args:
        session: what is shared by all calls to the host.
        limits: bounds on requests and on waiting.
        deadline: the call's clock.
        send: sends one request.
        stream: where finished rows go.
        texts: as they are sent.
        tokens: of each text, or a guess.
        truncated: positions of texts that were longer than the model reads.
        request_limits: how much one request may hold; the session's when None.
        on_retry: called for each request that is sent again.

    Attributes:
        failure: what ended the call, if anything.
    """

    def __init__(
        self,
        session: HostSession,
        limits: HostLimits,
        deadline: Deadline,
        send: Send,
        stream: Stream,
        *,
        texts: list[str],
        tokens: list[int],
        truncated: Sequence[int] = (),
        request_limits: RequestLimits | None = None,
        on_retry: Callable[[], None],
    ) -> None:
        self._session, self._limits, self._deadline = session, limits, deadline
        self._send_texts, self._stream, self._on_retry = send, stream, on_retry
        self._texts, self._tokens, self._truncated = texts, tokens, frozenset(truncated)
        self._request_limits = request_limits or session.limits
        self._plan = RequestPlan([len(text.encode()) for text in texts], tokens, self._request_limits)
        self.failure: BaseException | None = None
        self._stopping = False
        self._timeouts = 0  # in a row
        self._suspects: set[int] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._sending: set[asyncio.Task[None] | None] = set()

    async def run(self) -> None:
        """Send all texts.

        Raises:
            HostError: the host failed.
        """
        try:
            await self._run_workers()
        except asyncio.CancelledError:
            if self._session.closing:  # it was the loop that cancelled this, as it ends, and not the caller
                self.failure = HostUnavailableError("the encoder was closed during the call")
            elif not (self._deadline.expired and self.failure):  # what failed before says more than the clock
                raise
        if self.failure is not None:
            raise self.failure

    async def _run_workers(self) -> None:
        self._hire(-(-len(self._texts) // self._request_limits.inputs))
        try:
            while self._workers:
                patience = GRACE if self._stopping else None
                done, _ = await asyncio.wait(self._workers, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                self._workers -= done
                if not done:
                    break
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)

    def _hire(self, workers: int) -> None:
        for _ in range(min(workers, self._limits.max_concurrency - len(self._workers))):
            self._workers.add(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        while not self._stopping:
            await self._session.wait_for_lead()
            # After a text that cannot be embedded, the halves already split off are finished, and nothing is begun.
            part = self._plan.take(only_split=self.failure is not None)
            try:
                if not part:
                    return
                await self._process(part)
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - kept, and raised when all workers are done
                self._fail(part, error)
            finally:
                self._session.release()  # also where nothing was sent: others wait for whoever leads

    def _fail(self, part: range, error: BaseException) -> None:
        of_a_text = len(part) == 1 and isinstance(error, HostError) and _about_texts(error)
        if isinstance(error, HostError):
            error = self._locate(error, part)
        if self.failure is not None or not of_a_text:  # a second failure says that it is the host, not the text
            self._stopping = True
            # Those that wait for a slot, the pace or a retry end at once; requests under way have GRACE.
            for worker in self._workers - self._sending - {asyncio.current_task()}:
                worker.cancel()
            if isinstance(error, BadAnswerError) and error.rows is not None and not self._session.answered:
                self.failure = error.add("; no response of this host had one row per text")
                self.failure.positions = ()  # it is no text's fault
        self.failure = self.failure or error

    async def _process(self, part: range) -> None:
        """Send one request, again where that may help, and finish it or split it."""
        try:
            rows, tokens = await self._send_with_retries(part)
        except TooLargeError as error:
            self._learn(part, error)
        except HostError as error:
            if len(part) == 1 or not self._may_be_one_text(error):
                raise
            self._search(part, error)
        else:
            self._finish(part, rows, tokens)

    def _search(self, part: range, error: HostError) -> None:
        """Split a request that may hold one text which the host fails at."""
        rows = error.rows if isinstance(error, BadAnswerError) else None
        if rows is not None and len(part) >= 2 * _FEW and 0 < rows <= len(part) // 2:
            # The host answers the first texts only, and says nothing of the others.
            self._session.limits.learn(2 * rows, self._plan.size(part), limit="texts")
        else:
            self._suspects.update(part)
        # Where no answer has had the right number of rows yet, one text alone tells whether any will.
        self._split(part, first=1 if rows is not None and not self._session.answered else None)

    async def _send_with_retries(self, part: range) -> tuple[Rows, int]:
        bad_answers = 0
        for attempt in count(1):
            try:
                return await self._send_once(part)
            except HostError as error:
                if self._is_too_slow(error, part):
                    slow = f"{len(part)} texts took longer than read_timeout={self._limits.read_timeout:g} s"
                    raise TooLargeError(slow, status=error.status) from None
                bad_answers += isinstance(error, BadAnswerError)
                wait = error.retry_after or _backoff(self._limits.backoff, attempt)
                if bad_answers > 1 or not self._should_retry(error, attempt, part) or not self._in_time(wait):
                    raise
                failure = error
            await self._pause(failure, wait)
        raise AssertionError

    def _is_too_slow(self, error: HostError, part: range) -> bool:
        """Tell whether to try half of the texts; no more where a host has timed out too often in a row."""
        if not isinstance(error, HostUnavailableError) or not error.timed_out:
            return False
        self._timeouts += 1
        return len(part) > 1 and self._timeouts <= self._most_retries(error)

    def _should_retry(self, error: HostError, attempt: int, part: range) -> bool:
        most = self._most_retries(error)
        if not self._suspects.isdisjoint(part):  # the text that the host fails at may be among these: split them
            most = min(most, 1) if len(part) == 1 else 0
        return error.retryable and attempt <= most

    def _most_retries(self, error: HostError) -> float:
        if self._limits.max_retries is not None:
            return self._limits.max_retries
        if self._limits.timeout is not None:
            # A host that is only busy is waited for as long as the user said.
            return float("inf") if error.status in (429, 503) else RETRIES
        unconnected = isinstance(error, HostUnavailableError) and error.unconnected
        return RETRIES_UNCONNECTED if unconnected and not self._session.answered else RETRIES

    def _in_time(self, seconds: float) -> bool:
        return not self._stopping and self._deadline.allows(seconds)

    async def _pause(self, error: HostError, wait: float) -> None:
        if error.retry_after or isinstance(error, RateLimitError):
            self._session.rate_limiter.pause(wait, error)
        said = f"{self._session.name} {_what(error)}; retrying in {wait:.1f} s, {self._patience(error)}"
        log.log(self._session.log_level(), "%s", said)
        self._on_retry()
        await asyncio.sleep(wait)

    def _patience(self, error: HostError) -> str:
        """Say how often a request is sent again, and how long that takes at most."""
        most = self._most_retries(error)
        if isinstance(error, BadAnswerError):
            return "once"
        if most == float("inf"):
            return "as often as fits into timeout="
        pauses = sum(_longest_pause(self._limits.backoff, attempt) for attempt in range(1, min(int(most), 10_000) + 1))
        return f"up to {most} times (max_retries=){'' if error.retry_after else f', pausing {pauses:.1f} s at most'}"

    async def _send_once(self, part: range) -> tuple[Rows, int]:
        tokens = sum(self._tokens[part.start : part.stop])
        async with self._session.slots:
            await self._session.rate_limiter.acquire(tokens, self._in_time)
            worker = asyncio.current_task()
            self._sending.add(worker)  # from here on it is paid for, and is not cancelled at once
            try:
                return await self._send_texts(self._texts[part.start : part.stop], tokens)
            finally:
                self._sending.discard(worker)
                self._session.release()

    def _may_be_one_text(self, error: HostError) -> bool:
        # A host that answers others but fails at this request may fail at one text: Ollama's bge-m3 answers 500 to
        # some (https://github.com/ollama/ollama/issues/13572). An answer that no row of is wrong says nothing of texts.
        if isinstance(error, BadAnswerError):
            return error.retryable and bool(error.positions)
        return error.status == 500 and self._session.answered > 0

    def _learn(self, part: range, error: TooLargeError) -> None:
        if len(part) == 1:
            self._request_limits.forget()
            raise error
        self._request_limits.learn(len(part), self._plan.size(part), limit=error.limit)
        self._split(part)

    def _split(self, part: range, first: int | None = None) -> None:
        self._plan.split(part, first)
        self._hire(len(part))

    def _finish(self, part: range, rows: Rows, tokens: int) -> None:
        self._session.answered += 1
        self._timeouts = 0
        self._deadline.progress()
        self._stream.put(Batch(part, rows, tokens, [i for i in part if i in self._truncated]))

    def _locate(self, error: HostError, part: range) -> HostError:
        """Return the error with positions of the call, and without the texts that a host may repeat in its message."""
        error.positions = tuple(i for i in error.positions if i < len(part)) or tuple(range(len(part)))
        for i in part:
            if len(self._texts[i]) >= 8:  # a shorter one may be any word of the message
                error.message = error.message.replace(self._texts[i], "…")
        return error.at(part)


_FEW = 4  # of so few rows, one more or less says nothing about a limit


def _backoff(base: float, attempt: int) -> float:
    """Return the seconds before the next attempt: exponential with full jitter."""
    return random.uniform(0, _longest_pause(base, attempt))


def _longest_pause(base: float, attempt: int) -> float:
    return float(min(base * 2 ** min(attempt - 1, 16), LONGEST_BACKOFF))  # 16 bounds it: max_retries may be large


def _what(error: HostError) -> str:
    """Say what happened in words of our own: a host's may repeat texts and keys."""
    if isinstance(error, BadAnswerError):
        return "returned an unusable response"
    if error.status:
        return f"answered {error.status}"
    if isinstance(error, HostUnavailableError) and error.timed_out:
        return "did not answer in time"
    return "cannot be reached" if isinstance(error, HostUnavailableError) and error.unconnected else "broke off"


def _about_texts(error: HostError) -> bool:
    return isinstance(error, (BadAnswerError, TooLargeError)) or error.status == 500
