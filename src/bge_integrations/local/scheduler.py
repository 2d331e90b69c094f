"""One thread that computes for every caller: merges what waits, lets short calls through, never runs two at once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from ..core.encoder import Vectors
from ..errors import BGEError
from .backends.base import Backend
from .jobs import Job
from .lanes import Lane

URGENT_TEXTS = 8  # a call of more waits for its turn between the batches of others


class Loop:
    """What the thread runs; holds no reference to the engine, so that an engine nobody needs goes away."""

    def __init__(self, load: Callable[[], Backend]) -> None:
        self.load = load
        self.inbox: SimpleQueue[Job | None] = SimpleQueue()
        self.backend: Backend | None = None
        self.urgent = Lane()
        self.bulk = Lane()

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
                self.urgent.fail(error)
                self.bulk.fail(error)
        self.urgent.fail(BGEError("the encoder was closed while this call waited: call again"))
        self.bulk.fail(BGEError("the encoder was closed while this call waited: call again"))
        self.backend = None

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


class Worker:
    """Hands jobs to its thread; starts it at first use, and anew after fork, close and unpickling."""

    def __init__(self, load: Callable[[], Backend]) -> None:
        self._load = load
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._stop: Callable[[], Any] | None = None
        self.loop = Loop(self._load)

    def submit(self, job: Job) -> Future[Vectors]:
        """Queue a job and return its Future."""
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._stop is None:
                self._start()
            self.loop.inbox.put(job)
        return job.future

    def _start(self) -> None:
        self.loop = Loop(self._load)
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
        thread.join(timeout=30)
