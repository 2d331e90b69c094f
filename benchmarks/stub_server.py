"""A host that answers at once, in its own process: canned vectors, serialised before the first request.

The path says how: ``/LATENCY_MS/KIND/v1/embeddings``, where KIND is ``both`` (base64 for those who ask for it) or
``float`` (float JSON only, whatever is asked for). Row i of every answer is the same, so that clients can be checked.
``/LATENCY_MS/tei/rerank`` answers like TEI: the best first, and the passage that begins with ``17 `` has the logit 17.
"""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import orjson

DIMENSIONS = 1024


@cache
def vectors(count: int) -> np.ndarray:
    """Return the unit vectors that every answer holds."""
    numbers = np.random.default_rng(0).normal(size=(count, DIMENSIONS)).astype(np.float32)
    return numbers / np.linalg.norm(numbers, axis=1, keepdims=True)


@cache
def answer(count: int, encoding: str) -> bytes:
    """Return a whole answer for so many texts."""
    rows = vectors(count)
    shown = [base64.b64encode(row).decode() for row in rows] if encoding == "base64" else rows.tolist()
    data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(shown)]
    usage = {"prompt_tokens": count * 20, "total_tokens": count * 20}
    body = orjson.dumps({"object": "list", "data": data, "model": "bge-large", "usage": usage})
    return response(body)


def response(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def ranking(texts: list[str]) -> bytes:
    """Return TEI's answer to a request for raw scores."""
    scores = sorted(((float(text.split(" ", 1)[0]), i) for i, text in enumerate(texts)), reverse=True)
    return response(orjson.dumps([{"index": i, "score": score} for score, i in scores]))


class Host(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(self.buffer[:end]).lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            body = bytes(self.buffer[end + 4 : end + 4 + length])
            del self.buffer[: end + 4 + length]
            self.serve(head.split(b" ", 2)[1].decode(), body)

    def serve(self, path: str, body: bytes) -> None:
        _, milliseconds, kind, *_ = path.split("/")
        asked = orjson.loads(body)
        if kind == "tei":
            reply = ranking(asked["texts"])
        else:
            texts = asked["input"]
            count = 1 if isinstance(texts, str) else len(texts)
            reply = answer(count, asked.get("encoding_format", "float") if kind == "both" else "float")
        if milliseconds == "0":
            self.reply(reply)
        else:
            asyncio.get_running_loop().call_later(int(milliseconds) / 1000, self.reply, reply)

    def reply(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


async def serve() -> None:
    """Serve until stdin ends; the port is the first line of stdout."""
    for count in (1, 10, 64):
        for encoding in ("float", "base64"):
            answer(count, encoding)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Host, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


@contextmanager
def stub() -> Iterator[str]:
    """Run the host in a process of its own; yields its address, without latency and kind."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(serve())
    except ImportError:
        asyncio.run(serve())
