"""The cache of scores between threads: callbacks on its own thread, the end of Python, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from zlib import crc32

import numpy as np
import pytest

from bge_integrations.catalog.rerankers import find_reranker
from bge_integrations.core.batches import Batch
from bge_integrations.core.reranker import Pair, Reranker
from bge_integrations.core.usage import Usage
from bge_integrations.wrappers.cache.reranker import CachedReranker
from bge_integrations.wrappers.cache.stores import MemoryStore

PAIRS = [Pair("a question", f"passage {i}") for i in range(6)]


class HashReranker(Reranker):
    """Logits by hash of both texts; a batch each, on a thread of its own, once ``go`` is set."""

    def __init__(self):
        self.card, self.usage = find_reranker("bge-reranker-base"), Usage()
        self.go = threading.Event()
        self.computed = 0

    def logits(self, pairs):
        hashes = [crc32(f"{pair.query}\0{pair.passage}".encode()) for pair in pairs]
        return np.array(hashes, np.float32) / 2**31 - 1

    def batches(self, pairs, stream):
        threading.Thread(target=self.work, args=(pairs, stream), daemon=True).start()

    def work(self, pairs, stream):
        assert self.go.wait(60)
        for place, pair in enumerate(pairs):
            stream.put(Batch([place], self.logits([pair])))
        self.computed += len(pairs)
        stream.finish()


@pytest.fixture
def inner():
    made = HashReranker()
    made.go.set()
    return made


def test_a_callback_on_the_cache_s_thread_may_close_it_and_the_next_call_works(inner):
    cached = CachedReranker(inner, MemoryStore())
    raised, closed = [], threading.Event()
    inner.go.clear()

    def close(_):
        try:
            cached.close()
        except RuntimeError as error:
            raised.append(error)
        closed.set()

    call = cached.submit(PAIRS)
    call.add_done_callback(close)
    inner.go.set()
    assert np.array_equal(call.result(60), inner.logits(PAIRS))
    assert closed.wait(60)
    assert raised == []
    assert np.array_equal(cached.submit(PAIRS).result(60), inner.logits(PAIRS))
    cached.close()


AT_EXIT = """
import atexit, sys, threading
from bge_integrations.wrappers.cache.reranker import CachedReranker
from bge_integrations.wrappers.cache.stores import MemoryStore
from test_rerank_cache_threads import PAIRS, HashReranker

begun = threading.Event()

class Late(HashReranker):
    def batches(self, pairs, stream):
        self.work_at_exit = pairs, stream
        begun.set()

inner = Late()
inner.go.set()
cached = CachedReranker(inner, MemoryStore())
call = cached.submit(PAIRS)
begun.wait(60)

@atexit.register
def last_words():  # the pool refuses work by now
    inner.work(*inner.work_at_exit)
    print((call.result(0) == inner.logits(PAIRS)).all(), None in cached.store.get_many([*cached.store.store._rows]))
    print(len(cached.store.store._rows))
"""


def test_a_call_whose_rows_find_no_thread_ends_with_its_scores_which_are_stored(request):
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=request.path.parent,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("True False\n6\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_child_forked_during_a_call_scores_for_itself(inner):
    cached = CachedReranker(inner, MemoryStore())
    inner.go.clear()
    call = cached.submit(PAIRS)  # the cache's thread and the engine's are under way
    child = os.fork()
    if child == 0:
        inner.go = threading.Event()
        inner.go.set()
        good = np.array_equal(cached.submit(PAIRS).result(30), inner.logits(PAIRS))
        cached.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    inner.go.set()
    assert np.array_equal(call.result(60), inner.logits(PAIRS))
    cached.close()
