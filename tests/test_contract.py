"""One contract, every encoder: the same calls, the same promises, wherever the vectors come from."""

from __future__ import annotations

import asyncio
import copy
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from threading import Lock

import numpy as np
import pytest

import models
from bge_integrations import ConfigError, InputError, InputTypeError, RepairWarning, RequestRefusedError, load_encoder
from bge_integrations.core.encoder import Encoder
from rig import Rig

EN = "Represent this sentence for searching relevant passages: "
TEXTS = [
    *(text[:300] for text in models.TEXTS),
    "  leading and trailing space \n",
    "UPPER and lower",
    *(f"short text {i}" for i in range(8)),
]
RANDOM = ["bge-small", "bge-m3", "decoder"]
REMOTE = ["remote", "remote-raw", "space"]
NAMES = ["demo", "demo-quiet", *RANDOM, "sentence-transformers", *REMOTE, "cached", "cached-remote"]
# At a host that needs no model, so that the contract is a matter of seconds.
AT_A_RIG = ["rig", "rig-space", "rig-cached"]


def make(name, demo_url, folder):
    """Return an encoder; ``-raw`` has an instruction of the user's own."""
    remote = {"base_url": f"{demo_url}/v1"}
    if name in RANDOM:
        return load_encoder(
            models.folder(name, layers=1 if name == "bge-m3" else 2), query_instruction=EN, device="cpu"
        )
    return {
        "demo": lambda: load_encoder("demo"),
        "demo-quiet": lambda: load_encoder("demo", query_instruction="", show_progress=False),
        "sentence-transformers": lambda: load_encoder("demo", backend="sentence-transformers", device="cpu"),
        "remote": lambda: load_encoder("demo", **remote),
        "remote-raw": lambda: load_encoder("demo", query_instruction="\n Find: ", max_inputs=8, **remote),
        "space": lambda: load_encoder("demo", provider="space", base_url=demo_url),
        "cached": lambda: load_encoder("demo", cache=folder / "local.sqlite"),
        "cached-remote": lambda: load_encoder("demo", cache=folder / "remote.sqlite", **remote),
    }[name]()


def make_at_a_rig(name, host, folder):
    space = {"provider": "space", "base_url": host.space_url}
    cached = {"cache": folder / "rig.sqlite"} if name == "rig-cached" else {}
    return load_encoder("bge-small", **(space if name == "rig-space" else {"base_url": host.url}), **cached)


@pytest.fixture(scope="module")
def host():
    with Rig() as host:
        yield host


@pytest.fixture(scope="module", params=[*AT_A_RIG, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)])
def encoder(request, host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    if request.param in AT_A_RIG:
        made = make_at_a_rig(request.param, host, folder)
    else:
        made = make(request.param, request.getfixturevalue("demo_url"), folder)
    with made as encoder:
        encoder.encode(["loaded"], role="document")
        yield encoder


@pytest.fixture(scope="module")
def known(encoder):
    """What the encoder gives for each role, one call each."""
    return {role: encoder.encode(TEXTS, role=role) for role in ("query", "document")}


@pytest.fixture(scope="module")
def elsewhere():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


def close_to(got, wanted, tolerance=2e-5):
    # Texts that are computed together with others may differ in the last bits.
    np.testing.assert_allclose(got, wanted, atol=tolerance, rtol=0)


def test_vectors_have_the_promised_shape_type_and_length(encoder, known):
    assert isinstance(encoder, Encoder)
    for vectors in known.values():
        assert vectors.shape == (len(TEXTS), encoder.card.dimensions)
        assert vectors.dtype == np.float32
        assert isinstance(vectors, np.ndarray)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_rows_stand_in_the_order_of_the_texts(encoder, known):
    assert len(np.unique(known["document"].round(5), axis=0)) == len(TEXTS)
    close_to(encoder.encode(TEXTS[::-1], role="document"), known["document"][::-1])
    for i in (0, 3, 7):
        close_to(encoder.encode([TEXTS[i]], role="document")[0], known["document"][i])


def test_the_same_text_twice_has_the_same_vector_twice(encoder, known):
    got = encoder.encode([TEXTS[2], TEXTS[0], TEXTS[2]], role="document")
    close_to(got, known["document"][[2, 0, 2]])


def test_the_instruction_is_there_exactly_once_and_on_queries_alone(encoder, known):
    composed = encoder.format(TEXTS, "query")
    instruction = encoder.card.instruction(encoder.query_instruction)
    assert composed == [instruction + text for text in TEXTS]
    close_to(encoder.encode(composed, role="document"), known["query"])
    if instruction:
        assert np.abs(known["query"] - known["document"]).max(axis=1).min() > 1e-3


@pytest.mark.slow
def test_saved_prompts_of_a_model_are_not_added_on_top():
    folder = models.folder("bge-small", prompts=True)
    plain = load_encoder(models.folder("bge-small"), query_instruction=EN, device="cpu")
    for backend in ("auto", "sentence-transformers"):
        with load_encoder(folder, query_instruction=EN, backend=backend, device="cpu") as prompted:
            for role in ("query", "document"):
                close_to(prompted.encode(TEXTS, role=role), plain.encode(TEXTS, role=role))


async def test_async_gives_the_same(encoder, known):
    for role in ("query", "document"):
        close_to(await encoder.aencode(TEXTS, role=role), known[role])


async def test_sync_works_inside_a_running_loop(encoder, known):
    close_to(encoder.encode(TEXTS, role="query"), known["query"])


async def test_many_calls_at_once_in_one_loop(encoder, known):
    roles = ["query", "document"] * 8
    got = await asyncio.gather(*(encoder.aencode(TEXTS[i : i + 3], role=role) for i, role in enumerate(roles)))
    for i, (role, vectors) in enumerate(zip(roles, got, strict=True)):
        close_to(vectors, known[role][i : i + 3])


def test_16_threads_at_once(encoder, known):
    jobs = [(i % len(TEXTS), role) for i in range(16) for role in ("query", "document")]
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda job: encoder.encode([TEXTS[job[0]]], role=job[1])[0], jobs))
    close_to(np.stack(got), np.stack([known[role][i] for i, role in jobs]))


def test_loops_come_and_go(encoder, known):
    for _ in range(3):
        close_to(asyncio.run(encoder.aencode(TEXTS[:2], role="query")), known["query"][:2])


async def test_a_cancelled_call_leaves_the_encoder_well(encoder, known):
    for pause in (0.001, 0):  # a loaded machine may sleep until the call has ended; without a pause it cannot have
        task = asyncio.create_task(encoder.aencode([f"cancelled text {i}" for i in range(200)], role="document"))
        await asyncio.sleep(pause)
        if task.cancel():
            break
    with pytest.raises(asyncio.CancelledError):
        await task
    close_to(await encoder.aencode(TEXTS, role="document"), known["document"])


@pytest.mark.parametrize("role", ["query", "document"])
def test_on_batch_brings_every_index_exactly_once_before_the_call_returns(encoder, known, role):
    seen, lock = {}, Lock()

    def on_batch(indices, vectors):
        assert len(indices) == len(vectors)
        with lock:
            for index, vector in zip(indices, vectors.copy(), strict=True):
                assert index not in seen
                seen[int(index)] = vector

    vectors = encoder.encode(TEXTS, role=role, on_batch=on_batch)
    assert sorted(seen) == list(range(len(TEXTS)))
    close_to(np.stack([seen[i] for i in range(len(TEXTS))]), vectors, 1e-7)
    close_to(vectors, known[role])


def test_what_on_batch_raises_ends_the_call_and_not_the_encoder(encoder, known):
    def on_batch(indices, vectors):
        raise LookupError("the store is full")

    with pytest.raises(LookupError, match="the store is full"):
        encoder.encode(TEXTS, role="document", on_batch=on_batch)
    close_to(encoder.encode(TEXTS[:2], role="document"), known["document"][:2])


async def test_no_texts_are_no_vectors(encoder):
    for vectors in (encoder.encode([], role="query"), await encoder.aencode([], role="document")):
        assert (vectors.shape, vectors.dtype) == ((0, encoder.card.dimensions), np.float32)


def test_the_role_must_be_said(encoder):
    with pytest.raises(TypeError, match="role"):
        encoder.encode(["a"])
    with pytest.raises(ConfigError, match="'query' or 'document'"):
        encoder.encode(["a"], role="passage")


NO_TEXTS = [
    ("a bare string", ()), (None, ()), (5, ()), (b"bytes", ()), ({"a"}, ()), (frozenset("a"), ()),
    (["a", None], (1,)), (["a", 5, "b", 1.5], (1, 3)), ([b"a"], (0,)), ([["a"]], (0,)),
]  # fmt: skip


async def test_what_is_no_text_is_a_type_error_before_anything_is_sent(encoder):
    before = encoder.usage.to_dict()
    for texts, positions in NO_TEXTS:
        with pytest.raises(InputTypeError) as caught:
            encoder.encode(texts, role="document")
        assert isinstance(caught.value, TypeError)
        assert caught.value.positions == positions, texts
        with pytest.raises(InputTypeError):
            await encoder.aencode(texts, role="query")
    after = encoder.usage.to_dict()
    assert {**after, "seconds": 0} == {**before, "seconds": 0}


def test_a_blank_text_is_an_error_with_its_position(encoder):
    for blank in ("", " \n\t "):
        with pytest.raises(InputError, match="text 1 is blank") as caught:
            encoder.encode(["a", blank], role="document")
        assert caught.value.positions == (1,)


def test_a_lone_surrogate_is_replaced_with_one_warning(encoder):
    with pytest.warns(RepairWarning) as caught:
        got = encoder.encode(["bro\ud800ken", "whole"], role="document")
    assert len(caught) == 1
    close_to(got, encoder.encode(["bro\ufffdken", "whole"], role="document"))


def test_odd_characters_reach_the_model(encoder):
    odd = ["nul \x00 byte", "שלום עולם", "👩‍👩‍👧 family", "tab\tand\r\nlines", "e\u0301 and é", "\u200b zero width"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        together = encoder.encode(odd, role="document")
    for i, text in enumerate(odd):
        close_to(encoder.encode([text], role="document")[0], together[i])


def test_copies_and_pickles_give_the_same(encoder, known):
    for twin in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        with twin:
            assert twin.space == encoder.space
            close_to(twin.encode(TEXTS[:3], role="query"), known["query"][:3])


def embed_there(encoder, texts):
    with encoder:
        return encoder.encode(texts, role="query"), asyncio.run(encoder.aencode(texts, role="document")), encoder.space


def test_a_spawned_process_gives_the_same(encoder, known, elsewhere):
    if encoder.engine.describe().get("backend") == "sentence-transformers":
        pytest.skip("importing it there takes ten seconds, and what travels is the same engine")
    queries, documents, space = elsewhere.submit(embed_there, encoder, TEXTS[:3]).result(timeout=100)
    close_to(queries, known["query"][:3])
    close_to(documents, known["document"][:3])
    assert space == encoder.space


def test_a_closed_encoder_opens_again(encoder, known):
    encoder.close()
    encoder.close()
    close_to(encoder.encode(TEXTS[:2], role="query"), known["query"][:2])


def test_what_it_tells_of_itself_is_plain_and_complete(encoder):
    import json

    json.dumps([encoder.describe(), encoder.stamp(), encoder.usage.to_dict()])
    assert encoder.describe()["model"] == encoder.card.id
    assert encoder.stamp()["space"] == encoder.space
    assert encoder.card.id in encoder.space
    assert encoder.card.id in repr(encoder) or encoder.card.id in str(encoder.describe())


def test_it_counts_what_it_did(encoder):
    before = encoder.usage.to_dict()
    encoder.encode([f"counted {i} {id(encoder)}" for i in range(5)], role="document")
    after = encoder.usage.to_dict()
    assert after["texts"] - before["texts"] == 5
    assert after["seconds"] > before["seconds"]


# ---- the same wherever


@pytest.mark.parametrize("name", [*REMOTE, "cached", "cached-remote", "sentence-transformers"])
def test_local_and_remote_are_equal_and_share_a_space(name, demo, demo_url, tmp_path):
    with make(name, demo_url, tmp_path) as other:
        local = demo if other.query_instruction is None else load_encoder("demo", query_instruction="\n Find: ")
        assert other.space == local.space
        assert other.document_space == demo.document_space
        for role in ("query", "document"):
            close_to(other.encode(TEXTS, role=role), local.encode(TEXTS, role=role))


@pytest.mark.parametrize("name", ["cached", "cached-remote"])
def test_a_second_time_comes_out_of_the_cache_in_its_role(name, demo_url, tmp_path):
    with make(name, demo_url, tmp_path) as encoder:
        first = {role: encoder.encode(TEXTS, role=role) for role in ("query", "document")}
        embedded = encoder.usage.texts
        assert embedded == 2 * len(TEXTS)
        for role in ("query", "document"):
            np.testing.assert_array_equal(encoder.encode(TEXTS, role=role), first[role])
        assert (encoder.usage.texts, encoder.usage.cache_hits) == (embedded, 2 * len(TEXTS))


def test_blank_texts_can_be_kept_and_a_host_that_refuses_them_is_named(demo, demo_url, tmp_path):
    for where in ({}, {"cache": tmp_path / "c.sqlite"}):
        with load_encoder("demo", blank="keep", **where) as encoder:
            kept = encoder.encode(["a", " "], role="document")
            close_to(kept[:1], demo.encode(["a"], role="document"))
            assert np.abs(kept[1] - kept[0]).max() > 1e-3
    for where in ({"base_url": f"{demo_url}/v1"}, {"provider": "space", "base_url": demo_url}):
        with load_encoder("demo", blank="keep", **where) as encoder, pytest.raises(RequestRefusedError, match="blank"):
            encoder.encode(["a", " "], role="document")


def test_every_kind_of_engine_was_held_to_it(demo_url, tmp_path):
    kinds = {make(name, demo_url, tmp_path).engine.describe().get("protocol", "local") for name in NAMES}
    assert kinds == {"local", "openai", "space"}
