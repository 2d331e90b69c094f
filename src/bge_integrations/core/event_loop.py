"""One event loop on one daemon thread, so that sync and async callers share a single implementation."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from ..errors import BGEError
from .lock import Lock

T = TypeVar("T")
ENDING_SECONDS = 5.0
Ending = Callable[[], Coroutine[Any, Any, object]]


class BackgroundLoop:
    """An event loop that starts at first use, survives fork and pickling by starting anew, and ends with its owner."""

    def __init__(self, name: str = "bge-loop") -> None:
        self._name = name
        self._lock = Lock()
        self._reset()

    def _reset(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] | None = None
        self._endings: list[Ending] = []
        self._pid = os.getpid()

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop and return its Future; cancelling that cancels the coroutine.

        Raises:
            BGEError: the system grants no thread; nothing was begun, and the next call tries again.
        """
        try:
            # Under the lock, so that what is handed over stands in the loop's queue before a close that comes later.
            with self._lock:
                loop = self._running()
                future = asyncio.run_coroutine_threadsafe(_retrieved(work), loop)
        except BGEError:
            work.close()
            raise
        future.add_done_callback(partial(_close_unstarted, work, loop))
        return future

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():  # the parent's loop has no thread here
            self._reset()
        if self._loop is None or self._loop.is_closed():
            self._begin()
        assert self._loop is not None
        return self._loop

    def _begin(self) -> None:
        loop, endings = None, list[Ending]()
        try:
            loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(loop, endings), name=self._name, daemon=True)
            thread.start()
        except (RuntimeError, OSError, MemoryError) as error:
            if loop is not None:
                loop.close()
            raise BGEError(
                f"cannot start a thread for requests ({error}): raise the limit of threads or processes "
                "(ulimit -u, pids.max) or of open files, or end others; the next call tries again"
            ) from None
        self._loop, self._thread, self._endings = loop, thread, endings
        # Neither thread nor finalizer holds self, so a forgotten owner's loop ends.
        self._stop = weakref.finalize(self, _stop, loop, self._pid)

    def at_end(self, ending: Ending) -> None:
        """Have a coroutine function run on the loop before it closes, whether its owner closes it or is forgotten."""
        self._endings.append(ending)

    def close(self) -> None:
        """Stop the loop and wait for its endings; the next ``run`` starts another."""
        with self._lock:
            stop, thread, pid = self._stop, self._thread, self._pid
            self._reset()
            if pid != os.getpid() or stop is None or thread is None:
                return
            stop()  # a finalizer that has been called no longer holds the loop
        if threading.current_thread() is not thread:
            thread.join(ENDING_SECONDS)

    def __getstate__(self) -> dict[str, Any]:
        return {"_name": self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(BackgroundLoop(state["_name"]).__dict__)


async def _retrieved(work: Coroutine[Any, Any, T]) -> T:
    """Do the work, and retrieve its exception if its Future was cancelled: asyncio would log "never retrieved"."""
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(_retrieve)
    return await work


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _close_unstarted(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop, future: Future[Any]) -> None:
    # Cancelled before its first step, _retrieved never awaits the work, and Python would warn of that.
    if future.cancelled():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_close_if_unstarted, work)


def _close_if_unstarted(work: Coroutine[Any, Any, Any]) -> None:
    if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
        work.close()


def _serve(loop: asyncio.AbstractEventLoop, endings: list[Ending]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end(endings))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end(endings: list[Ending]) -> None:
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    ends = asyncio.gather(*waiting, *(ending() for ending in endings), return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ends, ENDING_SECONDS)


def _stop(loop: asyncio.AbstractEventLoop, pid: int) -> None:
    if pid == os.getpid() and not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
