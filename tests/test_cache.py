"""The cache: what is shared, what never is, and that callers see nothing of it but speed."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sqlite3
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.cache import CachedEncoder, clear, info, prune
from bge_integrations.errors import (
    BadAnswerError,
    CacheError,
    ConfigError,
    HostError,
    InputError,
    RepairWarning,
    TruncationWarning,
)
from encoders import CARD, HashEncoder

TEXTS = [f"text number {i}" for i in range(10)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "vectors.sqlite"


@pytest.fixture
def make(path):
    """Make cached encoders over one file, and close them all at the end."""
    made = []

    def make(inner=None, store=None, **options):
        cached = CachedEncoder(inner or HashEncoder(), path if store is None else store, **options)
        made.append(cached)
        return cached

    yield make
    for cached in made:
        cached.close()


def sent_again(make, role, *, first, second, texts=TEXTS):
    """Return the texts that ``second`` sends after ``first`` has stored them, having checked its vectors."""
    make(first).encode(texts, role=role)
    assert np.array_equal(make(second).encode(texts, role=role), second.expected(texts, role))
    return second.sent


@pytest.mark.parametrize("role", ["query", "document"])
def test_what_was_embedded_is_not_sent_again_by_anyone(make, role):
    assert sent_again(make, role, first=HashEncoder(), second=HashEncoder()) == []


def test_only_the_rest_is_sent(make):
    make().encode(TEXTS[::2], role="document")
    inner = HashEncoder()
    vectors = make(inner).encode(TEXTS, role="document")
    assert inner.sent == TEXTS[1::2]
    assert np.array_equal(vectors, inner.expected(TEXTS, "document"))


def test_a_query_and_a_document_of_the_same_words_never_mix(make):
    inner = HashEncoder()
    cached = make(inner)
    for _ in range(2):
        for role in ("document", "query"):
            assert np.array_equal(cached.encode(TEXTS, role=role), inner.expected(TEXTS, role))
    assert len(inner.sent) == 2 * len(TEXTS)


def test_roles_do_not_mix_even_without_an_instruction(make):
    inner = HashEncoder(query_instruction="")
    cached = make(inner)
    cached.encode(TEXTS, role="document")
    cached.encode(TEXTS, role="query")
    assert len(inner.sent) == 2 * len(TEXTS)


def test_another_instruction_sends_queries_again_and_documents_not(make):
    assert sent_again(make, "query", first=HashEncoder(), second=HashEncoder(query_instruction="other: ")) == TEXTS
    assert sent_again(make, "document", first=HashEncoder(), second=HashEncoder(query_instruction="third: ")) == []


def test_the_cards_instruction_and_the_same_one_said_aloud_are_one(make):
    said = HashEncoder(query_instruction=CARD.query_instruction)
    assert sent_again(make, "query", first=HashEncoder(), second=said) == []


def test_an_instruction_does_not_run_into_the_text(make):
    first, second = HashEncoder(query_instruction="a"), HashEncoder(query_instruction="ab")
    make(first).encode(["bc"], role="query")
    make(second).encode(["c"], role="query")
    assert second.sent == ["c"]


@pytest.mark.parametrize(
    "other",
    [
        HashEncoder(replace(CARD, id="test/other")),
        HashEncoder(replace(CARD, revision="fedcba9876543210")),
        HashEncoder(replace(CARD, pooling="mean")),
        HashEncoder(replace(CARD, dimensions=8)),
        HashEncoder(variant="int8"),
    ],
    ids=["model", "revision", "pooling", "dimensions", "variant"],
)
@pytest.mark.parametrize("role", ["query", "document"])
def test_another_space_is_another_memory(make, role, other):
    other.calls.clear()
    assert sent_again(make, role, first=HashEncoder(), second=other) == TEXTS


def test_how_a_query_is_joined_counts_for_queries_only(make):
    joined = replace(CARD, query_format="Instruct: {instruction}\nQuery: {text}")
    assert sent_again(make, "query", first=HashEncoder(), second=HashEncoder(joined)) == TEXTS
    assert sent_again(make, "document", first=HashEncoder(), second=HashEncoder(joined)) == []


def test_a_text_is_taken_byte_for_byte(make):
    texts = ["a b", "a  b", "a b ", "A b", "a\nb", "é", "e\u0301", "\0", "👩‍👩‍👧"]
    inner = HashEncoder()
    cached = make(inner)
    cached.encode(texts, role="document")
    assert inner.sent == texts
    assert np.array_equal(cached.encode(texts[::-1], role="document"), inner.expected(texts[::-1], "document"))
    assert inner.sent == texts


def test_duplicates_are_embedded_once_and_answered_everywhere(make):
    inner = HashEncoder(batch=2)
    seen = {}
    texts = ["a", "b", "a", "c", "b", "a"]

    def on_batch(indices, vectors):
        assert len(indices) == len(vectors)
        seen.update({i: v.copy() for i, v in zip(indices, vectors, strict=True)})

    vectors = make(inner).encode(texts, role="document", on_batch=on_batch)
    assert inner.sent == ["a", "b", "c"]
    assert np.array_equal(vectors, inner.expected(texts, "document"))
    assert np.array_equal(np.array([seen[i] for i in range(len(texts))]), vectors)


def test_hits_reach_on_batch_first_and_each_position_once(make):
    make().encode(["b", "d"], role="document")
    inner, batches = HashEncoder(batch=1), []
    texts = ["a", "b", "c", "d", "b", "a"]
    cached = make(inner)
    expected = inner.expected(texts, "document")

    def on_batch(indices, vectors):
        batches.append(list(indices))
        assert np.array_equal(vectors, expected[list(indices)])

    cached.encode(texts, role="document", on_batch=on_batch)
    assert sorted(batches[0]) == [1, 3, 4]
    assert [sorted(batch) for batch in batches[1:]] == [[0, 5], [2]]


def test_no_texts_no_vectors(make):
    assert make().encode([], role="document").shape == (0, CARD.dimensions)


def test_what_on_batch_does_to_its_vectors_stays_out_of_the_cache(make):
    def vandal(indices, vectors):
        vectors *= 0

    make().encode(TEXTS, role="document", on_batch=vandal)
    inner = HashEncoder()
    assert np.array_equal(make(inner).encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))
    assert inner.sent == []


def test_an_error_in_on_batch_reaches_the_caller_and_loses_nothing(make):
    def broken(indices, vectors):
        raise RuntimeError("mine")

    with make(HashEncoder(batch=5)) as cached, pytest.raises(RuntimeError, match="mine"):
        cached.encode(TEXTS, role="document", on_batch=broken)
    inner = HashEncoder()
    make(inner).encode(TEXTS, role="document")
    assert inner.sent == TEXTS[5:]


def fails_at(number, error):
    def before_batch(rows, texts):
        if rows[0] == number:
            raise error

    return before_batch


@pytest.mark.parametrize("call", ["sync", "async"])
def test_a_failure_keeps_what_was_finished_and_speaks_of_the_callers_positions(make, call):
    make().encode([TEXTS[0], TEXTS[5]], role="document")
    # Distinct misses: texts 1, 2, 3, 4, 6, 7, 8, 9. The third batch of two (texts 6 and 7) fails.
    error = BadAnswerError("odd", provider="p", status=503, positions=[4, 5])
    cached = make(HashEncoder(batch=2, before_batch=fails_at(4, error)))
    texts = [*TEXTS, TEXTS[1], TEXTS[6]]
    encode = cached.encode if call == "sync" else lambda *a, **k: asyncio.run(cached.aencode(*a, **k))
    with pytest.raises(BadAnswerError) as caught:
        encode(texts, role="document")
    mine = caught.value
    assert mine.positions == (6, 7, 11)
    assert mine.finished == (0, 1, 2, 3, 4, 5, 10)
    assert mine.unfinished == (6, 7, 8, 9, 11)
    assert (mine.status, mine.provider) == (503, "p")
    assert "6, 7, 11" in str(mine)
    assert error.positions == (4, 5)  # another call may hold the same error
    assert pickle.loads(pickle.dumps(mine)).finished == mine.finished
    inner = HashEncoder()
    make(inner).encode(texts, role="document")
    assert inner.sent == TEXTS[6:]


def test_an_error_of_a_call_without_hits_keeps_its_positions(make):
    error = HostError("down", positions=[3])
    with pytest.raises(HostError) as caught:
        make(HashEncoder(before_batch=fails_at(0, error))).encode(TEXTS, role="document")
    assert (str(caught.value), caught.value.positions) == ("down", (3,))
    assert (caught.value.finished, caught.value.unfinished) == ((), tuple(range(10)))


def test_input_errors_speak_of_the_callers_positions(make):
    make().encode(TEXTS[:3], role="document")
    error = InputError("text 1 cannot be read", positions=[1])
    with pytest.raises(InputError) as caught:
        make(HashEncoder(before_batch=fails_at(0, error))).encode(TEXTS, role="document")
    assert caught.value.positions == (4,)


def test_blank_texts_are_refused_by_position_before_anything(make):
    inner = HashEncoder()
    with pytest.raises(InputError) as caught:
        make(inner).encode(["a", " "], role="document")
    assert caught.value.positions == (1,)
    assert inner.sent == []


LONG = ["one two three four", "short", "five six seven eight", "one two three four"]


def test_cut_texts_are_reported_once_per_call_with_the_callers_positions(make):
    for expected_to_send in (["one two three four", "five six seven eight"], []):
        cached = make(HashEncoder(max_words=3))
        cached.encode(["short"], role="document")
        with pytest.warns(TruncationWarning, match=r"positions 0, 2, 3\b") as caught:
            cached.encode(LONG, role="document")
        assert len(caught) == 1
        assert cached.inner.sent == expected_to_send or cached.inner.sent == ["short", *expected_to_send]


def test_a_hit_and_a_miss_that_are_cut_are_one_report(make):
    with pytest.warns(TruncationWarning):
        make(HashEncoder(max_words=3)).encode([LONG[2]], role="document")
    with pytest.warns(TruncationWarning, match=r"3 text\(s\).*positions 0, 2, 3\b") as caught:
        make(HashEncoder(max_words=3)).encode(LONG, role="document")
    assert len(caught) == 1


def test_a_hit_that_was_cut_is_refused_where_cutting_is(make):
    with pytest.warns(TruncationWarning):
        make(HashEncoder(max_words=3)).encode(LONG, role="document")
    strict = make(HashEncoder(max_words=3, truncate="error"))
    with pytest.raises(InputError) as caught:
        strict.encode([*LONG[1:], "new"], role="document")
    assert caught.value.positions == (1, 2)
    assert strict.inner.sent == []


def test_a_miss_that_would_be_cut_is_refused_by_the_callers_position(make):
    make(HashEncoder()).encode(["short"], role="document")
    with pytest.raises(InputError) as caught:
        make(HashEncoder(max_words=3, truncate="error")).encode(LONG[1:3], role="document")
    assert caught.value.positions == (1,)


@pytest.mark.parametrize("where", ["local", "remote"])
def test_the_engines_speak_of_the_callers_positions_too(make, demo_url, where):
    from bge_integrations import load_encoder

    options = {} if where == "local" else {"base_url": f"{demo_url}/v1", "wire_model": "demo"}
    for _ in range(2):  # the second time it is a hit
        cached = make(load_encoder("demo", show_progress=False, **options))
        cached.encode(["short"], role="document")
        long = "many words " * cached.card.max_tokens
        with pytest.warns(TruncationWarning, match=r"1 text\(s\).*positions 2\b") as caught:
            cached.encode(["short", "short", long], role="document")
        assert len(caught) == 1


def test_concurrent_calls_reach_the_inner_encoder_together(make):
    together = threading.Barrier(64)
    inner = HashEncoder(before_batch=lambda rows, texts: together.wait(timeout=60) and None)
    cached = make(inner)

    async def ask():
        return await asyncio.gather(*(cached.aencode([f"query {i}"], role="query") for i in range(64)))

    answers = asyncio.run(ask())  # the barrier breaks unless all 64 are in flight at once
    texts = [f"query {i}" for i in range(64)]
    assert np.array_equal(np.concatenate(answers), inner.expected(texts, "query"))


class DictStore:
    def __init__(self, delay=0.0):
        self.rows, self.threads, self.delay = {}, set(), delay

    def get_many(self, keys):
        self.threads.add(threading.get_ident())
        time.sleep(self.delay)
        return [self.rows.get(key) for key in keys]

    def put_many(self, pairs):
        self.threads.add(threading.get_ident())
        time.sleep(self.delay)
        self.rows.update(pairs)


def test_a_slow_store_does_not_block_the_callers_loop(make):
    store = DictStore(delay=0.2)
    cached = make(store=store)

    async def ticks_while_waiting():
        count, task = 0, asyncio.ensure_future(cached.aencode(TEXTS, role="document"))
        while not task.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    assert asyncio.run(ticks_while_waiting()) > 3
    assert len(store.threads) == 1
    assert threading.get_ident() not in store.threads


def test_giving_up_gives_up_the_inner_work(make):
    begun, release = threading.Event(), threading.Event()

    def hang(rows, texts):
        begun.set()
        assert release.wait(60)

    inner = HashEncoder(before_batch=hang)
    cached = make(inner)

    async def impatient():
        task = asyncio.ensure_future(cached.aencode(TEXTS, role="document"))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(impatient())
    release.set()
    inner.before_batch = None
    assert np.array_equal(cached.encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))


class Pending(HashEncoder):
    """Never answers; its callers can only give up."""

    def batches(self, texts, role, stream):
        self.stream = stream
        stream.on_cancel(self.stopped.set)
        self.begun.set()


def test_giving_up_cancels_what_waits_at_the_inner_encoder(make):
    inner = Pending()
    inner.begun, inner.stopped = threading.Event(), threading.Event()
    future = make(inner).submit(TEXTS, role="document")
    assert inner.begun.wait(60)
    assert future.cancel()
    assert inner.stopped.wait(60)
    assert inner.stream.cancelled


def test_a_call_that_fails_on_the_way_is_answered_once(make, caplog):
    class Unwritable(DictStore):
        def put_many(self, pairs):
            raise OSError("no room")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = make(HashEncoder(batch=1), Unwritable())
        with pytest.raises(RepairWarning, match="no room"):
            cached.encode(TEXTS, role="document")
    cached.close()
    assert [record.message for record in caplog.records if record.levelname == "CRITICAL"] == []


def test_it_is_the_inner_encoder_in_all_else(make):
    inner = HashEncoder(query_instruction="mine: ", blank="keep", variant="int8")
    cached = make(inner)
    for name in ("card", "query_instruction", "blank", "variant", "space", "document_space", "usage"):
        assert getattr(cached, name) == getattr(inner, name)
    assert cached.stamp() == inner.stamp()
    assert cached.describe().items() >= inner.describe().items()
    cached.close()
    assert inner.closed == 1
    assert len(cached.encode(TEXTS, role="document")) == len(TEXTS)


def test_usage_counts_hits_apart_and_seconds_once(make):
    cached = make(HashEncoder(delay=0.05))
    cached.encode(TEXTS, role="document")
    one_call = cached.usage.seconds
    cached.encode([*TEXTS, "new"], role="document")
    assert (cached.usage.texts, cached.usage.cache_hits) == (len(TEXTS) + 1, len(TEXTS))
    assert 0.05 <= one_call < cached.usage.seconds


@pytest.mark.parametrize("travel", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_it_travels_before_and_after_use(make, travel):
    cached = make()
    fresh = travel(cached)
    fresh.encode(TEXTS, role="document")
    fresh.close()
    cached.encode(TEXTS, role="document")
    used = travel(cached)
    used.inner.calls.clear()
    assert np.array_equal(used.encode(TEXTS, role="document"), cached.inner.expected(TEXTS, "document"))
    assert used.inner.sent == []
    used.close()


def test_two_caches_around_one_another(make, tmp_path):
    inner = HashEncoder(max_words=3)
    near, far = tmp_path / "near.sqlite", tmp_path / "far.sqlite"
    with pytest.warns(TruncationWarning):
        make(inner, far).encode([LONG[2]], role="document")
    both = make(make(inner, far), near)
    both.encode(["short"], role="document")
    with pytest.warns(TruncationWarning, match=r"positions 0, 2, 3\b") as caught:
        assert np.array_equal(both.encode(LONG, role="document"), inner.expected(LONG, "document"))
    assert len(caught) == 1


def test_no_text_is_in_the_file(make, path):
    secret = "a very private sentence"
    cached = make()
    cached.encode([secret], role="document")
    cached.encode([secret], role="query")
    cached.close()
    for file in path.parent.iterdir():
        assert b"private" not in file.read_bytes()
        assert b"Represent" not in file.read_bytes()


def test_info_says_what_is_there(make, path):
    assert info(path)["exists"] is False
    assert not path.exists()
    before = time.time()
    cached = make()
    cached.encode(TEXTS, role="document")
    make(HashEncoder(replace(CARD, dimensions=8))).encode(TEXTS[:3], role="document")
    known = info(path)
    assert known["vectors"] == 13
    assert known["by_dimensions"] == {8: 3, 16: 10}
    assert 0 < known["bytes_used"] <= known["bytes_on_disk"]
    assert int(before) <= known["newest_use"] <= time.time()
    assert known["set_aside"] == []


BIG = replace(CARD, dimensions=1024)


def test_clear_and_prune_give_room_back(make, path):
    texts = [f"text {i}" for i in range(500)]
    make(HashEncoder(BIG)).encode(texts, role="document")
    full = info(path)["bytes_on_disk"]
    pruned = prune(path, max_bytes=1_000_000)
    assert 0 < pruned["removed"] < 500
    assert pruned["bytes_after"] < full * 0.7
    assert info(path)["bytes_used"] <= 1_000_000
    assert info(path)["vectors"] == 500 - pruned["removed"]
    assert clear(path)["removed"] == 500 - pruned["removed"]
    assert info(path)["vectors"] == 0
    assert prune(path.with_name("none.sqlite"), max_bytes=0)["removed"] == 0
    assert not path.with_name("none.sqlite").exists()


def set_uses(path, when):
    with sqlite3.connect(path) as db:
        db.execute("UPDATE uses SET used = used + ?", (when,))
    db.close()


def test_prune_by_age_spares_what_was_used_since(make, path):
    cached = make()
    cached.encode(TEXTS, role="document")
    set_uses(path, -1000)
    cached.encode(TEXTS[:4], role="document")
    cached.close()
    assert prune(path, older_than=500)["removed"] == 6
    inner = HashEncoder()
    make(inner).encode(TEXTS, role="document")
    assert inner.sent == TEXTS[4:]


def test_rows_that_a_wrong_clock_stored_age_again_once_they_are_used(make, path):
    cached = make()
    cached.encode(TEXTS, role="document")
    cached.close()
    set_uses(path, 10 * 365 * 86_400)
    again = make()
    again.encode(TEXTS, role="document")
    again.close()
    set_uses(path, -1000)
    assert prune(path, older_than=500)["removed"] == len(TEXTS)


def test_a_bound_keeps_what_was_used_last(make, path):
    old, new = [[f"{age} {i}" for i in range(100)] for age in ("old", "new")]
    cached = make(HashEncoder(BIG, batch=10), max_bytes=700_000)
    cached.encode(old, role="document")
    set_uses(path, -1000)
    cached.encode(old[:20], role="document")
    cached.encode(new, role="document")
    assert info(path)["bytes_used"] <= 700_000
    cached.inner.calls.clear()
    cached.encode(old[:20] + new, role="document")
    assert cached.inner.sent == []
    cached.encode(old[20:], role="document")
    assert cached.inner.sent != []


def test_a_bound_smaller_than_anything_still_answers(make):
    inner = HashEncoder()
    cached = make(inner, max_bytes=1)
    for _ in range(2):
        assert np.array_equal(cached.encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))


def test_a_row_of_the_wrong_size_or_kind_is_a_miss(make):
    store = DictStore()
    make(store=store).encode(TEXTS, role="document")
    rows = list(store.rows.values())
    for bad in (b"", b"BGE1", rows[0][:-4], rows[1], b"x" * len(rows[0]), rows[0] + b"\0"):
        store.rows[next(iter(store.rows))] = bad
        inner = HashEncoder()
        assert np.array_equal(make(inner, store).encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))
        assert inner.sent == TEXTS[:1]


def test_what_is_no_store_is_refused():
    for wrong in (5, object(), ["a"]):
        with pytest.raises(ConfigError, match="ByteStore"):
            CachedEncoder(HashEncoder(), wrong)
    with pytest.raises(ConfigError, match="max_bytes"):
        CachedEncoder(HashEncoder(), DictStore(), max_bytes=5)


def test_a_path_that_becomes_somebody_elses_file_under_way_is_left_alone(make, path):
    inner = HashEncoder()
    cached = make(inner)
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    before = path.read_bytes()
    with pytest.warns(RepairWarning, match="another program") as caught:
        first = cached.encode(TEXTS, role="document")
    assert len(caught) == 1
    assert np.array_equal(first, inner.expected(TEXTS, "document"))
    assert np.array_equal(first, cached.encode(TEXTS, role="document"))  # and no second warning
    assert path.read_bytes() == before
    with pytest.raises(CacheError):
        clear(path)


def test_a_file_deleted_under_way_is_made_again(make, path):
    cached = make()
    cached.encode(TEXTS, role="document")
    for file in path.parent.iterdir():
        file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached.encode(TEXTS, role="document")
    assert info(path)["vectors"] == len(TEXTS)


def test_many_more_keys_than_one_statement_takes(make):
    texts = [f"t{i}" for i in range(2500)]
    inner = HashEncoder(batch=1000)
    cached = make(inner)
    cached.encode(texts, role="document")
    assert np.array_equal(cached.encode(texts[::-1], role="document"), inner.expected(texts[::-1], "document"))
    assert len(inner.sent) == 2500


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["query", "document"]),
        st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12),
        st.none() | st.integers(0, 3),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(calls=CALLS)
def test_any_sequence_of_calls_and_failures_is_right_and_sends_nothing_twice(calls):
    store, inner, held = DictStore(), HashEncoder(batch=2), set()
    with CachedEncoder(inner, store) as cached:
        for role, texts, fails in calls:
            inner.calls.clear()
            new = list(dict.fromkeys(text for text in texts if (role, text) not in held))
            inner.before_batch = None if fails is None else fails_at(2 * fails, HostError("down"))
            if fails is not None and 2 * fails < len(new):
                with pytest.raises(HostError) as caught:
                    cached.encode(texts, role=role)
                done = [(role, text) for text in new[: 2 * fails]]
                assert {i for i, t in enumerate(texts) if (role, t) in held.union(done)} == set(caught.value.finished)
                assert sorted(caught.value.finished + caught.value.unfinished) == list(range(len(texts)))
                held.update(done)
            else:
                assert np.array_equal(cached.encode(texts, role=role), inner.expected(texts, role))
                held.update((role, text) for text in new)
            assert inner.sent == new
            assert len(store.rows) == len(held)
