"""The server's log: ids of requests, which lines at which level, JSON, and what SIGHUP does."""

import json
import logging
import re
import signal
import sys
import threading
import time

import pytest

from bge_integrations.errors import ConfigError, HostUnavailableError
from bge_integrations.server import background, serve
from bge_integrations.server.logs import JSONFormatter, TextFormatter
from reverse_proxy import reverse_proxy
from rig import Rig
from server_processes import children, http, served, started
from serving import Failing, ServedEncoder

NAME = "bge_integrations.server"
KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def url():
    with ServedEncoder() as encoder, background(encoder, cors_origins=["https://app.example"]) as url:
        yield url


@pytest.fixture
def records(caplog):
    caplog.set_level(logging.DEBUG, NAME)
    return lambda: [record for record in caplog.records if record.name == NAME]


# --- ids of requests


@pytest.mark.parametrize("given", ["a", "7f3c-1.b:2/x+y=z@w_", "x" * 128])
def test_a_plain_id_that_comes_in_goes_out_and_into_the_log(url, records, given):
    answer = http.post(f"{url}/embed", json={"texts": "a"}, headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given
    assert [record.request_id for record in records() if "/embed" in record.getMessage()] == [given]


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "a\tb", "a[31mb", "a;b", "é".encode("latin-1")])
def test_any_other_id_is_replaced_by_a_new_one(url, records, given):
    headers = {"x-request-id": given}
    ids = {http.get(f"{url}/info", headers=headers).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", made) for made in ids)
    assert {record.request_id for record in records()} == ids


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/made/up", 404), ("PUT", "/info", 405), ("POST", "/embed", 415), ("HEAD", "/health", 200)],
)
def test_every_answer_has_an_id(url, method, path, status):
    answer = http.request(method, f"{url}{path}", headers={"x-request-id": "an-id"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "an-id")


def test_answers_without_a_key_and_after_a_failure_have_an_id(records):
    with Failing(HostUnavailableError("confidential")) as encoder, background(encoder, api_keys=["k"]) as url:
        headers = {"x-request-id": "an-id"}
        assert http.post(f"{url}/embed", json={}, headers=headers).headers["x-request-id"] == "an-id"
        answer = http.post(f"{url}/embed", json={"texts": "a"}, headers={**KEY, **headers})
        assert (answer.status_code, answer.headers["x-request-id"]) == (503, "an-id")
    why = [record for record in records() if "HostUnavailableError at" in record.getMessage()]
    # The warm-up logs the same failure, which belongs to no request.
    assert {record.request_id for record in why} == {None, "an-id"}


def test_a_web_page_may_send_and_read_the_id(url):
    asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "x-request-id"
    allowed = http.options(f"{url}/embed", headers=asks)
    assert "x-request-id" in allowed.headers["access-control-allow-headers"]
    answer = http.get(f"{url}/info", headers={"origin": "https://app.example"})
    assert "x-request-id" in answer.headers["access-control-expose-headers"]


# --- levels


def test_probes_that_succeed_are_logged_at_debug_and_failures_as_warnings(records):
    with Failing(HostUnavailableError("down")) as encoder, background(encoder) as url:
        for path in ("/health", "/metrics", "/ready", "/info"):
            http.get(f"{url}{path}")
        http.post(f"{url}/embed", json={"texts": "a"})
        http.post(f"{url}/embed", json={"texts": 1})
    levels = {line[1]: record.levelname for record in records() if (line := _request(record))}
    assert levels == {
        "/health 200": "DEBUG",
        "/metrics 200": "DEBUG",
        "/ready 503": "INFO",
        "/info 200": "INFO",
        "/embed 503": "WARNING",
        "/embed 422": "INFO",
    }


def _request(record):
    return re.match(r"(?:GET|POST) (\S+ \d+) \d+ ms", record.getMessage())


# --- formats


def test_an_object_holds_what_is_known_about_the_request(url, records):
    body = {"texts": ["confidential words", "b", "c d e"]}
    http.post(f"{url}/embed", json=body, headers={"x-request-id": "an-id"})
    [line] = [JSONFormatter().format(record) for record in records()]
    assert "\n" not in line
    assert "confidential" not in line
    said = json.loads(line)
    assert said["message"].startswith(f"POST /embed 200 {said['ms']} ms, 3 texts, document, {said['tokens']} tokens")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", said.pop("time"))
    assert isinstance(said.pop("ms"), int)
    del said["message"]
    assert said == {
        "level": "info",
        "logger": NAME,
        "request_id": "an-id",
        "method": "POST",
        "route": "/embed",
        "status": 200,
        "texts": 3,
        "role": "document",
        "tokens": 12,
    }


def test_what_is_no_request_is_an_object_too():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "x.py", 1, "it %s", ("failed",), sys.exc_info())
    said = json.loads(JSONFormatter().format(record))
    assert (said["level"], said["message"]) == ("error", "it failed")
    assert said["traceback"].endswith("ValueError: two\nlines")
    assert "request_id" not in said
    assert TextFormatter().format(record).splitlines()[0].endswith(" it failed")


@pytest.mark.parametrize("options", [{"log_format": "xml"}, {"log_level": "loud"}])
def test_an_unknown_format_or_level_is_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be one of"):
        serve(ServedEncoder(), port=0, **options)


# --- the command: behind a proxy, with workers


@pytest.fixture(scope="module")
def model():
    """Options of ``bge serve`` for a model at a host, for which workers import little."""
    with Rig() as host:
        yield ["--model", "bge-small", "--base-url", host.url]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_bge_serve_below_a_prefix_logs_objects_only(model, workers, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k\n")
    options = ["--root-path", "/ml/bge", "--log-format", "json", "--log-level", "debug", "--workers", workers]
    place = {"BGE_SERVE_HOST": "localhost", "BGE_SERVE_PORT": "0"}
    with started(*model, *options, "--api-key-file", str(keys), **place) as (process, url, first):
        assert url.startswith("http://localhost:")
        assert url.endswith("/ml/bge")
        with reverse_proxy(url.removesuffix("/ml/bge"), "/ml/bge") as public:
            for _ in range(10):
                answer = http.post(f"{public}/ml/bge/embed", json={"texts": "a"}, headers=KEY)
                assert len(answer.json()["embeddings"]) == 1
            assert http.post(f"{public}/ml/bge/embed", json={"texts": "a"}).status_code == 401
            counters = http.get(f"{public}/ml/bge/metrics", headers=KEY).text
            assert 'bge_requests_total{route="/embed",status="200"} 10.0' in counters
        process.terminate()
        said = [json.loads(line) for line in [*first, *process.stderr.read().splitlines()]]
    requests = [line for line in said if line.get("route") == "/embed"]
    assert sorted(line["status"] for line in requests) == [200] * 10 + [401]
    assert len({line["request_id"] for line in requests}) == 11
    assert any(line.get("route") == "/ready" and line["level"] == "debug" for line in said)


# --- SIGHUP

hangs_up = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP on this system")


@hangs_up
@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_reads_the_file_of_keys_again(model, workers, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("old\n")

    def allowed(url, key):
        """The answers of several connections, so of each worker."""
        headers = {"authorization": f"Bearer {key}"}
        return {http.get(f"{url}/v1/models", headers=headers).status_code for _ in range(20)}

    with started(*model, "--port", "0", "--api-key-file", str(keys), "--workers", workers) as (process, url, _):
        assert (allowed(url, "old"), allowed(url, "new")) == ({200}, {401})
        before = children(process.pid)
        keys.write_text("new\nnewer\n")
        process.send_signal(signal.SIGHUP)
        while allowed(url, "new") != {200}:
            time.sleep(0.05)
        assert (allowed(url, "old"), allowed(url, "newer")) == ({401}, {200})
        keys.write_text("")
        process.send_signal(signal.SIGHUP)
        while "the previous keys stay valid" not in (line := process.stderr.readline()):
            assert line
        assert allowed(url, "new") == {200}
        assert children(process.pid) == before  # nobody loaded the model again


def _fail():
    raise OSError("confidential")


@pytest.mark.parametrize(
    ("keys", "workers", "complaint"),
    [(_fail, 1, "raised OSError"), (list, 1, "no keys"), (str, 1, "list of strings"), (lambda: ["k"], 2, "pickled")],
)
def test_a_function_that_cannot_give_keys_stops_the_server_at_once(keys, workers, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        serve(ServedEncoder(), port=0, api_keys=keys, workers=workers)
    assert "confidential" not in str(caught.value)


@hangs_up
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_without_a_file_of_keys_stops_the_server_as_sigterm_does(workers):
    with served(workers=workers, delay=1.0) as (process, url, _):
        stop = threading.Timer(0.5, process.send_signal, [signal.SIGHUP])
        stop.start()
        answer = http.post(f"{url}/embed", json={"texts": ["last"]})
        assert len(answer.json()["embeddings"]) == 1
        assert process.wait(30) == 0
