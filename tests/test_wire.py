"""The wire: what a query and a document really send, for every model and both protocols, recorded by a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bge_integrations import MODELS, errors, load_encoder
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from rig import Rig, rows

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："
WEB = "Given a web search query, retrieve relevant passages that answer the query."
TASK = "Given a question, retrieve the function that answers it."
TEXT = " What is\nBGE? "
# Written out by hand, not taken from the catalogue.
QUERIES = {
    "BAAI/bge-small-en-v1.5": EN + TEXT,
    "BAAI/bge-small-en": EN + TEXT,
    "BAAI/bge-small-zh-v1.5": ZH + TEXT,
    "BAAI/bge-small-zh": ZH + TEXT,
    "BAAI/bge-base-en-v1.5": EN + TEXT,
    "BAAI/bge-base-en": EN + TEXT,
    "BAAI/bge-base-zh-v1.5": ZH + TEXT,
    "BAAI/bge-base-zh": ZH + TEXT,
    "BAAI/bge-large-en-v1.5": EN + TEXT,
    "BAAI/bge-large-en": EN + TEXT,
    "BAAI/bge-large-zh-v1.5": ZH + TEXT,
    "BAAI/bge-large-zh": ZH + TEXT,
    "BAAI/bge-m3": TEXT,
    "BAAI/bge-multilingual-gemma2": f"<instruct>{WEB}\n<query>{TEXT}",
    "BAAI/bge-en-icl": f"<instruct>{WEB}\n<query>{TEXT}\n<response>",
    "BAAI/bge-code-v1": None,
}
WITH_TASK = {
    "BAAI/bge-multilingual-gemma2": f"<instruct>{TASK}\n<query>{TEXT}",
    "BAAI/bge-en-icl": f"<instruct>{TASK}\n<query>{TEXT}\n<response>",
    "BAAI/bge-code-v1": f"<instruct>{TASK}\n<query>{TEXT}",
}


@pytest.fixture(scope="module")
def host():
    with Rig() as host:
        yield host


@pytest.fixture
def encoder_of(host):
    made = []

    def make(model: str, **options):
        host.forget()
        made.append(load_encoder(model, **{"base_url": host.url, "show_progress": False, **options}))
        host.dimensions = made[-1].card.dimensions
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def test_every_model_of_the_catalogue_is_here():
    assert {card.id for card in MODELS if card.id.startswith("BAAI/")} == set(QUERIES)


@pytest.mark.parametrize("model", QUERIES)
@pytest.mark.parametrize("way", ["encoder", "encoder async", "LangChain", "LlamaIndex"])
async def test_what_a_query_and_a_document_send(model, way, host, encoder_of):
    encoder = encoder_of(model)
    query, document = await ask(encoder, way, encoder.card.query_instruction is not None)
    assert host.requests[0].body == {"model": model, "input": [TEXT], "encoding_format": "float"}
    assert host.requests[0].path == "/v1/embeddings"
    np.testing.assert_allclose(document, host.truth([TEXT])[0], atol=1e-6)
    if QUERIES[model] is None:
        assert len(host.requests) == 1
    else:
        assert host.requests[1].body == {"model": model, "input": [QUERIES[model]], "encoding_format": "float"}
        np.testing.assert_allclose(query, host.truth([QUERIES[model]])[0], atol=1e-6)


async def ask(encoder, way, has_default):
    """Send a document, then a query where the model has an instruction for it."""
    chain, index = BGEEmbeddings(encoder=encoder), BGEEmbedding(encoder=encoder)
    if way == "LangChain":
        document = chain.embed_documents([TEXT])[0]
        return chain.embed_query(TEXT) if has_default else None, document
    if way == "LlamaIndex":
        document = index.get_text_embedding(TEXT)
        return index.get_query_embedding(TEXT) if has_default else None, document
    if way == "encoder async":
        document = (await encoder.aencode([TEXT], role="document"))[0]
        return (await encoder.aencode([TEXT], role="query"))[0] if has_default else None, document
    document = encoder.encode([TEXT], role="document")[0]
    return encoder.encode([TEXT], role="query")[0] if has_default else None, document


@pytest.mark.parametrize("model", [model for model, text in QUERIES.items() if text is None])
def test_a_model_without_a_default_task_wants_one(model, host, encoder_of):
    encoder = encoder_of(model)
    with pytest.raises(errors.ConfigError, match="query_instruction="):
        encoder.encode([TEXT], role="query")
    assert host.requests == []


@pytest.mark.parametrize("model", QUERIES)
@pytest.mark.parametrize("instruction", [TASK, "", " as it is\n"])
def test_the_users_own_instruction(model, instruction, host, encoder_of):
    encoder_of(model, query_instruction=instruction).encode([TEXT], role="query")
    if not instruction:
        expected = TEXT
    elif model in WITH_TASK:
        expected = WITH_TASK[model].replace(TASK, instruction)
    else:
        expected = instruction + TEXT
    assert host.sent == [[expected]]


@pytest.mark.parametrize("model", [model for model, text in QUERIES.items() if text is not None])
def test_at_a_space_the_server_adds_the_instruction(model, host, encoder_of):
    encoder = encoder_of(model, provider="space", base_url=host.space_url)
    encoder.encode([TEXT], role="query")
    encoder.encode([TEXT], role="document")
    assert [(request.path, request.body) for request in host.requests] == [
        ("/embed", {"texts": [TEXT], "normalize": True, "is_query": True}),
        ("/embed", {"texts": [TEXT], "normalize": True, "is_query": False}),
    ]


@pytest.mark.parametrize("instruction", ["", "Find: "])
def test_at_a_space_the_users_own_instruction_is_added_here(instruction, host, encoder_of):
    options = {"provider": "space", "base_url": host.space_url, "query_instruction": instruction}
    encoder_of("bge-small", **options).encode([TEXT], role="query")
    assert [request.body for request in host.requests] == [
        {"texts": [instruction + TEXT], "normalize": True, "is_query": False}
    ]


PUBLISHED = json.loads((Path(__file__).parent / "data" / "laura.json").read_text("utf-8"))


def documented(vector):
    """Answer as AI/ML API's documentation shows, with all its extra fields."""

    def one_row(data):
        return [{"object": "embedding", "index": 0, "embedding": vector}]

    usage = {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}
    meta = {"usage": {"credits_used": 1}}
    return rows(one_row, id="emb-1", created=1_767_225_600, usage=usage, meta=meta)


@pytest.mark.parametrize("model", PUBLISHED["vectors"])
async def test_documented_answers_of_aimlapi_come_out_equal(model, host, encoder_of, monkeypatch):
    monkeypatch.setenv("AIMLAPI_API_KEY", "key-of-aimlapi")
    published = PUBLISHED["vectors"][model]
    encoder = encoder_of(model, provider="aimlapi", base_url=host.url, allow_withdrawn=True)
    host.script(*[documented(published)] * 3)
    for vector in (
        encoder.encode([PUBLISHED["text"]], role="document")[0],
        (await encoder.aencode([PUBLISHED["text"]], role="document"))[0],
        np.array(BGEEmbeddings(encoder=encoder).embed_documents([PUBLISHED["text"]])[0]),
    ):
        np.testing.assert_allclose(vector, published, atol=1e-7)
    assert host.requests[0].body == {"model": model, "input": ["Laura is a DJ."], "encoding_format": "float"}
    assert host.requests[0].headers["authorization"] == "Bearer key-of-aimlapi"
    assert (encoder.usage.tokens, encoder.usage.requests, encoder.usage.usd) == (21, 3, None)


@pytest.mark.parametrize("model", ["bge-small", "bge-base"])
async def test_an_openai_style_client_with_short_names(model, host, encoder_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", host.url)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: header-secret")
    encoder = encoder_of(model, provider="openai", base_url=None)
    texts = [f"text {i}" for i in range(5)]
    np.testing.assert_allclose(await encoder.aencode(texts, role="document"), host.truth(texts), atol=1e-6)
    (request,) = host.requests
    assert (request.body["model"], request.body["input"]) == (model, texts)
    assert request.headers["authorization"] == "Bearer key-of-openai"
    assert "secret" not in str(request.headers)


def test_no_key_no_authorization(host, encoder_of, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "for another host")
    encoder_of("bge-small").encode(["a"], role="document")
    assert "authorization" not in host.requests[0].headers


def test_a_key_is_missed_before_anything_is_sent(host, encoder_of):
    encoder = encoder_of("bge-small", provider="gigarouter", base_url=host.url)
    with pytest.raises(errors.MissingKeyError, match="GIGAROUTER_API_KEY"):
        encoder.encode(["a"], role="document")
    assert host.requests == []


def test_wire_names_of_a_known_host(host, encoder_of):
    spoken = {"openrouter": "baai/bge-m3", "novita": "baai/bge-m3", "deepinfra": "BAAI/bge-m3", "ollama": "bge-m3"}
    for provider, name in spoken.items():
        encoder_of("bge-m3", provider=provider, base_url=host.url, api_key="k").encode(["a"], role="document")
        assert host.requests[0].body["model"] == name


def test_one_list_is_one_request(host, encoder_of):
    encoder = encoder_of("bge-small")
    encoder.encode([f"text {i}" for i in range(60)], role="document")
    assert len(host.requests) == 1
    assert SimpleNamespace(**encoder.describe()).wire_model == "bge-small"
