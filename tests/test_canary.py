"""The canary: one known text goes to a host before the first real one, and a wrong answer keeps the real ones here."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import warnings
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from bge_integrations.catalog import find_model
from bge_integrations.catalog.golden import read_golden
from bge_integrations.errors import HostUnavailableError, SpaceMismatchError, UnverifiedWarning
from bge_integrations.wrappers.verified import VerifiedEncoder, probe_of
from encoders import CARD, HashEncoder, hash_vectors

BASE = find_model("bge-base-en-v1.5")
SMALL = find_model("bge-small-en-v1.5")
HOST = "https://host.example/v1"


class Recorded(HashEncoder):
    """Gives the published vector for the texts that have one, filled up where only a part is known."""

    def __init__(self, card=BASE, *, noise=0.0, shuffled=False, fails=0, held=None, **options):
        super().__init__(card, **options)
        self.noise, self.shuffled, self.fails, self.held = noise, shuffled, fails, held

    def work(self, texts, role, stream, long):
        if self.held is not None:
            assert self.held.wait(30)
        if self.fails:
            self.fails -= 1
            raise HostUnavailableError("down", provider="host", model=self.card.id)
        super().work(texts, role, stream, long)

    def vectors(self, texts, role):
        vectors = super().vectors(texts, role)
        known = {golden.text: golden for golden in read_golden().of(self.card)}
        for row, text in zip(vectors, texts, strict=True):
            if text in known:
                row[:] = self._published(known[text])
        return vectors

    def _published(self, golden):
        row = hash_vectors([golden.text], self.card.dimensions)[0]
        row[list(golden.at)] = 0
        rest = 1 - sum(value**2 for value in golden.at.values())
        row *= np.sqrt(max(rest, 0)) / (np.linalg.norm(row) or 1)
        row[list(golden.at)] = list(golden.at.values())
        if self.shuffled:
            row = np.roll(row, 1)
        row = row + self.noise * hash_vectors(["noise"], self.card.dimensions)[0]
        return row / np.linalg.norm(row)


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "verified.json"


def guarded(inner, memory=None, day="2026-11-21"):
    return VerifiedEncoder(inner, host=HOST, memory=memory, today=lambda: day)


@pytest.mark.parametrize("card", [BASE, SMALL], ids=["a full vector", "five numbers"])
def test_the_right_host_is_asked_once_and_then_trusted(card):
    inner = Recorded(card)
    encoder = guarded(inner)
    vectors = encoder.encode(["one", "two"], role="query")
    np.testing.assert_array_equal(vectors, inner.expected(["one", "two"], "query"))
    encoder.encode(["three"], role="document")
    assert inner.calls == [[probe_of(card).text], ["one", "two"], ["three"]]


@pytest.mark.parametrize("wrong", [{"shuffled": True}, {"noise": 0.3}, {"noise": 0.15}])
@pytest.mark.parametrize("card", [BASE, SMALL], ids=["a full vector", "five numbers"])
def test_a_wrong_host_gets_no_real_text(card, wrong, memory):
    inner = Recorded(card, **wrong)
    encoder = guarded(inner, memory)
    for _ in range(2):
        with pytest.raises(SpaceMismatchError, match=r"host\.example.*bge verify") as caught:
            encoder.encode(["secret"], role="document")
    assert caught.value.model == card.id
    assert caught.value.cosine < 0.998
    assert pickle.loads(pickle.dumps(caught.value)).verdict == caught.value.verdict
    assert "secret" not in inner.sent
    assert not memory.exists()


def test_float16_and_bfloat16_copies_are_taken_and_int8_only_where_it_is_said():
    assert guarded(Recorded(noise=0.03)).encode(["one"], role="document").shape == (1, 768)
    with pytest.raises(SpaceMismatchError, match="coarser copy"):
        guarded(Recorded(noise=0.15)).encode(["one"], role="document")
    assert guarded(Recorded(noise=0.15, variant="int8")).encode(["one"], role="document").shape == (1, 768)


def test_the_day_s_result_is_remembered_per_host_model_and_space(memory):
    guarded(Recorded(), memory).encode(["one"], role="document")
    again = Recorded()
    guarded(again, memory).encode(["one"], role="document")
    assert again.calls == [["one"]]
    for other in (
        VerifiedEncoder(again, host="https://other.example/v1", memory=memory, today=lambda: "2026-11-21"),
        guarded(again, memory, day="2026-11-22"),
        guarded(Recorded(SMALL), memory),
    ):
        inner = other.inner
        inner.calls.clear()
        other.encode(["one"], role="document")
        assert len(inner.calls) == 2
    assert "host" not in memory.read_text()
    assert set(json.loads(memory.read_text()).values()) <= {"2026-11-21", "2026-11-22"}


def test_a_new_day_is_asked_anew_within_the_same_object():
    inner, day = Recorded(), ["2026-11-21"]
    encoder = VerifiedEncoder(inner, host=HOST, today=lambda: day[0])
    encoder.encode(["one"], role="document")
    day[0] = "2026-11-22"
    encoder.encode(["two"], role="document")
    assert len(inner.calls) == 4


def test_a_broken_memory_is_no_obstacle(memory):
    memory.parent.mkdir()
    memory.write_text("{nonsense")
    inner = Recorded()
    guarded(inner, memory).encode(["one"], role="document")
    assert len(inner.calls) == 2
    assert len(json.loads(memory.read_text())) == 1


def test_a_memory_that_cannot_be_written_warns_and_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    seen = []
    encoder = guarded(Recorded(), tmp_path / "file" / "verified.json")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen.append(encoder.encode(["one"], role="document"))
    assert seen[0].shape == (1, 768)
    assert "cannot remember" in str(caught[0].message)


@pytest.mark.parametrize("card", [CARD, replace(BASE, pooling="mean")], ids=["unknown model", "another pooling"])
def test_a_model_without_published_values_warns_once_and_goes_on(card):
    inner = Recorded(card)
    encoder = guarded(inner)
    with pytest.warns(UnverifiedWarning, match="bge verify"):
        encoder.encode(["one"], role="document")
    encoder.encode(["two"], role="document")
    assert inner.calls == [["one"], ["two"]]


def test_a_host_that_is_down_is_its_own_error_and_asked_again():
    inner = Recorded(fails=1)
    encoder = guarded(inner)
    with pytest.raises(HostUnavailableError) as caught:
        encoder.encode(["one", "two", "three"], role="document")
    assert caught.value.unfinished == (0, 1, 2)
    assert encoder.encode(["one"], role="document").shape == (1, 768)


def test_many_first_callers_share_one_probe():
    held = threading.Event()
    inner = Recorded(held=held)
    encoder = guarded(inner)
    futures = [encoder.submit([f"text {i}"], role="document") for i in range(8)]
    held.set()
    for i, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(30), inner.expected([f"text {i}"], "document"))
    assert sum(call == [probe_of(BASE).text] for call in inner.calls) == 1


async def test_the_caller_s_loop_is_not_blocked_by_the_probe():
    held = threading.Event()
    inner = Recorded(held=held)
    task = asyncio.create_task(guarded(inner).aencode(["one"], role="document"))
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert not task.done()
    held.set()
    assert (await asyncio.wait_for(task, 30)).shape == (1, 768)


def test_a_cancelled_call_sends_nothing():
    held = threading.Event()
    inner = Recorded(held=held)
    encoder = guarded(inner)
    future = encoder.submit(["one"], role="document")
    assert future.cancel()
    held.set()
    assert encoder.encode(["two"], role="document").shape == (1, 768)
    assert "one" not in inner.sent


def test_on_batch_and_usage_are_the_inner_encoder_s():
    inner = Recorded()
    encoder = guarded(inner)
    batches = []
    encoder.encode(
        ["one", "two"], role="document", on_batch=lambda rows, vectors: batches.append((list(rows), len(vectors)))
    )
    assert batches == [([0, 1], 2)]
    assert encoder.usage is inner.usage
    assert encoder.space == inner.space


def test_it_travels():
    encoder = guarded(Recorded(), None)
    encoder._day = str  # a lambda does not pickle, the real clock does
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert other.encode(["one"], role="document").shape == (1, 768)
    assert isinstance(encoder.submit(["x"], role="document"), Future)
    encoder.close()
