"""Servers of bge-m3 on loopback, one per dialect, that answer as the real ones are documented to.

What they answer comes from a function of texts, so that they can serve a model of this machine or published values.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from http.server import ThreadingHTTPServer
from typing import Any, Self

import numpy as np

from bge_integrations.core.token_outputs import Outputs
from json_handler import JSONHandler

PATHS = {
    "vllm": ("/v1/embeddings", "/pooling", "/tokenize"),
    "vllm-plugin": ("/pooling",),
    "deepinfra": ("/v1/inference/BAAI/bge-m3-multi", "/v1/openai/embeddings"),
    "xinference": ("/v1/embeddings",),
    "sglang": ("/v1/embeddings",),
    "tei": ("/v1/embeddings", "/embed_sparse"),
    "bge": ("/embed", "/v1/embeddings"),
    "plain": ("/v1/embeddings",),
}
TELLS = {
    "tei": ("/info", {"model_id": "m", "max_client_batch_size": 32}),
    "sglang": ("/get_model_info", {"model_path": "m"}),
    "xinference": ("/openapi.json", {"info": {"title": "FastAPI"}, "paths": {"/v1/cluster/info": {}}}),
    "vllm": ("/version", {"version": "0.16.0"}),
    "bge": ("/info", {"outputs": ["dense", "sparse", "multivector"]}),
}


class M3Server:
    """A host. Use as a context manager.

    Args:
        dialect: whose shape and ways it has; ``"plain"`` gives dense vectors alone.
        outputs: what a list of texts has.
        ids: token ids of a text, special ones included.
        size: of the vocabulary, where sparse rows are written as lists of it.
        cap: texts that one request may hold.
    """

    def __init__(
        self,
        dialect: str,
        outputs: Callable[[list[str]], Outputs],
        ids: Callable[[str], list[int]],
        *,
        size: int = 0,
        cap: int = 0,
    ) -> None:
        self.dialect, self.outputs, self.ids, self.size, self.cap = dialect, outputs, ids, size, cap
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.paths = PATHS[dialect]
        self.faults: list[Any] = []
        self.refuse: Any = lambda path: None
        self.change: Any = None
        self._lock = threading.Lock()

        class Handler(JSONHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(handler) -> None:
                path, told = TELLS.get(self.dialect, ("", {}))
                handler.reply(200 if handler.path == path else 404, told if handler.path == path else {})

            def do_POST(handler) -> None:
                self.answer(handler, json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = self.root + ("/v1/openai" if dialect == "deepinfra" else "/v1")

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sent(self, path: str) -> list[dict[str, Any]]:
        """Return the requests to a path."""
        return [body for where, body in self.requests if where == path]

    def answer(self, handler: Any, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append((handler.path, body))
            fault = self.faults.pop(0) if self.faults else None
        if handler.path not in self.paths:
            handler.reply(404, {"detail": "Not Found"})
            return
        fault = fault or self.refuse(handler.path)
        if fault is not None:
            fault(handler)
            return
        texts = texts_of(body)
        if self.cap and len(texts) > self.cap:
            handler.reply(413, {"error": f"batch size {len(texts)} > maximum allowed batch size {self.cap}"})
            return
        answer = self.shape(handler.path, body, texts)
        handler.reply(200, self.change(answer) if self.change else answer)

    def shape(self, path: str, body: dict[str, Any], texts: list[str]) -> Any:
        """Return what a server of this dialect answers."""
        if path == "/tokenize":
            ids = self.ids(body["prompt"])
            return {"count": len(ids), "max_model_len": 8192, "tokens": ids}
        found = self.outputs(texts)
        usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
        if path == "/embed_sparse":
            return [[{"index": token, "value": weight} for token, weight in row.items()] for row in found.sparse]
        if path == "/embed":
            return self._of_bge(found, body["outputs"])
        if path.startswith("/v1/inference"):
            return self._of_deepinfra(found, body)
        if body.get("task") == "plugin":
            rows = [
                {
                    "index": i,
                    "object": body["data"]["embed_task"],
                    "sparse_embedding": [
                        {"token_id": k, "weight": v, "token": None} for k, v in found.sparse[i].items()
                    ],
                    "dense_embedding": found.dense[i].tolist() if "dense" in body["data"]["embed_task"] else None,
                }
                for i in range(len(texts))
            ]
            return {"request_id": "1", "created_at": 1, "data": {"data": rows, "usage": usage}}
        if path == "/pooling":
            rows = [self._tokenwise(body["task"], text, found, i) for i, text in enumerate(texts)]
            data = [{"index": i, "object": "pooling", "data": row} for i, row in enumerate(rows)]
            return {"id": "pool-1", "object": "list", "model": body["model"], "data": data, "usage": usage}
        if self.dialect == "sglang" or body.get("return_sparse"):
            special = {"0": 0.1, "2": 0.07} if self.dialect == "sglang" else {}
            rows = [{**special, **{str(token): weight for token, weight in row.items()}} for row in found.sparse]
            usage = {"prompt_tokens": -1, "total_tokens": -1}
        else:
            rows = [row.tolist() for row in found.dense]
        data = [{"index": i, "object": "embedding", "embedding": row} for i, row in enumerate(rows)]
        return {"object": "list", "model": body["model"], "data": data, "usage": usage}

    def _tokenwise(self, task: str, text: str, found: Outputs, i: int) -> list[Any]:
        if task == "token_embed":
            return [vector.tolist() for vector in found.multivector[i]]
        weights, ids = [], self.ids(text)[1:-1]
        for place, token in enumerate(ids):  # the last of equal tokens has the largest weight
            weight = found.sparse[i].get(token, 0.0)
            weights.append([weight / 2 if token in ids[place + 1 :] else weight])
        return weights

    def _of_bge(self, found: Outputs, names: list[str]) -> dict[str, Any]:
        return {
            **({"embeddings": [row.tolist() for row in found.dense]} if "dense" in names else {}),
            **({"sparse": [{str(k): v for k, v in row.items()} for row in found.sparse]} if "sparse" in names else {}),
            **({"multivector": [rows.tolist() for rows in found.multivector]} if "multivector" in names else {}),
            "model": "served",
            "dimension": 1024,
        }

    def _of_deepinfra(self, found: Outputs, body: dict[str, Any]) -> dict[str, Any]:
        sparse: list[Any] = found.sparse
        if self.size:
            sparse = [[row.get(token, 0) for token in range(self.size)] for row in sparse]
        return {
            "embeddings": [row.tolist() for row in found.dense] if body["dense"] else None,
            "sparse": sparse if body["sparse"] else None,
            "colbert": [rows.tolist() for rows in found.multivector] if body["colbert"] else None,
            "input_tokens": 9,
        }


def texts_of(body: dict[str, Any]) -> list[str]:
    """Return the texts of a request."""
    if "data" in body:
        body = body["data"]
    texts = next((body[name] for name in ("input", "inputs", "texts", "prompt") if name in body), [])
    return [texts] if isinstance(texts, str) else texts


def status(code: int, message: str = "no", **headers: str) -> Any:
    """Return a fault that refuses a request."""
    return lambda handler: handler.reply(code, {"error": message}, **headers)


def answers_of(encoder: Any) -> tuple[Any, Any]:
    """Return what a server of an encoder's answers needs: outputs of texts, each computed once, and ids of a text."""

    @cache
    def one(text: str) -> tuple[Any, Any, Any]:
        found = encoder.encode_outputs([text], role="document")
        return found.dense[0], found.sparse[0], found.multivector[0]

    def outputs(texts: list[str]) -> Outputs:
        rows = [one(text) for text in texts]
        return Outputs(np.stack([row[0] for row in rows]), [dict(row[1]) for row in rows], [row[2] for row in rows])

    return outputs, lambda text: encoder.tokenizer().tokenize([text]).items[0].tolist()
