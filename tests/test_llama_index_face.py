"""LlamaIndex's face: every way in gets the right role, and to_dict holds what decides the vectors and no secret."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from operator import methodcaller
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    LlamaDebugHandler,
    TokenCountingHandler,
)
from llama_index.core.ingestion.pipeline import IngestionPipeline, get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.rate_limiter import BaseRateLimiter, TokenBucketRateLimiter
from llama_index.core.schema import TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores import SimpleVectorStore
from pydantic import SecretStr

from bge_integrations import (
    ConfigError,
    InputError,
    InputTypeError,
    MissingKeyError,
    ReadOnlyError,
    SpaceMismatchError,
    TooLongError,
    TruncationWarning,
    UnknownModelError,
)
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.options import OPTIONS
from encoders import CARD, HashEncoder

CANARY = "sk-canary-4242"
TEXTS = [f"text\n number {i} " for i in range(70)]
DEEPINFRA = {"model_name": "bge-base", "provider": "deepinfra"}


@pytest.fixture
def face():
    with HashEncoder(batch=8) as encoder:
        yield BGEEmbedding(encoder=encoder)


def documents(face, texts=TEXTS):
    return face.encoder.expected(texts, "document").tolist()


def query(face, text):
    return face.encoder.expected([text], "query")[0].tolist()


# ---- every way in


def test_documents_and_queries_get_their_roles_in_sync(face):
    assert face.get_text_embedding_batch(TEXTS) == documents(face)
    assert face.get_text_embedding("a\n b ") == documents(face, ["a\n b "])[0]
    assert face.get_query_embedding("a\n b ") == query(face, "a\n b ")
    assert face._get_text_embeddings(TEXTS) == documents(face)
    assert face.get_agg_embedding_from_queries(["q"]) == pytest.approx(query(face, "q"))


async def test_documents_and_queries_get_their_roles_in_async(face):
    assert await face.aget_text_embedding_batch(TEXTS) == documents(face)
    assert await face.aget_text_embedding("a") == documents(face, ["a"])[0]
    assert await face.aget_query_embedding("a") == query(face, "a")
    assert await face._aget_text_embeddings(TEXTS) == documents(face)
    assert await face.aget_agg_embedding_from_queries(["q"]) == pytest.approx(query(face, "q"))


async def test_nodes_get_their_vectors(face):
    for call in (face, face.acall):
        nodes = [TextNode(text=text) for text in TEXTS[:5]]
        got = call(nodes)
        got = await got if asyncio.iscoroutine(got) else got
        contents = [node.get_content("embed") for node in got]
        assert [node.embedding for node in got] == documents(face, contents)


async def test_a_sync_call_works_inside_a_running_loop(face):
    assert face.get_text_embedding_batch(TEXTS) == documents(face)
    assert face.get_query_embedding("q") == query(face, "q")


def test_numbers_are_pythons_own_floats(face):
    got = face.get_text_embedding_batch(TEXTS[:2])
    assert {type(number) for row in [*got, face.get_query_embedding("q")] for number in row} == {float}
    assert face.get_text_embedding_batch([]) == []
    assert asyncio.run(face.aget_text_embedding_batch([])) == []


def test_it_works_from_16_threads_at_once(face):
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(face.get_query_embedding, TEXTS))
    np.testing.assert_array_equal(np.array(got, np.float32), face.encoder.expected(TEXTS, "query"))


def names():
    return {thread.name for thread in threading.enumerate()}


async def test_async_does_not_block_the_loop(face):
    face.encoder.delay, ticks, before = 0.05, 0, names()

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await asyncio.gather(face.aget_text_embedding_batch(TEXTS[:16]), face.aget_query_embedding("q"))
    ticking.cancel()
    assert ticks >= 3
    assert not [name for name in names() - before if name.startswith("asyncio_")]


# ---- bad input


@pytest.mark.parametrize("call", ["get_text_embedding_batch", "aget_text_embedding_batch"])
@pytest.mark.parametrize("batch", [None, 10])
@pytest.mark.parametrize(("bad", "error"), [(None, InputTypeError), (5, InputTypeError), (" ", InputError)])
def test_bad_input_is_refused_with_its_own_position_before_anything_is_sent(face, call, batch, bad, error):
    if batch:
        face.embed_batch_size = batch
    with pytest.raises(error, match="text 25 is") as caught:
        finished(getattr(face, call), [*TEXTS[:25], bad, *TEXTS])
    assert caught.value.positions == (25,)
    assert face.encoder.calls == []


def finished(call, *args):
    async def awaited():
        result = call(*args)
        return await result if asyncio.iscoroutine(result) else result

    return asyncio.run(awaited())


@pytest.mark.parametrize("call", ["get_text_embedding_batch", "aget_text_embedding_batch", "_get_text_embeddings"])
@pytest.mark.parametrize("texts", ["a bare string", None, 5], ids=repr)
def test_a_bare_string_where_a_list_belongs_is_a_type_error(face, call, texts):
    with pytest.raises(InputTypeError):
        finished(getattr(face, call), texts)
    assert face.encoder.calls == []


@pytest.mark.parametrize("call", ["get_query_embedding", "aget_query_embedding", "get_text_embedding"])
@pytest.mark.parametrize("text", [None, 5, b"q", "", " "], ids=repr)
def test_a_query_that_is_no_text_is_refused(face, call, text):
    with pytest.raises(InputError):
        finished(getattr(face, call), text)
    assert face.encoder.calls == []


def test_blank_texts_are_kept_where_that_is_asked_for():
    face = BGEEmbedding(encoder=HashEncoder(blank="keep"))
    assert len(face.get_text_embedding_batch(["a", ""])) == 2


def test_long_texts_are_reported_once_with_their_own_positions():
    face = BGEEmbedding(encoder=HashEncoder(max_words=3, batch=4))
    with pytest.warns(TruncationWarning, match="positions 3000") as caught:
        face.get_text_embedding_batch([*["short"] * 3000, "one two three four"])
    assert len(caught) == 1


# ---- fields of the base class


def test_embed_batch_size_bounds_what_one_call_gets(face):
    face.embed_batch_size = 32
    face.get_text_embedding_batch(TEXTS)
    assert [len(call) for call in face.encoder.calls] == [32, 32, 6]
    assert BGEEmbedding(encoder=face.encoder, embed_batch_size=7).embed_batch_size == 7
    with pytest.raises(ConfigError, match="embed_batch_size"):
        BGEEmbedding("demo", embed_batch_size=0)


def test_by_default_all_texts_are_one_call(face):
    face.get_text_embedding_batch([f"t{i}" for i in range(5000)])
    assert len(face.encoder.calls) == 1


async def test_num_workers_bounds_batches_in_flight(face):
    most, running, lock = 0, 0, threading.Lock()

    def count(indices, texts):
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    face.encoder.before_batch = count
    face.embed_batch_size, face.num_workers = 4, 2
    assert await face.aget_text_embedding_batch(TEXTS) == documents(face)
    assert most == 2


class Waiting(BaseRateLimiter):
    def __init__(self):
        self.asked = []

    def acquire(self, num_tokens=0):
        self.asked.append("sync")

    async def async_acquire(self, num_tokens=0):
        self.asked.append("async")


async def test_a_rate_limiter_is_asked():
    limiter = Waiting()
    face = BGEEmbedding(encoder=HashEncoder(), rate_limiter=limiter)
    face.get_query_embedding("q")
    face.get_text_embedding_batch(TEXTS)
    await face.aget_text_embedding_batch(TEXTS)
    assert limiter.asked == ["sync", "sync", "async"]


async def test_a_rate_limiter_is_asked_once_for_each_request_to_a_host(demo_url):
    limiter = Waiting()
    face = BGEEmbedding("demo", base_url=f"{demo_url}/v1", max_inputs=30, rate_limiter=limiter)
    with face.encoder:
        face.get_text_embedding_batch(TEXTS[:60])
        await face.aget_query_embedding("q")
    assert limiter.asked == ["async"] * 3


@pytest.mark.parametrize("where", [{}, DEEPINFRA | {"api_key": CANARY}], ids=["local", "remote"])
def test_a_rate_limiter_travels_though_it_holds_a_lock(where):
    limiter = TokenBucketRateLimiter(requests_per_minute=600)
    face = BGEEmbedding(**{"model_name": "demo", **where}, rate_limiter=limiter)
    for twin, shared in ((copy.deepcopy(face), True), (pickle.loads(pickle.dumps(face)), False)):
        kept = twin.rate_limiter or twin.encoder.engine.rate_limiter
        assert (kept.inner is limiter) is shared
        assert kept.inner.requests_per_minute == 600
        kept.acquire()


class Heard(BaseEventHandler):
    events: list

    def handle(self, event, **kwargs):
        if isinstance(event, (EmbeddingStartEvent, EmbeddingEndEvent)):
            self.events.append(event)


@pytest.fixture
def heard():
    root, handler = get_dispatcher(), Heard(events=[])
    root.add_event_handler(handler)
    yield handler.events
    root.event_handlers.remove(handler)


async def test_callbacks_and_instrumentation_are_told_of_each_batch(heard, face):
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler(tokenizer=str.split)
    face.callback_manager = CallbackManager([debug, counter])
    face.embed_batch_size = 50
    await face.aget_text_embedding_batch(TEXTS)
    face.get_text_embedding_batch(TEXTS[:3])
    face.get_query_embedding("a query")
    pairs = debug.get_event_pairs(CBEventType.EMBEDDING)
    assert [pair[1].payload[EventPayload.CHUNKS] for pair in pairs] == [TEXTS[:50], TEXTS[50:], TEXTS[:3], ["a query"]]
    assert pairs[2][1].payload[EventPayload.EMBEDDINGS] == documents(face, TEXTS[:3])
    assert counter.total_embedding_token_count == 73 * 3 + 2
    ends = [event for event in heard if isinstance(event, EmbeddingEndEvent)]
    assert sorted(len(event.chunks) for event in ends[:2]) == [20, 50]  # both were under way
    assert [len(event.chunks) for event in ends[2:]] == [3, 1]
    assert ends[-1].embeddings == [query(face, "a query")]
    assert [e.model_dict["model_name"] for e in heard if isinstance(e, EmbeddingStartEvent)] == [CARD.id] * 4


def test_settings_take_it(face):
    before = Settings._embed_model
    try:
        Settings.embed_model = face
        assert Settings.embed_model is face
        assert face.callback_manager is Settings.callback_manager
    finally:
        Settings._embed_model = before


@pytest.mark.parametrize("late", [False, True], ids=["given", "assigned later"])
async def test_its_cache_never_gives_a_query_a_documents_vector(late):
    store, encoder = SimpleKVStore(), HashEncoder()
    face = BGEEmbedding(encoder=encoder, **({} if late else {"embeddings_cache": store}))
    if late:
        face.embeddings_cache = store
    for _ in range(2):
        assert face.get_text_embedding("same") == documents_of(encoder, "same")
        assert face.get_query_embedding("same") == encoder.expected(["same"], "query")[0].tolist()
        assert await face.aget_query_embedding("same") == face.get_query_embedding("same")
        assert (await face.aget_text_embedding_batch(["same"]))[0] == face.get_text_embedding("same")
    assert len(encoder.sent) == 2
    other = HashEncoder(variant="int8")
    BGEEmbedding(encoder=other, embeddings_cache=store).get_text_embedding("same")
    assert len(other.sent) == 1


def documents_of(encoder, text):
    return encoder.expected([text], "document")[0].tolist()


def test_its_cache_can_be_taken_away_again():
    encoder = HashEncoder()
    face = BGEEmbedding(encoder=encoder, embeddings_cache=SimpleKVStore())
    face.embeddings_cache = None
    assert face.encoder is encoder


@pytest.mark.parametrize("asynchronous", [False, True])
def test_show_progress_moves_one_bar_over_all_texts(capsys, face, asynchronous):
    call = face.aget_text_embedding_batch if asynchronous else face.get_text_embedding_batch
    assert finished(lambda: call(TEXTS, show_progress=True)) == documents(face)
    shown = capsys.readouterr().err
    assert "70/70" in shown
    assert shown.count("Embedding") >= 1
    assert "Generating" not in shown
    finished(call, TEXTS)
    assert capsys.readouterr().err == ""


# ---- how it is made


def test_model_and_model_name_are_the_same_and_a_folder_may_be_a_path(tmp_path):
    assert BGEEmbedding("bge-base").space == BGEEmbedding(model_name="bge-base").space
    assert BGEEmbedding().model_name == "BAAI/bge-small-en-v1.5"
    folder = tmp_path / "mine"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    face = BGEEmbedding(folder, query_instruction="")
    assert face.model_name == str(folder)
    json.loads(face.to_json())


@pytest.mark.parametrize(("options", "match"), [
    ({"query_instructoin": "x"}, "did you mean 'query_instruction'"), ({"apikey": CANARY}, "did you mean 'api_key'"),
    ({"truncate": "no"}, "truncate: .*'warn' or 'error'"), ({"timeout": "soon"}, "timeout"),
    ({"timeout": -1}, "timeout must be"), ({"api_key": [CANARY]}, "api_key"), ({"max_inputs": 0}, "max_inputs must be"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused_without_showing_what_was_given(options, match):
    with pytest.raises(ConfigError, match=match) as caught:
        BGEEmbedding("demo", **options)
    assert CANARY not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_an_unknown_model_is_refused():
    with pytest.raises(UnknownModelError, match="bge-small"):
        BGEEmbedding("bge-smal")


def test_a_ready_encoder_stands_alone(face):
    with pytest.raises(ConfigError, match="'test/hash', not 'bge-m3'"):
        BGEEmbedding("bge-m3", encoder=face.encoder)
    with pytest.raises(ConfigError, match="timeout"):
        BGEEmbedding(encoder=face.encoder, timeout=5)


def test_it_is_a_base_embedding_with_all_of_its_fields(face):
    assert isinstance(face, BaseEmbedding)
    assert set(BaseEmbedding.model_fields) <= set(BGEEmbedding.model_fields)
    assert face.class_name() == "BGEEmbedding"


# ---- saved and loaded


@pytest.mark.slow
def test_to_dict_and_back_is_the_same_model_in_the_same_space():
    face = BGEEmbedding(
        "demo", query_instruction="find: ", truncate="error", device="cpu", timeout=9, embed_batch_size=5
    )
    saved = face.to_dict()
    for twin in (BGEEmbedding.from_dict(saved), BGEEmbedding.from_json(face.to_json())):
        assert twin.space == face.space
        assert (twin.query_instruction, twin.truncate, twin.device) == ("find: ", "error", "cpu")
        assert twin.to_dict() == saved
        assert twin.get_query_embedding("q") == face.get_query_embedding("q")
    assert not {"timeout", "embed_batch_size", "api_key", "cache", "num_workers", "callback_manager"} & set(saved)


def test_to_dict_needs_no_key_and_holds_none(monkeypatch):
    face = BGEEmbedding(**DEEPINFRA, api_key=CANARY)
    payload = getattr(face, "to_payload", face.to_dict)()  # llama-index-core has it since 0.14.23
    texts = [str(face.to_dict()), face.to_json(), repr(face), str(face), face.model_dump_json(), str(payload)]
    assert not [text for text in texts if CANARY in text]
    assert isinstance(face.api_key, SecretStr)
    monkeypatch.setenv("DEEPINFRA_TOKEN", CANARY)
    assert BGEEmbedding(**DEEPINFRA).to_dict() == face.to_dict()
    assert BGEEmbedding.from_dict(face.to_dict()).to_dict() == face.to_dict()


def test_vectors_of_another_space_are_not_made_by_mistake():
    saved = BGEEmbedding("demo").to_dict()
    with pytest.raises(SpaceMismatchError, match="this machine's space is"):
        BGEEmbedding.from_dict({**saved, "space": "demo@other/cls/256/query:none"})


def test_a_tokenizer_is_saved_as_its_path(tmp_path):
    path = Path(BGEEmbedding("demo").encoder.card.folder) / "tokenizer.json"
    assert BGEEmbedding("demo", tokenizer=path).to_dict()["tokenizer"] == str(path)
    assert json.loads(BGEEmbedding("demo", tokenizer=len).to_json())["tokenizer"] is None


NODES = [TextNode(text="a node")]


def hash_of(*args, **options):
    return get_transformation_hash(NODES, BGEEmbedding(*args, **options))


def test_a_pipelines_cache_is_hit_whatever_changes_no_vector(tmp_path, monkeypatch):
    plain = hash_of("demo")
    for options in ({"embed_batch_size": 3}, {"timeout": 5.0}, {"max_retries": 1}, {"cache": tmp_path / "c.sqlite"},
                    {"num_workers": 2}, {"show_progress": True}, {"max_concurrency": 2}, {"requests_per_minute": 9},
                    {"embeddings_cache": SimpleKVStore()}, {"callback_manager": CallbackManager([])}):  # fmt: skip
        assert hash_of("demo", **options) == plain, options
    monkeypatch.setenv("DEEPINFRA_TOKEN", CANARY)
    assert hash_of(**DEEPINFRA) == hash_of(**DEEPINFRA, api_key="another")


def test_a_pipelines_cache_is_missed_when_vectors_may_differ(tmp_path):
    folder = tmp_path / "mine"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    hashes = [hash_of("demo"), hash_of("bge-small"), hash_of("bge-base"), hash_of("demo", query_instruction="")]
    hashes.append(hash_of(folder, query_instruction=""))
    (folder / "model.safetensors").write_bytes(b"other weights under the same name")
    hashes.append(hash_of(folder, query_instruction=""))
    hashes += [hash_of("bge-small", precision="int8"), hash_of(**DEEPINFRA, api_key="k")]
    assert len(set(hashes)) == len(hashes)


# ---- it travels


def test_it_is_pickled_and_copied(face):
    for twin in (pickle.loads(pickle.dumps(face)), copy.deepcopy(face), copy.copy(face), face.model_copy(deep=True)):
        assert type(twin) is BGEEmbedding
        assert twin.get_text_embedding_batch(TEXTS) == documents(face)
        assert twin.to_dict() == face.to_dict()


@pytest.mark.slow
def test_its_cache_and_fields_travel_and_its_handlers_stay():
    store = SimpleKVStore()
    handler = LlamaDebugHandler(print_trace_on_end=False)
    handler.lock = threading.Lock()  # handlers often hold what cannot be pickled
    face = BGEEmbedding(
        "demo", embeddings_cache=store, callback_manager=CallbackManager([handler]), embed_batch_size=9, num_workers=3
    )
    vector = face.get_query_embedding("q")
    twin = pickle.loads(pickle.dumps(face))
    assert (twin.embed_batch_size, twin.num_workers, twin.callback_manager.handlers) == (9, 3, [])
    assert twin.get_query_embedding("q") == vector
    assert twin.encoder.usage.cache_hits == face.encoder.usage.cache_hits + 1


@pytest.mark.slow
def test_it_works_in_a_spawned_process(face):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(methodcaller("get_text_embedding_batch", TEXTS[:3]), face).result(timeout=60)
    assert there == documents(face, TEXTS[:3])


def test_a_pickle_holds_no_key_and_the_other_side_reads_its_own(monkeypatch):
    face = BGEEmbedding(**DEEPINFRA, api_key=CANARY)
    pickled = pickle.dumps(face)
    assert CANARY.encode() not in pickled
    with pytest.raises(MissingKeyError):
        pickle.loads(pickled).get_query_embedding("q")
    monkeypatch.setenv("DEEPINFRA_TOKEN", "of the other side")
    assert pickle.loads(pickled).encoder.key == "of the other side"


# ---- splitting to what the model reads


def test_chunks_are_no_longer_than_the_model_reads(demo):
    from llama_index.core import Document

    face = BGEEmbedding("demo")
    text = "Retrieval quality depends on what the model reads. " * 400
    for splitter, limit in ((face.splitter(), demo.card.max_tokens), (face.splitter(8, chunk_size=62), 64)):
        nodes = splitter.get_nodes_from_documents([Document(text=text)])
        counts = demo.count_tokens([node.get_content("embed") for node in nodes])
        assert len(nodes) > 1
        assert limit * 0.7 < max(counts) <= limit


def test_a_splitter_counts_alike_on_the_other_side_of_a_pickle(demo):
    splitter = BGEEmbedding("demo").splitter(8, chunk_size=62)
    text = "Unbelievably longwinded internationalisation considerations. " * 50
    for twin in (pickle.loads(pickle.dumps(splitter)), copy.deepcopy(splitter)):
        assert twin.split_text(text) == splitter.split_text(text)
        assert twin.to_dict() == splitter.to_dict()


# ---- what is decided when it is made


@pytest.mark.parametrize("name", ["query_instruction", "model_name", "space", "api_key", "timeout", "wire_model"])
def test_what_is_decided_when_it_is_made_cannot_be_assigned(face, name):
    before = face.to_dict()
    with pytest.raises(ReadOnlyError, match=f"{name} cannot be changed") as caught:
        setattr(face, name, "x")
    assert isinstance(caught.value, AttributeError)
    with pytest.raises(ReadOnlyError, match=name):
        face.model_copy(update={name: "x"})
    assert face.to_dict() == before
    assert face.model_copy(update={"embed_batch_size": 3}).embed_batch_size == 3


def test_a_half_made_adapter_can_be_shown():
    assert "BGEEmbedding" in repr(BGEEmbedding.__new__(BGEEmbedding))
    assert "BGEEmbedding" in str(BGEEmbedding.__new__(BGEEmbedding))


def test_the_fields_are_those_of_the_table_and_no_other_says_what_is_saved():
    saved = set(BGEEmbedding("demo").to_dict())
    assert {name for name, option in OPTIONS.items() if option.decides == "vectors"} <= saved
    assert not {name for name, option in OPTIONS.items() if option.decides != "vectors"} & saved
    for name, option in OPTIONS.items():
        if name not in BaseEmbedding.model_fields:
            assert BGEEmbedding.model_fields[name].description == option.help


def test_headers_are_nowhere_to_be_seen():
    face = BGEEmbedding("demo", headers={"X-Key": CANARY})
    shown = [repr(face), str(face), str(face.to_dict()), face.to_json(), str(vars(face))]
    assert not [text for text in shown if CANARY in text]
    assert CANARY.encode() not in pickle.dumps(face)


# ---- nodes without content


@pytest.mark.parametrize("text", ["", " \n\t"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_pipeline_stores_all_nodes_but_those_without_content(face, text, asynchronous):
    documents = [Document(text=t, id_=f"d{i}") for i, t in enumerate(["one", text, "three"])]
    store = SimpleVectorStore()
    pipeline = IngestionPipeline(transformations=[face], vector_store=store, docstore=SimpleDocumentStore())
    nodes = asyncio.run(pipeline.arun(documents=documents)) if asynchronous else pipeline.run(documents=documents)
    assert [node.embedding is None for node in nodes] == [False, True, False]
    assert set(store.data.embedding_dict) == {"d0", "d2"}


def test_errors_of_a_pipeline_count_all_of_its_nodes():
    face = BGEEmbedding(encoder=HashEncoder(max_words=3, truncate="error"))
    with pytest.raises(TooLongError) as caught:
        face([TextNode(text=text) for text in ("", "short", " ", "one two three four")])
    assert caught.value.positions == (3,)


def test_blank_nodes_are_embedded_where_that_is_asked_for():
    face = BGEEmbedding(encoder=HashEncoder(blank="keep"))
    assert all(node.embedding is not None for node in face([TextNode(text=""), TextNode(text="a")]))


# ---- one role, for clients that call the wrong method


async def test_a_view_embeds_everything_in_one_role_and_is_saved_as_another_transformation():
    face = BGEEmbedding(encoder=HashEncoder(), embed_batch_size=2)
    for view, role in ((face.as_queries(), "query"), (face.as_documents(), "document")):
        expected = face.encoder.expected(["a", "b", "c"], role).tolist()
        for twin in (view, pickle.loads(pickle.dumps(view)), copy.deepcopy(view)):
            assert twin.get_text_embedding_batch(["a", "b", "c"]) == expected
            assert await twin.aget_text_embedding_batch(["a", "b", "c"]) == expected
            assert twin.get_query_embedding("a") == await twin.aget_query_embedding("a") == expected[0]
            assert twin.get_text_embedding("a") == expected[0]
        assert isinstance(view, BGEEmbedding)
        assert view.space == face.space
        assert get_transformation_hash(NODES, view) != get_transformation_hash(NODES, face)
    saved = BGEEmbedding("demo").as_queries().to_dict()
    assert get_transformation_hash(NODES, face.as_queries()) != get_transformation_hash(NODES, face.as_documents())
    assert saved["fixed_role"] == "query"


@pytest.mark.parametrize(
    "call",
    [
        lambda face, text: VectorStoreIndex([TextNode(text=text)], embed_model=face),
        lambda face, text: VectorStoreIndex([TextNode(text=text)], embed_model=face, use_async=True),
        lambda face, text: IngestionPipeline(transformations=[face]).run(nodes=[TextNode(text=text)]),
        lambda face, text: VectorStoreIndex([TextNode(text="a")], embed_model=face).as_retriever().retrieve(text),
    ],
    ids=["index", "index-async", "pipeline", "retrieve"],
)
def test_a_warning_names_the_users_line_and_not_the_frameworks(call):
    with HashEncoder(max_words=2) as encoder, pytest.warns(TruncationWarning) as caught:
        call(BGEEmbedding(encoder=encoder), "more than two words")
    assert [warning.filename for warning in caught] == [__file__]
