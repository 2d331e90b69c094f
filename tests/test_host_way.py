"""The way to a host: keys, headers, plain http, proxies, certificates, and what the environment may break."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import ssl
import subprocess
import threading
from functools import partial

import numpy as np
import openai
import pytest

from bge_integrations import errors, load_encoder
from bge_integrations.catalog import find_model
from bge_integrations.catalog.records import Provider
from bge_integrations.remote.engine import Endpoint, HostLimits, RemoteEngine
from rig import Rig, raw, status

CARD = find_model("bge-small")
SECRET = "sk-canary-4e1d"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(params=["aiohttp", "httpx"], autouse=True)
def transport(request, monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    if request.param == "httpx":

        def missing(**_):
            raise RuntimeError("not installed")

        monkeypatch.setattr(openai, "DefaultAioHttpClient", missing)


def no_key():
    return None


@pytest.fixture
def engine_at():
    made = []

    def make(url, key=None, **options):
        given = {"max_retries": 0, "timeout": 20.0, "backoff": 0.005}
        limits = HostLimits(**{name: options.pop(name, value) for name, value in given.items()})
        source = key if callable(key) else partial(str, key) if key else no_key
        endpoint = Endpoint(provider=Provider(name="host"), base_url=url, wire_model="m", key=source, **options)
        made.append(RemoteEngine(CARD, endpoint, limits=limits))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def right(host, engine, texts=("one text", "another")):
    return bool(np.allclose(engine.encode(list(texts), role="document"), host.truth(texts), atol=1e-6))


# Keys and headers


@pytest.mark.parametrize("key", [f"{SECRET}\n", f" {SECRET}\r\n", f"\t{SECRET}"])
def test_blanks_around_a_key_are_not_sent(engine_at, key):
    with Rig() as host:
        assert right(host, engine_at(host.url, key))
        assert host.requests[0].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "letter", ["\n", "\r\n X-Other: 1", "\x00", "\x7f", "\u2028", "”", "ключ", "\ud800", "ü", "\xa0"], ids=ascii
)
@pytest.mark.parametrize("where", ["key", "header", "changing key"])
def test_what_no_header_can_carry_is_refused_and_not_shown(engine_at, caplog, letter, where):
    caplog.set_level(logging.DEBUG)
    value = f"{SECRET}{letter}tail"
    options = {"key": {"key": value}, "header": {"headers": {"X-Gateway": value}}}.get(
        where, {"key": lambda: value, "key_changes": True}
    )
    with Rig() as host, pytest.raises(errors.ConfigError) as caught:
        engine_at(host.url, **options).encode(["a"], role="document")
    assert host.requests == []
    chain = f"{caught.value!r} {vars(caught.value)} {caught.value.__cause__!r} {caught.value.__context__!r}"
    assert SECRET not in chain + caplog.text
    assert SECRET.encode() not in pickle.dumps(caught.value)


def test_headers_are_sent_and_stay_secret(engine_at, caplog):
    caplog.set_level(logging.DEBUG)
    refusal = status(403, f"no {SECRET} here")
    with Rig().script(None, refusal) as host:
        engine = engine_at(host.url, headers={"Cf-Aig-Authorization": f"Bearer {SECRET}", "X-Team": "search-42"})
        assert right(host, engine)
        assert host.requests[0].headers["cf-aig-authorization"] == f"Bearer {SECRET}"
        assert "authorization" not in host.requests[0].headers
        with pytest.raises(errors.AuthenticationError) as caught:
            engine.encode(["a"], role="document")
        shown = f"{engine!r} {engine.endpoint!r} {engine.describe()} {caught.value!r} {caplog.text}"
        assert SECRET not in shown.replace(f"Bearer {SECRET}", SECRET)
        assert "search-42" not in shown
        twin = pickle.loads(pickle.dumps(engine))
        assert SECRET.encode() not in pickle.dumps(engine)
        with twin, pytest.raises(errors.ConfigError, match="headers="):
            twin.encode(["a"], role="document")
        assert len(host.requests) == 2


def test_a_users_own_authorization_is_not_replaced(engine_at):
    with Rig() as host:
        assert right(host, engine_at(host.url, "a-key", headers={"authorization": "Basic dTpw"}))
        assert host.requests[0].headers["authorization"] == "Basic dTpw"


def test_the_environment_of_the_sdk_is_not_sent(engine_at, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-leak")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-leak")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-leak")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "admin-leak")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: leak-1\nauthorization: leak-2\nUser-Agent: leak-3")
    with Rig() as host:
        assert right(host, engine_at(host.url))
        assert right(host, engine_at(host.url, SECRET))
        first, second = host.requests
        assert "leak" not in str(first.headers) + str(second.headers)
        assert "authorization" not in first.headers
        assert second.headers["authorization"] == f"Bearer {SECRET}"


def test_the_query_of_the_base_url_is_kept(engine_at):
    with Rig() as host:
        engine = engine_at(f"{host.url}?api-version=2024-10-21&team=a%20b")
        assert right(host, engine)
        assert host.requests[0].path == "/v1/embeddings?api-version=2024-10-21&team=a+b"
        assert "api-version" not in engine.describe()["base_url"]


def test_a_key_that_changes_is_asked_for_each_request_and_after_a_401(engine_at):
    keys = [f"token-{i}" for i in range(10)]
    with Rig().script(None, status(401, "expired")) as host:
        engine = engine_at(host.url, lambda: keys.pop(0), key_changes=True)
        assert right(host, engine)
        assert right(host, engine)
        sent = [request.headers["authorization"] for request in host.requests]
        assert sent == [f"Bearer token-{i}" for i in range(3)]


# Plain http


def test_the_unspecified_address_is_this_machine(engine_at):
    with Rig() as host:
        assert right(host, engine_at(host.url.replace("127.0.0.1", "0.0.0.0")))


@pytest.mark.parametrize("name", ["ollama", "tei.svc.cluster.local", "host.docker.internal", "10.1.2.3", "[fd00::1]"])
def test_plain_http_is_for_those_who_allow_it(engine_at, name):
    with pytest.raises(errors.InsecureHostError, match=r"allow_http=True \(BGE_ALLOW_HTTP=1\)"):
        engine_at(f"http://{name}/v1")


def test_plain_http_that_is_allowed_is_warned_of_once(engine_at, request):
    url = f"http://host-{request.node.callspec.id}.test/v1"
    with pytest.warns(errors.BGEWarning, match="plain http"):
        engine_at(url, allow_http=True)
    engine_at(url, allow_http=True)


def loaded_at(url):
    return load_encoder("bge-small", base_url=url)


BAD_URLS = ["http://127.0.0.1:abc/v1", "http://[::1/v1", "https://a.example:99999/v1", "http://127.0.0.1/v1\r\nX: 1",
            "https://", "ftp://a.example/v1", "https://user:hunter2@a.example:abc/v1"]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("through", ["engine", "load_encoder"])
def test_malformed_addresses(engine_at, url, through):
    if through == "load_encoder":
        engine_at = loaded_at
    with pytest.raises(errors.ConfigError, match="base_url") as caught:
        engine_at(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["X A", "", "X-ü", "X:", "X-A\x7f", "X(A)", "Content-Length", "transfer-encoding", "TE"]
)
def test_what_is_no_name_of_a_header_or_frames_a_request_is_refused(engine_at, name):
    with pytest.raises(errors.ConfigError, match="header"):
        engine_at("https://models.example/v1", headers={name: "1"})


# Proxies


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_this_machine_is_never_asked_through_a_proxy(engine_at, monkeypatch, variable, name):
    with Rig() as proxy, Rig() as host:
        monkeypatch.setenv(variable, proxy.space_url)
        assert right(host, engine_at(host.url.replace("127.0.0.1", name), SECRET))
        assert proxy.requests == []


@pytest.fixture
def plain():
    """Options of a host on plain http, whose warning is not the point."""
    return {"allow_http": True}


quiet = pytest.mark.filterwarnings("ignore:plain http")


@quiet
def test_other_hosts_are_asked_through_the_proxy(engine_at, monkeypatch, plain):
    with Rig() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.space_url)
        assert right(proxy, engine_at("http://models.example/v1", SECRET, **plain))
        assert proxy.requests[0].path == "http://models.example/v1/embeddings"


# The SDK's client on aiohttp passes a proxy's password on in a way that aiohttp deprecates.
deprecated = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@quiet
@deprecated
@pytest.mark.parametrize(("code", "error"), [(502, errors.HostUnavailableError), (407, errors.RequestRefusedError)])
def test_a_proxy_that_answers_itself_is_named(engine_at, monkeypatch, plain, code, error):
    with Rig(default=raw("<html>proxy</html>", "text/html", code)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://user:hunter2@127.0.0.1:{proxy.port}")
        with pytest.raises(error, match="proxy in HTTP_PROXY") as caught:
            engine_at("http://models.example/v1", **plain).encode(["a"], role="document")
        assert "hunter2" not in str(caught.value)
        assert len(proxy.requests) == 1


@pytest.fixture
def refusing_proxy():
    """A proxy that lets no tunnel through; ``answer`` is what it says."""
    answers, server = [], socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    answers.append(connection.recv(65536))
                    connection.sendall(serve.answer)

    serve.answer, serve.port, serve.seen = b"", server.getsockname()[1], answers
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield serve
    # Closed below its thread, the number of the file could be the next proxy's when the thread accepts.
    with contextlib.suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


@deprecated
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", errors.RequestRefusedError),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", errors.HostUnavailableError),
        (b"", errors.HostUnavailableError),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_named(engine_at, monkeypatch, refusing_proxy, answer, error):
    refusing_proxy.answer = answer
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@127.0.0.1:{refusing_proxy.port}")
    with pytest.raises(error, match="proxy in HTTPS_PROXY") as caught:
        engine_at("https://models.example/v1", SECRET).encode(["a"], role="document")
    assert type(caught.value) is error
    assert "hunter2" not in f"{caught.value!r} {caught.value.__context__!r}"
    assert all(SECRET.encode() not in seen for seen in refusing_proxy.seen)


BROKEN = {
    "HTTPS_PROXY": ["socks://p.example:1", "http://user:hunter2@p.example:99999",
                    "http://user:hunter2@p.example:abc", "http://[::1", "ftp://user:hunter2@p",
                    "http://user:hunter2@p.example:1/\r\nX: 1"],
    "ALL_PROXY": ["socks://user:hunter2@p.example:1", "socks5://user:hunter2@p.example:1"],
    "SSL_CERT_FILE": ["/nowhere/hunter2.pem"],
}  # fmt: skip


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name in BROKEN for value in BROKEN[name]])
def test_a_broken_environment_is_named_without_its_passwords(engine_at, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(errors.ConfigError, match=variable) as caught:
        engine_at("https://models.example/v1", SECRET).encode(["a"], role="document")
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


@pytest.mark.parametrize(("variable", "value"), [(name, value) for name in BROKEN for value in BROKEN[name]])
def test_a_broken_environment_is_nothing_to_this_machine(engine_at, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with Rig() as host:
        assert right(host, engine_at(host.url))


# Certificates, names, and what is shown


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", path, "-out", f"{path}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def test_an_unknown_certificate_is_refused_once_and_says_what_to_do(engine_at, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    accepted = []
    with Rig() as host:
        host._server.socket = context.wrap_socket(host._server.socket, server_side=True, do_handshake_on_connect=False)
        verify_request = host._server.verify_request
        host._server.verify_request = lambda *a: accepted.append(a) or verify_request(*a)
        with pytest.raises(errors.RequestRefusedError, match="SSL_CERT_FILE"):
            engine_at(f"https://localhost:{host.port}/v1", max_retries=3).encode(["a"], role="document")
        assert len(accepted) <= 2  # localhost may be two addresses


def test_a_name_that_does_not_resolve(engine_at):
    with pytest.raises(errors.HostUnavailableError, match="could not be reached"):
        engine_at("https://nowhere.invalid/v1").encode(["a"], role="document")


def test_control_characters_of_a_host_are_shown_as_escapes(engine_at):
    body = b'{"error": {"message": "\\u001b[31mred\\u0007 \\u202ereversed \\ud800 \xe4\xb8\xad"}}'
    with Rig(default=status(400, body=body)) as host:
        with pytest.raises(errors.RequestRefusedError, match="red") as caught:
            engine_at(host.url).encode(["a"], role="document")
        assert str(caught.value).isprintable()
        assert "中" in str(caught.value)
