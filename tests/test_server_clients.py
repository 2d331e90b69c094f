"""The clients that people have, unchanged, against the server on a real socket."""

import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from bge_integrations.catalog import find_model
from bge_integrations.load import load_encoder
from bge_integrations.server import Limits, background
from serving import CARD, ServedEncoder, vector_of

pytestmark = pytest.mark.slow

SDK_SCRIPT = Path(__file__).with_name("sdk_client.py")
TEXTS = ["first passage", "second passage", "third"]
DOCUMENTS = np.stack([vector_of(text) for text in TEXTS])
KEY = "k-one"


@pytest.fixture(scope="module")
def encoder():
    with ServedEncoder() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def base_url(encoder):
    with background(encoder, api_keys=[KEY]) as url:
        yield f"{url}/v1"


def sdk_pythons():
    """This Python, and any that the variable names: one with another version of the SDK, such as 2.x."""
    return [sys.executable, *filter(None, os.environ.get("OPENAI_SDK_PYTHONS", "").split(os.pathsep))]


@pytest.mark.parametrize("python", sdk_pythons(), ids=lambda python: "this" if python == sys.executable else "other")
def test_the_openai_sdk(base_url, python):
    if python == sys.executable:
        pytest.importorskip("openai")
    done = subprocess.run([python, SDK_SCRIPT, base_url, KEY, CARD.id], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    version, prompt_tokens, *rows = done.stdout.splitlines()
    assert version[0] in "23"
    assert int(prompt_tokens) == 4 + 4 + 3
    assert rows.pop(0) == "AuthenticationError NotFoundError BadRequestError"
    query, *documents = [np.float32(row.split()) for row in rows]
    np.testing.assert_array_equal(query, vector_of("first passage", "query"))
    assert len(documents) == 4 * 3  # sync and async, float and base64
    np.testing.assert_array_equal(documents, np.tile(DOCUMENTS, (4, 1)))


@asynccontextmanager
async def langchain(base_url, **more):
    module = pytest.importorskip("langchain_openai")
    embeddings = module.OpenAIEmbeddings(
        model=CARD.id, base_url=base_url, api_key=KEY, check_embedding_ctx_length=False, **more
    )
    yield embeddings
    embeddings.client._client.close()
    await embeddings.async_client._client.close()


async def test_langchain_openai_embeddings(base_url):
    async with langchain(base_url) as embeddings:
        np.testing.assert_array_equal(np.float32(embeddings.embed_documents(TEXTS)), DOCUMENTS)
        np.testing.assert_array_equal(np.float32(await embeddings.aembed_documents(TEXTS)), DOCUMENTS)
        np.testing.assert_array_equal(np.float32(embeddings.embed_query("third")), vector_of("third"))


async def test_langchain_with_input_type_gets_the_instruction(base_url):
    async with langchain(base_url, model_kwargs={"extra_body": {"input_type": "query"}}) as embeddings:
        np.testing.assert_array_equal(np.float32(embeddings.embed_query("third")), vector_of("third", "query"))


async def test_llama_index_openai_like_embedding(base_url):
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    embedding = module.OpenAILikeEmbedding(model_name=CARD.id, api_base=base_url, api_key=KEY)
    np.testing.assert_array_equal(np.float32(embedding.get_text_embedding_batch(TEXTS)), DOCUMENTS)
    np.testing.assert_array_equal(np.float32(await embedding.aget_text_embedding_batch(TEXTS)), DOCUMENTS)
    np.testing.assert_array_equal(np.float32(embedding.get_query_embedding("third")), vector_of("third"))
    embedding._get_client().close()
    await embedding._get_aclient().close()


@pytest.mark.parametrize("protocol", ["space", "openai"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_our_own_engines_put_the_instruction_in_once_and_learn_the_limit(protocol, role):
    card = find_model("bge-small-en-v1.5")
    texts = [f"text {i}" for i in range(20)]
    with ServedEncoder(card=card) as encoder, background(encoder, api_keys=[KEY], limits=Limits(items=8)) as url:
        host = {"provider": "space", "base_url": url} if protocol == "space" else {"base_url": f"{url}/v1"}
        with load_encoder(card.id, api_key=KEY, **host) as client:
            vectors = client.encode(texts, role=role)
    np.testing.assert_allclose(vectors, np.stack([vector_of(text, role, card) for text in texts]), atol=1e-6)
    wanted = {card.format(text, role) for text in texts}
    assert len(wanted & set(encoder.seen)) == len(texts)
    assert {text for text in encoder.seen if "text" in text} == wanted
