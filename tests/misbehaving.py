"""A host on loopback that serves a model over both protocols and misbehaves as it is told.

It reads the texts with a local engine, so that its vectors are the model's own until a fault says otherwise.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self

import numpy as np

from bge_integrations.catalog.records import ModelCard, Provider, Role
from bge_integrations.core.batches import Batch, Relay, Stream
from bge_integrations.core.encoder import Vectors
from bge_integrations.errors import ConfigError
from bge_integrations.local.engine import LocalEngine

Seen = dict[tuple[Any, ...], Any]


class Remembering(LocalEngine):
    """A local engine that computes each text once in the whole process; hosts and references share what it knows."""

    seen: ClassVar[Seen] = {}

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        card = self.card
        formatted = self.format(texts, role)
        keys = [(card.id, card.dimensions, card.pooling, card.max_tokens, text) for text in formatted]
        missing = [key for key in dict.fromkeys(keys) if key not in self.seen]
        filling = Filling(stream, self.seen, keys, missing)
        if missing:
            super().batches([key[-1] for key in missing], "document", filling)
        else:
            filling.finish()


class Filling(Relay):
    """Remembers what is computed of the missing texts, then passes all rows on."""

    def __init__(self, outer: Stream, seen: Seen, keys: list[Any], missing: list[Any]) -> None:
        super().__init__(outer)
        self.seen, self.keys, self.missing = seen, keys, missing

    def put(self, batch: Batch) -> None:
        self.seen.update((self.missing[i], row.copy()) for i, row in zip(batch.positions, batch.rows, strict=True))

    def finish(self) -> None:
        rows = np.stack([self.seen[key] for key in self.keys])
        self.outer.put(Batch(range(len(self.keys)), rows, 0, []))
        self.outer.finish()


Wording = Callable[[str, str, Role], str]
"""instruction, text without it, role -> what the model is given to read."""


def _right(instruction: str, text: str, role: Role) -> str:
    return instruction + text if role == "query" else text


WORDINGS: dict[str, Wording] = {
    "instruction missing": lambda _, text, role: text,
    "instruction doubled": lambda i, text, role: i + i + text if role == "query" else text,
    "instruction on documents too": lambda i, text, role: i + text,
    "instruction added to every text": lambda i, text, role: i + _right(i, text, role),
    "'question' wording": lambda i, text, role: _right(i.replace("sentence", "question"), text, role),
    "stray space after the instruction": lambda i, text, role: _right(i + " ", text, role),
    "lost space after the instruction": lambda i, text, role: _right(i.rstrip(), text, role),
    "newlines replaced by spaces": lambda i, text, role: _right(i, text, role).replace("\n", " "),
    "ends of texts stripped": lambda i, text, role: _right(i, text, role).strip() or "?",
    "lower-cased": lambda i, text, role: _right(i, text, role).lower(),
    "E5's prefixes": lambda i, text, role: {"query": "query: ", "document": "passage: "}[role] + _right(i, text, role),
}

CUT = 128


class Host:
    """The server.

    Args:
        engines: by name: ``"right"``, and those that the faults ``"mean pooling"`` and so on are served from.

    Attributes:
        fault: what it does wrong now.
        requests: the bodies that it was sent.
    """

    def __init__(self, engines: dict[str, Any], instruction: str) -> None:
        self.engines, self.instruction = engines, instruction
        self.fault = ""
        self.requests: list[dict[str, Any]] = []
        self.repeats = 0

    @property
    def card(self) -> ModelCard:
        return self.engines["right"].card

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body of the answer to one request."""
        self.requests.append(body)
        space = "texts" in body
        texts: list[str] = body["texts"] if space else body["input"]
        refusal = self._refusal(texts)
        if refusal:
            return refusal, {"detail": "refused"}
        read = [self._read(text, body.get("is_query") if space else None) for text in texts]
        rows = self._spoilt(self._embed(read), texts)
        if space:
            return 200, {"embeddings": rows.tolist(), "model": self.card.id, "dimension": self.card.dimensions}
        return 200, self._openai(rows, read, body)

    def _refusal(self, texts: Sequence[str]) -> int:
        if any(not text.strip() for text in texts):
            return 400
        if self.fault == "a batch cap" and len(texts) > 4:
            return 413
        if self.fault == "over-long texts refused" and max(map(len, texts)) > 6 * self.card.max_tokens:
            return 422
        return 0

    def _read(self, text: str, is_query: bool | None) -> str:
        query = text.startswith(self.instruction) if is_query is None else is_query
        bare = text.removeprefix(self.instruction) if is_query is None else text
        role: Role = "query" if query else "document"
        return WORDINGS.get(self.fault, _right)(self.instruction, bare, role)

    def _embed(self, texts: list[str]) -> Vectors:
        return self.engines.get(self.fault, self.engines["right"]).encode(texts, role="document")

    def _spoilt(self, rows: Vectors, texts: Sequence[str]) -> Vectors:
        if self.fault == "rows in another order":
            return rows[::-1]
        if self.fault == "duplicates dropped":
            return rows[[i for i, text in enumerate(texts) if text not in texts[:i]]]
        if self.fault == "no normalisation":
            return rows * np.linspace(3, 7, len(rows), dtype=np.float32)[:, None]
        if self.fault == "1 % noise":
            return rows + 0.01 * _noise(texts, rows.shape[1])
        if self.fault == "int8 noise":
            return rows + 0.12 * _noise(texts, rows.shape[1])
        if self.fault == "another vector each time":
            self.repeats += 1
            return rows + 0.1 * _noise([f"{self.repeats} {text}" for text in texts], rows.shape[1])
        return rows

    def _openai(self, rows: Vectors, read: Sequence[str], body: dict[str, Any]) -> dict[str, Any]:
        def written(row: Vectors) -> Any:
            if body.get("encoding_format") != "base64" or self.fault == "base64 ignored":
                return row.tolist()
            packed = row.astype(">f4" if self.fault == "base64 broken" else "<f4").tobytes()
            return base64.b64encode(packed).decode()

        try:
            tokens = sum(self.engines["right"].count_tokens(list(read)))
        except ConfigError:  # no tokenizer on this machine
            tokens = sum(len(text.split()) + 2 for text in read)
        data = [{"object": "embedding", "index": i, "embedding": written(row)} for i, row in enumerate(rows)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _noise(texts: Sequence[str], dimensions: int) -> Vectors:
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    rows = np.stack([np.random.default_rng(seed).standard_normal(dimensions) for seed in seeds])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _handler(host: Host) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body are two writes: 40 ms each until the first is acknowledged

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = host.answer(body)
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


OPENAI = Provider(name="loopback")
SPACE = Provider(name="loopback space", protocol="space")


def engines_of(engine: LocalEngine, pooled: dict[str, LocalEngine], other: LocalEngine) -> dict[str, LocalEngine]:
    """Return the engines of a host by the fault that they are for."""
    cut = type(engine)(replace(engine.card, max_tokens=CUT), blank="keep")
    return {"right": engine, **pooled, f"cut at {CUT} tokens": cut, "another model": other}
