"""What the worker thread runs: two queues, interactive and bulk, whose calls are merged into batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..errors import BGEError, TextError
from .backends.base import Backend
from .calls import SLICE_CHARACTERS, SLICE_TEXTS, CallPart, Indices, LocalCall, Slice

URGENT_TEXTS = 8  # a call of more waits for its turn between the batches of others
_SINGLE_FAILURES = 3  # of texts computed alone, after which the rest of a batch is not tried

Load = Callable[[AbstractContextManager[Any]], Backend]
"""Loads a backend; enters the lock that it is passed while native code runs, not while it downloads."""


class CallQueue:
    """Calls that wait, and the slice of them that is being computed.

    Attributes:
        native: held while native code runs.
        passes: forward passes so far.
    """

    def __init__(self, native: AbstractContextManager[Any]) -> None:
        self.native = native
        self.calls: deque[LocalCall] = deque()
        self.slice: Slice | None = None
        self.passes = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.calls or self.slice)

    def run_batch(self, backend: Backend) -> None:
        """Compute one batch, or find that nobody waits for it any more."""
        current = self.slice or self._sliced(self._take(backend), backend)
        if current is None or not current.batches:
            return
        batch = current.next_batch()
        # Dropped with its last batch, so that calls and the engine itself can be garbage-collected while idle.
        self.slice = current if current.batches else None
        failed: dict[int, BaseException] = {}
        missing = self._compute(backend, current, batch, failed) if len(batch) else batch
        if len(missing):
            alone = len(batch) == 1
            current.fail(missing, failed, backend, blame=alone or len(missing) < len(batch))

    def _compute(self, backend: Backend, current: Slice, texts: Indices, failed: dict[int, BaseException]) -> Indices:
        """Compute texts and deliver their rows; where that fails, each half of them.

        So one text does not fail its neighbours, and what is too large for the memory at once is computed in parts.

        Returns:
            The texts that have no rows.
        """
        if len(failed) >= _SINGLE_FAILURES:
            return texts
        self.passes += 1
        try:
            with self.native:
                rows = backend.forward([current.items[i] for i in texts], current.output)
            rows = current.output.check(rows, len(texts))
        except BaseException as error:  # noqa: BLE001 - belongs to the calls whose texts these are
            if len(texts) == 1:
                failed[int(texts[0])] = error
                return texts
            backend.learn(error, int(current.lengths[texts].sum()))
        else:
            current.deliver(texts, rows)
            return texts[:0]
        return np.concatenate([self._compute(backend, current, half, failed) for half in np.array_split(texts, 2)])

    def _take(self, backend: Backend) -> list[CallPart]:
        """Return the next texts of the calls in front, as far as these want the same output."""
        parts: list[CallPart] = []
        room, characters = SLICE_TEXTS, SLICE_CHARACTERS
        while self.calls and room and (characters > 0 or not parts):
            call = self.calls[0]
            if parts and call.stream.output != parts[0].call.stream.output:
                break
            part = None
            try:
                if call.alive:
                    backend.accept(call.stream.output)
                    if call.refuse is not None and not self._measured(call, call.refuse, backend):
                        break  # it stays in front, and its next slice is measured in the next step
                    part = call.part(call.taken, room, characters)
            except BaseException as error:  # noqa: BLE001 - belongs to the call
                call.fail(backend.explain(error))
            if part is not None:
                parts.append(part)
                call.taken = part.span.stop
                room, characters = room - len(part.texts), characters - sum(map(len, part.texts))
            if part is None or call.taken == len(call.texts):
                self.calls.popleft()
        return parts

    def _measured(self, call: LocalCall, refuse: Callable[[Sequence[int]], None], backend: Backend) -> bool:
        """Return whether no text of a call is too long; measures one slice, so that other calls have their turn.

        Raises:
            TooLongError: there are such texts, and the caller wants them refused before anything is computed.
        """
        if call.measured == len(call.texts):
            return True
        part = call.part(call.measured, SLICE_TEXTS, SLICE_CHARACTERS)
        try:
            with self.native:
                call.long += [part.span[i] for i in backend.tokenize(part.texts).truncated]
        except TextError as error:
            raise error.at(part.span) from None
        call.measured = part.span.stop
        if call.measured < len(call.texts):
            return False
        refuse(call.long)
        return True

    def _sliced(self, parts: list[CallPart], backend: Backend) -> Slice | None:
        """Tokenise parts of calls, and fail the calls that have texts at which the tokenizer fails."""
        if not parts:
            return None
        try:
            with self.native:
                return Slice.of(parts, backend)
        except BaseException as caught:  # noqa: BLE001 - belongs to the calls whose texts these are
            error = caught
        # One call's text must not fail the others: each part is tried alone, which fails the calls at fault.
        good = [part for part in parts if len(parts) > 1 and self._sliced([part], backend)]
        if 0 < len(good) < len(parts):
            return self._sliced(good, backend)
        for part in parts:
            about = error.at(part.span) if isinstance(error, TextError) and len(parts) == 1 else error
            part.call.fail(backend.explain(about))
        return None

    def fail(self, error: BaseException) -> None:
        """Fail everything that waits."""
        for call in [*self.calls, *(self.slice.calls if self.slice else ())]:
            call.fail(error)
        self.calls.clear()
        self.slice = None


class Loop:
    """What the thread runs; holds no reference to the engine, so that an engine nobody needs goes away."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.inbox: SimpleQueue[LocalCall | None] = SimpleQueue()
        self.backend: Backend | None = None
        self.thread: int | None = None
        self.ended = threading.Event()
        self.native = threading.Lock()
        self.urgent, self.bulk = CallQueue(self.native), CallQueue(self.native)

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self.urgent.passes + self.bulk.passes

    def run(self) -> None:
        """Serve until asked to stop; nothing that a call does ends this thread."""
        while self._admit():
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001 - the model could not be loaded: every call learns it
                self._fail(error)
        # Other threads may still submit while the interpreter's end stops this one: nobody else would answer them.
        while not self.inbox.empty():
            self._queue(self.inbox.get())
        self._fail(BGEError("the encoder was closed while this call waited: call again"))
        with self.native:  # freeing weights is native work too: no fork meanwhile
            self.backend = None

    def _fail(self, error: BaseException) -> None:
        self.urgent.fail(error)
        self.bulk.fail(error)

    def _admit(self) -> bool:
        """Take in what has arrived, or wait for it where there is nothing else to do; return False to stop."""
        block = not self.bulk.busy  # no short call is left when a step ends
        try:
            while True:
                call = self.inbox.get(block=block)
                if call is None:
                    return False
                self._queue(call)
                block = False
        except Empty:
            return True

    def _queue(self, call: LocalCall | None) -> None:
        if call is not None:
            (self.urgent if len(call.texts) <= URGENT_TEXTS else self.bulk).calls.append(call)

    def _step(self) -> None:
        """Compute every short call that waits, then one batch of a long one."""
        if self.backend is None:
            self.backend = self.load(self.native)
        while self.urgent.busy:
            self.urgent.run_batch(self.backend)
        if self.bulk.busy:
            self.bulk.run_batch(self.backend)
