"""Shards through the encoder: always one at work and one ready behind it, answers in order, refused rows set aside."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Encoder, Vectors
from ..errors import BadAnswerError, BGEError, HostError, InputError, TooLargeError
from ..load import engine_of
from .rows import Row, Shard

OnError = Literal["stop", "record"]
_PATIENCE = 8  # rows that a host may refuse before it has to answer for others


@dataclass(frozen=True)
class Embedded:
    """A shard with the vectors of its good rows; rows that the encoder refused have a reason now."""

    shard: Shard
    vectors: Vectors


class Conveyor:
    """Hands shards to the encoder and back, in order; use as a context manager.

    Args:
        encoder: what embeds. One shard at a time goes into an engine on this machine, so that its batches, and with
            them the last bits of its vectors, depend on nothing but the shard. A host gets the next shard while the
            last requests of one are under way; the encoder itself bounds the requests in flight.
        on_error: note rows that the encoder refuses, or stop at the first.
        on_rows: told from the encoder's thread how many rows are embedded.
        on_long: told how many texts were cut.
    """

    def __init__(
        self,
        encoder: Encoder,
        on_error: OnError,
        *,
        on_rows: Callable[[int], None],
        on_long: Callable[[int], None],
    ) -> None:
        self._encoder, self._on_error, self._on_rows, self._on_long = encoder, on_error, on_rows, on_long
        self._lanes = getattr(encoder, "lanes", 2 if hasattr(engine_of(encoder), "endpoint") else 1)
        self._pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="bge-bulk")
        self._calls: set[Future[Vectors]] = set()
        self._lock = threading.Lock()
        self._ended = False
        self._answered = 0

    def run(self, shards: Iterator[Shard]) -> Iterator[Embedded]:
        """Yield embedded shards in order.

        Raises:
            BGEError: of reading or embedding; shards before it were yielded.
        """
        begun: deque[Future[Embedded]] = deque()
        failure: BGEError | None = None
        while failure is None:
            try:
                shard = next(shards, None)
            except BGEError as error:  # what was begun is paid for
                failure = error
                break
            if shard is None:
                break
            begun.append(self._pool.submit(self._embed, shard))
            if len(begun) > self._lanes:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
        if failure is not None:
            raise failure

    def _embed(self, shard: Shard) -> Embedded:
        began = time.perf_counter()
        try:
            rows, vectors = self._rows(list(shard.rows))
        finally:
            self._encoder.usage.add(seconds=time.perf_counter() - began)
        return Embedded(Shard(shard.number, rows), vectors)

    def _rows(self, rows: list[Row]) -> tuple[list[Row], Vectors]:
        """Embed the good rows; as long as the encoder refuses some of them, set these aside and send the rest."""
        vectors = np.empty((len(rows), self._encoder.card.dimensions), np.float32)
        done = np.zeros(len(rows), bool)
        left, refused = [i for i, row in enumerate(rows) if not row.reason], 0
        while left:
            try:
                self._call([rows[i].text for i in left], np.array(left), vectors, done)
            except (InputError, HostError) as error:
                refused += isinstance(error, HostError)
                bad = _refused_rows(error, self._answered, refused)
                if not bad or self._on_error == "stop":
                    raise _placed(error, [rows[left[i]] for i in error.positions]) from None
                for i in bad:
                    rows[left[i]] = rows[left[i]]._replace(text="", reason=_why(error))
            left = [i for i in left if not (done[i] or rows[i].reason)]
        good = [i for i, row in enumerate(rows) if not row.reason]
        return rows, vectors if len(good) == len(rows) else vectors[good]

    def _call(self, texts: list[str], places: NDArray[np.int64], vectors: Vectors, done: NDArray[np.bool_]) -> None:
        """Embed texts into their places; what is finished when a call fails is not sent again."""

        def keep(indices: Sequence[int], part: Vectors) -> None:
            mine = places[list(indices)]
            vectors[mine], done[mine] = part, True
            self._answered += len(indices)
            self._on_rows(len(indices))

        with self._lock:
            if self._ended:
                raise BGEError("the job was stopped")
            call = self._encoder.submit(
                texts, role="document", on_batch=keep, on_truncated=lambda long: self._on_long(len(long))
            )
            self._calls.add(call)
        try:
            found = call.result()
        finally:
            self._calls.discard(call)
        if not done[places].all():  # an encoder that does not tell of its batches
            vectors[places], done[places] = found, True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._lock:
            self._ended = True
        for call in tuple(self._calls):
            call.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _refused_rows(error: InputError | HostError, answered: int, refused: int) -> tuple[int, ...]:
    """Return the positions that an error is about; none where it is about the host."""
    if isinstance(error, InputError):
        return error.positions
    about_text = isinstance(error, TooLargeError) or (
        answered and (isinstance(error, BadAnswerError) or error.status == 500)
    )
    return error.positions if about_text and len(error.positions) == 1 and refused <= _PATIENCE + answered else ()


def _why(error: InputError | HostError) -> str:
    """Return the message without the positions in it, which are not those of the input's rows."""
    if isinstance(error, HostError):
        return error.message.rpartition(" (text ")[0] or error.message
    message = error.message.partition(" (positions")[0]
    return message.partition(" text(s) are ")[2] or message


def _placed(error: InputError | HostError, rows: Sequence[Row]) -> BGEError:
    """Return the error with the row's place in the input instead of its place in a call that the user did not make."""
    if len(rows) == 1 and isinstance(error, HostError):
        error.message = f"{_why(error)} (line {rows[0].line} of {rows[0].source!r})"
        error.args = (error.message,)
    if rows and isinstance(error, InputError):
        return stopped_at(rows[0]._replace(reason=_why(error)))
    return error


def stopped_at(row: Row) -> InputError:
    """Return the error of a row that stops a job."""
    return InputError(f"line {row.line} of {row.source!r}: {row.reason}; on_error='record' goes on without such rows")
