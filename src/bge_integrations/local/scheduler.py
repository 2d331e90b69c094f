"""A single worker thread with two queues, interactive and bulk, that merges waiting calls into batches."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - its handlers of forks come before ours, not while ours wait
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..core.lock import Lock
from ..errors import BGEError, TextError
from .backends.base import Backend
from .jobs import SLICE_CHARACTERS, SLICE_TEXTS, Indices, Job, Part, Slice

URGENT_TEXTS = 8  # a call of more waits for its turn between the batches of others
_END_SECONDS = 30.0  # how long closing, or the interpreter's end, waits for the batch in hand
_FORK_SECONDS = 10.0  # how long a fork waits for each batch in hand; then it goes ahead all the same
_SINGLE_FAILURES = 3  # of texts computed alone, after which the rest of a batch is not tried

Load = Callable[[AbstractContextManager[Any]], Backend]
"""Loads a backend; enters the lock that it is passed while native code runs, not while it downloads."""


class Queue:
    """Jobs that wait, and the slice of them that is being computed.

    Attributes:
        native: held while native code runs.
        passes: forward passes so far.
    """

    def __init__(self, native: AbstractContextManager[Any]) -> None:
        self.native = native
        self.jobs: deque[Job] = deque()
        self.slice: Slice | None = None
        self.passes = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.jobs or self.slice)

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

    def _take(self, backend: Backend) -> list[Part]:
        """Return the next texts of the jobs in front, as far as these want the same output."""
        parts: list[Part] = []
        room, characters = SLICE_TEXTS, SLICE_CHARACTERS
        while self.jobs and room and (characters > 0 or not parts):
            job = self.jobs[0]
            if parts and job.stream.output != parts[0].job.stream.output:
                break
            part = None
            try:
                if job.alive:
                    backend.accept(job.stream.output)
                    if job.refuse is not None and not self._measured(job, job.refuse, backend):
                        break  # it stays in front, and its next slice is measured in the next step
                    part = job.part(job.taken, room, characters)
            except BaseException as error:  # noqa: BLE001 - belongs to the call
                job.fail(backend.explain(error))
            if part is not None:
                parts.append(part)
                job.taken = part.span.stop
                room, characters = room - len(part.texts), characters - sum(map(len, part.texts))
            if part is None or job.taken == len(job.texts):
                self.jobs.popleft()
        return parts

    def _measured(self, job: Job, refuse: Callable[[Sequence[int]], None], backend: Backend) -> bool:
        """Return whether no text of a job is too long; measures one slice, so that other calls have their turn.

        Raises:
            TooLongError: there are such texts, and the caller wants them refused before anything is computed.
        """
        if job.measured == len(job.texts):
            return True
        part = job.part(job.measured, SLICE_TEXTS, SLICE_CHARACTERS)
        try:
            with self.native:
                job.long += [part.span[i] for i in backend.tokenize(part.texts).truncated]
        except TextError as error:
            raise error.at(part.span) from None
        job.measured = part.span.stop
        if job.measured < len(job.texts):
            return False
        refuse(job.long)
        return True

    def _sliced(self, parts: list[Part], backend: Backend) -> Slice | None:
        """Tokenise parts of jobs, and fail the jobs that have texts at which the tokenizer fails."""
        if not parts:
            return None
        try:
            with self.native:
                return Slice.of(parts, backend)
        except BaseException as caught:  # noqa: BLE001 - belongs to the calls whose texts these are
            error = caught
        # One call's text must not fail the others: each part is tried alone, which fails the jobs at fault.
        good = [part for part in parts if len(parts) > 1 and self._sliced([part], backend)]
        if 0 < len(good) < len(parts):
            return self._sliced(good, backend)
        for part in parts:
            about = error.at(part.span) if isinstance(error, TextError) and len(parts) == 1 else error
            part.job.fail(backend.explain(about))
        return None

    def fail(self, error: BaseException) -> None:
        """Fail everything that waits."""
        for job in [*self.jobs, *(self.slice.jobs if self.slice else ())]:
            job.fail(error)
        self.jobs.clear()
        self.slice = None


class Loop:
    """What the thread runs; holds no reference to the engine, so that an engine nobody needs goes away."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self.backend: Backend | None = None
        self.thread: int | None = None
        self.ended = threading.Event()
        self.native = threading.Lock()
        self.urgent, self.bulk = Queue(self.native), Queue(self.native)

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
                job = self.inbox.get(block=block)
                if job is None:
                    return False
                self._queue(job)
                block = False
        except Empty:
            return True

    def _queue(self, job: Job | None) -> None:
        if job is not None:
            (self.urgent if len(job.texts) <= URGENT_TEXTS else self.bulk).jobs.append(job)

    def _step(self) -> None:
        """Compute every short call that waits, then one batch of a long one."""
        if self.backend is None:
            self.backend = self.load(self.native)
        while self.urgent.busy:
            self.urgent.run_batch(self.backend)
        if self.bulk.busy:
            self.bulk.run_batch(self.backend)


class Scheduler:
    """Hands jobs to the worker thread; starts it at first use, and anew after fork, close and unpickling."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = Lock()  # guards loop and _stop; never held while anybody waits for a batch
        self._forget()

    def _forget(self) -> None:
        # In a forked child the parent's thread does not exist. Its finalizer stays registered there, and does nothing.
        self._pid = os.getpid()
        self._stop: Callable[[], Any] | None = None
        self.loop = Loop(self._load)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            BGEError: no thread can be started, or the interpreter ends; the next call tries again.
        """
        if sys.is_finalizing():  # its thread does not run any more
            raise BGEError("the interpreter is shutting down: encode earlier")
        with self._lock:
            if self._pid != os.getpid():
                self._forget()
            if self._stop is None or self.loop.ended.is_set():
                self._start()
            # Under the lock, so that the job stands in the queue before a close that comes later.
            self.loop.inbox.put(job)

    def _start(self) -> None:
        loop = Loop(self._load)
        try:
            _run_in_a_thread(loop)
        except (RuntimeError, MemoryError) as error:
            raise BGEError(
                f"cannot start the thread that embeds ({error}): raise the limit on threads or processes "
                "(ulimit -u, pids.max) or end others, and call again"
            ) from error
        self.loop = loop
        # Loop and process id, and nothing that leads back to self: the finalizer would keep it alive.
        self._stop = weakref.finalize(self, _end, loop, self._pid)
        _LOOPS.add(loop)

    def close(self) -> None:
        """Stop after the batch in hand, fail what waits, and let the model go."""
        with self._lock:
            if self._pid != os.getpid():
                self._forget()
            stop, self._stop = self._stop, None
        if stop is not None:
            stop()


def _end(loop: Loop, pid: int) -> None:
    if pid != os.getpid():  # a forked child that exits runs its parent's finalizers too
        return
    loop.inbox.put(None)
    if loop.thread != threading.get_ident():  # an engine may be collected on its own thread
        loop.ended.wait(_END_SECONDS)


# A thread that ends runs native code which no lock of ours holds back: if it used MKL, a child that is forked meanwhile
# finds MKL's allocator locked for ever. So threads do not end; they wait here for the next engine.
_WAITING: list[SimpleQueue[Loop]] = []


def _run_in_a_thread(loop: Loop) -> None:
    try:
        _WAITING.pop().put(loop)  # not asked before whether there is one: another scheduler may take it meanwhile
    except IndexError:
        loops: SimpleQueue[Loop] = SimpleQueue()
        loops.put(loop)
        threading.Thread(target=_serve, args=(loops,), name="bge-local", daemon=True).start()


def _serve(loops: SimpleQueue[Loop]) -> None:
    while True:
        loop = loops.get()
        loop.thread = threading.get_ident()
        loop.run()
        ended = loop.ended
        del loop  # and with it what it held of the model
        _WAITING.append(loops)  # before ended is set: whoever closes one engine and opens another finds this thread
        ended.set()


# A fork copies mutexes as they stand, also those of oneDNN, onnxruntime, tokenizers and the import system: a child in
# which one is held by a thread that does not exist there waits for ever. So a fork waits for the batches in hand.
_LOOPS: weakref.WeakSet[Loop] = weakref.WeakSet()
_HELD = threading.local()  # of the thread that forks: another one may fork at the same time


def _before_fork() -> None:
    _HELD.locks = [loop.native for loop in list(_LOOPS) if loop.native.acquire(timeout=_FORK_SECONDS)]


def _after_fork() -> None:
    for lock in _HELD.__dict__.pop("locks", ()):  # none if a fork was waiting when this module was imported
        lock.release()


def _after_fork_in_child() -> None:
    _WAITING.clear()  # no thread of the parent is here
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
