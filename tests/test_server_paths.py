"""Paths, methods, hosts and prefixes: the limits, keys, errors and counters hold for every one of them."""

import gzip
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from urllib.parse import unquote, urlsplit

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.cli import main
from bge_integrations.errors import ConfigError
from bge_integrations.server import Limits, background, create_app
from reverse_proxy import reverse_proxy
from server_processes import http
from serving import CARD, ServedEncoder

SMALL = Limits(body_bytes=20_000, body_seconds=1)
JSON = {"content-type": "application/json"}
KEY = {"authorization": "Bearer k"}


@pytest.fixture(scope="module")
def encoder():
    with ServedEncoder() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(encoder):
    with background(encoder, limits=SMALL) as url:
        yield url


@pytest.fixture(scope="module")
def locked(encoder):
    with background(encoder, limits=SMALL, api_keys=["k"]) as url:
        yield url


def exchange(url, request, timeout=20):
    """Send raw bytes and return everything until the server hangs up."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=timeout) as sock:
        sock.sendall(request)
        answer = b""
        try:
            while part := sock.recv(65536):
                answer += part
        except ConnectionResetError:
            pass
    return answer


def post(target, body=b"", *headers, length=None):
    lines = [f"POST {target} HTTP/1.1", "host: localhost", "connection: close", *headers]
    lines.append(f"content-length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def status(answer):
    return int(answer.split(b" ", 2)[1])


# --- one reading of the path

ODD = [
    "/embed%0a",
    "/embed%0A",
    "/tokens%0a",
    "/v1/embeddings%0a",
    "/embed%0d",
    "/embed%00",
    "//embed",
    "/embed;x",
    "/x",
]


@pytest.mark.parametrize("target", [*ODD, "/embed/", "/%65mbed", "/v1%2Fembeddings", "/health", "/docs", "/metrics"])
def test_no_path_gets_round_the_body_limit(url, target):
    answer = exchange(url, post(target, b" " * 30_000, "content-type: application/json"))
    assert status(answer) == 413


def test_no_path_gets_round_the_time_limit(url):
    targets = [*ODD, "/embed/", "/%65mbed", "/health"]
    halves = [post(target, b"{", "content-type: application/json", length=100) for target in targets]
    with ThreadPoolExecutor(len(targets)) as pool:  # together, since each waits for the limit
        answers = list(pool.map(partial(exchange, url), halves))
    assert [status(answer) for answer in answers] == [408] * len(targets)


@pytest.mark.parametrize("target", ODD)
def test_what_is_not_a_route_is_a_404_that_never_reaches_the_encoder(url, encoder, target):
    encoder.seen.clear()
    answer = exchange(url, post(target, b'{"texts": "odd path"}', "content-type: application/json"))
    assert status(answer) == 404
    assert "odd path" not in encoder.seen


@pytest.mark.parametrize("target", ["/embed/", "/%65mbed", "/embed//", "/embed?a=%0a"])
def test_other_spellings_of_a_route_are_that_route(url, target):
    assert status(exchange(url, post(target, b'{"texts": "a"}', "content-type: application/json"))) == 200
    assert status(exchange(url, post(target, b'{"texts": "a"}', "content-type: text/plain"))) == 415


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_other_methods_have_the_limits_too(url, method):
    assert http.request(method, f"{url}/embed", content=b" " * 30_000, headers=JSON).status_code == 413
    assert http.request(method, f"{url}/embed", content=b"{}", headers=JSON).status_code == 405


def test_a_redirect_never_goes_where_the_host_header_says(url):
    for target in ("/embed/", "/docs/", "//evil.example/embed", "/v1/models/"):
        answer = exchange(url, f"GET {target} HTTP/1.1\r\nhost: evil\r\nconnection: close\r\n\r\n".encode())
        assert b"location" not in answer.lower().partition(b"\r\n\r\n")[0]


ROUTES = {"/", "/embed", "/tokens", "/v1/embeddings", "/v1/models", "/health", "/ready", "/info", "/metrics", "/docs"}
ROUTES |= {"/openapi.json"}
pieces = st.sampled_from(
    ["/", "embed", "v1", "models", "%0a", "%2F", "%00", "..", "//", ";", "%25", "%ff", "tokens", "?"]
)
targets = st.lists(pieces | st.text("abc%0123456789/.", max_size=4), max_size=6).map("".join)
bodies = st.sampled_from([b"", b"{", b'{"texts": "a"}', b'{"model": "bge-small", "input": ["a"]}', b"\xff", b"[" * 99])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "EMBED"]), targets, bodies, st.booleans())
def test_any_request_line_gets_an_answer_that_fits_it(url, method, target, body, is_json):
    head = f"{method} /{target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n"
    head += "content-type: application/json\r\n" if is_json else ""
    answer = exchange(url, head.encode() + b"\r\n" + body)
    assert status(answer) in (200, 400, 404, 405, 408, 413, 415, 422)
    path = unquote(f"/{target}".partition("?")[0]).rstrip("/") or "/"
    if status(answer) == 200:
        assert path in ROUTES or path.startswith("/v1/models/")
    if status(answer) >= 400 and method != "HEAD" and not answer.endswith(b"Invalid HTTP request received."):
        shape = "error" if path.startswith("/v1") else "detail"
        assert json.loads(answer.partition(b"\r\n\r\n")[2]).keys() == {shape}


# --- keys and unknown paths


@pytest.mark.parametrize("path", ["/embed", "/embed/", "/tokens", "/v1/embeddings", "/v1/models/", "/metrics"])
def test_other_spellings_of_a_locked_path_are_locked(locked, path):
    answer = http.request("POST" if "e" in path and "model" not in path else "GET", f"{locked}{path}", json={})
    assert answer.status_code == 401


@pytest.mark.parametrize(("path", "shape"), [("/made/up", "detail"), ("/v1/made/up", "error"), ("/embed%0a", "detail")])
def test_an_unknown_path_is_a_404_with_or_without_a_key(locked, path, shape):
    for headers in ({}, KEY):
        answer = http.get(f"{locked}{path}", headers=headers)
        assert answer.status_code == 404
        assert shape in answer.json()


def test_without_a_key_no_body_is_read(locked):
    assert status(exchange(locked, post("/made/up", b"", length=10**9))) == 404
    assert status(exchange(locked, post("/embed", b"", length=10**9))) == 401


def test_a_route_that_a_program_adds_is_locked_and_limited(encoder):
    app = create_app(encoder, api_keys=["k"], limits=SMALL)

    @app.post("/own")
    async def own(body: dict) -> dict:
        return body

    with running(app) as url:
        assert http.post(f"{url}/own", json={"a": 1}).status_code == 401
        assert http.post(f"{url}/own", json={"a": 1}, headers=KEY).json() == {"a": 1}
        assert http.post(f"{url}/own", json={"a": "b" * 30_000}, headers=KEY).status_code == 413


@pytest.mark.parametrize("option", ["api_keys", "model_names", "cors_origins"])
def test_one_string_is_not_taken_for_a_list_of_characters(encoder, option):
    with pytest.raises(ConfigError, match=f"{option} must be a list"):
        create_app(encoder, **{option: "k-one"})


def test_a_key_with_the_line_feed_of_its_file_is_the_key(encoder):
    with background(encoder, api_keys=["k\n"]) as url:
        assert http.get(f"{url}/v1/models", headers=KEY).status_code == 200


# --- HEAD and the list of models


@pytest.mark.parametrize("path", ["/", "/health", "/info", "/docs", "/metrics", "/openapi.json", "/v1/models"])
def test_head_is_get_without_the_body(url, path):
    get, head = http.get(f"{url}{path}"), http.head(f"{url}{path}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("name", [CARD.id, "bge-small", "BAAI%2Fbge-small-en-v1.5"])
def test_one_model_is_found_by_any_of_its_names(url, name):
    assert http.get(f"{url}/v1/models/{name}").json() == http.get(f"{url}/v1/models").json()["data"][0]


@pytest.mark.parametrize("name", ["text-embedding-3-small", "BAAI/bge-base-en-v1.5", "BAAI"])
def test_another_model_is_not_found(url, name):
    answer = http.get(f"{url}/v1/models/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"


# --- hosts


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example"]
)
@pytest.mark.parametrize("path", ["/", "/info", "/metrics", "/v1/models"])
def test_a_keyless_server_on_loopback_refuses_a_rebound_name(url, host, path):
    answer = http.get(f"{url}{path}", headers={"host": host})
    assert answer.status_code == 421
    assert "key" in (answer.json().get("detail") or answer.json()["error"]["message"])


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "app.localhost", "embedder", "a.internal"]
)
def test_a_keyless_server_on_loopback_answers_to_local_names(url, host):
    assert http.get(f"{url}/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://embed.example", "*"])
def test_the_host_of_a_trusted_origin_is_let_in(encoder, origin):
    with background(encoder, cors_origins=[origin]) as url:
        assert http.get(f"{url}/health", headers={"host": "embed.example"}).status_code == 200
        other = http.get(f"{url}/health", headers={"host": "other.example"})
        assert other.status_code == (200 if origin == "*" else 421)


def test_a_server_with_keys_answers_to_any_name(locked):
    assert http.get(f"{locked}/v1/models", headers={**KEY, "host": "embed.example"}).status_code == 200


# --- below a prefix


@contextmanager
def running(app, **options):
    """Run any ASGI app on a socket, as somebody else's program does."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        sock.close()


@pytest.fixture(
    scope="module", params=["mounted", "root_path", "mounted twice", "proxy strips", "proxy keeps", "no proxy"]
)
def prefixed(request, encoder):
    """URL of an app with a key below a prefix."""
    if "proxy" in request.param:
        app = create_app(encoder, api_keys=["k"], limits=SMALL, root_path="/ml/bge/")
        with running(app) as url, reverse_proxy(url, "/ml/bge" if request.param == "proxy strips" else "") as public:
            yield f"{url if request.param == 'no proxy' else public}/ml/bge", url
        return
    app = create_app(encoder, api_keys=["k"], limits=SMALL)
    if request.param == "root_path":
        with running(app, root_path="/ml/bge") as url:
            yield url, url  # a proxy has taken the prefix off
        return
    outer = FastAPI()
    outer.mount("/ml/bge" if request.param == "mounted" else "/bge", app)
    if request.param == "mounted twice":
        middle, outer = outer, FastAPI()
        outer.mount("/ml", middle)
    with running(outer) as url:
        yield f"{url}/ml/bge", url


def test_below_a_prefix_everything_works_as_at_the_root(prefixed):
    url, _ = prefixed
    with httpx.Client(timeout=30) as client:
        assert [client.get(f"{url}{path}").status_code for path in ("/", "/health", "/docs", "/info")] == [200] * 4
        assert [client.get(f"{url}{path}").status_code for path in ("/metrics", "/v1/models")] == [401] * 2
        assert client.get(f"{url}/made/up").status_code == 404
        assert client.post(f"{url}/embed", json={"texts": "a"}).status_code == 401
        assert len(client.post(f"{url}/embed", json={"texts": "a"}, headers=KEY).json()["embeddings"]) == 1
        assert client.post(f"{url}/embed", content=b" " * 30_000, headers={**KEY, **JSON}).status_code == 413
        assert client.post(f"{url}/embed", content=b"{}", headers=KEY).status_code == 415
        error = client.post(f"{url}/v1/embeddings", json={"model": "x", "input": "a"}, headers=KEY)
        assert (error.status_code, error.json()["error"]["param"]) == (404, "model")
        assert client.get(f"{url}/v1/nothing", headers=KEY).json().keys() == {"error"}
        text = client.get(f"{url}/metrics", headers=KEY).text
    assert 'bge_requests_total{route="/embed",status="200"} 1.0' in text
    assert 'bge_requests_total{route="/v1/embeddings",status="404"} 1.0' in text


def test_the_document_names_the_prefix_as_the_servers_address(prefixed, url):
    public, _ = prefixed
    assert http.get(f"{public}/openapi.json").json()["servers"] == [{"url": "/ml/bge"}]
    assert "servers" not in http.get(f"{url}/openapi.json").json()


def test_a_probe_does_not_need_the_prefix(encoder):
    with running(create_app(encoder, api_keys=["k"], root_path="/ml/bge")) as url:
        assert [http.head(f"{url}{path}").status_code for path in ("/health", "/ml/bge/health")] == [200, 200]
        assert [http.get(f"{url}{path}").status_code for path in ("/metrics", "/ml/bge/metrics")] == [401, 401]
        assert [http.get(f"{url}{path}/health").status_code for path in ("/ml", "/ml/bge2")] == [404, 404]
        assert http.get(f"{url}/ml/bge/ml/bge/health").status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_page_at_the_bare_prefix_finds_its_links(encoder, method):
    with running(create_app(encoder, root_path="/ml/bge")) as url:
        answer = http.request(method, f"{url}/ml/bge", headers={"host": "evil.example"})
        assert (answer.status_code, answer.headers["location"]) == (307, "bge/")
        page = http.get(f"{url}/ml/bge", follow_redirects=True)
        assert (page.status_code, page.url.path) == (200, "/ml/bge/")


@pytest.mark.parametrize("root_path", ["ml", "/ml//bge", "/ml/../bge", "/ml bge", "/a?b", "/%2e", "/v1", "/embed"])
def test_what_cannot_be_a_prefix_is_refused(encoder, root_path):
    with pytest.raises(ConfigError, match="root_path"):
        create_app(encoder, root_path=root_path)


def test_a_mounted_app_becomes_ready(prefixed):
    url, _ = prefixed
    while http.get(f"{url}/ready").status_code != 200:
        time.sleep(0.02)


def test_an_app_can_be_started_twice(encoder):
    app = create_app(encoder)
    for _ in range(2):
        with running(app) as url:
            assert http.post(f"{url}/tokens", json={"texts": "word " * 5000}).status_code == 200


# --- connections


def test_idle_connections_make_room_for_a_new_one(encoder):
    with background(encoder, limits=Limits(connections=20)) as url:
        place = urlsplit(url)
        idle = [socket.create_connection((place.hostname, place.port), timeout=20) for _ in range(30)]
        for sock in idle[::2]:
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        statuses = [http.post(f"{url}/embed", json={"texts": "a"}).status_code for _ in range(30)]
        assert statuses == [200] * 30
        for sock in idle:
            sock.close()


def test_more_requests_than_connections_are_allowed_are_refused_in_the_shape_of_the_path():
    gate = threading.Event()
    with ServedEncoder(gate) as encoder, background(encoder, limits=Limits(connections=4)) as url:
        body = json.dumps({"texts": "a"}).encode()
        place = urlsplit(url)
        held = []
        for _ in range(4):
            held.append(socket.create_connection((place.hostname, place.port), timeout=20))
            held[-1].sendall(post("/embed", body, "content-type: application/json"))
        while "bge_queue_texts 4.0" not in http.get(f"{url}/metrics").text:
            pass
        plain = http.post(f"{url}/embed", json={"texts": "a"})
        openai = http.post(f"{url}/v1/embeddings", json={"model": CARD.id, "input": "a"})
        assert (plain.status_code, openai.status_code) == (503, 503)
        assert plain.json()["detail"]
        assert openai.json()["error"]["type"] == "server_error"
        assert int(plain.headers["retry-after"]) >= 1
        gate.set()
        assert [sock.recv(65536)[9:12] for sock in held] == [b"200"] * 4
        metrics = http.get(f"{url}/metrics").text
        assert 'bge_requests_total{route="/embed",status="503"} 1.0' in metrics
        for sock in held:
            sock.close()


# --- counting


class SlowCounter(ServedEncoder):
    """Counts at a rate that makes long texts take for ever, and says how much it was asked."""

    def __init__(self):
        super().__init__()
        self.counted = 0
        self.gate_for_counts = threading.Event()

    def count_tokens(self, texts):
        self.counted += sum(map(len, texts))
        if any("wait" in text for text in texts):
            self.gate_for_counts.wait(20)
        return [len(text.split()) + 2 for text in texts]


def test_finding_where_a_long_text_is_cut_takes_work_by_the_limit_and_not_by_its_length():
    text = "word " * 150_000
    with SlowCounter() as encoder, background(encoder, limits=Limits(tokens=10**9)) as url:
        answer = http.post(f"{url}/tokens", json={"texts": [text]}, timeout=60).json()
    assert answer["counts"] == [150_002]
    assert len(text[: answer["read_characters"][0]].split()) + 2 == CARD.max_tokens
    assert encoder.counted < 2 * len(text)


def test_counting_has_a_deadline_and_a_place_in_the_queue():
    limits = Limits(answer_seconds=0.3, queued_texts=2)
    with SlowCounter() as encoder, background(encoder, limits=limits) as url:
        answers = []
        slow = [
            threading.Thread(target=lambda: answers.append(http.post(f"{url}/tokens", json={"texts": ["wait", "b"]})))
            for _ in range(4)
        ]
        for thread in slow:
            thread.start()
        for thread in slow:
            thread.join(30)
        assert {answer.status_code for answer in answers} <= {429, 504}
        assert 504 in {answer.status_code for answer in answers}
        encoder.gate_for_counts.set()
        assert "bge_queue_texts 0.0" in http.get(f"{url}/metrics").text


# --- the policy of the pages


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_of_strangers_cannot_put_ours_in_a_frame(url, path):
    policy = http.get(f"{url}{path}").headers["content-security-policy"]
    assert "frame-ancestors 'self' https://huggingface.co" in policy


# --- the command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "99999"],
        ["--port", "-1"],
        ["--port", "65536"],
        ["--host", "no.such.host.invalid"],
        ["--host", "a" * 300],
        ["--host", "300.1.1.1"],
        ["--workers", "0"],
        ["--workers", "-2"],
        ["--model", "no-such-model"],
        ["--api-key-file", "/nonexistent/keys"],
        ["--api-key-file", "/dev/null"],
        ["--api-key-file", "/bin/sh"],
        ["--provider-key-file", "/nonexistent/key"],
        ["--provider-key-env", "NO_SUCH_VARIABLE"],
        ["--api-key-env", "NO_SUCH_VARIABLE"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_one_line_and_exit_code_2(arguments, capfd):
    try:
        code = main(["serve", "--port", "0", *arguments])
    except SystemExit as end:
        code = end.code
    said = capfd.readouterr().err
    assert code == 2, said
    assert said.startswith("bge: ")
    assert said.count("\n") == 1


# --- a whole URL as target, as clients of a proxy send it


@pytest.mark.parametrize("authority", ["http://localhost", "HTTP://user@127.0.0.1:80", "https://[::1]:9"])
def test_a_whole_url_as_target_is_its_path(url, authority):
    body = json.dumps({"texts": ["a"]}).encode()
    plain = exchange(url, post("/embed", body, "content-type: application/json"))
    whole = exchange(url, post(f"{authority}/embed", body, "content-type: application/json"))
    assert status(whole) == status(plain) == 200
    assert whole.partition(b"\r\n\r\n")[2] == plain.partition(b"\r\n\r\n")[2]
    bare = exchange(url, f"GET {authority} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    assert status(bare) == 200


def test_the_limits_and_the_hosts_hold_for_a_whole_url_too(url, locked):
    large = b"x" * (SMALL.body_bytes + 1)
    assert status(exchange(url, post("http://localhost/embed%0a", large, "content-type: application/json"))) == 413
    assert status(exchange(locked, post("http://localhost/embed", b"{}", "content-type: application/json"))) == 401
    # The target's host counts, whatever the header says.
    assert status(exchange(url, post("http://evil.example/embed", b"{}", "content-type: application/json"))) == 421


def test_compressed_bodies_are_refused_with_what_to_do(url):
    body = gzip.compress(json.dumps({"texts": ["a"]}).encode())
    for path in ("/embed", "/v1/embeddings", "/nowhere"):
        answer = http.post(url + path, content=body, headers={**JSON, "content-encoding": "gzip"})
        assert answer.status_code == 415
        assert answer.headers["accept-encoding"] == "identity"
        assert "without Content-Encoding: gzip" in answer.text
    assert http.post(f"{url}/embed", json={"texts": ["a"]}, headers={"content-encoding": "identity"}).is_success
