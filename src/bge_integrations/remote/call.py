"""One call to a host: its requests in flight, what becomes of each, and what is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np

from ..core.encoder import OnBatch, Vectors
from ..errors import BadAnswerError, DeadlineError, HostError, HostUnavailableError, TooLargeError
from .endpoint import Limits
from .host import Line
from .requests import RequestPlan
from .retry import Attempts

GRACE = 10.0
"""Seconds that requests under way get when the call has failed: they are paid for."""

Send = Callable[[list[str], int], Awaitable[Vectors]]
"""Sends one request with so many tokens and returns its vectors."""


class Call:
    """One call: the texts as sent, the rows so far, and its workers.

    Attributes:
        rows: vectors of the texts that are finished.
        done: which those are.
        failure: what ended the call, if anything.
    """

    def __init__(
        self,
        line: Line,
        limits: Limits,
        texts: list[str],
        tokens: list[int],
        dimensions: int,
        send: Send,
        *,
        on_batch: OnBatch | None,
        retried: Callable[[], None],
    ) -> None:
        self._line, self._limits, self._texts, self._tokens = line, limits, texts, tokens
        self._send_texts, self._on_batch, self._retried = send, on_batch, retried
        self._plan = RequestPlan([len(text.encode()) for text in texts], tokens, line.caps)
        self.rows: Vectors = np.empty((len(texts), dimensions), np.float32)
        self.done = np.zeros(len(texts), bool)
        self.failure: BaseException | None = None
        self._stopping = False
        self._suspects: set[int] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._sending: set[asyncio.Task[None] | None] = set()
        self._clock = asyncio.timeout(None)

    async def run(self) -> Vectors:
        """Return the vectors of all texts.

        Raises:
            HostError: the host failed; not yet marked with what was finished.
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
        return self._let_go()

    def _let_go(self) -> Vectors:
        """Return the rows and keep nothing large: the retry library's cycles hold this object until Python collects."""
        rows = self.rows
        self.rows, self._texts, self._tokens = rows[:0].copy(), [], []
        self._on_batch = None
        self._clock = asyncio.timeout(None)  # holds its task, and that the result
        return rows

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
            self._place(error, part)
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
            vectors: Vectors = await attempts(self._once, part)
        except TooLargeError as error:
            self._learn(part, error)
        except HostError as error:
            if len(part) == 1 or not self._worth_a_search(error):
                raise
            self._suspects.update(part)
            self._split(part)
        else:
            self._finish(part, vectors)

    async def _once(self, part: range) -> Vectors:
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
        return getattr(error, "broken", False) or (error.status == 500 and self._line.answered > 0)

    def _learn(self, part: range, error: TooLargeError) -> None:
        if len(part) == 1:
            self._line.caps.forget()
            raise error
        self._line.caps.learn(len(part), self._plan.size(part), bulk=getattr(error, "bulk", False))
        self._split(part)

    def _split(self, part: range) -> None:
        self._plan.split(part)
        self._hire(len(part))

    def _finish(self, part: range, vectors: Vectors) -> None:
        self._line.answered += 1
        self.rows[part.start : part.stop] = vectors
        self.done[part.start : part.stop] = True
        if not self._limits.timeout:
            self._wind(self._limits.patience)
        if self._on_batch is not None:
            self._on_batch(part, vectors)

    def _place(self, error: HostError, part: range) -> None:
        """Turn positions within a request into those of the caller, and take its texts out of the message."""
        inside = [i for i in error.positions if i < len(part)] or range(len(part))
        error.positions = tuple(part[i] for i in inside)
        for i in part:
            if len(self._texts[i]) >= 8:
                error.message = error.message.replace(self._texts[i], "…")


def _about_texts(error: HostError) -> bool:
    return isinstance(error, (BadAnswerError, TooLargeError)) or error.status == 500
