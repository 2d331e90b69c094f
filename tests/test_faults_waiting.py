"""How long is waited, who waits, what is learned from a host, and what ends a call at once."""

from __future__ import annotations

import email.utils
import itertools
import socket
import time
from dataclasses import replace

import numpy as np
import pytest

from bge_integrations import errors, load_encoder
from fault_faces import CANARY
from rig import Rig, cap, echo_key, latency, ok, redirect, rows, status


@pytest.fixture
def encoder_of():
    made = []

    def make(host: Rig, **options):
        options = {"api_key": CANARY, "max_concurrency": 1, "timeout": 30.0, "show_progress": False, **options}
        encoder = load_encoder("bge-small", **{"base_url": host.url, **options})
        encoder.engine.limits = replace(encoder.engine.limits, backoff=0.005)
        made.append(encoder)
        return encoder

    yield make
    for encoder in made:
        encoder.close()


def texts_of(count: int) -> list[str]:
    return [f"text {i}" for i in range(count)]


def right(host: Rig, encoder, texts: list[str]) -> bool:
    return np.allclose(encoder.encode(texts, role="document"), host.truth(texts), atol=1e-6)


def pauses(host: Rig) -> list[float]:
    return [after.at - before.at for before, after in itertools.pairwise(host.requests)]


@pytest.mark.parametrize(
    ("code", "headers", "least"),
    [
        (429, {"Retry_After": "1"}, 1.0),
        (429, {"Retry_After": "0.3"}, 0.3),
        (503, {"Retry_After": "0.3"}, 0.3),
        (429, {"Retry_After_Ms": "300"}, 0.3),
        (503, {"Retry_After_Ms": "300", "Retry_After": "100"}, 0.3),
        (429, {"Retry_After": "date"}, 0.9),
    ],
    ids=str,
)
def test_a_host_waits_as_long_as_it_asks(encoder_of, code, headers, least):
    if headers.get("Retry_After") == "date":
        headers = {"Retry_After": email.utils.formatdate(time.time() + 2, usegmt=True)}
    with Rig().script(status(code, **headers)) as host:
        assert right(host, encoder_of(host), ["a"])
        assert pauses(host)[0] >= least


def test_one_429_holds_all_requests_back(encoder_of):
    with Rig(default=latency(0.02)) as host:
        encoder = encoder_of(host, max_concurrency=2, max_inputs=1)
        assert right(host, encoder, ["first"])
        host.forget().script(status(429, Retry_After_Ms=700))
        assert right(host, encoder, texts_of(16))
        at = [request.at for request in host.requests]
        # Without the gate the other lane would have sent some thirty requests in that time.
        assert sum(moment < at[0] + 0.7 for moment in at) <= 3
        assert len(at) == 17


def test_calls_side_by_side_wait_together(encoder_of):
    with Rig(default=latency(0.02)) as host:
        encoder = encoder_of(host, max_concurrency=4)
        assert right(host, encoder, ["first"])
        host.forget().script(status(429, Retry_After_Ms=500))
        first = encoder.submit(["a"], role="document")
        while not host.requests:
            time.sleep(0.005)
        time.sleep(0.1)
        assert right(host, encoder, ["b"])
        first.result(10)
        assert host.requests[1].at - host.requests[0].at >= 0.45


def test_requests_that_overlap_are_no_more_than_allowed(encoder_of):
    active, most = [], []

    def counted(exchange):
        active.append(1)
        most.append(len(active))
        latency(0.03)(exchange)
        active.pop()

    with Rig(default=counted) as host:
        assert right(host, encoder_of(host, max_concurrency=3, max_inputs=1), texts_of(18))
        assert 2 <= max(most) <= 3


def test_pace(encoder_of):
    with Rig() as host:
        assert right(host, encoder_of(host, max_inputs=1, max_concurrency=4, requests_per_minute=600), texts_of(11))
        # One second by the pace, hundredths without; a busy machine sees the first request late.
        assert host.requests[-1].at - host.requests[0].at >= 0.5


def test_the_cap_is_remembered_for_the_next_call(encoder_of):
    with Rig(default=cap(4)) as host:
        encoder = encoder_of(host)
        assert right(host, encoder, texts_of(16))
        assert len(host.sent[0]) == 16
        host.forget()
        assert right(host, encoder, [f"more {i}" for i in range(20)])
        assert all(len(sent) <= 4 for sent in host.sent)


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("code", [400, 401, 402, 403, 404])
def test_a_refusal_stops_the_pool(encoder_of, code, concurrency):
    with Rig(default=status(code)) as host:
        with pytest.raises(errors.HostError) as caught:
            encoder_of(host, max_concurrency=concurrency, max_inputs=1).encode(texts_of(40), role="document")
        assert len(host.requests) == 1
        assert caught.value.status == code


def test_a_refusal_in_the_middle_keeps_what_is_finished(encoder_of, tmp_path):
    with Rig() as host:
        encoder = encoder_of(host, max_inputs=2, max_concurrency=2, cache=str(tmp_path / "c.sqlite"))
        host.script(None, None, None, *[latency(0.1, status(403))] * 4)
        with pytest.raises(errors.AuthenticationError) as caught:
            encoder.encode(texts_of(40), role="document")
        assert len(host.requests) <= 5
        assert len(caught.value.finished) == 6
        host.forget()
        assert right(host, encoder, texts_of(40))
        # Base64 is compared with the floats of one text, which is sent alone.
        sent = [text for part in host.sent for text in part if len(part) > 1]
        assert sorted(sent) == sorted(texts_of(40)[i] for i in caught.value.unfinished)


def test_404_says_what_to_change(encoder_of):
    with Rig(default=status(404, "model not found")) as host:
        with pytest.raises(errors.RequestRefusedError, match="wire_model") as caught:
            encoder_of(host, wire_model="bge-smal").encode(["a"], role="document")
        assert "'bge-smal'" in str(caught.value)


def test_a_key_that_is_echoed_is_blotted_out(encoder_of):
    with Rig(default=echo_key()) as host:
        with pytest.raises(errors.AuthenticationError, match="Incorrect API key") as caught:
            encoder_of(host).encode(["a"], role="document")
        assert CANARY not in f"{caught.value!r}{vars(caught.value)}"
        assert host.requests[0].headers["authorization"] == f"Bearer {CANARY}"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("space", [False, True])
def test_no_text_and_no_key_follows_a_redirect(encoder_of, code, space):
    with Rig() as elsewhere, Rig(default=redirect(code, elsewhere.space_url)) as host:
        options = {"provider": "space", "base_url": host.space_url} if space else {}
        with pytest.raises(errors.HostError) as caught:
            encoder_of(host, **options).encode(["secret text"], role="document")
        assert caught.value.status == code
        assert elsewhere.requests == []
        assert len(host.sent) == 1


def test_nobody_there(encoder_of):
    with Rig() as host:
        pass
    with pytest.raises(errors.HostUnavailableError, match=str(host.port)) as caught:
        encoder_of(host, max_retries=1).encode(["a", "b"], role="document")
    assert caught.value.unfinished == (0, 1)
    assert isinstance(caught.value, ConnectionError)


@pytest.mark.parametrize("url", ["http://192.0.2.1/v1", "http://localhost.example.com/v1", "ftp://127.0.0.1/v1"])
def test_plain_http_is_for_this_machine(url):
    with pytest.raises(errors.ConfigError):
        load_encoder("bge-small", base_url=url)


@pytest.mark.parametrize("named", ["BAAI/bge-base-en-v1.5", "bge-m3"])
def test_another_model_is_refused(encoder_of, named, tmp_path):
    with Rig(default=rows(lambda d: d, model=named)) as host:
        encoder = encoder_of(host, cache=str(tmp_path / "c.sqlite"))
        with pytest.raises(errors.BadAnswerError, match="bge-small-en"):
            encoder.encode(texts_of(4), role="document")
        host.forget().default = None
        assert right(host, encoder, texts_of(4))
        assert len(host.sent[0]) == 4


@pytest.mark.parametrize("named", ["bge-small-en-v1.5", "some/alias-of-its-own", None, 5])
def test_names_of_its_own_are_the_hosts_affair(encoder_of, named):
    with Rig(default=rows(lambda d: d, model=named)) as host:
        assert right(host, encoder_of(host), texts_of(4))


def formats(host: Rig) -> list[str]:
    return [request.body["encoding_format"] for request in host.requests]


def test_base64_is_found_out(encoder_of):
    with Rig() as host:
        assert right(host, encoder_of(host, max_inputs=4), texts_of(160))
        assert formats(host)[0] == "float"
        assert formats(host)[-1] == "base64"


def no_base64(answer):
    return lambda exchange: (answer if exchange.request.body["encoding_format"] == "base64" else ok)(exchange)


@pytest.mark.parametrize(
    "answer",
    [status(400, "encoding_format is not supported"), status(422, "unknown field"), rows(lambda d: [])],
    ids=["400", "422", "no rows"],
)
def test_a_host_without_base64_loses_nothing(encoder_of, answer):
    with Rig(default=no_base64(answer)) as host:
        assert right(host, encoder_of(host, max_inputs=4), texts_of(160))
        assert formats(host).count("base64") == 1


def test_a_host_that_answers_base64_with_floats(encoder_of):
    with Rig(base64=False) as host:
        assert right(host, encoder_of(host, max_inputs=4), texts_of(160))
        assert formats(host).count("base64") == 1


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "retries"), [({"timeout": None}, 2), ({"timeout": None, "max_retries": 4}, 4), ({"timeout": 30.0}, 6)]
)
def test_where_nobody_has_ever_answered_an_address_is_given_up_soon(encoder_of, options, retries):
    with Rig() as host:
        encoder = encoder_of(host, base_url=f"http://127.0.0.1:{closed_port()}/v1", **options)
        with pytest.raises(errors.HostUnavailableError, match="could not be reached"):
            encoder.encode(["a"], role="document")
    assert encoder.usage.retries == retries


def test_a_host_that_has_answered_may_be_starting_again(encoder_of):
    def last_words(x):
        ok(x)
        x.hang_up = True

    with Rig(default=last_words) as host:
        encoder = encoder_of(host, timeout=None)
        assert right(host, encoder, ["a"])
    with pytest.raises(errors.HostUnavailableError, match="could not be reached"):
        encoder.encode(["b"], role="document")
    assert encoder.usage.retries == 6


def test_the_first_retry_is_a_warning_in_the_log_without_the_hosts_words(encoder_of, caplog):
    fault = status(503, "made to fail at 'a private text'")
    with Rig().script(fault, fault, None, fault) as host:
        encoder = encoder_of(host, timeout=None)
        with caplog.at_level("INFO", "bge_integrations.remote"):
            assert right(host, encoder, ["a private text"])
            assert right(host, encoder, ["b"])
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "INFO"]
    first = caplog.messages[0]
    assert f"127.0.0.1:{host.port} at {host.url} answered 503; retrying in" in first
    assert "up to 6 times (max_retries=), pausing" in first
    assert "private" not in caplog.text


@pytest.mark.parametrize("skew", [-86_400 * 365, 86_400 * 365])
def test_a_date_to_wait_for_is_read_by_the_hosts_own_clock(encoder_of, skew):
    now = time.time() + skew
    headers = {name: email.utils.formatdate(at, usegmt=True) for name, at in (("Date", now), ("Retry_After", now + 1))}
    with Rig().script(status(503, **headers)) as host:
        assert right(host, encoder_of(host), ["a"])
    assert 1.0 <= pauses(host)[0] < 20


@pytest.mark.parametrize("base64", [True, False])
def test_a_text_that_a_host_leaves_out_is_found_in_few_requests(encoder_of, base64):
    def leave_out(x):
        kept = [row for row, text in zip(x.rows(), x.texts, strict=True) if text != "text 17"]
        x.send(x.payload([{**row, "index": i} for i, row in enumerate(kept)]))

    with Rig(base64=base64) as host:
        encoder = encoder_of(host)
        assert right(host, encoder, [f"before {i}" for i in range(130)])  # base64 is learned
        host.default = leave_out
        host.forget()
        with pytest.raises(errors.BadAnswerError, match="text 17") as caught:
            encoder.encode(texts_of(64), role="document")
    assert caught.value.unfinished == (17,)
    assert len(host.requests) == 2 + 2 * 6 + 1  # the whole twice, six halvings, the text twice
