"""Every line of what plain FastAPI and uvicorn would let through, on a real socket."""

import errno
import itertools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from bge_integrations.server import Limits, background
from server_processes import http
from serving import ServedEncoder, vector_of

pytestmark = pytest.mark.slow

QUICK = Limits(header_seconds=0.5, idle_seconds=1, body_seconds=0.5, send_seconds=0.5)
SMALL = Limits(body_bytes=100_000, queued_bytes=150_000, body_seconds=2)
JSON = {"content-type": "application/json"}
HEAD = "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def encoder():
    with ServedEncoder() as encoder:
        yield encoder


@pytest.fixture(scope="module")
def url(encoder):
    with background(encoder, limits=QUICK) as url:
        yield url


@pytest.fixture(scope="module")
def small(encoder):
    with background(encoder, limits=SMALL) as url:
        yield url


@contextmanager
def connection(url):
    """A socket that gives up after 20 s, so that a server which holds it fails the test."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as sock:
        yield sock


def read_all(sock):
    """Everything until the server hangs up; a reset counts as hanging up."""
    got = b""
    try:
        while part := sock.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    return got


def send_for_ever(sock, parts, pause=0.0):
    *first, last = parts
    for part in itertools.chain(first, itertools.repeat(last)):
        sock.sendall(part)
        time.sleep(pause)


def still_serves(url):
    answer = http.post(f"{url}/embed", json={"texts": ["still", "here"]})
    np.testing.assert_array_equal(
        np.float32(answer.json()["embeddings"]), np.stack([vector_of("still"), vector_of("here")])
    )
    return True


# --- size


def test_a_declared_10_mb_is_refused_before_it_is_parsed_and_never_echoed(small):
    answer = http.post(
        f"{small}/embed",
        content=b'{"texts": 5, "x": "' + b"a" * 10_000_000 + b'"}',
        headers=JSON,
        timeout=30,
    )
    assert answer.status_code == 413
    assert len(answer.content) < 200
    assert still_serves(small)


def test_an_undeclared_one_is_cut_off_while_it_arrives(small):
    def endless():
        yield b'{"texts": ["'
        for _ in range(64):
            yield b"a" * 10_000
        yield b'"]}'

    answer = http.post(f"{small}/embed", content=endless(), headers=JSON, timeout=30)
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_one_that_never_ends_is_hung_up_on(small):
    with connection(small) as sock:
        sock.sendall(f"{HEAD}transfer-encoding: chunked\r\n\r\n".encode())
        chunk = b"2710\r\n" + b"a" * 10_000 + b"\r\n"
        with pytest.raises(ConnectionError):
            send_for_ever(sock, [chunk])
    assert still_serves(small)


def test_two_million_wrong_items_make_a_short_answer():
    body = b'{"texts": [' + b"1," * 2_000_000 + b"1]}"
    mixed = b'{"texts": ["a", ' + b"1," * 2_000_000 + b"1]}"
    with ServedEncoder() as encoder, background(encoder, limits=Limits(body_bytes=10 << 20)) as url:
        for content in (body, mixed):
            answer = http.post(f"{url}/embed", content=content, headers=JSON, timeout=60)
            assert answer.status_code == 422
            assert len(answer.content) < 1000


def test_too_many_items_are_refused_before_the_encoder_sees_one(encoder):
    encoder.seen.clear()
    with background(encoder) as url:
        answer = http.post(f"{url}/embed", json={"texts": ["a"] * 100_000}, timeout=60)
        assert answer.status_code == 422
        assert "100000 texts" in answer.json()["detail"]
    assert "a" not in encoder.seen


def test_bodies_in_memory_are_bounded_together(small):
    half = b'{"texts": ["' + b"a" * 80_000
    with connection(small) as first, connection(small) as second:
        for sock in (first, second):
            sock.sendall(f"{HEAD}content-length: 90000\r\n\r\n".encode() + half)
        answers = [read_all(sock).split(b"\r\n")[0] for sock in (first, second)]
    assert sorted(answers) == [b"HTTP/1.1 408 Request Timeout", b"HTTP/1.1 429 Too Many Requests"]
    assert "bge_queue_bytes 0.0" in http.get(f"{small}/metrics").text


# --- time


# Nothing, a line, a header, TLS.
STARTS = [b"", b"POST /emb", b"POST /embed HTTP/1.1\r\nhost: x\r\nx-half: ", b"\x16\x03\x01\x02\x00\x01"]


def test_half_a_header_is_not_held_open_for_ever(url):
    with ExitStack() as stack:  # together, since each waits for the limit
        socks = [stack.enter_context(connection(url)) for _ in STARTS]
        for sock, start in zip(socks, STARTS, strict=True):
            sock.sendall(start)
        assert [b" 200 " in read_all(sock) for sock in socks] == [False] * len(STARTS)


def test_a_header_that_drips_does_not_outlive_its_time(url):
    with connection(url) as sock, pytest.raises(ConnectionError):
        send_for_ever(sock, [b"POST /embed HTTP/1.1\r\n", b"x-a: a\r\n"], pause=0.1)


def test_half_a_second_header_is_not_held_open_either(url):
    with connection(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea")
        assert read_all(sock).count(b"HTTP/1.1 200 OK") == 1


def test_half_a_header_after_an_answer_is_not_held_open_either(url):
    with connection(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
        sock.sendall(b"GET /hea")
        assert b"200" not in read_all(sock)


def test_half_a_body_is_408_and_hung_up_on(url):
    with connection(url) as sock:
        sock.sendall(f'{HEAD}content-length: 100\r\n\r\n{{"texts": ["a'.encode())
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["detail"]


def test_a_body_that_drips_is_408(url):
    with connection(url) as sock:
        sock.sendall(f"{HEAD}content-length: 1000\r\n\r\n".encode())
        stop = threading.Event()

        def drip():
            while not stop.wait(0.1):
                try:
                    sock.sendall(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = read_all(sock)
        stop.set()
        thread.join()
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_nobody_asked_for_is_not_read_for_ever(url):
    with connection(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(ConnectionError):
            send_for_ever(sock, [b"a"], pause=0.1)


def test_a_client_that_does_not_take_its_answer_is_hung_up_on():
    limits = Limits(items=5000, queued_texts=5000, send_seconds=0.5, tokens=10**9)
    with ServedEncoder() as encoder, background(encoder, limits=limits) as url, connection(url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({"texts": ["a"] * 5000}).encode()
        # Twenty answers of 2 MB are more than the kernel's buffers take.
        for _ in range(20):
            sock.sendall(f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
        deadline = time.monotonic() + 20
        while not (error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert error == errno.ECONNRESET


# --- cut off


def test_a_client_that_gave_up_is_not_served():
    gate = threading.Event()
    with ServedEncoder(gate) as encoder, background(encoder) as url:
        for i in range(5):
            with connection(url) as sock:
                body = json.dumps({"texts": f"abandoned {i}"}).encode()
                sock.sendall(f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
                time.sleep(0.05)
        while "bge_queue_texts 0.0" not in http.get(f"{url}/metrics").text:
            time.sleep(0.02)
        gate.set()
        assert still_serves(url)
        assert encoder.seen[-2:] == ["still", "here"]
        assert not [text for text in encoder.seen if text.startswith("abandoned")]


@pytest.mark.parametrize("cut", [b"", b'{"texts"', b'{"texts": ["a"]'])
def test_a_connection_cut_in_mid_request_costs_nothing(url, cut):
    for linger in (False, True):
        with connection(url) as sock:
            sock.sendall(f"{HEAD}content-length: 90\r\n\r\n".encode() + cut)
            if linger:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert still_serves(url)


def test_garbage_is_a_400(url):
    with connection(url) as sock:
        sock.sendall(b"\0\1\2 garbage\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")


def test_a_huge_header_is_a_4xx(url):
    with connection(url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 200_000)
        assert b" 200 " not in read_all(sock)[:20]
    assert still_serves(url)


def test_a_wrong_content_length_is_a_400(url):
    with connection(url) as sock:
        sock.sendall(f"{HEAD}content-length: -5\r\n\r\n{{}}".encode())
        assert read_all(sock).startswith(b"HTTP/1.1 400 ")


# --- together


BAD = [
    (b'{"texts": ["a"', True),
    (b'{"texts": [1, {"a": NaN}]}', True),
    (b'{"texts": "\\ud800"}', True),
    (b'{"texts": "' + b"a" * 200_000 + b'"}', True),
    (b'{"texts": ["cut off in its bo', False),
    (b'{"texts": ["cut off before its answer"]}', False),
]


def test_good_requests_among_bad_ones_get_their_own_rows_and_no_one_gets_a_5xx(small):
    statuses, wrong = [], []

    def misbehave(i):
        body, waits = BAD[i % len(BAD)]
        with connection(small) as sock:
            sock.sendall(
                f"{HEAD}content-length: {len(body) + (not waits)}\r\nconnection: close\r\n\r\n".encode() + body
            )
            statuses.append(read_all(sock)[9:12] if waits else b"cut")

    def behave(i):
        texts = [f"good {i} {j}" for j in range(1 + i % 5)]
        answer = client.post("/embed", json={"texts": texts})
        statuses.append(str(answer.status_code).encode())
        if not np.array_equal(np.float32(answer.json()["embeddings"]), np.stack([vector_of(t) for t in texts])):
            wrong.append(i)

    with httpx.Client(base_url=small, timeout=60) as client, ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda i: misbehave(i // 3) if i % 3 == 0 else behave(i), range(120)))
    assert wrong == []
    assert set(statuses) == {b"200", b"413", b"422", b"cut"}
    assert statuses.count(b"200") == 80


def test_every_client_gets_its_own_rows(small):
    wrong = []

    def ask(i):
        texts = [f"client {i} {j}" for j in range(1 + i % 4)]
        role = "query" if i % 2 else "document"
        rows = client.post("/embed", json={"texts": texts, "is_query": role == "query"}).json()["embeddings"]
        if not np.array_equal(np.float32(rows), np.stack([vector_of(text, role) for text in texts])):
            wrong.append(i)

    with httpx.Client(base_url=small, timeout=60) as client, ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(64)))
    assert wrong == []
