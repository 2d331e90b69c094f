"""One call through the cache: which texts are hits, which go to the inner encoder, and whose is what comes back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from itertools import chain

import numpy as np

from ...catalog.records import Role
from ...core.encoder import OnBatch, Vectors
from ...errors import BGEError, HostError, InputError
from .rows import Found, pack

__all__ = ["Call"]


class Call:
    """The texts of one call, each distinct one once, and the caller's positions of each.

    Attributes:
        keys: distinct keys, in order of first appearance.
        places: the caller's positions of each key.
        misses: indices of those keys that the store does not hold; what the inner encoder is sent, in this order.
        cut: indices of keys whose texts are known to be cut.
        stored: which of the texts sent are stored, and whether as cut.
        reported: whether the inner encoder has told the caller what was cut.
    """

    def __init__(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> None:
        self.texts, self.role, self.on_batch = texts, role, on_batch
        self.future: Future[Vectors] = Future()
        self.keys: list[bytes] = []
        self.places: list[list[int]] = []
        self.misses: list[int] = []
        self.cut: set[int] = set()
        self.stored: dict[int, bool] = {}
        self.reported = False
        self._answered = False
        self._hits = Found([], np.empty((0, 0), np.float32), [])

    def key_with(self, keys: Iterable[bytes]) -> None:
        """Take the key of each text and find those that are the same."""
        places: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            places.setdefault(key, []).append(position)
        self.keys, self.places = list(places), list(places.values())

    def found(self, hits: Found) -> None:
        """Take what the store holds; the rest are misses, and hits reach the caller at once."""
        self._hits = hits
        held = set(hits.indices)
        self.misses = [i for i in range(len(self.keys)) if i not in held]
        self.cut.update(hits.cut)
        if hits.indices:
            self._tell(hits.indices, hits.vectors)

    @property
    def hit_count(self) -> int:
        """How many of the caller's texts the store holds."""
        return len(self.positions(self._hits.indices))

    def to_send(self) -> list[str]:
        """Return the texts that the inner encoder is sent."""
        return [self.texts[self.places[i][0]] for i in self.misses]

    def positions(self, indices: Iterable[int]) -> list[int]:
        """Return the caller's positions of keys."""
        return list(chain.from_iterable(self.places[i] for i in indices))

    def batch(self, sent: Sequence[int], vectors: Vectors) -> None:
        """Pass a finished batch of the inner encoder on to the caller, for all positions that it answers."""
        self._tell([self.misses[j] for j in sent], vectors)

    def _tell(self, indices: Sequence[int], vectors: Vectors) -> None:
        if self.on_batch is None:
            return
        counts = [len(self.places[i]) for i in indices]
        repeated = vectors if max(counts) == 1 else np.repeat(vectors, counts, axis=0)
        self.on_batch(self.positions(indices), repeated)

    def rows(self, sent: Sequence[int], vectors: Vectors) -> list[tuple[bytes, bytes]]:
        """Return what is to be stored of a finished batch, and count it as stored."""
        made = []
        for j, vector in zip(sent, vectors, strict=True):
            index = self.misses[j]
            key, cut = self.keys[index], index in self.cut
            made.append((key, pack(key, vector, cut=cut)))
            self.stored[j] = cut
        return made

    def cut_positions(self, sent: Sequence[int]) -> list[int]:
        """Note which texts the inner encoder cut; return the caller's positions of all that are cut."""
        self.reported = True
        self.cut.update(self.misses[j] for j in sent)
        return sorted(self.positions(self.cut))

    def assemble(self, sent: Vectors | None, dimensions: int) -> Vectors:
        """Return the vectors of all texts, from the store and from the inner encoder."""
        if sent is not None and len(sent) == len(self.texts):
            return sent
        whole = np.empty((len(self.texts), dimensions), np.float32)
        parts = [(self._hits.indices, self._hits.vectors)] + ([] if sent is None else [(self.misses, sent)])
        for indices, vectors in parts:
            counts = [len(self.places[i]) for i in indices]
            whole[self.positions(indices)] = (
                np.repeat(vectors, counts, axis=0) if sum(counts) > len(counts) else vectors
            )
        return whole

    def succeed(self, vectors: Vectors) -> None:
        """Give the caller the vectors, unless they gave up."""
        if self._answer():
            self.future.set_result(vectors)

    def fail(self, error: BaseException) -> None:
        """Give the caller the error, unless they gave up."""
        if self._answer():
            self.future.set_exception(error)

    def _answer(self) -> bool:
        # From the cache's own thread alone, so that two failures of one call cannot both answer it.
        first, self._answered = not self._answered, True
        return first and self.future.set_running_or_notify_cancel()

    def translate(self, error: BaseException) -> BaseException:
        """Return the inner encoder's error with the caller's positions in it; hits count as finished."""
        if not isinstance(error, (InputError, HostError)) or self.misses == list(range(len(self.texts))):
            return error
        mine = copy.copy(error)  # the inner encoder may give one error to several calls
        mine.positions = self._mine(error.positions)
        if isinstance(error, HostError) and isinstance(mine, HostError):
            mine.finished = tuple(sorted([*self.positions(self._hits.indices), *self._mine(error.finished)]))
            mine.unfinished = self._mine(error.unfinished)
        if error.positions:
            _say(mine, f" [in the list as it was given: {_shown(mine.positions)}]")
        mine.__cause__, mine.__suppress_context__ = error.__cause__, error.__suppress_context__
        return mine.with_traceback(error.__traceback__)

    def _mine(self, sent: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(self.positions(self.misses[j] for j in sent)))


def _say(error: BGEError, more: str) -> None:
    error.message += more
    error.args = (error.message, *error.args[1:])


def _shown(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions[:10])) + (", …" if len(positions) > 10 else "")
