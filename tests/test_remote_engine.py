"""The engine for hosts: what is learned, who waits for whom, and that it works wherever it is called from."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import gc
import gzip
import json
import logging
import multiprocessing
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import openai
import pytest

from bge_integrations import errors
from bge_integrations.catalog import find_model, find_provider
from bge_integrations.catalog.records import Offer, Provider
from bge_integrations.core.event_loop import BackgroundLoop
from bge_integrations.keys import Key
from bge_integrations.remote.engine import Endpoint, HostLimits, RemoteEngine
from rig import (
    Rig,
    cap,
    cut,
    gzip_bomb,
    latency,
    ok,
    raw,
    refuse_marked,
    reset_peer,
    rows,
    slicer,
    spoilt,
    status,
    timeout,
)

KEY = "sk-canary-77ab"
CARD = find_model("bge-small")
TEXTS = [f"text number {i}" for i in range(40)]


class Canary:
    """A key that travels without its value, as load's."""

    def __init__(self, value=KEY):
        self.value = value

    def __call__(self):
        return self.value

    def __getstate__(self):
        return {}

    def __setstate__(self, state):
        self.value = None

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def engine_of():
    made = []

    def make(host, *, provider=None, limits=None, key=None, **options):
        provider = provider or Provider(name=f"127.0.0.1:{host.port}")
        endpoint = Endpoint(provider=provider, base_url=host.url, wire_model="bge-small", key=key or Canary())
        limits = HostLimits(**{"timeout": 30.0, "backoff": 0.005, **(limits or {})})
        made.append(RemoteEngine(CARD, endpoint, limits=limits, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(params=["aiohttp", "httpx"])
def transport(request, monkeypatch):
    """Both ways to the host: the SDK's client on aiohttp is there only where aiohttp is installed."""
    if request.param == "httpx":

        def missing(**_):
            raise RuntimeError("not installed")

        monkeypatch.setattr(openai, "DefaultAioHttpClient", missing)


both = pytest.mark.usefixtures("transport")


def right(host, engine, texts=TEXTS) -> bool:
    return bool(np.allclose(engine.encode(texts, role="document"), host.truth(texts), atol=1e-6))


# Where it is called from


@both
def test_sixteen_threads_share_one_engine(engine_of):
    with Rig(default=latency(0.002)) as host:
        engine = engine_of(host, limits={"max_inputs": 4})

        def one(i):
            part = [f"thread {i}, text {j}" for j in range(10)]
            return np.allclose(engine.encode(part, role="document"), host.truth(part), atol=1e-6)

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, range(32)))
        assert engine.usage.texts == 320
        assert len({thread.name for thread in threading.enumerate() if thread.name == "bge-remote"}) == 1


async def test_sync_and_async_inside_a_running_loop(engine_of):
    with Rig() as host:
        engine = engine_of(host)
        assert right(host, engine)
        many = await asyncio.gather(*(engine.aencode([text], role="document") for text in TEXTS))
        np.testing.assert_allclose(np.concatenate(many), host.truth(TEXTS), atol=1e-6)


async def test_the_callers_loop_is_never_blocked(engine_of):
    with Rig(default=latency(0.4)) as host:
        ticks, task = 0, asyncio.create_task(engine_of(host).aencode(TEXTS, role="document"))
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert ticks >= 5


@both
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_fork(engine_of):
    with Rig() as host:
        engine = engine_of(host)
        assert right(host, engine)
        context = multiprocessing.get_context("fork")
        there, here = context.Pipe()

        def child():
            here.send(engine.encode(TEXTS, role="document").tolist())

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: that is the point
            process = context.Process(target=child)
            process.start()
        assert there.poll(30)
        np.testing.assert_allclose(there.recv(), host.truth(TEXTS), atol=1e-6)
        process.join(10)
        assert right(host, engine)


def test_pickle_and_deepcopy_take_the_settings_and_leave_the_key(engine_of):
    with Rig(default=cap(4)) as host:
        engine = engine_of(host, query_instruction="Find: ", variant="int8")
        assert right(host, engine)
        packed = pickle.dumps(engine)
        assert KEY.encode() not in packed
        for twin in (pickle.loads(packed), copy.deepcopy(engine)):
            with twin:
                assert right(host, twin)
                assert (twin.space, twin.limits, twin.endpoint.base_url) == (engine.space, engine.limits, host.url)
        assert right(host, engine)


@both
def test_nothing_shows_the_key(engine_of, caplog):
    caplog.set_level(logging.DEBUG)
    with Rig().script(status(500, f"no, {KEY}"), raw(f"plain {KEY}", "text/plain"), status(429)) as host:
        engine = engine_of(host)
        assert right(host, engine)
        for body in (f'{{"error": "{KEY}"}}', f"{KEY}", f'{{"data": "{KEY}"}}', f"<html>{KEY}"):
            host.forget().default = raw(body)
            with pytest.raises(errors.BadAnswerError) as caught:
                engine.encode(["a"], role="document")
            assert KEY not in f"{caught.value!r} {vars(caught.value)} {caught.value.__context__!r}"
        assert KEY not in f"{engine!r} {engine.describe()} {caplog.text}"
        assert "text number" not in " ".join(r.getMessage() for r in caplog.records if "bge" in r.name)


@both
def test_closing_ends_calls_under_way_and_the_next_call_works(engine_of):
    with Rig(default=latency(20)) as host:
        engine = engine_of(host)
        future = engine.submit(TEXTS, role="document")
        while not host.requests:
            time.sleep(0.005)
        engine.close()
        with pytest.raises(errors.HostUnavailableError, match="closed") as caught:
            future.result(10)
        assert caught.value.unfinished == tuple(range(40))
        host.default = None
        assert right(host, engine)


@pytest.mark.parametrize("client", ["DefaultAioHttpClient", "DefaultAsyncHttpxClient"])
def test_a_host_where_nobody_listens_is_not_called_slow(client, monkeypatch):
    monkeypatch.setattr(openai, "DefaultAioHttpClient", getattr(openai, client))
    endpoint = Endpoint(provider=Provider(name="x"), base_url="http://127.0.0.1:9/v1", wire_model="m", key=lambda: None)
    engine = RemoteEngine(CARD, endpoint, limits=HostLimits(max_retries=0))
    with pytest.raises(errors.HostUnavailableError, match="could not be reached"):
        engine.encode(["a"], role="document")
    engine.close()


def test_what_fails_after_its_call_was_cancelled_fails_in_silence(caplog):
    """Asyncio would log ``Task exception was never retrieved``, whenever the task happens to be collected."""
    begun = threading.Event()

    async def fail_late():
        begun.set()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            raise errors.HostUnavailableError("the encoder was closed") from None

    loop = BackgroundLoop("bge-test")
    future = loop.run(fail_late())
    assert begun.wait(10)
    future.cancel()
    loop.run(asyncio.sleep(0.05)).result(10)
    del future
    gc.collect()
    loop.close()
    assert not [record for record in caplog.records if record.name == "asyncio"]


@both
def test_an_engine_that_is_forgotten_leaves_no_connection_open():
    with Rig() as host, warnings.catch_warnings():
        warnings.simplefilter("error")
        endpoint = Endpoint(provider=Provider(name="x"), base_url=host.url, wire_model="m", key=lambda: None)
        engine = RemoteEngine(CARD, endpoint)
        assert right(host, engine)
        thread = next(thread for thread in threading.enumerate() if thread.name == "bge-remote")
        del engine
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()
        gc.collect()


@both
def test_a_cancelled_call_stops_sending(engine_of):
    with Rig(default=latency(0.05)) as host:
        engine = engine_of(host, limits={"max_inputs": 1, "max_concurrency": 2})
        future = engine.submit(TEXTS, role="document")
        while len(host.requests) < 3:
            time.sleep(0.005)
        future.cancel()
        time.sleep(0.3)
        assert len(host.requests) < 15
        host.default = None
        assert right(host, engine)


BREAKS = {
    "reset before the head": reset_peer(),
    "reset in the body": reset_peer(100),
    "short body": cut(),
    "hang": timeout(),
    "gzip bomb": gzip_bomb(64),
    "drip": slicer(1, 0.05),
    "no HTTP": lambda exchange: (exchange.write(b"SSH-2.0-OpenSSH\r\n\r\n"), exchange.reset()),
}


@both
@pytest.mark.parametrize("name", BREAKS)
def test_connections_that_break(engine_of, name):
    with Rig(default=BREAKS[name]) as host:
        patient = name not in ("hang", "drip")  # these two have no end
        engine = engine_of(host, limits={"timeout": 1.0 if patient else 0.4, "max_retries": 1})
        with pytest.raises(errors.HostError) as caught:
            engine.encode(["a"], role="document")
        assert type(caught.value).__module__ == "bge_integrations.errors"
        engine.limits = replace(engine.limits, timeout=30.0)
        host.forget().default = None
        assert right(host, engine)


# What a host refuses, and how it says so


@both
@pytest.mark.parametrize("code", [401, 429, 400])
def test_a_packed_refusal_is_read(engine_of, code):
    said = gzip.compress(json.dumps({"error": {"message": "said in few bytes", "code": "insufficient_quota"}}).encode())
    with Rig(default=status(code, body=said, Content_Encoding="gzip")) as host:
        with pytest.raises(errors.HostError, match="said in few bytes") as caught:
            engine_of(host).encode(TEXTS, role="document")
        assert caught.value.status == code
        assert len(host.sent) == 1


@both
def test_a_refusal_without_end_is_not_read_to_it(engine_of):
    def endless(exchange):
        exchange.write(exchange.head(401, 10**12))
        with contextlib.suppress(OSError):
            while not exchange.rig.over.is_set():
                exchange.write(b"x" * 65536)
        exchange.hang_up = True

    with Rig(default=endless) as host:
        with pytest.raises(errors.AuthenticationError):
            engine_of(host).encode(["a"], role="document")
        assert len(host.sent) == 1


QUOTA = [
    (402, {"error": {"message": "pay"}}, errors.QuotaError),
    (429, {"error": {"code": "insufficient_quota", "message": "no"}}, errors.QuotaError),
    (429, {"error": {"type": "insufficient_quota", "message": "You exceeded your quota"}}, errors.QuotaError),
    (429, {"code": "billing_hard_limit_reached", "message": "no"}, errors.QuotaError),
    (403, {"message": "You have run out of credits", "statusCode": 403}, errors.QuotaError),
    (403, {"message": "Forbidden"}, errors.AuthenticationError),
    (401, {"detail": "Invalid token"}, errors.AuthenticationError),
    (400, {"error": "Invalid token"}, errors.RequestRefusedError),
    (405, {"detail": "Method Not Allowed"}, errors.RequestRefusedError),
]


@pytest.mark.parametrize(("code", "body", "error"), QUOTA, ids=lambda value: str(value)[:40])
def test_what_asking_again_would_not_change(engine_of, code, body, error):
    with Rig(default=status(code, body=json.dumps(body).encode())) as host:
        with pytest.raises(error) as caught:
            engine_of(host, limits={"max_inputs": 1}).encode(TEXTS, role="document")
        assert type(caught.value) is error
        assert len(host.sent) == 1
        assert "{" not in str(caught.value)  # the message of the error object, not the object


def test_a_quota_per_minute_is_a_rate_limit(engine_of):
    with Rig().script(status(429, "quota per minute used up", Retry_After_Ms=10)) as host:
        assert right(host, engine_of(host))


@pytest.mark.parametrize("code", [408, 409, 424, 425, 500, 502, 503, 504, 529])
def test_what_passes(engine_of, code):
    with Rig().script(status(code)) as host:
        engine = engine_of(host)
        assert right(host, engine)
        assert (engine.usage.requests, engine.usage.retries) == (2, 1)


def test_a_refused_key_is_named_by_its_variables(engine_of):
    key = Key("wrong", ("GIGAROUTER_API_KEY", "GR_KEY"), needed=True, host="gigarouter")
    with Rig(default=status(401)) as host:
        with pytest.raises(errors.AuthenticationError, match="GIGAROUTER_API_KEY or GR_KEY") as caught:
            engine_of(host, provider=find_provider("gigarouter"), key=key).encode(["a"], role="document")
        assert caught.value.provider == "gigarouter"


@pytest.mark.parametrize(
    ("provider", "said"),
    [(None, "hosts call it BAAI/bge-small-en-v1.5"), ("deepinfra", "known to serve BAAI/bge-base-en-v1.5")],
)
def test_404_names_names(engine_of, provider, said):
    with Rig(default=status(404, "no such model")) as host:
        engine = engine_of(host, provider=provider and find_provider(provider))
        with pytest.raises(errors.RequestRefusedError, match=said) as caught:
            engine.encode(["a"], role="document")
        assert "lack its /v1" not in str(caught.value)
        engine.endpoint = replace(engine.endpoint, base_url=host.space_url)
        engine.close()
        with pytest.raises(errors.RequestRefusedError, match="lack its /v1"):
            engine.encode(["a"], role="document")


def test_texts_that_a_host_repeats_are_not_repeated(engine_of):
    def echo(exchange):
        status(400, f"cannot embed {exchange.texts[0]!r}")(exchange)

    with Rig(default=echo) as host:
        with pytest.raises(errors.RequestRefusedError, match="cannot embed") as caught:
            engine_of(host).encode(TEXTS, role="document")
        assert TEXTS[0] not in str(caught.value)


# gigarouter: a cold model


def cold(seconds):
    body = json.dumps({"error": {"code": "cold", "message": "model is starting", "retry_after_s": seconds}}).encode()
    return status(503, body=body)


def test_a_cold_start_within_the_deadline_is_waited_for(engine_of):
    with Rig().script(cold(0.5)) as host:
        engine = engine_of(host, provider=find_provider("gigarouter"))
        assert right(host, engine)
        assert host.requests[1].at - host.requests[0].at >= 0.45
        assert engine.usage.usd == pytest.approx(engine.usage.tokens * 0.008 / 1e6)
        assert engine.usage.usd > 0


@pytest.mark.timeout(60)  # a call that waited would take longer
@pytest.mark.parametrize("header", [False, True])
def test_a_cold_start_beyond_the_deadline_is_reported_with_the_time_to_wait(engine_of, header):
    with Rig(default=status(503, Retry_After=90) if header else cold(90)) as host:
        engine = engine_of(host, provider=find_provider("gigarouter"), limits={"timeout": 85.0})
        with pytest.raises(errors.HostUnavailableError, match="90 s") as caught:
            engine.encode(TEXTS, role="document")
        assert caught.value.retry_after == 90
        assert caught.value.unfinished == tuple(range(40))
        assert len(host.sent) == 1


# Waiting


@pytest.mark.timeout(60)  # a call that waited would take longer
def test_a_call_that_finds_the_gate_closed_for_too_long_is_told_at_once(engine_of):
    with Rig() as host:
        engine = engine_of(host, limits={"timeout": None, "patience": 200.0})
        assert right(host, engine)
        host.script(status(429, "later", Retry_After=110))
        waiting = engine.submit(["waits"], role="document")
        while len(host.requests) < 2:
            time.sleep(0.005)
        time.sleep(0.1)
        engine.limits = replace(engine.limits, timeout=45.0)
        with pytest.raises(errors.RateLimitError, match="later") as caught:
            engine.encode(["asks"], role="document")
        assert 45 < caught.value.retry_after <= 110
        assert len(host.requests) == 2
        waiting.cancel()


def test_one_fatal_answer_ends_the_call_while_others_wait_to_try_again(engine_of):
    with Rig() as host:
        engine = engine_of(host, limits={"max_inputs": 1, "max_concurrency": 4, "timeout": None})
        assert right(host, engine, ["first"])
        later = status(500, Retry_After=60)
        host.script(later, later, later, latency(0.2, status(403)))
        with pytest.raises(errors.AuthenticationError):
            engine.encode(TEXTS, role="document")
        assert len(host.requests) == 5  # none of the retries is waited for


def test_what_is_under_way_when_a_call_fails_is_kept(engine_of):
    with Rig() as host:
        engine, seen = engine_of(host, limits={"max_inputs": 1, "max_concurrency": 2}), []
        assert right(host, engine, ["first"])
        host.script(latency(0.1, status(403)), latency(0.4))
        with pytest.raises(errors.AuthenticationError) as caught:
            engine.encode(TEXTS, role="document", on_batch=lambda indices, _: seen.extend(indices))
        assert len(seen) == 1
        assert caught.value.finished == tuple(seen)
        assert len(host.requests) == 3


def test_a_call_without_timeout_goes_on_while_requests_are_finished(engine_of):
    with Rig(default=latency(0.15)) as host:
        limits = {"timeout": None, "patience": 0.8, "max_inputs": 1, "max_concurrency": 2}
        engine = engine_of(host, limits=limits)
        assert right(host, engine, TEXTS[:14])  # 1 s in all
        host.forget().default = latency(20)
        with pytest.raises(errors.DeadlineError, match="within"):
            engine.encode(TEXTS, role="document")


def test_the_first_request_of_all_goes_ahead(engine_of):
    with Rig(default=latency(0.05, cap(4))) as host:
        assert right(host, engine_of(host, limits={"max_inputs": 16}), TEXTS)
        assert [len(sent) for sent in host.sent].count(16) == 1  # the cap is learned once, not by all lanes


def test_a_call_waits_for_no_others_retries(engine_of):
    with Rig().script(status(500)) as host:
        engine = engine_of(host, limits={"backoff": 60.0, "timeout": None})
        first = engine.submit(["a"], role="document")
        while not host.requests:
            time.sleep(0.005)
        time.sleep(0.1)
        assert right(host, engine, ["b"])
        first.cancel()


@pytest.mark.parametrize("kind", ["LangChain", "LlamaIndex"])
def test_rate_limiters_are_asked_before_each_request(engine_of, kind):
    asked = []

    class LangChain:
        async def aacquire(self, *, blocking=True):
            asked.append(blocking)
            return True

    class LlamaIndex:
        async def async_acquire(self, num_tokens=0):
            asked.append(num_tokens > 0)

    with Rig().script(status(500)) as host:
        limiter = {"LangChain": LangChain, "LlamaIndex": LlamaIndex}[kind]()
        assert right(host, engine_of(host, limits={"max_inputs": 10}, rate_limiter=limiter))
        assert asked == [True] * 5


def test_requests_of_its_own_are_paced_too(engine_of):
    class Counting:
        asked = 0

        async def async_acquire(self, num_tokens=0):
            self.asked += 1

    def without_format(exchange):
        known = "encoding_format" not in exchange.request.body
        (ok if known else status(400, "encoding_format is not supported"))(exchange)

    limiter = Counting()
    with Rig(default=without_format) as host:
        engine = engine_of(host, rate_limiter=limiter)
        assert right(host, engine)
        assert limiter.asked == len(host.requests) == 2
        engine.post(["a"], encoding=None)  # as `bge verify` does
        assert limiter.asked == len(host.requests) == 3


def test_tokens_per_minute(engine_of):
    with Rig() as host:
        engine = engine_of(host, limits={"max_inputs": 1, "tokens_per_minute": 6000.0})
        assert right(host, engine, ["x" * 80] * 5)  # some 22 tokens each, 100 in a second
        assert host.requests[-1].at - host.requests[0].at >= 0.7


# Caps


def sizes(host):
    return [len(sent) for sent in host.sent]


def test_a_single_text_at_fault_is_no_cap(engine_of):
    with Rig(default=refuse_marked("poison", 413, "too large")) as host:
        engine = engine_of(host, provider=Provider(name="host", base64=False))
        with pytest.raises(errors.TooLargeError) as caught:
            engine.encode([*TEXTS, "poison"], role="document")
        assert caught.value.positions == (40,)
        assert caught.value.finished == tuple(range(40))
        host.forget()
        assert right(host, engine)
        assert sizes(host) == [40]


def test_bytes_that_are_too_many_are_learned_as_bytes(engine_of):
    def small(exchange):
        (ok if sum(map(len, exchange.texts)) <= 1000 else status(413, "request entity too large"))(exchange)

    long = [f"{i} {'x' * 300}" for i in range(8)]
    with Rig(default=small) as host:
        engine = engine_of(host)
        assert right(host, engine, long)
        host.forget()
        assert right(host, engine, long)
        assert max(sum(map(len, sent)) for sent in host.sent) <= 1000
        host.forget()
        assert right(host, engine)
        assert max(sizes(host)) > 10  # short texts still go together


def test_requests_are_bounded_by_bytes_and_by_tokens(engine_of):
    with Rig() as host:
        assert right(host, engine_of(host, limits={"max_bytes": 100}), TEXTS)
        assert max(sum(map(len, sent)) for sent in host.sent) <= 100
        host.forget()
        assert right(host, engine_of(host, limits={"max_tokens": 30}), TEXTS)
        assert max(sizes(host)) <= 6
        host.forget()
        assert right(host, engine_of(host, limits={"max_bytes": 1, "max_tokens": 1}), TEXTS[:3])
        assert sizes(host) == [1, 1, 1]


@pytest.mark.parametrize(
    ("most", "given", "expected"), [(None, None, 64), (16, None, 16), (1024, None, 64), (16, 99, 16), (None, 99, 99)]
)
def test_texts_per_request(engine_of, most, given, expected):
    texts = [f"text {i}" for i in range(200)]
    with Rig() as host:
        provider = Provider(name="host", max_inputs=most)
        assert right(host, engine_of(host, provider=provider, limits={"max_inputs": given}), texts)
        assert max(sizes(host)) == expected


# Search for the text at fault


def test_a_text_at_which_the_host_fails_is_found_where_it_answers_others(engine_of):
    with Rig(default=refuse_marked("poison", 500, "NaN in the output")) as host:
        engine = engine_of(host, limits={"max_retries": 2})
        assert right(host, engine)
        texts = [*TEXTS[:11], "poison", *TEXTS[11:20]]
        with pytest.raises(errors.HostUnavailableError) as caught:
            engine.encode(texts, role="document")
        assert caught.value.positions == (11,)
        assert caught.value.unfinished == (11,)


def test_a_host_that_breaks_every_answer_is_not_asked_for_every_text(engine_of):
    with Rig(default=raw(b"{")) as host:
        with pytest.raises(errors.BadAnswerError):
            engine_of(host, limits={"max_concurrency": 1}).encode([f"text {i}" for i in range(64)], role="document")
        assert len(host.sent) <= 20


def test_a_model_of_other_dimensions_is_refused_at_once(engine_of):
    with Rig(768) as host:
        with pytest.raises(errors.BadAnswerError, match="768"):
            engine_of(host).encode(TEXTS, role="document")
        assert len(host.sent) == 1


def test_rows_without_an_index_are_told_once(engine_of):
    with Rig(default=rows(lambda data: [{"embedding": row["embedding"]} for row in data])) as host:
        engine = engine_of(host, limits={"max_inputs": 4})
        with pytest.warns(errors.RepairWarning, match="index") as said:
            assert right(host, engine)
        assert len(said) == 1


# base64


def formats(host):
    return [request.body["encoding_format"] for request in host.requests]


def test_a_known_host_is_asked_for_base64_at_once(engine_of):
    with Rig() as host:
        engine = engine_of(host, provider=Provider(name="host", base64=True), limits={"max_inputs": 4})
        assert right(host, engine)
        assert set(formats(host)) == {"base64"}


def test_base64_is_tried_after_one_full_request(engine_of):
    with Rig() as host:
        engine = engine_of(host, limits={"max_concurrency": 1})
        assert right(host, engine, [f"text {i}" for i in range(5 * 64)])
        assert formats(host)[:3] == ["float", "float", "base64"]  # the comparison waits for the one slot
        assert set(formats(host)[3:]) == {"base64"}


def test_a_known_host_without_base64_is_never_asked(engine_of):
    with Rig() as host:
        engine = engine_of(host, provider=Provider(name="host", base64=False), limits={"max_inputs": 1})
        assert right(host, engine)
        assert set(formats(host)) == {"float"}


def garbled(exchange):
    spoil = spoilt(lambda row: base64.b64encode(b"four").decode())
    (spoil if exchange.request.body["encoding_format"] == "base64" else ok)(exchange)


def empty(exchange):
    (rows(lambda _: []) if exchange.request.body["encoding_format"] == "base64" else ok)(exchange)


@pytest.mark.parametrize("fault", [garbled, empty], ids=["garbled", "empty"])
@pytest.mark.parametrize("known", [None, True])
def test_base64_that_goes_wrong_is_given_up_with_nothing_lost(engine_of, fault, known):
    with Rig(default=fault) as host:
        engine = engine_of(
            host, provider=Provider(name="h", base64=known), limits={"max_inputs": 2, "max_concurrency": 1}
        )
        assert right(host, engine, [f"text {i}" for i in range(80)])
        assert formats(host).count("base64") == 1
        assert formats(host)[-1] == "float"
        assert engine.usage.retries == 0


def test_a_busy_moment_says_nothing_about_base64(engine_of):
    with Rig() as host:
        engine = engine_of(host, limits={"max_inputs": 2, "max_concurrency": 1})
        busy = [status(503)]

        def first_base64_fails(exchange):
            fails = exchange.request.body["encoding_format"] == "base64" and busy
            (busy.pop() if fails else ok)(exchange)

        host.default = first_base64_fails
        assert right(host, engine, [f"text {i}" for i in range(200)])
        assert not busy
        assert formats(host)[-1] == "base64"


def altered(exchange):
    """Base64 of other vectors than the floats: quantized, say, or in another order of bytes."""
    spoil = spoilt(lambda row: base64.b64encode(np.asarray(row, ">f4").tobytes()).decode())
    (spoil if exchange.request.body["encoding_format"] == "base64" else ok)(exchange)


def reversed_rows(exchange):
    turned = rows(lambda data: [{**row, "embedding": row["embedding"][::-1]} for row in data])
    (turned if exchange.request.body["encoding_format"] == "base64" else ok)(exchange)


@pytest.mark.parametrize("fault", [altered, reversed_rows], ids=["byte order", "reversed"])
def test_base64_is_learned_only_where_it_equals_the_floats(engine_of, fault):
    with Rig(default=fault) as host:
        engine = engine_of(host, limits={"max_inputs": 2, "max_concurrency": 1})
        assert right(host, engine, [f"text {i}" for i in range(80)])
        assert formats(host).count("base64") == 1
        assert engine.describe()["base64"] is False


# What a call brings and costs


@both
def test_every_part_is_handed_over_before_the_next_failure(engine_of):
    with Rig() as host:
        engine, seen = engine_of(host, limits={"max_inputs": 10, "max_concurrency": 1, "max_retries": 1}), {}
        host.script(None, None, reset_peer(), reset_peer())
        with pytest.raises(errors.HostUnavailableError) as caught:
            engine.encode(TEXTS, role="document", on_batch=lambda i, v: seen.update(zip(i, v.copy(), strict=True)))
        assert caught.value.finished == tuple(sorted(seen)) == tuple(range(20))
        assert caught.value.unfinished == tuple(range(20, 40))
        np.testing.assert_allclose([seen[i] for i in range(20)], host.truth(TEXTS[:20]), atol=1e-6)


def test_usage(engine_of):
    with Rig().script(status(500)) as host:
        provider = Provider(name="host", offers=(Offer(CARD.id, "bge-small", usd_per_million_tokens=2.0),))
        engine = engine_of(host, provider=provider, limits={"max_inputs": 20})
        assert right(host, engine)
        usage = engine.usage
        assert (usage.texts, usage.tokens, usage.requests, usage.retries) == (40, 120, 3, 1)
        assert usage.usd == pytest.approx(240e-6)
        assert usage.seconds > 0


def test_what_it_says_of_itself(engine_of):
    with Rig(default=cap(8)) as host:
        engine = engine_of(host)
        before = engine.describe()
        assert (before["engine"], before["host"], before["wire_model"]) == ("RemoteEngine", "127.0.0.1", "bge-small")
        assert right(host, engine)
        assert engine.describe()["max_inputs"] in (5, 8)
        assert engine.space == CARD.space()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://example.com/v1", errors.InsecureHostError),
        ("http://10.0.0.1/v1", errors.InsecureHostError),
        ("https://user:secret@example.com/v1", errors.ConfigError),
        ("example.com/v1", errors.ConfigError),
        ("http://[::1]:80/v1", None),
        ("http://127.1.2.3/v1", None),
        ("http://localhost:11434/v1", None),
        ("https://example.com/v1", None),
    ],
)
def test_where_it_may_send(url, error):
    with pytest.raises(error) if error else contextlib.nullcontext() as caught:
        Endpoint(provider=Provider(name="x"), base_url=url, wire_model="m", key=lambda: None)
    assert "secret" not in str(caught and caught.value)


def test_memory_does_not_grow_with_what_is_in_flight(engine_of):
    texts = [f"text {i}" for i in range(800)]
    with Rig() as host:
        engine = engine_of(host, limits={"max_inputs": 20})  # 40 requests, eight in flight
        tasks = []

        def on_batch(indices, vectors):
            tasks.append(len(asyncio.all_tasks()))

        engine.encode(texts, role="document", on_batch=on_batch)
        assert max(tasks) <= 20
