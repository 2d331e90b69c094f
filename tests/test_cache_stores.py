"""Stores that users already have from LangChain and LlamaIndex, made safe for roles."""

from __future__ import annotations

import asyncio
import json
import pickle

import numpy as np
import pytest
from langchain_core.stores import BaseStore, InMemoryByteStore
from llama_index.core.storage.kvstore import SimpleKVStore

from bge_integrations.cache import CachedEncoder, Store
from bge_integrations.errors import RepairWarning
from encoders import HashEncoder

TEXTS = [f"text number {i}" for i in range(20)]


class AsyncOnlyByteStore(BaseStore[str, bytes]):
    """A store whose sync methods do not exist, as some network stores have it."""

    def __init__(self):
        self.held = {}

    def mget(self, keys):
        raise NotImplementedError

    def mset(self, key_value_pairs):
        raise NotImplementedError

    async def amget(self, keys):
        await asyncio.sleep(0)
        return [self.held.get(key) for key in keys]

    async def amset(self, key_value_pairs):
        await asyncio.sleep(0)
        self.held.update(key_value_pairs)

    def mdelete(self, keys):
        raise NotImplementedError

    def yield_keys(self, *, prefix=None):
        raise NotImplementedError


class AsyncOnlyKVStore(SimpleKVStore):
    def get(self, key, collection="data"):
        raise NotImplementedError

    def put(self, key, val, collection="data"):
        raise NotImplementedError

    async def aget(self, key, collection="data"):
        return SimpleKVStore.get(self, key, collection)

    async def aput(self, key, val, collection="data"):
        SimpleKVStore.put(self, key, val, collection)


def local_files(folder):
    storage = pytest.importorskip("langchain_classic.storage")
    return storage.LocalFileStore(folder)


@pytest.fixture(params=["memory", "files", "async bytes", "kv", "async kv"])
def store(request, tmp_path):
    return {
        "memory": InMemoryByteStore,
        "files": lambda: local_files(tmp_path),
        "async bytes": AsyncOnlyByteStore,
        "kv": SimpleKVStore,
        "async kv": AsyncOnlyKVStore,
    }[request.param]()


def test_a_users_store_is_used_role_by_role(store):
    inner = HashEncoder(batch=7)
    with CachedEncoder(inner, store) as cached:
        for _ in range(2):
            for role in ("document", "query"):
                assert np.array_equal(cached.encode(TEXTS, role=role), inner.expected(TEXTS, role))
        assert len(inner.sent) == 2 * len(TEXTS)
    again = HashEncoder()
    with CachedEncoder(again, store) as cached:
        vectors = asyncio.run(cached.aencode(TEXTS, role="query"))
    assert np.array_equal(vectors, again.expected(TEXTS, "query"))
    assert again.sent == []


def test_two_models_share_a_store_and_not_their_vectors(store):
    first, second = HashEncoder(), HashEncoder(variant="int8")
    for inner in (first, second):
        with CachedEncoder(inner, store) as cached:
            cached.encode(TEXTS, role="document")
    assert first.sent == second.sent == TEXTS


def test_a_kv_stores_own_file_keeps_them(tmp_path):
    store = SimpleKVStore()
    with CachedEncoder(HashEncoder(), store) as cached:
        vectors = cached.encode(TEXTS, role="document")
    store.persist(str(tmp_path / "kv.json"))
    assert "text number" not in (tmp_path / "kv.json").read_text()
    json.loads((tmp_path / "kv.json").read_text())
    inner = HashEncoder()
    with CachedEncoder(inner, SimpleKVStore.from_persist_path(str(tmp_path / "kv.json"))) as cached:
        assert np.array_equal(cached.encode(TEXTS, role="document"), vectors)
    assert inner.sent == []


def test_what_others_keep_in_the_same_store_is_not_touched():
    store = SimpleKVStore()
    store.put("text number 1", {"uuid": [1.0, 2.0]}, collection="embeddings")
    with CachedEncoder(HashEncoder(), store) as cached:
        cached.encode(TEXTS, role="document")
    assert store.get("text number 1", collection="embeddings") == {"uuid": [1.0, 2.0]}


@pytest.mark.parametrize("odd", [{}, {"row": None}, {"row": 5}, {"row": "not base64!"}, {"row": "AAAA"}])
def test_an_odd_value_in_a_kv_store_is_a_miss(odd):
    store = SimpleKVStore()
    with CachedEncoder(HashEncoder(), store) as cached:
        cached.encode(TEXTS, role="document")
    names = list(store.get_all(collection="bge_vectors"))
    store._collections_mappings["bge_vectors"][names[3]] = odd
    inner = HashEncoder()
    with CachedEncoder(inner, store) as cached:
        assert np.array_equal(cached.encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))
    assert len(inner.sent) == 1


class BrokenStore(InMemoryByteStore):
    asked = 0

    def mget(self, keys):
        self.asked += 1
        raise ConnectionError("the store's host is gone")

    def mset(self, key_value_pairs):
        self.asked += 1
        raise ConnectionError("the store's host is gone")


def test_a_store_that_fails_costs_one_warning_and_no_vector():
    inner = HashEncoder()
    store = BrokenStore()
    with CachedEncoder(inner, store) as cached:
        with pytest.warns(RepairWarning, match="host is gone") as caught:
            vectors = cached.encode(TEXTS, role="document")
        assert len(caught) == 1
        assert np.array_equal(vectors, inner.expected(TEXTS, "document"))
        assert np.array_equal(vectors, cached.encode(TEXTS, role="document"))
        assert store.asked == 2  # once for reading, once for writing, and then it is left in peace for a while


class ShortStore(InMemoryByteStore):
    def mget(self, keys):
        return super().mget(keys)[:-1]


class LongStore(InMemoryByteStore):
    def mget(self, keys):
        rows = super().mget(keys)
        return [*rows, rows[0]]


@pytest.mark.parametrize("kind", [ShortStore, LongStore])
def test_a_store_that_answers_for_another_number_of_keys_is_not_believed(kind):
    inner = HashEncoder()
    with CachedEncoder(inner, kind()) as cached:
        for _ in range(2):
            assert np.array_equal(cached.encode(TEXTS, role="document"), inner.expected(TEXTS, "document"))
    assert inner.sent == TEXTS * 2


def test_it_travels_with_the_users_store():
    with CachedEncoder(HashEncoder(), SimpleKVStore()) as cached:
        cached.encode(TEXTS, role="document")
        with pickle.loads(pickle.dumps(cached)) as other:
            other.inner.calls.clear()
            assert np.array_equal(other.encode(TEXTS, role="document"), cached.encode(TEXTS, role="document"))
            assert other.inner.sent == []


def test_a_store_of_ones_own_needs_two_methods():
    class Mine:
        def get_many(self, keys):
            return [None] * len(keys)

        def put_many(self, pairs):
            pass

    assert isinstance(Mine(), Store)
    with CachedEncoder(HashEncoder(), Mine()) as cached:
        assert len(cached.encode(TEXTS, role="document")) == len(TEXTS)


def test_langchains_face_takes_a_byte_store(demo):
    from bge_integrations.langchain import BGEEmbeddings

    store = InMemoryByteStore()
    face = BGEEmbeddings("demo", cache=store)
    document, query = face.embed_documents(["a text"])[0], face.embed_query("a text")
    assert len(list(store.yield_keys())) == 2
    again = BGEEmbeddings("demo", cache=store)
    assert again.embed_query("a text") == query
    assert again.embed_documents(["a text"]) == [document]
    assert again.encoder.usage.cache_hits == 2


def test_llama_indexs_embeddings_cache_is_role_safe(demo):
    from bge_integrations.llama_index import BGEEmbedding

    store = SimpleKVStore()
    face = BGEEmbedding("demo", embeddings_cache=store)
    document, query = face.get_text_embedding("a text"), face.get_query_embedding("a text")
    assert len(store.get_all(collection="bge_vectors")) == 2
    again = BGEEmbedding("demo", embeddings_cache=store)
    assert again.get_query_embedding("a text") == query
    assert again.get_text_embedding("a text") == document
    assert again.encoder.usage.cache_hits == 2
