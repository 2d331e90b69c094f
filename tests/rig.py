"""A host on loopback that fails as it is told, one fault per request, and remembers all that it was sent.

A fault is a function of one exchange; ``None`` is none. ``script`` says what happens to the next requests, ``default``
to those after it. Names follow toxiproxy where it has one. Vectors depend on every byte of the text, so that a swapped
row is seen. Only real sockets: a reset is a reset, a short body is short.
"""

from __future__ import annotations

import base64
import json
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import numpy as np

from encoders import hash_vectors

Row = dict[str, Any]
JSON = "application/json"


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    path: str
    headers: dict[str, str]
    raw: bytes
    at: float

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw) if self.raw else {}

    @property
    def texts(self) -> list[str]:
        inputs = self.body.get("input", self.body.get("texts", []))
        return [inputs] if isinstance(inputs, str) else inputs


@dataclass
class Exchange:
    """One request and the connection to answer it on."""

    rig: Rig
    request: Request
    connection: socket.socket
    hang_up: bool = False
    replies: list[int] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return self.request.texts

    def rows(self) -> list[Row]:
        """Return the true rows, in OpenAI's shape."""
        body = self.request.body
        texts = [self.rig.instruction + text for text in self.texts] if body.get("is_query") else self.texts
        vectors = hash_vectors(texts, self.rig.dimensions)
        return [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(vectors.tolist())]

    def payload(self, rows: Sequence[Row], **more: Any) -> bytes:
        """Return the body that carries rows, as the client asked for them."""
        body = self.request.body
        if self.request.path.endswith("/embed"):
            answer = {"embeddings": [row["embedding"] for row in rows], "model": "m", "dimension": self.rig.dimensions}
            return _dump({**answer, **more})
        if body.get("encoding_format") == "base64" and self.rig.base64:
            rows = [{**row, "embedding": _base64(row["embedding"])} for row in rows]
        tokens = sum(len(text.split()) for text in self.texts)
        answer = {"object": "list", "data": rows, "model": body.get("model"), "usage": {"prompt_tokens": tokens}}
        answer["usage"]["total_tokens"] = tokens
        return _dump({**answer, **more})

    def send(self, body: bytes, status: int = 200, *, kind: str = JSON, length: int | None = None, **more: Any) -> None:
        """Answer; ``length`` is what is claimed, where it is not the truth."""
        self.write(self.head(status, len(body) if length is None else length, kind, **more) + body)

    def head(self, status: int, length: int, kind: str = JSON, **headers: Any) -> bytes:
        self.replies.append(status)
        lines = [f"HTTP/1.1 {status} -", f"Content-Type: {kind}", f"Content-Length: {length}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def write(self, data: bytes) -> None:
        self.connection.sendall(data)

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.hang_up = True


Fault = Callable[[Exchange], None]


def _dump(answer: Any) -> bytes:
    # What JSON cannot say, such as a bare NaN, is written as "@NaN@" and unquoted here.
    return json.dumps(answer).replace('"@', "").replace('@"', "").encode()


def _base64(row: Any) -> Any:
    try:
        return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()
    except (TypeError, ValueError):
        return row


class Rig:
    """The host. Use as a context manager; ``url`` is the OpenAI-compatible base URL, ``space_url`` that of a Space.

    Args:
        dimensions: length of a vector.
        default: what happens to requests that ``script`` does not speak of.
        base64: whether base64 is answered when asked for; floats come otherwise.
        instruction: what the Space protocol puts in front of a query.
    """

    def __init__(
        self,
        dimensions: int = 384,
        *,
        default: Fault | None = None,
        base64: bool = True,
        instruction: str = "Represent this sentence for searching relevant passages: ",
    ) -> None:
        self.dimensions, self.default, self.base64, self.instruction = dimensions, default, base64, instruction
        self.requests: list[Request] = []
        self.failures: list[BaseException] = []
        self.over = threading.Event()
        self._script: deque[Fault | None] = deque()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.port: int = self._server.server_address[1]
        self.space_url = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.space_url}/v1"

    def script(self, *faults: Fault | None) -> Self:
        """Say what happens to the next requests, one by one."""
        with self._lock:
            self._script.extend(faults)
        return self

    def forget(self) -> Self:
        """Start with an empty log and no script."""
        with self._lock:
            self._script.clear()
            self.requests.clear()
        return self

    @property
    def sent(self) -> list[list[str]]:
        """The texts of each request, in order of arrival."""
        return [request.texts for request in list(self.requests) if request.raw]

    def truth(self, texts: Iterable[str]) -> np.ndarray:
        """Return the vectors that an answer without fault holds."""
        return hash_vectors(list(texts), self.dimensions)

    def answer(self, request: Request, connection: socket.socket) -> bool:
        """Answer a request; True where the connection is done for."""
        exchange = Exchange(self, request, connection)
        with self._lock:
            self.requests.append(request)
            fault = None
            if request.raw:
                fault = self._script.popleft() if self._script else self.default
        if not request.raw:
            exchange.send(_dump({"status": "ok", "model": "BAAI/bge-small-en-v1.5", "model_loaded": True}))
        else:
            (fault or ok)(exchange)
        return exchange.hang_up

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.002,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.failures, self.failures


class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        import sys

        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.rig.failures.append(error)

    def shutdown_request(self, request: Any) -> None:
        if request.fileno() != -1:  # a reset has closed it already
            super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, raw, time.monotonic())
        if self.server.rig.answer(request, self.connection):
            self.close_connection = True

    do_GET = do_POST

    def finish(self) -> None:
        if self.connection.fileno() != -1:
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def ok(x: Exchange) -> None:
    """The truth."""
    x.send(x.payload(x.rows()))


def rows(change: Callable[[list[Row]], Sequence[Row]], **more: Any) -> Fault:
    """The truth, changed."""
    return lambda x: x.send(x.payload(change(x.rows()), **more))


def status(code: int, message: str = "made to fail", *, body: bytes | None = None, **headers: Any) -> Fault:
    """An error in OpenAI's shape; headers by keyword, such as ``Retry_After=1``."""
    return lambda x: x.send(_dump({"error": {"message": message}}) if body is None else body, code, **headers)


def echo_key(code: int = 401) -> Fault:
    """An error that repeats the key, as providers do."""
    return lambda x: status(code, f"Incorrect API key provided: {x.request.headers.get('authorization')}")(x)


def raw(body: bytes | str, kind: str = JSON, code: int = 200) -> Fault:
    """Any body under any content type."""
    data = body.encode() if isinstance(body, str) else body
    return lambda x: x.send(data, code, kind=kind)


def cut(share: float = 0.5, *, honest: bool = False) -> Fault:
    """JSON that ends too early; ``honest`` where Content-Length says so, else the connection ends short of it."""

    def fault(x: Exchange) -> None:
        body = x.payload(x.rows())
        part = body[: int(len(body) * share)]
        x.send(part, length=len(part) if honest else len(body))
        x.hang_up = not honest

    return fault


def reset_peer(after: int | None = None) -> Fault:
    """RST before the head, or after so many bytes of body."""

    def fault(x: Exchange) -> None:
        if after is not None:
            body = x.payload(x.rows())
            x.send(body[:after], length=len(body))
            time.sleep(0.02)  # an RST throws away what the other side has not read yet
        x.reset()

    return fault


def timeout(seconds: float | None = None) -> Fault:
    """No answer until the rig closes, or for so many seconds: who sees the end of it has given up by itself."""

    def fault(x: Exchange) -> None:
        x.rig.over.wait(seconds)
        x.hang_up = True

    return fault


def latency(seconds: float, then: Fault = ok) -> Fault:
    """An answer after a while."""

    def fault(x: Exchange) -> None:
        x.rig.over.wait(seconds)
        then(x)

    return fault


def slicer(size: int = 1, delay: float = 0.2) -> Fault:
    """The truth, a few bytes at a time."""

    def fault(x: Exchange) -> None:
        body = x.payload(x.rows())
        x.write(x.head(200, len(body)))
        for start in range(0, len(body), size):
            if x.rig.over.wait(delay):
                break
            x.write(body[start : start + size])
        x.hang_up = True

    return fault


def slow_close() -> Fault:
    """The truth without Content-Length, on a connection that stays open until the rig closes."""

    def fault(x: Exchange) -> None:
        head = b"HTTP/1.1 200 -\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
        x.write(head + x.payload(x.rows()))
        x.rig.over.wait()
        x.hang_up = True

    return fault


def redirect(code: int, to: str) -> Fault:
    """Somewhere else, please."""
    return lambda x: x.send(b"", code, Location=f"{to}{x.request.path}")


def gzip_bomb(megabytes: int = 1024) -> Fault:
    """A small body that unpacks to a large one."""

    def fault(x: Exchange) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        first = packer.compress(b'{"data": [' + b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
        # After a full flush a block stands for itself, so that one block repeated is as good as all.
        block = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
        x.write(x.head(200, len(first) + megabytes * len(block), Content_Encoding="gzip") + first)
        for _ in range(megabytes):
            x.write(block)
        x.hang_up = True

    return fault


def spoilt(spoil: Callable[[list[Any]], Any], marker: str = "") -> Fault:
    """Rows of texts that hold ``marker`` are changed by ``spoil``; all others are true."""

    def fault(x: Exchange) -> None:
        data = x.rows()
        for row, text in zip(data, x.texts, strict=True):
            if marker in text:
                row["embedding"] = spoil(row["embedding"])
        x.send(x.payload(data))

    return fault


def first_is(value: Any) -> Callable[[list[Any]], list[Any]]:
    """Return a spoiler that puts ``value`` in front of a row; ``"@NaN@"`` is written as a bare NaN."""
    return lambda row: [value, *row[1:]]


def cap(most: int, code: int = 413, message: str = "batch size {} > maximum allowed batch size {}") -> Fault:
    """The truth for up to so many texts, a refusal for more."""

    def fault(x: Exchange) -> None:
        fits = len(x.texts) <= most
        (ok if fits else status(code, message.format(len(x.texts), most)))(x)

    return fault


def refuse_marked(marker: str, code: int, message: str) -> Fault:
    """A refusal of every request that holds a text with ``marker``."""
    return lambda x: (status(code, message) if any(marker in text for text in x.texts) else ok)(x)
