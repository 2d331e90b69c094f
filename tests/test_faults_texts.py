"""Texts on their way to a host: what is sent byte for byte, what is put right aloud, and what is refused unsent."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from bge_integrations import errors
from bge_integrations.core.tokenizer import TextTokenizer
from bge_integrations.langchain import BGEEmbeddings
from fault_faces import CANARY, FACES, Face, leaks
from rig import Rig, gzip_bomb, raw, rows, status

INSTRUCTION = "Represent this sentence for searching relevant passages: "
ODD = [
    "nul \x00 inside",
    "👩‍👩‍👧‍👦 with joiners",
    "\u202eright to left\u202c עברית",
    "  spaces before and after  ",
    "line\nbreak\r\nand tab\t",
    'quotes " and \\ and {"json": 1}',
    "e\u0301 decomposed",
    "\ufeffmark",
    "汉字，全角",
    "x" * 300,
]


@pytest.fixture(params=FACES)
def face_of(request, tmp_path):
    made = []

    def make(host: Rig, **options) -> Face:
        made.append(Face(request.param, tmp_path / "cache.sqlite", {"base_url": host.url, **options}))
        return made[-1]

    yield make
    for face in made:
        face.close()


def test_texts_are_sent_as_they_are(face_of):
    with Rig() as host:
        face = face_of(host)
        rows = face.documents(ODD)
        assert host.sent == [ODD]
        np.testing.assert_allclose(rows, host.truth(ODD), atol=1e-6)
        body = host.requests[0].body
        assert set(body) == {"model", "input", "encoding_format"}
        assert body["model"] == "bge-small"


def test_a_query_gets_the_instruction_once(face_of):
    with Rig() as host:
        face = face_of(host)
        for text in ODD:
            np.testing.assert_allclose(face.query(text), host.truth([INSTRUCTION + text])[0], atol=1e-6)
        assert host.sent == [[INSTRUCTION + text] for text in ODD]
        face.query(ODD[0])
        assert len(host.sent) == len(ODD)
        face.documents([ODD[0]])
        assert host.sent[-1] == [ODD[0]]


def test_at_a_space_the_server_adds_it(face_of):
    with Rig() as host:
        face = face_of(host, provider="space", base_url=host.space_url)
        np.testing.assert_allclose(face.query("why?"), host.truth([INSTRUCTION + "why?"])[0], atol=1e-6)
        np.testing.assert_allclose(face.documents(["why?"]), host.truth(["why?"]), atol=1e-6)
        assert [request.body["is_query"] for request in host.requests] == [True, False]
        assert host.sent == [["why?"], ["why?"]]


@pytest.mark.parametrize("wrong", [None, 5, 1.5, b"bytes", ["nested"]])
def test_what_is_no_text_is_refused_unsent(face_of, wrong):
    with Rig() as host:
        outcome = face_of(host).call(["fine", "fine too", wrong])
        assert isinstance(outcome.error, errors.InputTypeError)
        assert isinstance(outcome.error, TypeError)
        assert outcome.error.positions == (2,)
        assert host.requests == []


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000"])
def test_a_blank_text_is_refused_unsent(face_of, blank):
    with Rig() as host:
        face = face_of(host)
        outcome = face.call(["fine", blank])
        assert isinstance(outcome.error, errors.InputError)
        assert outcome.error.positions == (1,)
        assert host.requests == []


def test_a_lone_surrogate_is_replaced_aloud(face_of):
    with Rig() as host:
        outcome = face_of(host).call(["fine", "half \ud800 a pair"])
        assert outcome.error is None
        assert host.sent == [["fine", "half \ufffd a pair"]]
        assert len(outcome.warnings) == 1
        assert "surrogate" in outcome.warnings[0]
        np.testing.assert_allclose(outcome.vectors, host.truth(host.sent[0]), atol=1e-6)


TOKENIZER = str(files("bge_integrations") / "demo" / "model")


def test_an_over_long_text_is_cut_aloud(face_of):
    long = "word " * 700
    with Rig() as host:
        outcome = face_of(host, tokenizer=TOKENIZER).call(["short", long, "short too", long + "end"])
        assert outcome.error is None
        assert len(outcome.warnings) == 1
        assert "1, 3" in outcome.warnings[0]
        (sent,) = host.sent
        assert sent[0] == "short"
        assert long.startswith(sent[1])
        assert 300 < len(sent[1].split()) <= 512


def test_an_over_long_text_is_refused_unsent(face_of):
    with Rig() as host:
        outcome = face_of(host, tokenizer=TOKENIZER, truncate="error").call(["short", "word " * 700])
        assert isinstance(outcome.error, errors.InputError)
        assert outcome.error.positions == (1,)
        assert host.requests == []


def test_the_same_text_is_sent_once(face_of):
    with Rig() as host:
        texts = ["a", "b", "a", "c", "b", "a"]
        np.testing.assert_allclose(face_of(host).documents(texts), host.truth(texts), atol=1e-6)
        assert host.sent == [["a", "b", "c"]]


def test_no_texts_no_request(face_of):
    with Rig() as host:
        assert list(face_of(host).documents([])) == []
        assert host.requests == []


def test_a_copy_works_and_a_pickle_rereads_its_key(face_of, monkeypatch):
    with Rig() as host:
        face = face_of(host)
        face.documents(["a"])
        frozen = pickle.dumps(face.object)
        monkeypatch.setenv("BGE_API_KEY", "another-key")
        for other, key in ((copy.deepcopy(face.object), CANARY), (pickle.loads(frozen), "another-key")):
            face.object = other
            face.documents([f"new {key}"])
            assert host.requests[-1].headers["authorization"] == f"Bearer {key}"
            face.close()


@pytest.mark.parametrize(
    "fault",
    [
        status(401, f"bad key {CANARY}"),
        status(200, f"bad key {CANARY}"),
        status(400, f"bad key {CANARY}"),
        raw(f"<html>Bearer {CANARY}", "text/html"),
        raw(f'{{"data": "{CANARY}"}}'),
        raw(f'{{"data": [{{"embedding": "{CANARY}"}}]}}'),
        raw(f"{CANARY} is no JSON"),
    ],
    ids=["401", "200", "400", "html", "no rows", "no numbers", "no json"],
)
def test_a_failed_object_still_tells_nothing(face_of, caplog, fault):
    with Rig(default=fault) as host:
        face = face_of(host, max_retries=0)
        outcome = face.call(["a"])
        assert isinstance(outcome.error, errors.HostError)
        assert not leaks(face, outcome.error, caplog.records)
        assert CANARY in host.requests[0].headers["authorization"]


@pytest.mark.parametrize("code", [200, 401])
def test_a_gzip_bomb_stops_at_a_bound(code):
    def bomb(exchange):
        head = exchange.head
        exchange.head = lambda _, *more, **headers: head(code, *more, **headers)
        gzip_bomb(512)(exchange)

    with Rig(default=bomb) as host:
        embeddings = BGEEmbeddings("bge-small", base_url=host.url, max_retries=0, show_progress=False)
        tracemalloc.start()
        try:
            with pytest.raises(errors.HostError):
                embeddings.embed_documents(["a"])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            embeddings.encoder.close()
        assert peak < 200 * 2**20


def truncating(limit: int, *, special: bool = True, counts: bool = True):
    """A host that reads the first tokens of each text, and says so in its count alone, as llama-cpp-python's server."""
    cutter = TextTokenizer.read(Path(TOKENIZER) / "tokenizer.json")

    def answer(x):
        found = [min(count, limit) - (0 if special else 2) for count in cutter.count(x.texts)]
        x.send(x.payload(x.rows(), usage={"prompt_tokens": sum(found)} if counts else {}))

    return answer


LONG = "word " * 300


@pytest.mark.parametrize("special", [True, False])
def test_a_host_that_truncates_in_silence_is_told_by_its_count(face_of, special):
    with Rig(default=truncating(200, special=special)) as host:
        face = face_of(host, tokenizer=TOKENIZER)
        assert face.call(["short", "and shorter"]).warnings == []
        outcome = face.call(["short too", LONG])
        assert outcome.error is None
        (said,) = outcome.warnings
        assert "it truncates texts that" in said
        assert "n_ctx" in said
        assert face.call([LONG + "again"]).warnings == []  # said once


def test_one_text_that_is_read_up_to_a_round_number(face_of):
    with Rig(default=truncating(128)) as host:
        (said,) = face_of(host, tokenizer=TOKENIZER).call([LONG]).warnings
        assert "read 128 of the 302 tokens of 1 text(s)" in said


def test_where_truncation_is_an_error_the_text_is_named(face_of):
    with Rig(default=truncating(200)) as host:
        face = face_of(host, tokenizer=TOKENIZER, truncate="error")
        assert face.call(["short", "and shorter"]).error is None
        outcome = face.call(["short too", "not long", LONG, "nor this"])
        assert isinstance(outcome.error, errors.TooLargeError)
        assert outcome.error.positions == (2,)


guess = rows(lambda found: found, usage={"prompt_tokens": 7})


@pytest.mark.parametrize(
    "fault",
    [truncating(512), truncating(512, counts=False), truncating(512, special=False), guess],
    ids=["whole", "no count", "without special tokens", "a guess"],
)
def test_counts_that_say_nothing_of_truncation_are_passed_over(face_of, fault):
    with Rig(default=fault) as host:
        outcome = face_of(host, tokenizer=TOKENIZER).call([f"{LONG} {i}" for i in range(70)] + [" " * 400 + "x"])
        assert (outcome.error, outcome.warnings) == (None, [])
