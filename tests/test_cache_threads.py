"""The cache between threads: batches that arrive while a call is cancelled, calls from on_batch, the end of Python."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from bge_integrations.cache import CachedEncoder
from bge_integrations.catalog import find_model
from bge_integrations.errors import BGEError, RepairWarning
from bge_integrations.wrappers.progress import ProgressEncoder
from bge_integrations.wrappers.verified import VerifiedEncoder
from encoders import HashEncoder

TEXTS = [f"text number {i}" for i in range(12)]


class DictStore:
    def __init__(self):
        self.rows = {}

    def get_many(self, keys):
        return [self.rows.get(key) for key in keys]

    def put_many(self, pairs):
        self.rows.update(pairs)


class Recording(HashEncoder):
    """Remembers which texts it has computed vectors for."""

    def __init__(self, **options):
        super().__init__(**options)
        self.computed = []

    def vectors(self, texts, role):
        self.computed += texts
        return super().vectors(texts, role)


def race(cached, number, barriers):
    """Begin a call that is cancelled while its batch arrives, or is not; return what came of it."""
    texts = [f"{number} {i}" for i in range(6)]
    when = random.Random(number).randrange(-3, 6)
    if when >= 0:
        barriers[texts[when]] = threading.Barrier(2)
    seen = []
    future = cached.submit(texts, role="document", on_batch=lambda places, rows: seen.extend(places))
    if when >= 0:
        barriers[texts[when]].wait(60)  # the engine's thread goes on at this moment, with that text
        future.cancel()
    try:
        return texts, future.result(60), sorted(seen)
    except CancelledError:
        assert when >= 0
        return texts, None, sorted(seen)


@pytest.mark.parametrize("bars", [False, True])
def test_batches_that_arrive_while_calls_are_cancelled_are_neither_lost_nor_mixed(bars, caplog):
    barriers = {}

    def meet(rows, texts):
        if barrier := barriers.get(texts[0]):
            barrier.wait(60)

    inner, store = Recording(batch=1, before_batch=meet), DictStore()
    cached = CachedEncoder(ProgressEncoder(inner, bars, leave=False), store)
    with cached, ThreadPoolExecutor(16) as pool:
        ended = list(pool.map(lambda number: race(cached, number, barriers), range(300)))
        whole = [(texts, vectors, seen) for texts, vectors, seen in ended if vectors is not None]
        for texts, vectors, seen in whole:
            assert np.array_equal(vectors, inner.expected(texts, "document"))
            assert seen == list(range(6))
        assert 0 < len(whole) < len(ended)
        barriers.clear()
        everything = [text for texts, _, _ in ended for text in texts]
        inner.calls.clear()
        computed = set(inner.computed)
        assert np.array_equal(cached.encode(everything, role="document"), inner.expected(everything, "document"))
        assert computed.isdisjoint(inner.sent)  # what was computed for a cancelled call is kept too
    assert len(store.rows) == len(everything)
    assert [record.message for record in caplog.records if record.levelname == "CRITICAL"] == []


def test_many_threads_share_one_call_per_text_between_cancellations():
    inner = HashEncoder(batch=2)
    with CachedEncoder(inner, DictStore()) as cached, ThreadPoolExecutor(16) as pool:

        def work(number):
            part = random.Random(number).sample(TEXTS, 8)
            future = cached.submit(part, role="query")
            if number % 3 == 0:
                future.cancel()
            return part, future

        for part, future in pool.map(work, range(300)):
            if not future.cancelled():
                assert np.array_equal(future.result(60), inner.expected(part, "query"))
        inner.calls.clear()
        cached.encode(TEXTS, role="query")
        sent = len(inner.sent)
        cached.encode(TEXTS, role="query")
        assert len(inner.sent) == sent


@pytest.mark.parametrize("known", [0, 6, 12], ids=["misses", "both", "hits"])
def test_encode_inside_on_batch_of_the_same_cache_is_a_typed_error_and_submit_works(known):
    inner = HashEncoder(batch=4)
    with CachedEncoder(inner, DictStore()) as cached:
        if known:
            cached.encode(TEXTS[:known], role="document")
        refused, begun = [], []

        def on_batch(places, rows):
            with pytest.raises(BGEError, match="on_batch") as caught:
                cached.encode(["another"], role="document")
            refused.append(caught.value)
            begun.append(cached.submit(["one more", TEXTS[0]], role="query"))

        vectors = cached.encode(TEXTS, role="document", on_batch=on_batch)
        assert np.array_equal(vectors, inner.expected(TEXTS, "document"))
        assert refused
        for future in begun:
            assert np.array_equal(future.result(60), inner.expected(["one more", TEXTS[0]], "query"))
        assert np.array_equal(cached.encode(["another"], role="document"), inner.expected(["another"], "document"))


def test_an_error_in_on_batch_stops_the_engine():
    stopped = threading.Event()

    class Stoppable(HashEncoder):
        def batches(self, texts, role, stream):
            stream.on_cancel(stopped.set)
            super().batches(texts, role, stream)

    def broken(places, rows):
        raise RuntimeError("mine")

    with CachedEncoder(Stoppable(batch=1), DictStore()) as cached:
        with pytest.raises(RuntimeError, match="mine"):
            cached.encode(TEXTS, role="document", on_batch=broken)
        assert stopped.wait(60)


def no_thread(thread):
    raise RuntimeError("can't start new thread")


def test_a_thread_that_cannot_start_is_a_typed_error_and_the_next_call_tries_again(monkeypatch):
    inner = HashEncoder()
    with CachedEncoder(inner, DictStore()) as cached:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            for _ in range(2):
                with pytest.raises(BGEError, match="cannot start a thread for the cache"):
                    cached.encode(TEXTS, role="document")
        assert np.array_equal(cached.encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))


@pytest.mark.parametrize("fails", [False, True])
def test_rows_that_find_no_thread_to_store_them_are_stored_at_the_end(monkeypatch, fails):
    store = DictStore()

    def lose_the_thread(rows, texts):
        if rows[0] == 0:
            cached.close()
            monkeypatch.setattr(threading.Thread, "start", no_thread)
        elif fails and rows[0] == 8:
            raise OSError("the engine fails")

    inner = HashEncoder(batch=4, before_batch=lose_the_thread)
    cached = CachedEncoder(inner, store)
    future = cached.submit(TEXTS, role="document")
    if fails:
        with pytest.raises(OSError, match="the engine fails"):
            future.result(60)
    else:
        assert np.array_equal(future.result(60), inner.expected(TEXTS, "document"))
    assert len(store.rows) == (8 if fails else 12)


def test_a_first_use_check_that_cannot_begin_is_tried_again():
    class Stubborn(HashEncoder):
        refusals = 2

        def batches(self, texts, role, stream):
            if self.refusals:
                self.refusals -= 1
                raise BGEError("no thread")
            super().batches(texts, role, stream)

    encoder = VerifiedEncoder(Stubborn(find_model("bge-base-en-v1.5")), host="host")
    for _ in range(2):
        with pytest.raises(BGEError, match="no thread"):
            encoder.encode(["a"], role="query")
    with pytest.raises(BGEError, match="does not serve"):  # the hash encoder is no BGE model
        encoder.encode(["a"], role="query")


def test_a_store_that_fails_under_a_strict_filter_ends_the_call_once():
    class Unwritable(DictStore):
        def put_many(self, pairs):
            raise OSError("no room")

    seen = []
    with CachedEncoder(HashEncoder(batch=1), Unwritable()) as cached, warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RepairWarning, match="no room"):
            cached.encode(TEXTS, role="document", on_batch=lambda places, rows: seen.extend(places))
    assert seen == list(range(12))  # every batch was delivered before


AT_EXIT = """
import atexit, sys
from bge_integrations.cache import CachedEncoder
from bge_integrations.errors import BGEError
from bge_integrations.wrappers.progress import ProgressEncoder
from encoders import HashEncoder

cached = CachedEncoder(ProgressEncoder(HashEncoder(), None), sys.argv[1])
if sys.argv[2] == "used":
    cached.encode(["a", "b"], role="query")

@atexit.register
def last_words():
    for _ in range(2):
        try:
            cached.encode(["a", "b"], role="query")
        except BGEError as error:
            print(type(error).__name__, "shuts down" in str(error))
    cached.close()
    print("closed")
"""


@pytest.mark.parametrize("used", ["used", "fresh"])
@pytest.mark.parametrize("store", ["file", "memory"])
def test_at_the_end_of_python_a_call_is_a_typed_error(request, tmp_path, used, store):
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, ":memory:" if store == "memory" else str(tmp_path / "v.sqlite"), used],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=request.path.parent,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("BGEError True\n" * 2 + "closed\n", "")
