"""LangChain's face: thin, typed, async without an executor, and it travels."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from operator import methodcaller
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel, ConfigDict, SecretStr

from bge_integrations import (
    ConfigError,
    InputError,
    InputTypeError,
    MissingKeyError,
    ReadOnlyError,
    TruncationWarning,
    load_encoder,
)
from bge_integrations.langchain import BGEEmbeddings
from encoders import CARD, HashEncoder

CANARY = "sk-canary-4242"
TEXTS = [f"text\n number {i} " for i in range(70)]


def finished(result):
    return asyncio.run(result) if inspect.iscoroutine(result) else result


@pytest.fixture
def face():
    with HashEncoder(batch=8) as encoder:
        yield BGEEmbeddings(encoder=encoder)


def test_documents_and_queries_are_what_the_encoder_makes_in_that_role(face):
    assert face.embed_documents(TEXTS) == face.encoder.expected(TEXTS, "document").tolist()
    assert face.embed_query("q") == face.encoder.expected(["q"], "query")[0].tolist()
    assert face.embed_query("q") == face.embed_documents([CARD.query_instruction + "q"])[0]
    assert face.embed_query("q") != face.embed_documents(["q"])[0]


async def test_async_is_the_same_in_a_running_loop(face):
    assert await face.aembed_documents(TEXTS) == face.embed_documents(TEXTS)
    assert await face.aembed_query("q") == face.embed_query("q")


def test_numbers_are_pythons_own_floats(face):
    documents, query = face.embed_documents(TEXTS[:2]), face.embed_query("q")
    assert type(documents) is type(documents[0]) is type(query) is list
    assert {type(number) for number in documents[0] + query} == {float}
    assert face.embed_documents([]) == []


def names():
    return {thread.name for thread in threading.enumerate()}


async def test_async_starts_no_executor_of_the_loops_and_does_not_block_it(face):
    face.encoder.delay, ticks, before = 0.05, 0, names()

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await asyncio.gather(face.aembed_documents(TEXTS[:16]), *(face.aembed_query(f"q{i}") for i in range(4)))
    ticking.cancel()
    assert ticks >= 3
    assert not [name for name in names() - before if name.startswith("asyncio_")]
    assert inspect.iscoroutinefunction(BGEEmbeddings.aembed_query)
    assert BGEEmbeddings.aembed_documents is not Embeddings.aembed_documents


@pytest.mark.parametrize("call", ["embed_documents", "aembed_documents"])
@pytest.mark.parametrize(("texts", "error", "positions"), [
    ({"a key": "a text"}, InputTypeError, ()), (pandas.DataFrame({"text": ["a"]}), InputTypeError, ()),
    (pyarrow.table({"text": ["a"]}), InputTypeError, ()),
    ("a bare string", InputTypeError, ()), (None, InputTypeError, ()), (5, InputTypeError, ()),
    (["a", None], InputTypeError, (1,)), (["a", 5, b"c"], InputTypeError, (1, 2)), (["a", " "], InputError, (1,)),
])  # fmt: skip
def test_bad_input_is_refused_with_its_position_before_anything_is_sent(face, call, texts, error, positions):
    with pytest.raises(error) as caught:
        finished(getattr(face, call)(texts))
    assert caught.value.positions == positions
    assert face.encoder.calls == []


@pytest.mark.parametrize("query", [None, 5, b"q", ["q"], "", "  "], ids=repr)
def test_a_query_that_is_no_text_is_refused(face, query):
    with pytest.raises(InputError):
        face.embed_query(query)
    with pytest.raises(InputError):
        asyncio.run(face.aembed_query(query))
    assert face.encoder.calls == []


def test_long_texts_are_said_to_be_cut():
    face = BGEEmbeddings(encoder=HashEncoder(max_words=3))
    with pytest.warns(TruncationWarning, match="positions 1"):
        face.embed_documents(["one two", "one two three four"])


# ---- how it is made


def test_the_keywords_of_huggingface_bge_embeddings_are_taken():
    face = BGEEmbeddings(
        model_name="BAAI/bge-small-en-v1.5",
        model_kwargs={"device": "cpu"},
        encode_kwargs={"normalize_embeddings": True, "batch_size": 64},
        query_instruction="Represent this question for searching relevant passages: ",
    )
    assert face.model == "BAAI/bge-small-en-v1.5"
    assert face.encoder.format(["q"], "query") == ["Represent this question for searching relevant passages: q"]
    assert BGEEmbeddings(model_name="BAAI/bge-small-en-v1.5").encoder.format(["q"], "query") == [
        "Represent this sentence for searching relevant passages: q"
    ]


def test_what_the_instruction_is_has_no_say_in_documents():
    ours, theirs = (BGEEmbeddings(encoder=HashEncoder(query_instruction=given)) for given in (None, "question: "))
    assert ours.embed_documents(TEXTS) == theirs.embed_documents(TEXTS)
    assert ours.embed_query("q") != theirs.embed_query("q")
    assert ours.space != theirs.space


@pytest.mark.parametrize(("options", "match"), [
    ({"encode_kwargs": {"normalize_embeddings": False}}, "normalize_embeddings=False"),
    ({"encode_kwargs": {"convert_to_tensor": True}}, "convert_to_tensor"),
    ({"model_kwargs": {"revision": "x"}}, "revision"),
    ({"query_instructoin": "x"}, "query_instruction"),
    ({"model": "bge-smal"}, "bge-small-en-v1.5"),
])  # fmt: skip
def test_what_has_no_meaning_here_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        BGEEmbeddings(**options)


def test_a_ready_encoder_stands_alone():
    encoder = HashEncoder()
    assert BGEEmbeddings(CARD.id, encoder=encoder).model == CARD.id
    with pytest.raises(ConfigError, match="'test/hash', not 'bge-m3'"):
        BGEEmbeddings("bge-m3", encoder=encoder)
    with pytest.raises(ConfigError, match="query_instruction, timeout"):
        BGEEmbeddings(encoder=encoder, timeout=5, query_instruction="")


def test_the_default_is_the_small_english_model_and_nothing_is_loaded(monkeypatch):
    face = BGEEmbeddings()
    assert face.model == "BAAI/bge-small-en-v1.5"
    assert "bge-small" in face.space
    monkeypatch.setenv("BGE_MODEL", "bge-base")
    assert BGEEmbeddings().model == "BAAI/bge-base-en-v1.5"


# ---- it travels


def test_it_is_pickled_copied_and_used_on_the_other_side(face):
    for twin in (pickle.loads(pickle.dumps(face)), copy.deepcopy(face), copy.copy(face)):
        assert twin.embed_query("q") == face.embed_query("q")
        assert twin.space == face.space


@pytest.mark.slow
def test_it_works_in_a_spawned_process(face):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        there = pool.submit(methodcaller("embed_documents", TEXTS[:3]), face).result(timeout=60)
    assert there == face.embed_documents(TEXTS[:3])


def test_it_works_from_16_threads_at_once(face):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(face.embed_query, TEXTS))
    np.testing.assert_array_equal(np.array(got, np.float32), face.encoder.expected(TEXTS, "query"))


def test_it_is_a_field_of_a_users_pydantic_model(face):
    class Settings(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        embeddings: Embeddings

    assert Settings(embeddings=face).embeddings is face


def test_the_key_is_masked_and_left_behind(monkeypatch):
    face = BGEEmbeddings("bge-base", provider="deepinfra", api_key=SecretStr(CANARY))
    assert face.api_key.get_secret_value() == CANARY
    assert CANARY not in repr(face) + str(face) + repr(face.api_key) + repr(vars(face))
    pickled = pickle.dumps(face)
    assert CANARY.encode() not in pickled
    with pytest.raises(MissingKeyError, match="DEEPINFRA_TOKEN"):
        pickle.loads(pickled).embed_query("q")
    monkeypatch.setenv("DEEPINFRA_TOKEN", "of the other side")
    assert pickle.loads(pickled).api_key.get_secret_value() == "of the other side"
    assert copy.deepcopy(face).api_key.get_secret_value() == CANARY
    assert BGEEmbeddings("demo").api_key is None


def test_a_rate_limiter_of_langchains_travels_and_is_asked(demo_url):
    limiter = InMemoryRateLimiter(requests_per_second=1000, max_bucket_size=100)
    face = BGEEmbeddings("demo", base_url=f"{demo_url}/v1", rate_limiter=limiter)
    twin = pickle.loads(pickle.dumps(face))
    with face.encoder, twin.encoder:
        assert twin.embed_query("q") == pytest.approx(face.embed_query("q"), abs=1e-5)
    assert limiter.last is not None
    assert copy.deepcopy(face).space == face.space


# ---- caches


def test_our_cache_in_a_store_of_langchains_never_mixes_roles_or_models():
    store, other = InMemoryByteStore(), HashEncoder(variant="int8")
    inner = HashEncoder()
    from bge_integrations.cache import CachedEncoder

    face, foreign = (BGEEmbeddings(encoder=CachedEncoder(encoder, store)) for encoder in (inner, other))
    document, query = face.embed_documents(["same"])[0], face.embed_query("same")
    assert document == inner.expected(["same"], "document")[0].tolist()
    assert query == inner.expected(["same"], "query")[0].tolist()
    assert [face.embed_documents(["same"])[0], face.embed_query("same")] == [document, query]
    assert len(inner.sent) == 2
    foreign.embed_documents(["same"])
    assert len(other.sent) == 1


def test_langchains_own_cache_may_be_put_around_it_for_documents(face):
    from langchain_classic.embeddings import CacheBackedEmbeddings

    store = InMemoryByteStore()
    backed = CacheBackedEmbeddings.from_bytes_store(face, store, namespace=face.space, key_encoder="sha256")
    first = backed.embed_documents(TEXTS[:4])
    assert backed.embed_documents(TEXTS[:4]) == first == face.embed_documents(TEXTS[:4])
    assert backed.embed_query(TEXTS[0]) == face.embed_query(TEXTS[0]) != first[0]


# ---- splitting to what the model reads


def test_chunks_are_no_longer_than_the_model_reads():
    face = BGEEmbeddings("demo")
    text = "Retrieval quality depends on what the model reads. " * 400
    chunks = face.splitter().split_text(text)
    counts = face.encoder.inner.count_tokens(chunks)
    assert max(counts) <= face.encoder.card.max_tokens
    assert len(chunks) > 1
    assert all(count <= 64 for count in face.encoder.inner.count_tokens(face.splitter(chunk_size=64).split_text(text)))
    shared = face.splitter(16, chunk_size=64).split_text(text)
    assert len(shared) > len(face.splitter(chunk_size=64).split_text(text))


def test_a_splitter_travels():
    splitter = BGEEmbeddings("demo").splitter(chunk_size=64)
    text = "Unbelievably longwinded internationalisation considerations. " * 50
    assert pickle.loads(pickle.dumps(splitter)).split_text(text) == splitter.split_text(text)


def test_without_a_tokenizer_the_splitter_says_what_to_do(face):
    with pytest.raises(ConfigError, match="tokenizer="):
        face.splitter()


def test_a_model_has_one_space_however_it_is_loaded(demo):
    assert BGEEmbeddings("demo").space == demo.space == load_encoder("demo").space


# ---- what is decided when it is made


@pytest.mark.parametrize("name", ["query_instruction", "model_name", "model", "space", "api_key", "timeout", "headers"])
def test_what_is_decided_when_it_is_made_cannot_be_assigned(face, name):
    before = face.embed_query("q")
    with pytest.raises(ReadOnlyError, match=f"{name} cannot be changed") as caught:
        setattr(face, name, "x")
    assert isinstance(caught.value, AttributeError)
    assert face.embed_query("q") == before


def test_a_subclass_keeps_what_is_its_own():
    class Mine(BGEEmbeddings):
        def __init__(self):
            super().__init__(encoder=HashEncoder())
            self.name = "mine"

    assert Mine().name == "mine"
    assert repr(Mine()).startswith("Mine(")


def test_a_half_made_adapter_can_be_shown():
    for made in (
        BGEEmbeddings.__new__(BGEEmbeddings),
        pickle.loads(pickle.dumps(BGEEmbeddings.__new__(BGEEmbeddings))),
    ):
        assert "BGEEmbeddings" in repr(made)
        assert "BGEEmbeddings" in f"{made}"


# ---- one role, for clients that call the wrong method


async def test_a_view_embeds_everything_in_one_role(face):
    for view, role in ((face.as_queries(), "query"), (face.as_documents(), "document")):
        expected = face.encoder.expected(["a", "b"], role).tolist()
        for twin in (view, pickle.loads(pickle.dumps(view)), copy.deepcopy(view)):
            assert twin.embed_documents(["a", "b"]) == await twin.aembed_documents(["a", "b"]) == expected
            assert twin.embed_query("a") == await twin.aembed_query("a") == expected[0]
        assert (view.space, view.encoder) == (face.space, face.encoder)
        assert role in repr(view)
    assert face.embed_query("a") != face.embed_documents(["a"])[0]


def test_a_table_is_refused_and_its_column_taken(face):
    table = pandas.DataFrame({"text": ["a", "b"], "id": ["1", "2"]})
    with pytest.raises(InputTypeError, match=r"DataFrame.*df\['text'\]"):
        face.embed_documents(table)
    assert face.embed_documents(table["text"]) == face.embed_documents(["a", "b"])


@pytest.mark.parametrize(
    "call",
    [
        lambda face, text: InMemoryVectorStore.from_texts([text], face),
        lambda face, text: InMemoryVectorStore.afrom_texts([text], face),
        lambda face, text: InMemoryVectorStore(face).as_retriever().invoke(text),
        lambda face, text: InMemoryVectorStore(face).as_retriever().ainvoke(text),
    ],
    ids=["from_texts", "afrom_texts", "invoke", "ainvoke"],
)
def test_a_warning_names_the_users_line_and_not_the_frameworks(call):
    with HashEncoder(max_words=2) as encoder, pytest.warns(TruncationWarning) as caught:
        finished(call(BGEEmbeddings(encoder=encoder), "more than two words"))
    assert [warning.filename for warning in caught] == [__file__]


def test_a_warning_of_a_thread_without_any_line_of_the_users_is_still_given():
    with HashEncoder(max_words=2) as encoder, pytest.warns(TruncationWarning) as caught:
        InMemoryVectorStore(BGEEmbeddings(encoder=encoder)).as_retriever().batch(["one two three", "four five six"])
    assert {Path(warning.filename).name for warning in caught} == {"in_memory.py"}
