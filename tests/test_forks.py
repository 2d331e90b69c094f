"""What a forked child finds: locks that are free and exclude each other, whatever the parent's threads held."""

from __future__ import annotations

import os
import threading
import traceback

import numpy as np
import pytest

from bge_integrations.core.lock import Lock
from bge_integrations.wrappers.memo import MemoEncoder
from encoders import WordsEncoder
from interleaving import at_step

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


def in_child(work):
    """Run ``work`` in a forked child, and fail where it raises or does not end."""
    child = os.fork()
    if child == 0:
        threading.Timer(30, os._exit, [3]).start()
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must not go on as pytest
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Held:
    """Holds a lock on another thread."""

    def __init__(self, lock):
        self.begun, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.hold, args=(lock,))

    def hold(self, lock):
        with lock:
            self.begun.set()
            self.over.wait(60)

    def __enter__(self):
        self.thread.start()
        assert self.begun.wait(60)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def test_a_child_finds_a_lock_free_that_a_thread_of_its_parent_holds():
    lock = Lock()

    def enter():
        with lock:
            pass
        in_child(lambda: lock.__enter__())

    with Held(lock):
        in_child(enter)


def both_inside(lock, step):
    """Enter on one thread, pause it at a step, and enter on a second one meanwhile.

    Returns:
        Whether both were inside together; None if entering takes fewer steps.
    """
    paused, resume, first_in, second_in, leave = (threading.Event() for _ in range(5))
    together = []

    def pause():
        paused.set()
        resume.wait(60)

    def first():
        with at_step(step, {Lock.__init__.__code__, Lock.__enter__.__code__}, pause):
            lock.__enter__()
        together.append(second_in.is_set() and not leave.is_set())
        first_in.set()
        lock.__exit__()
        paused.set()

    def second():
        with lock:
            second_in.set()
            leave.wait(60)

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    paused.wait(60)
    if first_in.is_set():
        threads[0].join()
        return None
    threads[1].start()
    second_in.wait(0.05)  # not where the first one holds the lock already
    resume.set()
    first_in.wait(0.05)  # not where the second one holds it
    leave.set()
    for thread in threads:
        thread.join()
    return together[0]


def test_two_threads_of_a_child_exclude_each_other_from_the_first_moment_on():
    locks = [Lock() for _ in range(200)]

    def enter_at_every_step():
        found = []
        for step, lock in enumerate(locks, 1):
            found.append(both_inside(lock, step))
            if found[-1] is None:
                break
        assert found[-1] is None
        assert len(found) > 10
        assert True not in found

    in_child(enter_at_every_step)


def test_a_child_forked_while_a_memo_is_written_embeds():
    memo = MemoEncoder(WordsEncoder())
    memo.use("dense", "sparse")
    begun, over = threading.Event(), threading.Event()

    def entries():
        begun.set()
        over.wait(60)
        yield from ()

    writer = threading.Thread(target=memo.keep, args=(entries(),))
    writer.start()
    assert begun.wait(60)

    def embed():
        for _ in range(2):
            vectors = memo.encode(["a", "b"], role="document")
            assert np.array_equal(vectors, memo.inner.expected(["a", "b"], "document"))

    try:
        in_child(embed)
    finally:
        over.set()
        writer.join()
