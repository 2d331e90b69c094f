"""Shards through an encoder: one at work and one ready behind it, in order; refused rows become bad rows."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import OutputName
from ..core.encoder import Encoder, Vectors
from ..core.outputs import Output, Rows
from ..core.token_outputs import Several, SparseVector, check_output_names, output_of
from ..errors import BadAnswerError, BGEError, ConfigError, HostError, InputError, TooLargeError, no_thread
from .rows import Row, Shard

__all__ = ["EmbeddedShard", "EncoderShards", "OnError", "ShardEmbedder", "embed_shards", "stopped_at", "with_sparse"]

OnError = Literal["stop", "record"]
OnRows = Callable[[int], None]
# A host that refuses row after row has a fault of its own: so many more rows may be refused than were embedded.
_REFUSED = 8


@dataclass(frozen=True)
class EmbeddedShard:
    """A shard's rows with the vectors of the good ones; rows that the encoder refused have a reason now.

    Attributes:
        rows: all of them.
        vectors: shape (good rows, dimensions).
        truncated: which of the good rows, by their number among these, are longer than the model reads.
        sparse: sparse vectors of the good rows, where they were wanted.
    """

    rows: list[Row]
    vectors: Vectors
    truncated: Sequence[int] = ()
    sparse: list[SparseVector] | None = None


class ShardEmbedder(ABC):
    """Embeds whole shards, several at a time from threads; use as a context manager.

    Attributes:
        lanes: shards that keep it busy.
    """

    lanes: int = 1

    @abstractmethod
    def embed(self, rows: list[Row], on_error: OnError, on_rows: OnRows) -> EmbeddedShard:
        """Embed the good rows of a shard; ``on_rows`` hears how many were finished.

        Raises:
            BGEError: the host failed, or a row was refused and ``on_error="stop"``.
        """

    @abstractmethod
    def stop(self) -> None:
        """Have the calls under way end with an error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def embed_shards(
    shards: Iterator[Shard], embedder: ShardEmbedder, on_error: OnError, on_rows: OnRows
) -> Generator[tuple[Shard, EmbeddedShard]]:
    """Yield embedded shards in order.

    Raises:
        BGEError: of reading or embedding; shards before it were yielded.
    """
    ahead = embedder.lanes + max(1, embedder.lanes // 2)  # some are read already when a lane is free
    begun: deque[tuple[Shard, Future[EmbeddedShard]]] = deque()
    failure: BGEError | None = None
    with ThreadPoolExecutor(embedder.lanes, thread_name_prefix="bge-bulk") as pool:
        try:
            while failure is None:
                try:
                    shard = next(shards, None)
                    if shard is None:
                        break
                    begun.append((shard, _submit(pool, embedder, shard, on_error, on_rows)))
                except BGEError as error:  # what was begun is paid for
                    failure = error
                    break
                if len(begun) >= ahead:
                    yield _first(begun)
            while begun:
                yield _first(begun)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if begun:  # after an error: the calls under way end, so that leaving the pool does not wait for a host
                embedder.stop()
    if failure is not None:
        raise failure


def _submit(
    pool: ThreadPoolExecutor, embedder: ShardEmbedder, shard: Shard, on_error: OnError, on_rows: OnRows
) -> Future[EmbeddedShard]:
    try:
        return pool.submit(embedder.embed, list(shard.rows), on_error, on_rows)
    except RuntimeError as error:
        raise no_thread("shards", error) from error


def _first(begun: deque[tuple[Shard, Future[EmbeddedShard]]]) -> tuple[Shard, EmbeddedShard]:
    shard, future = begun[0]
    embedded = future.result()
    begun.popleft()
    return shard, embedded


class EncoderShards(ShardEmbedder):
    """Embeds shards by an encoder of this process.

    One shard at a time goes into an engine on this machine, so that its batches, and with them the last bits of its
    vectors, depend on nothing but the shard. A host gets the next shard while the last requests of one are under way;
    the encoder itself bounds the requests in flight.

    Args:
        encoder: what embeds.
        sparse: whether sparse vectors are wanted as well.
    """

    def __init__(self, encoder: Encoder, *, sparse: bool = False) -> None:
        self.encoder, self.lanes = encoder, 2 if encoder.remote else 1
        self._output = output_of(encoder.card, ["dense", "sparse"] if sparse else ["dense"])
        self._calls: set[Future[Rows]] = set()
        self._lock = threading.Lock()  # no call begins once stop() has looked for those under way
        self._stopped = False
        self._answered = 0

    def embed(self, rows: list[Row], on_error: OnError, on_rows: OnRows) -> EmbeddedShard:
        """Embed the good rows; as long as the encoder refuses some of them, set these aside and send the rest.

        Raises:
            BGEError: the host failed, or a row was refused and ``on_error="stop"``.
        """
        began = time.perf_counter()
        try:
            shard = _Shard(rows, self._output)
            refused = 0
            while left := shard.left():
                try:
                    self._call(shard, left, on_rows)
                except (InputError, HostError) as error:
                    refused += isinstance(error, HostError)
                    bad = self._refused(error, refused)
                    if not bad or on_error == "stop":
                        raise _placed(error, [rows[i] for i in left]) from None
                    for i in bad:
                        rows[left[i]] = rows[left[i]]._replace(text="", reason=error.message)
            return shard.embedded()
        finally:
            self.encoder.usage.add(seconds=time.perf_counter() - began)

    def _call(self, shard: _Shard, left: list[int], on_rows: OnRows) -> None:
        places = np.array(left)

        def keep(positions: Sequence[int], part: Rows) -> None:
            shard.put(places[list(positions)], part)
            self._answered += len(positions)
            on_rows(len(positions))

        with self._lock:
            if self._stopped:
                raise BGEError("the job was stopped")
            call = self.encoder.submit_rows(
                [shard.rows[i].text for i in left],
                role="document",
                output=self._output,
                on_batch=keep,
                on_truncated=lambda positions: shard.note_truncated([left[i] for i in positions]),
            )
            self._calls.add(call)
        try:
            call.result()
        finally:
            self._calls.discard(call)

    def _refused(self, error: InputError | HostError, refused: int) -> tuple[int, ...]:
        """Return the positions that an error is about; none where it is about the host."""
        if isinstance(error, InputError):
            return error.positions
        about_text = isinstance(error, TooLargeError) or (
            self._answered and (isinstance(error, BadAnswerError) or error.status == 500)
        )
        alone = len(error.positions) == 1 and refused <= _REFUSED + self._answered
        return error.positions if about_text and alone else ()

    def stop(self) -> None:
        """Cancel the calls under way."""
        with self._lock:
            self._stopped = True
        for call in tuple(self._calls):
            call.cancel()


class _Shard:
    """A shard that is being embedded; rows that were finished before a call failed are not sent again."""

    def __init__(self, rows: list[Row], output: Output) -> None:
        self.rows, self.output = rows, output
        self.vectors = output.empty(len(rows))
        self.done, self.long = np.zeros(len(rows), bool), np.zeros(len(rows), bool)

    def left(self) -> list[int]:
        return [i for i, row in enumerate(self.rows) if not (row.reason or self.done[i])]

    def put(self, places: NDArray[Any], part: Rows) -> None:
        self.vectors[places], self.done[places] = part, True

    def note_truncated(self, places: Sequence[int]) -> None:
        self.long[places] = True

    def embedded(self) -> EmbeddedShard:
        vectors = self.vectors if self.done.all() else self.vectors[self.done]
        truncated = np.flatnonzero(self.long[self.done]).tolist()
        if not isinstance(self.output, Several):
            return EmbeddedShard(self.rows, vectors, truncated)
        return EmbeddedShard(self.rows, np.ascontiguousarray(vectors["dense"]), truncated, vectors["sparse"].tolist())


def _placed(error: InputError | HostError, rows: Sequence[Row]) -> BGEError:
    """Return the error with the row's place in the input instead of its position in a call that the user did not make.

    Args:
        error: its positions are those in ``rows``.
        rows: whose texts were sent.
    """
    if not error.positions:
        return error
    row = rows[error.positions[0]]
    if isinstance(error, InputError):
        return stopped_at(row._replace(reason=error.message))
    placed = error.at([()] * len(rows))
    return placed.add(f" (line {row.line} of {row.source!r})") if len(error.positions) == 1 else placed


def stopped_at(row: Row) -> InputError:
    """Return the error of a row that stops a job."""
    return InputError(f"line {row.line} of {row.source!r}: {row.reason}; on_error='record' skips such rows")


def with_sparse(outputs: Sequence[OutputName], encoder: Encoder) -> bool:
    """Tell whether sparse vectors are among the outputs that a job is to write.

    Raises:
        ConfigError: shards do not hold these outputs, or the encoder does not give them.
    """
    names = check_output_names(outputs)
    if names not in (("dense",), ("dense", "sparse")):
        raise ConfigError(
            f"shards can hold dense, or dense,sparse, not {','.join(names)}: token vectors take hundreds "
            "of kB per text; use them to score a few dozen candidates instead (load_reranker)"
            if "multivector" in names
            else "shards can hold dense, or dense,sparse, not sparse alone: one forward pass computes both, "
            "so pass dense,sparse"
        )
    encoder.output_for(names)
    return "sparse" in names
