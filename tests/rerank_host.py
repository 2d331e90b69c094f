"""Servers of rerankers on loopback, one per dialect, that answer as the real ones are documented to.

A pair's logit depends on both texts; the published pairs of the model that is served get the published logits.
"""

from __future__ import annotations

import json
import math
import threading
import time
import zlib
from http.server import ThreadingHTTPServer
from typing import Any, Self

from bge_integrations.catalog.rerankers import find_reranker
from bge_integrations.catalog.score_values import published_scores
from json_handler import JSONHandler

PATHS = {
    "tei": ("/rerank",),
    "infinity": ("/rerank",),
    "vllm": ("/rerank", "/v1/rerank", "/v2/rerank"),
    "vllm-score": ("/score", "/v1/score"),
    "llama.cpp": ("/rerank", "/v1/rerank"),
    "xinference": ("/v1/rerank",),
    "sglang": ("/v1/rerank",),
    "jina": ("/v1/rerank",),
    "cohere": ("/v2/rerank",),
    "siliconflow": ("/v1/rerank",),
    "pinecone": ("/rerank",),
    "cloudflare": ("/run/@cf/baai/bge-reranker-base",),
}
RAW = {"llama.cpp"}  # logits whatever is asked
TELLS = {
    "tei": ("/info", {"model_id": "m", "model_type": {"reranker": {}}, "max_client_batch_size": 4}),
    "llama.cpp": ("/props", {"default_generation_settings": {}}),
    "sglang": ("/get_model_info", {"model_path": "m"}),
    "infinity": ("/openapi.json", {"info": {"title": "♾️ Infinity - Embedding Inference Server"}}),
    "xinference": ("/openapi.json", {"info": {"title": "FastAPI"}, "paths": {"/v1/cluster/info": {}}}),
    "vllm": ("/version", {"version": "0.11.0"}),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class RerankServer:
    """A host. Use as a context manager.

    Args:
        dialect: whose shape and ways it has.
        model: whose published pairs it knows.
        scale: of the answers, instead of the dialect's own: a function of a list of logits.
        delay: seconds that a request takes.
        cap: passages that one request may hold.
    """

    def __init__(
        self, dialect: str, *, model: str = "bge-reranker-v2-m3", scale: Any = None, delay: float = 0, cap: int = 0
    ) -> None:
        self.dialect, self.scale, self.delay, self.cap = dialect, scale, delay, cap
        self.card = find_reranker(model)
        self.known = {
            (one.query, passage): logit
            for one in published_scores(self.card)
            for passage, logit in zip(one.passages, one.logits, strict=True)
        }
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.faults: list[Any] = []
        self.change: Any = None
        self.most = self._now = 0
        self._lock = threading.Lock()

        class Handler(JSONHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(handler) -> None:
                path, told = TELLS.get(self.dialect, ("", {}))
                handler.reply(200 if handler.path == path else 404, told if handler.path == path else {})

            def do_POST(handler) -> None:
                raw = handler.rfile.read(int(handler.headers["Content-Length"]))
                with self._lock:
                    self._now += 1
                    self.most = max(self.most, self._now)
                try:
                    time.sleep(self.delay)
                    self.answer(handler, json.loads(raw))
                finally:
                    with self._lock:
                        self._now -= 1

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def logit(self, query: str, passage: str) -> float:
        """Return a pair's logit."""
        published = self.known.get(self.untemplated(query, passage))
        if published is not None:
            return published
        return (zlib.crc32(f"{query}\0{passage}".encode()) % 16_001 - 8000) / 1000

    def untemplated(self, query: str, passage: str) -> tuple[str, str]:
        """Return a pair without the model's template, where it is in it whole."""
        texts = []
        for text, template in ((query, self.card.query_template), (passage, self.card.passage_template)):
            head, tail = template.split("{text}")
            if not (text.startswith(head) and text.endswith(tail)):
                return query, passage
            texts.append(text.removeprefix(head).removesuffix(tail))
        return texts[0], texts[1]

    @property
    def sent(self) -> list[list[str]]:
        """The passages of each request."""
        return [texts_of(body)[1] for _, body, _ in self.requests]

    def answer(self, handler: Any, body: dict[str, Any]) -> None:
        self.requests.append((handler.path, body, {name.lower(): value for name, value in handler.headers.items()}))
        if handler.path not in PATHS[self.dialect]:
            handler.reply(404, {"detail": "Not Found"})
            return
        query, passages = texts_of(body)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            fault(handler)
            return
        if self.cap and len(passages) > self.cap:
            said = f"batch size {len(passages)} > maximum allowed batch size {self.cap}"
            handler.reply(422, {"error": said, "error_type": "Validation"})
            return
        scores = self.scaled([self.logit(query, passage) for passage in passages], body)
        answer = shape(self.dialect, scores, passages, body)
        handler.reply(200, self.change(answer) if self.change else answer)

    def scaled(self, logits: list[float], body: dict[str, Any]) -> list[float]:
        if self.scale is not None:
            return self.scale(logits)
        raw = body.get("raw_scores") or body.get("use_activation") is False or self.dialect in RAW
        return logits if raw else [sigmoid(logit) for logit in logits]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.002,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def texts_of(body: dict[str, Any]) -> tuple[str, list[str]]:
    """Return query and passages of a request in any dialect."""
    passages = next(body[name] for name in ("texts", "documents", "contexts", "text_2") if name in body)
    plain = [passage["text"] if isinstance(passage, dict) else passage for passage in passages]
    return body.get("query", body.get("text_1")), plain


def shape(dialect: str, scores: list[float], passages: list[str], body: dict[str, Any]) -> Any:  # noqa: C901 - a shape a line
    """Return an answer as the dialect has it, sorted as it sorts."""
    values = [0.0 if score is None else score for score in scores]
    order = sorted(range(len(scores)), key=lambda i: -values[i])
    if dialect == "tei":  # ascending, then reversed: ties come in reverse order
        order = sorted(range(len(scores)), key=lambda i: values[i])[::-1]
        return [{"index": i, "score": scores[i]} for i in order]
    usage = {"prompt_tokens": 7 * len(scores), "total_tokens": 7 * len(scores)}
    if dialect == "llama.cpp":
        rows = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
        return {"model": body["model"], "object": "list", "usage": usage, "results": rows[::-1]}
    if dialect == "vllm-score":
        return {"data": [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)], "usage": usage}
    if dialect == "sglang":
        return [{"score": scores[i], "document": passages[i], "index": i, "meta_info": {}} for i in order]
    if dialect == "pinecone":
        rows = [{"index": i, "score": scores[i]} for i in order]
        return {"model": body["model"], "data": rows, "usage": {"rerank_units": 1}}
    if dialect == "cloudflare":
        rows = [{"id": i, "score": scores[i]} for i in order]
        return {"result": {"response": rows}, "success": True, "errors": [], "messages": []}
    rows = [{"index": i, "relevance_score": scores[i]} for i in order]
    if dialect == "vllm":
        rows = [{**row, "document": {"text": passages[row["index"]]}} for row in rows]
    if dialect == "siliconflow":
        return {"id": "1", "results": rows, "tokens": {"input_tokens": 7 * len(scores), "output_tokens": 0}}
    if dialect == "cohere":
        return {"id": "1", "results": rows, "meta": {"billed_units": {"search_units": 1}}}
    return {"id": "1", "model": body["model"], "results": rows, "usage": usage}
