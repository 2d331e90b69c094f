"""One event loop on one daemon thread, so that sync and async callers share a single implementation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
ENDING_SECONDS = 5.0
Ending = Callable[[], Coroutine[Any, Any, object]]


class BackgroundLoop:
    """An event loop that starts at first use, survives fork and pickling by starting anew, and ends with its owner."""

    def __init__(self, name: str = "bge-loop") -> None:
        self._name = name
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._endings: list[Ending] = []
        self._pid = os.getpid()

    def run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop and return its Future; cancelling that cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(_followed(work), self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._loop is None or self._loop.is_closed():
                self._loop = asyncio.new_event_loop()
                self._endings = []
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop, self._endings), name=self._name, daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _stop, self._loop, self._pid)
            return self._loop

    def at_end(self, ending: Ending) -> None:
        """Have a coroutine function run on the loop before it closes, whether its owner closes it or is forgotten."""
        self._endings.append(ending)

    def close(self) -> None:
        """Stop the loop and wait for its endings; the next ``run`` starts another."""
        if self._pid == os.getpid() and self._loop is not None and self._thread is not None:
            _stop(self._loop, self._pid)
            if threading.current_thread() is not self._thread:
                self._thread.join(ENDING_SECONDS)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {"_name": self._name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(name=state["_name"])  # type: ignore[misc]


async def _followed(work: Coroutine[Any, Any, T]) -> T:
    """Do the work; how it fails once its Future was cancelled is nobody's affair, and asyncio is not to log it."""
    task = asyncio.current_task()
    assert task is not None
    task.add_done_callback(_seen)
    return await work


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


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
