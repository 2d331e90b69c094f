"""One call to a host: its requests in flight, what becomes of each, and what is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..core.encoder import Batch, Stream
from ..core.outputs import Rows
from ..errors import BadAnswerError, DeadlineError, HostError, HostUnavailableError, TooLargeError
from .endpoint import Limits
from .host import Line
from .requests import RequestPlan
from .retry import Attempts

GRACE = 10.0
"""Seconds that requests under way get when the call has failed: they are paid for."""

Send = Callable[[list[str], int], Awaitable[tuple[Rows, int]]]
"""Sends one request with so many tokens; returns its rows and the tokens that the host counted."""


class Call:
    """One call: the texts as sent and the tasks that send them.

    Args:
        line: what is shared by all calls to the host.
        limits: bounds on requests and on waiting.
        texts: as they are sent.
        tokens: of each text, or a guess.
        truncated: positions of texts that were longer than the model reads.
        send: sends one request.
        stream: where finished rows go.
        retried: called for each request that is sent again.

    Attributes:
        failure: what ended the call, if anything.
    """

    def __init__(
        self,
        line: Line,
        limits: Limits,
        texts: list[str],
        tokens: list[int],
        truncated: list[int],
        send: Send,
        stream: Stream,
        *,
        retried: Callable[[], None],
    ) -> None:
        self._line, self._limits, self._texts, self._tokens = line, limits, texts, tokens
        self._send_texts, self._stream, self._retried = send, stream, retried
        self._truncated = frozenset(truncated)
        self._plan = RequestPlan([len(text.encode()) for text in texts], tokens, line.caps)
        self.failure: BaseException | None = None
        self._stopping = False
        self._suspects: set[int] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._sending: set[asyncio.Task[None] | None] = set()
        self._clock = asyncio.timeout(None)

    async def run(self) -> None:
        """Send all texts.

        Raises:
            HostError: the host failed.
        """
        try:
            async with self._clock:
                self._wind(self._limits.timeout or self._limits.patience)
                await self._pool()
        except TimeoutError:
            if not self._clock.expired():
                raise
            self.failure = self.failure or DeadlineError(self._late())
        except asyncio.CancelledError:
            if not self._line.closing:
                raise
            self.failure = HostUnavailableError("the encoder was closed during the call")
        if self.failure is not None:
            raise self.failure

    def _late(self) -> str:
        if self._limits.timeout:
            return f"the call was not finished within timeout={self._limits.timeout:g} s"
        return f"no request was finished within {self._limits.patience:g} s"

    def _wind(self, seconds: float) -> None:
        self._clock.reschedule(None if seconds == float("inf") else self._line.loop.time() + seconds)

    def _in_time(self, seconds: float) -> bool:
        ends = self._clock.when()
        return not self._stopping and (ends is None or self._line.loop.time() + seconds < ends)

    async def _pool(self) -> None:
        self._hire(-(-len(self._texts) // self._line.caps.inputs))
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
            self._workers.add(asyncio.create_task(self._worker()))

    async def _worker(self) -> None:
        while not self._stopping:
            await self._line.turn()
            # After a text that cannot be embedded, its neighbours are finished, and nothing new is begun.
            part = self._plan.take(begun=self.failure is not None)
            try:
                if not part:
                    return
                await self._send(part)
            except Exception as error:  # noqa: BLE001 - kept, and raised when all workers are done
                self._fail(part, error)
            finally:
                self._line.open()

    def _fail(self, part: range, error: Exception) -> None:
        of_a_text = len(part) == 1 and isinstance(error, HostError) and _about_texts(error)
        if isinstance(error, HostError):
            error = self._place(error, part)
        if self.failure is not None or not of_a_text:  # a second failure says that it is the host, not the text
            self._stopping = True
            for worker in self._workers - self._sending - {asyncio.current_task()}:
                worker.cancel()
        self.failure = self.failure or error

    async def _send(self, part: range) -> None:
        suspect = not self._suspects.isdisjoint(part)
        attempts = Attempts(
            self._limits, self._line.gate, self._in_time, suspect=suspect, retried=self._retried
        ).retrying()
        try:
            answer: tuple[Rows, int] = await attempts(self._once, part)
        except TooLargeError as error:
            self._learn(part, error)
        except HostError as error:
            if len(part) == 1 or not self._worth_a_search(error):
                raise
            self._suspects.update(part)
            self._split(part)
        else:
            self._finish(part, *answer)

    async def _once(self, part: range) -> tuple[Rows, int]:
        tokens = sum(self._tokens[part.start : part.stop])
        async with self._line.slots:
            await self._line.gate.enter(tokens, self._in_time)
            worker = asyncio.current_task()
            self._sending.add(worker)
            try:
                return await self._send_texts(self._texts[part.start : part.stop], tokens)
            finally:
                self._sending.discard(worker)
                self._line.open()

    def _worth_a_search(self, error: HostError) -> bool:
        # A host that answers others but fails at this request may fail at one text: Ollama's bge-m3 says 500 to some.
        return (isinstance(error, BadAnswerError) and error.retryable) or (
            error.status == 500 and self._line.answered > 0
        )

    def _learn(self, part: range, error: TooLargeError) -> None:
        if len(part) == 1:
            self._line.caps.forget()
            raise error
        self._line.caps.learn(len(part), self._plan.size(part), bulk=error.limit == "bytes")
        self._split(part)

    def _split(self, part: range) -> None:
        self._plan.split(part)
        self._hire(len(part))

    def _finish(self, part: range, rows: Rows, tokens: int) -> None:
        self._line.answered += 1
        if not self._limits.timeout:
            self._wind(self._limits.patience)
        self._stream.put(Batch(part, rows, tokens, [i for i in part if i in self._truncated]))

    def _place(self, error: HostError, part: range) -> HostError:
        """Return the error with positions of the call, and without the texts that a host may repeat in its message."""
        error.positions = tuple(i for i in error.positions if i < len(part)) or tuple(range(len(part)))
        for i in part:
            if len(self._texts[i]) >= 8:
                error.message = error.message.replace(self._texts[i], "…")
        return error.at(part)


def _about_texts(error: HostError) -> bool:
    return isinstance(error, (BadAnswerError, TooLargeError)) or error.status == 500
