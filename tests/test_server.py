"""What the server answers: both protocols, counts, errors, keys, state."""

import base64
import json
import logging
import threading

import httpx
import numpy as np
import pytest

from bge_integrations.errors import (
    AuthenticationError,
    BadAnswerError,
    ConfigError,
    DeadlineError,
    HostUnavailableError,
    RateLimitError,
)
from bge_integrations.server import Limits, background, create_app
from bge_integrations.server.limits import retry_after
from bge_integrations.server.service import read_characters
from serving import CARD, Failing, ServedEncoder, vector_of

SMALL = Limits(items=8, characters=400, tokens=60, queued_texts=4)
LONG = "word " * 30
INSTRUCTION = CARD.query_instruction


@pytest.fixture(scope="module")
def encoder():
    with ServedEncoder() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def client(encoder):
    with background(encoder, limits=SMALL, model_names=["ours"]) as url, httpx.Client(base_url=url) as client:
        yield client


def embed(client, texts, **more):
    return client.post("/embed", json={"texts": texts, **more})


def embeddings(client, texts, **more):
    return client.post("/v1/embeddings", json={"model": CARD.id, "input": texts, **more})


# --- POST /embed


def test_embed_gives_one_unit_vector_per_text_in_order(client):
    texts = ["one", "two", "three"]
    answer = embed(client, texts).json()
    assert answer.keys() == {"embeddings", "model", "dimension"}
    assert (answer["model"], answer["dimension"]) == (CARD.id, CARD.dimensions)
    np.testing.assert_array_equal(
        np.array(answer["embeddings"], np.float32), np.stack([vector_of(text) for text in texts])
    )


def test_embed_takes_a_single_string(client):
    np.testing.assert_array_equal(np.float32(embed(client, "one").json()["embeddings"]), [vector_of("one")])


@pytest.mark.parametrize("is_query", [True, False])
def test_the_server_adds_the_instruction_once_and_only_to_a_query(client, encoder, is_query):
    encoder.seen.clear()
    answer = embed(client, [" What\nis  BGE? "], is_query=is_query).json()
    assert encoder.seen == [(INSTRUCTION if is_query else "") + " What\nis  BGE? "]
    role = "query" if is_query else "document"
    np.testing.assert_array_equal(np.float32(answer["embeddings"]), [vector_of(" What\nis  BGE? ", role)])


def test_normalize_changes_nothing_since_the_model_itself_normalises(client):
    assert embed(client, "a", normalize=False).json() == embed(client, "a", normalize=True).json()


def test_no_texts_no_vectors(client):
    assert embed(client, []).json()["embeddings"] == []


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"texts": ["a", ""]}, ["body", "texts", 1]),
        ({"texts": ["a", " \n"]}, ["body", "texts", 1]),
        ({"texts": ["a", 5]}, ["body", "texts", 1]),
        ({"texts": None}, ["body", "texts"]),
        ({"texts": {"a": 1}}, ["body", "texts"]),
        ({"texts": [1, 2]}, ["body", "texts"]),
        ({"texts": "a", "is_qurey": True}, ["body", "is_qurey"]),
        ({"texts": "a", "is_query": "maybe"}, ["body", "is_query"]),
        ({}, ["body", "texts"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_without_the_input(client, body, where):
    answer = client.post("/embed", json=body)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert where in [problem["loc"] for problem in detail]
    assert all(problem.keys() == {"type", "loc", "msg"} for problem in detail)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"texts": NaN}', b"[" * 100_000])
def test_a_broken_body_is_a_4xx_in_ascii(client, raw):
    answer = client.post("/embed", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422)
    assert answer.content.isascii()
    assert answer.json()["detail"]


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/tokens"])
@pytest.mark.parametrize("text", ['"\\ud800"', '["a", "\\udfff"]', "[NaN]", "[1e999]", '{"\\ud800": NaN}'])
def test_a_lone_surrogate_or_nan_in_a_refused_body_is_no_500(client, path, text):
    body = f'{{"model": "bge-small", "input": {text}}}' if path.startswith("/v1") else f'{{"texts": {text}}}'
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.content.isascii()


def test_a_form_is_refused_with_the_way_out(client):
    answer = client.post("/embed", data={"texts": "a"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


# --- limits


@pytest.mark.parametrize(
    ("texts", "what"),
    [(["a"] * 9, "9 texts"), (["a" * 401], "401 characters"), ([LONG, LONG], "64 tokens")],
)
def test_too_much_for_one_request_is_refused_and_says_how_much(client, texts, what):
    plain, openai = embed(client, texts), embeddings(client, texts)
    assert (plain.status_code, openai.status_code) == (422, 413)
    assert what in plain.json()["detail"]
    assert what in openai.json()["error"]["message"]


def test_a_full_queue_answers_429_with_retry_after():
    gate = threading.Event()
    with ServedEncoder(gate) as encoder, background(encoder, limits=SMALL) as url, httpx.Client(base_url=url) as client:
        four = {"json": {"texts": ["a"] * 4}, "timeout": 30}
        waiting = threading.Thread(target=httpx.post, args=(f"{url}/embed",), kwargs=four)
        waiting.start()
        while "bge_queue_texts 4.0" not in client.get("/metrics").text:
            pass
        refused = embed(client, ["one too many"])
        gate.set()
        waiting.join(30)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert embed(client, ["now there is room"]).status_code == 200


def test_an_encoder_that_does_not_answer_is_a_504():
    gate = threading.Event()
    with (
        ServedEncoder(gate) as encoder,
        background(encoder, limits=Limits(answer_seconds=0.2)) as url,
        httpx.Client(base_url=url) as client,
    ):
        assert embed(client, "a").status_code == 504
        assert "bge_queue_texts 0.0" in client.get("/metrics").text
        gate.set()


@pytest.mark.parametrize(
    ("waiting", "pace", "seconds"),
    [(10, [], 1), (100, [(0.0, 50), (10.0, 50)], 10), (1, [(0.0, 1000), (10.0, 1)], 1), (10_000, [(0.0, 1)], 60)],
)
def test_retry_after_follows_the_pace_of_late(waiting, pace, seconds):
    assert retry_after(waiting, pace, 10.0) == seconds


# --- POST /v1/embeddings


def test_openai_answer_has_its_shape_and_true_counts(client):
    answer = embeddings(client, ["one two", "three"]).json()
    assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    np.testing.assert_array_equal(np.float32(answer["data"][1]["embedding"]), vector_of("three"))
    assert answer["object"] == "list"
    assert answer["model"] == CARD.id
    assert answer["usage"] == {"prompt_tokens": 4 + 3, "total_tokens": 4 + 3}


def test_input_type_query_gets_the_instruction_and_its_tokens_count(client):
    answer = embeddings(client, "one", input_type="query").json()
    np.testing.assert_array_equal(np.float32(answer["data"][0]["embedding"]), vector_of("one", "query"))
    assert answer["usage"]["prompt_tokens"] == len(f"{INSTRUCTION}one".split()) + 2
    plain = embeddings(client, "one").json()
    assert plain == embeddings(client, "one", input_type="document").json()


def test_base64_is_little_endian_float32(client):
    row = embeddings(client, "one", encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(row), "<f4"), vector_of("one"))


@pytest.mark.parametrize("name", ["BAAI/bge-small-en-v1.5", "bge-small", "BGE-Small-EN-v1.5", "ours"])
def test_every_name_of_the_model_is_known(client, name):
    answer = client.post("/v1/embeddings", json={"model": name, "input": "a"})
    assert answer.json()["model"] == CARD.id


@pytest.mark.parametrize("name", ["text-embedding-3-small", "bge-base-en-v1.5", "", "../../etc", "\U0001f600" * 500])
def test_another_model_is_refused_rather_than_replaced(client, name):
    answer = client.post("/v1/embeddings", json={"model": name, "input": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"
    assert CARD.id in answer.json()["error"]["message"]
    assert len(answer.content) < 2000


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 16}, "dimensions"),
        ({"input_type": "passage"}, "input_type"),
        ({"prompt_name": "query"}, "prompt_name"),
    ],
)
def test_a_mistake_is_a_400_in_openai_shape(client, more, param):
    answer = client.post("/v1/embeddings", json={"model": CARD.id, "input": "a", **more})
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_token_ids_are_refused_with_the_way_out(client):
    answer = client.post("/v1/embeddings", json={"model": CARD.id, "input": [[101, 102]]})
    assert answer.status_code == 400
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["message"]


def test_the_model_is_listed(client):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [CARD.id]


@pytest.mark.parametrize(("path", "key"), [("/v1/nothing", "error"), ("/nothing", "detail")])
def test_an_unknown_path_is_a_404_in_the_shape_of_its_place(client, path, key):
    answer = client.get(path)
    assert answer.status_code == 404
    assert key in answer.json()


# --- truncation is loud


def test_a_cut_text_is_named_in_a_header_and_its_tokens_count_up_to_the_limit(client):
    answer = embeddings(client, ["a", LONG])
    assert answer.headers["x-truncated-positions"] == "1"
    assert answer.json()["usage"]["prompt_tokens"] == 3 + CARD.max_tokens
    assert "x-truncated-positions" not in embed(client, "short").headers


def test_tokens_are_counted_and_the_cut_is_found(client):
    answer = client.post("/tokens", json={"texts": ["one two", LONG]}).json()
    assert answer["counts"] == [4, 32]
    assert answer["max_tokens"] == CARD.max_tokens
    none, read = answer["read_characters"]
    assert none is None
    assert len(LONG[:read].split()) + 2 == CARD.max_tokens
    assert len(LONG[: read + 1].split()) + 2 > CARD.max_tokens
    as_query = client.post("/tokens", json={"texts": "one", "is_query": True}).json()["counts"]
    assert as_query == [len(f"{INSTRUCTION}one".split()) + 2]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 257, 5000])
@pytest.mark.parametrize("limit", [0, 1, 3, 100])
def test_the_cut_is_exact_for_any_length(length, limit):
    read = read_characters("x" * length, lambda texts: [len(text) for text in texts], limit)
    assert read == min(limit, length - 1) if limit < length else read >= length - 1


def test_without_a_tokenizer_nothing_is_made_up():
    class Uncounted(ServedEncoder):
        def count_tokens(self, texts):
            raise ConfigError("no tokenizer on this machine")

    with Uncounted() as encoder, background(encoder) as url, httpx.Client(base_url=url) as client:
        assert embeddings(client, LONG).json()["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
        assert client.post("/tokens", json={"texts": "a"}).json()["counts"] is None
        assert client.get("/info").json()["counts_tokens"] is False


# --- what the encoder raises


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RateLimitError("slow down", retry_after=7.2), 429),
        (DeadlineError("late"), 504),
        (HostUnavailableError("down"), 503),
        (BadAnswerError("NaN"), 502),
        (AuthenticationError("key sk-secret is wrong"), 502),
        (ConfigError("no instruction: pass query_instruction="), 422),
        (RuntimeError("boom with a secret text"), 500),
    ],
)
def test_what_the_encoder_raises_is_an_answer_without_its_secrets(error, status):
    with Failing(error) as encoder, background(encoder) as url, httpx.Client(base_url=url) as client:
        answer = embed(client, "a")
        assert answer.status_code == status
        assert "secret" not in answer.text
        assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
        assert client.get("/health").json() == {"status": "ok", "model": CARD.id, "model_loaded": False}
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert "secret" not in ready.text


@pytest.mark.parametrize("spoil", [lambda v: v * np.nan, lambda v: v[:-1], lambda v: v[:, :-1]], ids=["nan", "n", "d"])
def test_wrong_vectors_never_leave_the_house(spoil):
    with ServedEncoder(spoil=spoil) as encoder, background(encoder) as url, httpx.Client(base_url=url) as client:
        answer = embed(client, ["a", "b"])
        assert answer.status_code == 502
        assert answer.json()["detail"]


# --- state


def test_ready_once_the_model_has_answered():
    gate = threading.Event()
    with ServedEncoder(gate) as encoder, background(encoder) as url, httpx.Client(base_url=url) as client:
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        assert client.get("/info").json()["trouble"] == "the model is loading"
        gate.set()
        while client.get("/ready").status_code != 200:
            pass
        assert client.get("/health").json()["model_loaded"] is True
        assert client.get("/info").json()["trouble"] is None


def test_metrics_count_requests_texts_tokens_and_batches(encoder):
    with background(encoder) as url, httpx.Client(base_url=url) as client:
        embed(client, ["one", "two three"], is_query=True)
        client.post("/embed", json={})
        client.get("/made/up")
        text = client.get("/metrics").text
    for line in (
        'bge_requests_total{route="/embed",status="200"} 1.0',
        'bge_requests_total{route="/embed",status="422"} 1.0',
        'bge_requests_total{route="other",status="404"} 1.0',
        'bge_texts_total{role="query"} 2.0',
        f'bge_tokens_total{{role="query"}} {2 * len(INSTRUCTION.split()) + 3 + 4}.0',
        "bge_queue_texts 0.0",
        "bge_request_texts_sum 2.0",
        "bge_batch_texts_count 1.0",
        'bge_request_seconds_count{route="/embed"} 2.0',
    ):
        assert line in text


def test_info_says_what_is_served(client, encoder):
    info = client.get("/info").json()
    assert info["space"] == encoder.space
    assert info["query_instruction"] == INSTRUCTION
    assert info["limits"]["items"] == SMALL.items
    assert info["needs_key"] is False


def test_the_log_has_a_line_per_request_without_texts(client, caplog):
    with caplog.at_level(logging.INFO, "bge_integrations.server"):
        embed(client, ["confidential words"])
        client.get("/a%0Aforged%20line?texts=confidential")
    lines = [record.getMessage() for record in caplog.records if record.name == "bge_integrations.server"]
    assert len(lines) == 2
    assert lines[0].startswith("POST /embed 200 ")
    assert lines[0].endswith(" ms, 1 texts, document, 4 tokens")
    assert not any("confidential" in line or "\n" in line for line in lines)


# --- keys and origins


@pytest.fixture(scope="module")
def locked(encoder):
    with background(encoder, api_keys=["k-one", "k-two"]) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize("given", [None, "k-one", "Bearer", "Bearer k-on", "Bearer k-onee", "Basic k-one", "Bearer é"])
@pytest.mark.parametrize("path", ["/embed", "/tokens", "/v1/embeddings"])
def test_without_the_key_nothing_is_read(locked, path, given):
    headers = {"authorization": given.encode()} if given else {}
    answer = locked.post(path, content=b"not even json", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "k-one" not in answer.text


@pytest.mark.parametrize("keys", [[""], ["k-one", " "]])
def test_an_empty_key_is_refused_since_it_would_open_to_all(encoder, keys):
    with pytest.raises(ConfigError, match="empty key"):
        create_app(encoder, api_keys=keys)


@pytest.mark.parametrize("key", ["k-one", "k-two"])
def test_each_key_opens(locked, key):
    headers = {"authorization": f"Bearer {key}"}
    assert locked.post("/embed", json={"texts": "a"}, headers=headers).status_code == 200
    assert locked.get("/metrics", headers=headers).status_code == 200


def test_what_tells_nothing_stays_open(locked):
    assert [locked.get(path).status_code for path in ("/health", "/info", "/openapi.json")] == [200] * 3
    assert [locked.get(path).status_code for path in ("/metrics", "/v1/models", "/v1/models/x")] == [401] * 3
    assert locked.get("/info").json()["needs_key"] is True


def test_other_web_pages_are_let_in_only_where_asked(client, encoder):
    origin = {"origin": "https://example.com"}
    assert "access-control-allow-origin" not in client.get("/health", headers=origin).headers
    with background(encoder, cors_origins=["https://example.com"], api_keys=["k"]) as url:
        preflight = httpx.options(
            f"{url}/embed",
            headers={
                **origin,
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://example.com"
        refused = httpx.post(f"{url}/embed", json={"texts": "a"}, headers=origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://example.com")


def test_a_wrong_address_is_a_clear_error(encoder):
    with background(encoder) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port}.*choose another"), background(encoder, port=port):
            pass


def test_numbers_survive_json_exactly(client):
    raw = embed(client, "a").content
    assert np.float32(json.loads(raw)["embeddings"][0]).tobytes() == vector_of("a").tobytes()
