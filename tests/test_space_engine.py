"""The BGE Embedding API Space: what it is sent, what it answers, and what is said of one that sleeps."""

from __future__ import annotations

import asyncio
import copy
import pickle

import numpy as np
import pytest

from bge_integrations import errors, load_encoder
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from rig import Exchange, Rig, raw, status

EN = "Represent this sentence for searching relevant passages: "
TEXTS = [f"text {i}" for i in range(10)]
STARTING = raw("<html><title>Starting</title></html>", "text/html", 503)


@pytest.fixture
def space_of():
    made = []

    def make(host, **options):
        options = {"provider": "space", "base_url": host.space_url, "show_progress": False, **options}
        made.append(load_encoder(**options))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


async def test_query_document_and_batch_sync_and_async(space_of):
    with Rig() as host:
        encoder = space_of(host, max_inputs=4)
        for role, expected in (("query", [EN + text for text in TEXTS]), ("document", TEXTS)):
            np.testing.assert_allclose(encoder.encode(TEXTS, role=role), host.truth(expected), atol=1e-6)
            np.testing.assert_allclose(await encoder.aencode(TEXTS, role=role), host.truth(expected), atol=1e-6)
        assert {len(sent) for sent in host.sent} == {4, 2}
        assert encoder.usage.texts == 40


def test_both_faces(space_of):
    with Rig() as host:
        encoder = space_of(host)
        chain, index = BGEEmbeddings(encoder=encoder), BGEEmbedding(encoder=encoder)
        np.testing.assert_allclose(chain.embed_query("why?"), host.truth([EN + "why?"])[0], atol=1e-6)
        np.testing.assert_allclose(index.get_query_embedding("why?"), host.truth([EN + "why?"])[0], atol=1e-6)
        np.testing.assert_allclose(chain.embed_documents(TEXTS), host.truth(TEXTS), atol=1e-6)
        np.testing.assert_allclose(index.get_text_embedding_batch(TEXTS), host.truth(TEXTS), atol=1e-6)
        assert all(not text.startswith(EN) for sent in host.sent for text in sent)


def test_a_private_space_gets_the_token(space_of, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_account")
    with Rig() as host:
        space_of(host, api_key="hf_given").encode(["a"], role="document")
        space_of(host).encode(["a"], role="document")
        first, second = host.requests
        assert first.headers["authorization"] == "Bearer hf_given"
        assert "authorization" not in second.headers  # the account's token is for the hub's own hosts


class Sleeping(Rig):
    """A Space whose every answer, /health too, is what its host shows while it is not up."""

    def __init__(self, page, health=None):
        super().__init__(default=page)
        self.page, self.health = page, health or page
        self.checks = 0

    def answer(self, request, connection):
        if request.raw:
            return super().answer(request, connection)
        self.checks += 1
        self.health(Exchange(self, request, connection))
        return False


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (STARTING, errors.HostUnavailableError),
        (raw("<html>This Space is sleeping</html>", "text/html"), errors.BadAnswerError),
    ],
    ids=["503", "200"],
)
def test_a_space_that_sleeps(space_of, page, error):
    with Sleeping(page) as host:
        with pytest.raises(error, match="asleep, building or paused") as caught:
            space_of(host, max_retries=1).encode(TEXTS, role="document")
        assert host.checks == 1
        assert caught.value.unfinished == tuple(range(10))
        assert "/health" in str(pickle.loads(pickle.dumps(caught.value)))


@pytest.mark.parametrize(
    ("body", "told"),
    [(b'{"status": "ok", "model_loaded": false}', "not loaded yet"), (b'{"model_loaded": true}', "says it is up")],
)
def test_a_space_that_fails_is_asked_how_it_is(space_of, body, told):
    with Sleeping(status(503, body=b'{"detail": "no"}'), raw(body)) as host:
        with pytest.raises(errors.HostUnavailableError, match=told):
            space_of(host, max_retries=0).encode(["a"], role="query")
        assert host.checks == 1


def test_a_space_that_wakes_up_is_waited_for(space_of):
    with Rig().script(STARTING, STARTING) as host:
        np.testing.assert_allclose(space_of(host).encode(TEXTS, role="document"), host.truth(TEXTS), atol=1e-6)
        assert len(host.sent) == 3


def test_what_is_refused_is_not_asked_about(space_of):
    said = b'{"detail": [{"loc": ["body", "texts"], "msg": "must not be empty", "input": ["text 0"]}]}'
    with Sleeping(status(422, body=said)) as host:
        with pytest.raises(errors.RequestRefusedError, match="must not be empty") as caught:
            space_of(host).encode(TEXTS, role="document")
        assert host.checks == 0
        assert len(host.sent) == 1
        assert "text 0" not in str(caught.value)


def test_the_texts_of_a_detail_are_quoted_as_its_message(space_of):
    refused = pytest.raises(errors.RequestRefusedError, match="no such model here")
    with Rig(default=status(400, body=b'{"detail": "no such model here"}')) as host, refused:
        space_of(host).encode(["a"], role="document")


@pytest.mark.parametrize(
    "answer",
    [
        b'{"embeddings": [[1, 2, 3]], "model": "m", "dimension": 3}',
        b'{"embeddings": [], "model": "m", "dimension": 384}',
        b'{"vectors": []}',
        b"[]",
        b"5",
    ],
)
def test_answers_that_are_not_the_vectors(space_of, answer):
    with Rig(default=raw(answer)) as host:
        with pytest.raises(errors.BadAnswerError) as caught:
            space_of(host).encode(["a"], role="document")
        assert caught.value.positions == (0,)
        assert len(host.sent) <= 2


def test_another_model_at_the_space_is_refused(space_of):
    def other(exchange):
        exchange.send(exchange.payload(exchange.rows(), model="BAAI/bge-small-zh-v1.5"))

    with Rig(default=other) as host:
        with pytest.raises(errors.BadAnswerError, match="bge-small-zh"):
            space_of(host).encode(["a"], role="document")
        assert len(host.sent) == 1


def test_a_space_travels(space_of):
    with Rig() as host:
        encoder = space_of(host, api_key="hf_secret")
        encoder.encode(["a"], role="query")
        assert b"hf_secret" not in pickle.dumps(encoder)
        for twin in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
            with twin:
                np.testing.assert_allclose(twin.encode(["a"], role="query"), host.truth([EN + "a"]), atol=1e-6)
                assert twin.space == encoder.space


def test_in_a_running_loop(space_of):
    async def inside(encoder):
        return encoder.encode(TEXTS, role="document"), await encoder.aencode(TEXTS, role="document")

    with Rig() as host:
        for vectors in asyncio.run(inside(space_of(host))):
            np.testing.assert_allclose(vectors, host.truth(TEXTS), atol=1e-6)
