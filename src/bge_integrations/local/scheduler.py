"""A single worker thread with two queues, interactive and bulk, that merges waiting calls into batches."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ..core.outputs import Output, Rows
from ..errors import BadAnswerError, BGEError
from .backends.base import Backend
from .jobs import NOTHING, SLICE_CHARACTERS, SLICE_TEXTS, Indices, Job, cut_batches, slice_end

URGENT_TEXTS = 8  # a call of more waits for its turn between the batches of others
_END_SECONDS = 30.0


@dataclass
class Slice:
    """Texts of one or more jobs, tokenised together and cut into batches.

    Attributes:
        owners: for each text, the position of its job in ``jobs``.
        indices: for each text, its position in that job.
        lengths: tokens of each text.
        truncated: for each text, whether it was longer than the model reads.
    """

    jobs: list[Job]
    items: list[Any]
    owners: Indices
    indices: Indices
    lengths: Indices
    truncated: Any
    batches: deque[Indices]

    def next_batch(self) -> Indices:
        """Return the texts of the next batch for which somebody still waits; may be none."""
        if not self.batches:
            return NOTHING
        batch = self.batches.popleft()
        alive = np.array([job.alive for job in self.jobs])
        return batch if alive.all() else batch[alive[self.owners[batch]]]

    def deliver(self, batch: Indices, rows: Rows) -> None:
        """Give each job its rows."""
        for job, mine in self._by_job(batch):
            if job.alive:
                texts = batch if mine is None else batch[mine]
                truncated = self.indices[texts[self.truncated[texts]]].tolist()
                tokens = int(self.lengths[texts].sum())
                job.put(self.indices[texts], rows if mine is None else rows[mine], tokens, truncated)

    def _by_job(self, batch: Indices) -> list[tuple[Job, Any]]:
        if len(self.jobs) == 1:
            return [(self.jobs[0], None)]
        owners = self.owners[batch]
        return [(self.jobs[owner], owners == owner) for owner in np.unique(owners).tolist()]

    def fail(self, batch: Indices, error: BaseException) -> None:
        """Fail every job that has a text in the batch; a bad row, only the job whose text it is of."""
        for job, mine in self._by_job(batch):
            texts = batch if mine is None else batch[mine]
            job.fail(_about(error, texts, batch, self.indices))


def _about(error: BaseException, texts: Indices, batch: Indices, indices: Indices) -> BaseException:
    """Return an error about rows of a batch as one about texts of a call."""
    if not isinstance(error, BadAnswerError):
        return error
    wrong = np.isin(texts, batch[list(error.positions)])
    return BadAnswerError(error.message, provider="local", positions=indices[texts[wrong]].tolist())


class Queue:
    """Jobs that wait, and the slice of them that is being computed."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.jobs: deque[Job] = deque()
        self.slice: Slice | None = None
        self.passes = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.jobs or self.slice)

    def run_batch(self, backend: Backend) -> None:
        """Compute one batch, or find that nobody waits for it any more."""
        current = self.slice or self._next_slice(backend)
        batch = current.next_batch()
        # Dropped with its last batch, so that calls and the engine itself can be garbage-collected while idle.
        self.slice = current if current.batches else None
        if not len(batch):
            return
        self.passes += 1
        try:
            rows = self.output.check(backend.forward([current.items[i] for i in batch]), len(batch))
        except Exception as error:  # noqa: BLE001 - belongs to the calls that the batch is of
            current.fail(batch, error)
        else:
            current.deliver(batch, rows)

    def _next_slice(self, backend: Backend) -> Slice:
        jobs: list[Job] = []
        parts: list[range] = []
        texts: list[str] = []
        characters = SLICE_CHARACTERS
        while self.jobs and len(texts) < SLICE_TEXTS and (characters > 0 or not texts):
            job = self.jobs[0]
            if not job.alive or not _allowed(job, backend):
                self.jobs.popleft()
                continue
            part, ready = job.take(SLICE_TEXTS - len(texts), characters)
            jobs.append(job)
            parts.append(part)
            texts += ready
            characters -= sum(map(len, ready))
            if job.taken == len(job.texts):
                self.jobs.popleft()
        try:
            return _tokenised(jobs, parts, texts, backend)
        except Exception as error:  # noqa: BLE001 - belongs to the calls whose texts these are
            for job in jobs:
                job.fail(error)
            return Slice([], [], NOTHING, NOTHING, NOTHING, NOTHING, deque())

    def fail(self, error: BaseException) -> None:
        """Fail everything that waits."""
        for job in [*self.jobs, *(self.slice.jobs if self.slice else ())]:
            job.fail(error)
        self.jobs.clear()
        self.slice = None


def _allowed(job: Job, backend: Backend) -> bool:
    """Refuse a job's over-long texts before anything of it is computed, where the caller wants that."""
    if job.refuse is None or job.taken:
        return True
    try:
        start, long = 0, []
        while start < len(job.texts):
            end = slice_end(job.texts, start, SLICE_TEXTS, SLICE_CHARACTERS)
            long += [start + i for i in backend.tokenize(job.prepare(job.texts[start:end])).truncated]
            start = end
        job.refuse(long)
    except Exception as error:  # noqa: BLE001 - belongs to the call
        job.fail(error)
    return job.alive


def _tokenised(jobs: list[Job], parts: list[range], texts: list[str], backend: Backend) -> Slice:
    owners = np.repeat(np.arange(len(jobs)), [len(part) for part in parts])
    indices = np.concatenate([np.arange(part.start, part.stop) for part in parts] or [NOTHING])
    tokens = backend.tokenize(texts)
    truncated = np.zeros(len(texts), bool)
    truncated[tokens.truncated] = True
    batches = deque(cut_batches(tokens.lengths, backend.budget, padded=backend.padded))
    return Slice(jobs, tokens.items, owners, indices, tokens.lengths, truncated, batches)


class Loop:
    """What the thread runs; holds no reference to the engine, so that an engine nobody needs goes away."""

    def __init__(self, load: Callable[[], Backend], output: Output) -> None:
        self.load = load
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self.backend: Backend | None = None
        self.urgent, self.bulk = Queue(output), Queue(output)

    @property
    def passes(self) -> int:
        """Forward passes so far."""
        return self.urgent.passes + self.bulk.passes

    def run(self) -> None:
        """Serve until told to stop."""
        while self._admit():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - the model could not be loaded, or a text not tokenised
                self._fail(error)
        self._fail(BGEError("the encoder was closed while this call waited: call again"))
        self.backend = None

    def _fail(self, error: BaseException) -> None:
        self.urgent.fail(error)
        self.bulk.fail(error)

    def _admit(self) -> bool:
        """Take in what has arrived; wait for it where there is nothing else to do. False: stop."""
        block = not (self.urgent.busy or self.bulk.busy)
        try:
            while True:
                job = self.inbox.get(block=block)
                if job is None:
                    return False
                (self.urgent if len(job.texts) <= URGENT_TEXTS else self.bulk).jobs.append(job)
                block = False
        except Empty:
            return True

    def _step(self) -> None:
        """Compute every short call that waits, then one batch of a long one."""
        self.backend = self.backend or self.load()
        while self.urgent.busy:
            self.urgent.run_batch(self.backend)
        if self.bulk.busy:
            self.bulk.run_batch(self.backend)


class Scheduler:
    """Hands jobs to the worker thread; starts it at first use, and anew after fork, close and unpickling."""

    def __init__(self, load: Callable[[], Backend], output: Output) -> None:
        self._load, self._output = load, output
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._stop: Callable[[], Any] | None = None
        self.loop = Loop(self._load, self._output)

    def submit(self, job: Job) -> None:
        """Queue a job."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._stop is None:
                self._start()
            self.loop.inbox.put(job)

    def _start(self) -> None:
        self.loop = Loop(self._load, self._output)
        thread = threading.Thread(target=self.loop.run, name="bge-local", daemon=True)
        self._stop = weakref.finalize(self, _end, self.loop.inbox, thread, self._pid)
        thread.start()

    def close(self) -> None:
        """Stop after the batch in hand, fail what waits, and let the model go."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            stop, self._stop = self._stop, None
        if stop is not None:
            stop()


def _end(inbox: SimpleQueue[Job | None], thread: threading.Thread, pid: int) -> None:
    if pid != os.getpid():
        return
    inbox.put(None)
    if thread is not threading.current_thread():
        thread.join(timeout=_END_SECONDS)
