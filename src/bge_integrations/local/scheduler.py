"""One worker thread per model: started at first use and reused by later models; a fork waits for its batch."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - its handlers of forks come before ours, not while ours wait
import os
import sys
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from ..core.lock import Lock
from ..errors import BGEError
from .calls import LocalCall
from .loop import Load, Loop

_END_SECONDS = 30.0  # how long closing, or the interpreter's end, waits for the batch in hand
_FORK_SECONDS = 10.0  # how long a fork waits for each batch in hand; then it goes ahead all the same


class Scheduler:
    """Hands calls to the worker thread; starts it at first use, and anew after fork, close and unpickling."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = Lock()  # guards loop and _stop; never held while anybody waits for a batch
        self._forget()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, here or in another process, has a thread of its own and loads the model at its first use.
        return Scheduler, (self._load,)

    def _forget(self) -> None:
        # In a forked child the parent's thread does not exist. Its finalizer stays registered there, and does nothing.
        self._pid = os.getpid()
        self._stop: Callable[[], Any] | None = None
        self.loop = Loop(self._load)

    def submit(self, call: LocalCall) -> None:
        """Queue a call.

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
            # Under the lock, so that the call stands in the queue before a close that comes later.
            self.loop.inbox.put(call)

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
