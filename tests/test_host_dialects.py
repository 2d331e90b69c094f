"""Hosts as they are: how real servers word refusals and write answers, and what slow ones need."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_integrations import errors
from bge_integrations.catalog import find_model
from bge_integrations.catalog.records import Provider
from bge_integrations.remote.engine import Endpoint, HostLimits, RemoteEngine
from bge_integrations.remote.responses import refusal, wait_in
from rig import Rig, cap, latency, ok, raw, rows, status

pytestmark = pytest.mark.slow

CARD = find_model("bge-small")
TEXTS = [f"text number {i}" for i in range(16)]


def no_key():
    return None


@pytest.fixture
def engine_of():
    made = []

    def make(host, *, url=None, **limits):
        endpoint = Endpoint(provider=Provider(name="host"), base_url=url or host.url, wire_model="m", key=no_key)
        limits = HostLimits(**{"timeout": 30.0, "backoff": 0.005, "max_concurrency": 1, **limits})
        made.append(RemoteEngine(CARD, endpoint, limits=limits))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def right(host, engine, texts=TEXTS) -> bool:
    return bool(np.allclose(engine.encode(texts, role="document"), host.truth(texts), atol=1e-6))


def refused(code, answer):
    return status(code, body=json.dumps(answer).encode())


def sizes(host):
    return [len(sent) for sent in host.sent]


# Limits of time

PER_MINUTE = [
    {"message": "You exceeded your current quota: 100 requests per minute"},  # Scaleway
    {"error": {"code": "429", "message": "Rate limit is exceeded. Check your billing tier. Try again in 0.2 seconds."}},
    {"error": {"status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded", "details": [{"retryDelay": "0.2s"}]}},
    {"code": 429, "message": "您的账户余额足够,但请求过于频繁,请0.2秒后重试"},
]


@pytest.mark.parametrize("answer", PER_MINUTE, ids=range(len(PER_MINUTE)))
def test_words_about_quota_do_not_end_a_job(engine_of, answer):
    with Rig().script(refused(429, answer), refused(429, answer)) as host:
        assert right(host, engine_of(host))
        assert len(host.sent) == 3


WAITS = {
    "Please try again in 6ms.": 0.006,
    "Try again in 1m30s.": 90.0,
    "retry after 26 seconds": 26.0,
    '"retryDelay": "34.5s"': 34.5,
    "请在 30 秒后重试": 30.0,
    "Please wait 2 minutes": 120.0,
    "available in 1h": 3600.0,
    "limit of 100 requests per minute": None,
    "retry with fewer than 512 tokens": None,
    "retry later": None,
}


@pytest.mark.parametrize("text", WAITS)
def test_times_in_messages(text):
    assert wait_in(text) == (None if WAITS[text] is None else pytest.approx(WAITS[text]))


def test_a_time_in_a_message_is_waited_for(engine_of):
    with Rig().script(status(429, "Too many tokens, please try again in 400ms")) as host:
        assert right(host, engine_of(host))
        assert host.requests[1].at - host.requests[0].at >= 0.4


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_host_is_waited_for_while_the_deadline_lasts(engine_of, code):
    with Rig().script(*[status(code)] * 9) as host:
        assert right(host, engine_of(host, backoff=0.001))
        assert len(host.sent) == 10
        host.forget().default = status(code)
        with pytest.raises((errors.HostUnavailableError, errors.RateLimitError)):
            engine_of(host, timeout=None, backoff=0.001).encode(TEXTS, role="document")
        assert len(host.sent) == 7


# Limits of size

TOO_MUCH = {
    "llama.cpp": (500, {"error": {"code": 500, "message": "input (2301 tokens) is too large to process. increase the "
                                  "physical batch size (current batch size: 512)", "type": "server_error"}}),
    "llama.cpp, context": (400, {"error": {"code": 400, "message": "the request exceeds the available context size"}}),
    "SiliconFlow": (400, {"code": 20015, "message": "输入长度超过限制", "data": None}),
    "Zhipu": (400, {"error": {"code": "1210", "message": "API 调用参数有误,input数组最大不得超过64条"}}),
    "DashScope": (400, {"error": {"message": "Value error, batch size is invalid, it should not be larger than 10."}}),
    "TEI": (413, {"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"}),
    "vLLM": (400, {"object": "error", "message": "This model's maximum context length is 512 tokens."}),
    "CUDA": (500, {"detail": "CUDA out of memory. Tried to allocate 2.00 GiB"}),
    "Azure": (429, {"error": {"code": "rate_limit_exceeded", "message": "Request too large for m on tokens per min"}}),
    "Japanese": (422, {"message": "入力が長すぎます"}),
    "French": (406, {"message": "Votre requête est trop longue"}),
    "French, elided": (400, {"message": "trop d'éléments dans input"}),
    "Russian": (400, {"message": "Слишком много текстов"}),
    "or fewer": (422, {"detail": "input must hold 8 items or fewer"}),
    "out of range": (400, {"message": "value is out of range: inputs"}),
    "length should be": (422, {"detail": "length of input should be 1 to 8"}),
    "memory slot": (500, {"error": "failed to find a memory slot for batch of size 1024"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_words_of_size_count_in_any_status_and_language(engine_of, name):
    refusal = refused(*TOO_MUCH[name])

    def small_ones_only(exchange):
        (ok if len(exchange.texts) <= 4 else refusal)(exchange)

    with Rig(default=small_ones_only) as host:
        engine = engine_of(host)
        assert right(host, engine)
        assert engine.usage.retries == 0
        assert len(host.sent) <= 7
        host.forget()
        assert right(host, engine_of(host, max_inputs=4))


NOT_SIZE = [
    (503, "maximum capacity exceeded, try again later"),
    (500, "rate limit exceeded for this batch queue"),
    (500, "failure (text encoder crashed), see log 17"),
    (502, "upstream request body too large"),
]


@pytest.mark.parametrize(("code", "message"), NOT_SIZE)
def test_words_of_a_busy_host_are_not_about_size(engine_of, code, message):
    with Rig().script(status(code, message)) as host:
        assert right(host, engine_of(host))
        assert sizes(host) == [16, 16]


def test_a_slow_host_gets_fewer_texts_and_is_remembered(engine_of):
    def slow(exchange):
        (latency(1.0) if len(exchange.texts) > 4 else ok)(exchange)

    with Rig(default=slow) as host:
        engine = engine_of(host, read_timeout=0.3)
        assert right(host, engine)
        host.forget()
        assert right(host, engine)
        assert max(sizes(host)) <= 4


def test_a_host_that_never_answers_is_not_searched_for_a_text(engine_of):
    with Rig(default=latency(5.0)) as host:
        with pytest.raises(errors.HostUnavailableError, match="in time"):
            engine_of(host, read_timeout=0.1, max_retries=2).encode(TEXTS, role="document")
        assert len(host.sent) <= 6


# Fields that a host does not know


@pytest.mark.parametrize(
    "refusal",
    [
        status(400, "Unsupported parameter: encoding_format"),
        status(
            422, body=b'{"detail": [{"loc": ["body", "encoding_format"], "msg": "Extra inputs are not permitted"}]}'
        ),
        status(400, "Unrecognized request argument supplied"),
    ],
)
def test_an_optional_field_that_is_refused_is_left_out_from_then_on(engine_of, refusal):
    def strict(exchange):
        (refusal if "encoding_format" in exchange.request.body else ok)(exchange)

    with Rig(default=strict) as host:
        engine = engine_of(host, max_inputs=1)
        assert right(host, engine)
        assert ["encoding_format" in request.body for request in host.requests] == [True] + [False] * 16


# Ways of writing answers


def without_zeros(data):
    return [{name: value for name, value in row.items() if value != 0} for row in data]


WRITTEN = {
    "zeros left out": without_zeros,
    "index as text": lambda data: [{**row, "index": str(row["index"])} for row in data][::-1],
    "index as a float": lambda data: [{**row, "index": float(row["index"])} for row in data][::-1],
    "a list around each": lambda data: [{**row, "embedding": [row["embedding"]]} for row in data],
    "zeros left out, in reverse": lambda data: without_zeros(data)[::-1],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_ways_of_writing_rows_are_read_at_once(engine_of, name):
    with Rig(default=rows(WRITTEN[name])) as host:
        engine = engine_of(host)
        assert right(host, engine)
        assert right(host, engine, TEXTS[:1])
        assert sizes(host) == [16, 1]


def test_rows_that_all_say_0_are_taken_in_the_order_they_came(engine_of):
    with Rig(default=rows(lambda data: [{**row, "index": 0} for row in data])) as host:
        with pytest.warns(errors.RepairWarning, match="index"):
            assert right(host, engine_of(host))
        assert len(host.sent) == 1


FOREIGN = {
    "llama.cpp": ([{"index": 0, "embedding": [[0.5, 0.5]]}], "llama.cpp's own /embeddings: base_url= needs /v1"),
    "TEI": ([[0.25, 0.5], [0.5, 0.25]], "base_url= needs /v1"),
    "Ollama, old": ({"embedding": [0.25, 0.5]}, "must end in /v1"),
    "Ollama": ({"model": "m", "embeddings": [[0.25, 0.5]]}, "must end in /v1"),
    "Cloudflare": ({"result": {"shape": [1, 2], "data": [[0.25, 0.5]]}, "success": True}, "/ai/v1"),
    "chat": ({"choices": [{"message": {"content": "Hello"}}]}, "chat completion"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_answers_cost_one_request_and_are_shown(engine_of, name):
    answer, hint = FOREIGN[name]
    body = json.dumps(answer)
    with Rig(default=raw(body)) as host:
        with pytest.raises(errors.BadAnswerError, match="it begins with") as caught:
            engine_of(host).encode(TEXTS, role="document")
        assert hint in str(caught.value)
        assert body[:40] in str(caught.value).replace("\\'", "'")
        assert len(host.sent) == 1


def test_one_vector_for_each_token_is_named(engine_of):
    many = rows(lambda data: [{**row, "embedding": [row["embedding"]] * 3} for row in data])
    with Rig(default=many) as host:
        with pytest.raises(errors.BadAnswerError, match="must pool"):
            engine_of(host).encode(TEXTS, role="document")
        assert len(host.sent) == 1


@pytest.mark.parametrize(
    "answer", [{"code": 503, "message": "overloaded"}, {"error": {"code": 429, "message": "busy"}}]
)
def test_a_busy_host_that_says_so_with_a_success_is_asked_again(engine_of, answer):
    with Rig().script(raw(json.dumps(answer))) as host:
        assert right(host, engine_of(host))
        assert sizes(host) == [16, 16]


@pytest.mark.parametrize("answer", [{"code": 50501, "message": "overloaded"}, {"detail": "not today"}, {"msg": "no"}])
def test_an_error_sent_as_a_success_is_shown_and_blames_no_text(engine_of, answer):
    with Rig(default=raw(json.dumps(answer))) as host:
        with pytest.raises(errors.HostError, match=r"overloaded|not today|no") as caught:
            engine_of(host).encode(TEXTS, role="document")
        assert len(host.sent) == 1
        assert len(caught.value.positions) == 16


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("/v1", "404 page not found", "one too many"),
        ("", "Not Found", "lack its /v1"),
        ("/v1", "model not found", "wire_model="),
    ],
)
def test_404_says_whether_path_or_model_is_wrong(engine_of, path, message, hint):
    with Rig(default=status(404, message)) as host, pytest.raises(errors.RequestRefusedError, match=hint):
        engine_of(host, url=host.space_url + path).encode(["a"], role="document")


DEEP = "[" * 900 + "]" * 900
HOSTILE = [
    '{"error": {"message": "\\ud800 half"}}', f'{{"error": {DEEP}}}', f'{{"data": {DEEP}}}', DEEP,
    '{"error": {"retry_after_s": 1e400, "message": "x"}}', f'{{"error": {{"retry_after_s": {"9" * 400}}}}}',
    f'{{"data": [{{"index": 1e400, "embedding": [{"9" * 400}]}}]}}', '{"data": [{"index": NaN, "embedding": [NaN]}]}',
    '{"data": [{"index": 0, "embedding": {"a": 1}}], "usage": 5}', '{"model": ["x"], "data": [{"embedding": 5}]}',
    '{"data": [{"embedding": [0.5], "embedding": [[0.5]]}]}', '{"data": {"a": 1}, "data": []}', '"\\u0000"', "1e999",
    f'{{"usage": {{"prompt_tokens": {"9" * 300}}}, "data": [{{"index": 0, "embedding": [0.5]}}]}}',
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: body[:24])
def test_hostile_answers_are_typed_errors(engine_of, body):
    with Rig() as host:
        engine = engine_of(host, max_retries=1)
        for code in (200, 400, 429, 500):
            host.default = raw(body, code=code)
            with pytest.raises(errors.HostError) as caught:
                engine.encode(["a"], role="document")
            str(caught.value).encode()


WRONG_IN_EVERY_ROW = {
    "numbered from one": lambda i, row: {"index": i + 1, "embedding": row},
    "truth values": lambda i, row: {"index": i > 0, "embedding": row},
    "each number twice": lambda i, row: {"index": i // 2, "embedding": row},
    "numbers as strings": lambda i, row: {"index": i, "embedding": [str(x) for x in row]},
    "an object": lambda i, row: {"index": i, "embedding": {str(place): x for place, x in enumerate(row)}},
    "zeros": lambda i, row: {"index": i, "embedding": [0.0] * len(row)},
    "null": lambda i, row: {"index": i, "embedding": None},
}


@pytest.mark.parametrize("written", WRONG_IN_EVERY_ROW.values(), ids=WRONG_IN_EVERY_ROW)
def test_what_is_wrong_in_every_row_is_not_searched_for_in_texts(engine_of, written):
    def fault(exchange):
        vectors = enumerate(row["embedding"] for row in exchange.rows())
        exchange.send(json.dumps({"data": [written(i, row) for i, row in vectors]}).encode())

    with Rig(default=fault) as host:
        with pytest.raises(errors.BadAnswerError, match="it begins with"):
            engine_of(host).encode(TEXTS, role="document")
        assert len(host.sent) <= 3


WRONG_COUNTS = {
    "the last twice": lambda rows: [*rows, {**rows[-1], "index": len(rows)}],
    "without the second": lambda rows: rows[:1] + [{**row, "index": i} for i, row in enumerate(rows[2:], 1)],
    "none": lambda rows: [],
    "three for one": lambda rows: [{**row, "index": i} for i, row in enumerate(rows * 3)],
}


@pytest.mark.parametrize("written", WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_a_host_that_never_answers_one_row_for_each_text_is_not_asked_on_and_on(engine_of, written):
    texts = [f"text {i}" for i in range(500)]
    with Rig(default=lambda x: x.send(x.payload(written(x.rows()) if len(x.texts) > 1 else []))) as host:
        with pytest.raises(errors.BadAnswerError, match="no response of this host had one row per text") as caught:
            engine_of(host).encode(texts, role="document")
        assert caught.value.positions == ()
        assert len(host.sent) <= 40  # of 8 requests at a time


def test_one_text_without_a_row_is_still_found(engine_of):
    texts = [f"text {i}" for i in range(90)]
    with Rig(default=lambda x: x.send(x.payload(x.rows()[texts[0] in x.texts :]))) as host:
        with pytest.raises(errors.BadAnswerError) as caught:
            engine_of(host).encode(texts, role="document")
        assert caught.value.positions == (0,)
        assert set(range(1, 64)) <= set(caught.value.finished)  # the rest of its request


@pytest.mark.parametrize("most", [1, 7])
def test_a_host_that_answers_the_first_texts_only_is_sent_so_many(engine_of, most):
    texts = [f"text {i}" for i in range(150)]
    with Rig(default=lambda x: x.send(x.payload(x.rows()[:most]))) as host:
        engine = engine_of(host)
        np.testing.assert_allclose(engine.encode(texts, role="document"), host.truth(texts), atol=1e-6)
        needed, asked = -(-len(texts) // most), len(host.sent)
        assert asked <= needed + 16
        engine.encode(texts, role="document")
        assert len(host.sent) == asked + needed


@pytest.mark.parametrize("said", ["Too many texts: 64", "Body is larger than 8192 bytes", "输入过多，最多 4 条"])
def test_a_size_that_is_refused_with_403_is_learned(engine_of, said):
    texts = [f"text {i}" for i in range(40)]
    with Rig(default=cap(4, 403, said)) as host:
        np.testing.assert_allclose(engine_of(host).encode(texts, role="document"), host.truth(texts), atol=1e-6)


@pytest.mark.parametrize("said", [
    "Your API key exceeds the limit of inputs that this account may send", "access token: maximum length exceeded",
    "Forbidden", "permission denied: batch inputs are at most for premium plans", "此密钥超过上限",
])  # fmt: skip
def test_another_403_is_one_of_the_key(engine_of, said):
    with Rig(default=status(403, said)) as host:
        with pytest.raises(errors.AuthenticationError):
            engine_of(host).encode(TEXTS, role="document")
        assert len(host.sent) <= 8


def test_an_argument_that_a_server_of_python_does_not_know_is_left_out(engine_of):
    def fault(exchange):
        if "encoding_format" in exchange.request.body:
            message = "embed() got an unexpected keyword argument 'encoding_format'"
            return exchange.send(json.dumps({"detail": message}).encode(), 500)
        return ok(exchange)

    with Rig(default=fault) as host:
        engine = engine_of(host)
        assert right(host, engine)
        assert right(host, engine)
        assert len(host.sent) == 3


@pytest.mark.parametrize("unit", ["token", "limit_", "exceed ", "max ", "1", "retry ", "text a b c "])
@pytest.mark.parametrize("code", [400, 429])
def test_a_long_refusal_is_read_in_bounded_time(unit, code):
    endpoint = Endpoint(provider=Provider(name="host"), base_url="http://127.0.0.1:1/v1", wire_model="m", key=no_key)

    def work(size):
        body = json.dumps({"error": unit * (size // len(unit))}).encode()
        begin = time.process_time()
        refusal(code, {}, body, endpoint)
        return time.process_time() - begin

    least = min(work(4_000) for _ in range(3))
    assert min(work(60_000) for _ in range(3)) < 20 * least + 0.05


NAMES = ["data", "embedding", "index", "error", "message", "code", "usage", "model", "detail"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=JSON, code=st.sampled_from([200, 200, 400, 422, 429, 500, 503]))
def test_any_answer_leads_to_a_typed_error(shared, answer, code):
    host, engine = shared
    host.default = raw(json.dumps(answer), code=code)
    with pytest.raises(errors.HostError):
        engine.encode(["a"], role="document")


@pytest.fixture(scope="module")
def shared():
    with Rig() as host:
        endpoint = Endpoint(provider=Provider(name="host"), base_url=host.url, wire_model="m", key=no_key)
        with RemoteEngine(CARD, endpoint, limits=HostLimits(timeout=20.0, max_retries=0)) as engine:
            yield host, engine


# The pace of a caller


def test_calls_that_are_given_up_return_their_place(engine_of):
    with Rig() as host:
        engine = engine_of(host, requests_per_minute=120.0, timeout=4.0)
        assert right(host, engine, ["first"])
        waiting = [engine.submit([f"text {i}"], role="document") for i in range(30)]
        time.sleep(0.05)
        for future in waiting:
            future.cancel()
        assert right(host, engine, ["last"])
        assert len(host.sent) == 2


def test_a_call_whose_deadline_ends_while_it_waits_takes_no_place(engine_of):
    with Rig() as host:
        engine = engine_of(host, requests_per_minute=30.0, timeout=1.0)
        assert right(host, engine, ["first"])
        with pytest.raises(errors.DeadlineError):
            engine.encode(["again"], role="document")
        time.sleep(1.2)
        assert right(host, engine, ["last"])
        assert len(host.sent) == 2


def test_a_limit_is_learned_once(engine_of):
    with Rig(default=cap(4)) as host:
        engine = engine_of(host)
        assert right(host, engine)
        host.forget()
        assert right(host, engine)
        assert sizes(host) == [4, 4, 4, 4]
