"""Rerankers at hosts: four families of dialects, each a function that builds a request and one that reads an answer.

Texts (TEI), documents (Jina, Cohere and all that copy them), pairs (``/score``), and the two that are like no other.
Raw scores are asked for where a host gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import BadAnswerError
from .openai import order_of

__all__ = ["RERANK_PROTOCOLS", "RerankAnswer", "RerankProtocol", "ScoreRequest"]


@dataclass(frozen=True)
class ScoreRequest:
    """One request for scores.

    Attributes:
        query: as it is sent.
        passages: as they are sent.
        model: what the host calls the model.
        truncate: whether the host is to truncate what is too long, or to refuse it.
    """

    query: str
    passages: list[str]
    model: str
    truncate: bool = True


@dataclass(frozen=True)
class RerankAnswer:
    """One answer, read.

    Attributes:
        scores: what came for each passage, in their order.
        model: the model that the host names.
        tokens: tokens that the host counted; 0 where it did not.
    """

    scores: list[Any]
    model: Any = None
    tokens: int = 0


@dataclass(frozen=True)
class RerankProtocol:
    """How one kind of host is asked for scores.

    Attributes:
        name: of the dialect.
        paths: after the server's root, the usual one first; the next is tried after a 404.
        payload: returns the JSON of a request.
        parse: returns the scores of an answer's JSON for so many passages; raises BadAnswerError.
    """

    name: str
    paths: tuple[str, ...]
    payload: Callable[[ScoreRequest], dict[str, Any]]
    parse: Callable[[Any, int], RerankAnswer]


def texts_payload(request: ScoreRequest) -> dict[str, Any]:
    """Return TEI's request."""
    return {
        "query": request.query,
        "texts": request.passages,
        "raw_scores": True,
        "return_text": False,
        "truncate": request.truncate,
    }


def documents_payload(**more: Any) -> Callable[[ScoreRequest], dict[str, Any]]:
    """Return what builds a request of Jina's shape with these fields more."""

    def payload(request: ScoreRequest) -> dict[str, Any]:
        return {"model": request.model, "query": request.query, "documents": request.passages, **more}

    return payload


def vllm_payload(request: ScoreRequest) -> dict[str, Any]:
    """Return vLLM's ``/rerank`` request; the wish for logits was called ``activation`` before vLLM 0.11."""
    return {**documents_payload()(request), **_vllm_wishes(request)}


def pairs_payload(request: ScoreRequest) -> dict[str, Any]:
    """Return vLLM's ``/score`` request."""
    pairs = {"model": request.model, "text_1": request.query, "text_2": request.passages}
    return {**pairs, **_vllm_wishes(request)}


def _vllm_wishes(request: ScoreRequest) -> dict[str, Any]:
    # Both names: a server ignores the one that it does not know.
    wishes = {"use_activation": False, "activation": False}
    return {**wishes, "truncate_prompt_tokens": -1} if request.truncate else wishes


def pinecone_payload(request: ScoreRequest) -> dict[str, Any]:
    """Return Pinecone's request: documents are objects, and nothing but the text goes into them."""
    return {
        "model": request.model,
        "query": request.query,
        "documents": [{"text": passage} for passage in request.passages],
        "rank_fields": ["text"],
        "top_n": len(request.passages),
        "return_documents": False,
        "parameters": {"truncate": "END" if request.truncate else "NONE"},
    }


def cloudflare_payload(request: ScoreRequest) -> dict[str, Any]:
    """Return Cloudflare's request; the model is in the path."""
    contexts = [{"text": passage} for passage in request.passages]
    return {"query": request.query, "contexts": contexts, "top_k": len(contexts)}


def parse_rows(answer: Any, count: int) -> RerankAnswer:
    """Return the scores of ``[{index, score}]``, alone or as ``results`` or ``data``, in the order of the passages.

    Raises:
        BadAnswerError: no such rows, a wrong number of them, or an index that does not come exactly once.
    """
    whole = answer if isinstance(answer, Mapping) else {}
    rows = next((whole[name] for name in ("results", "data", "rankings") if name in whole), answer)
    return RerankAnswer(_in_order(rows, count, "index"), whole.get("model"), _tokens(whole))


def parse_pairs(answer: Any, count: int) -> RerankAnswer:
    """Return the scores of pairs: rows as ``parse_rows`` reads them, or plain ``scores`` in order.

    Raises:
        BadAnswerError: as ``parse_rows``.
    """
    scores = answer.get("scores") if isinstance(answer, Mapping) else None
    if not isinstance(scores, list):
        return parse_rows(answer, count)
    _check_count(scores, count)
    tokens = answer.get("input_tokens")
    return RerankAnswer(scores, answer.get("model"), tokens if type(tokens) is int else 0)


def parse_cloudflare(answer: Any, count: int) -> RerankAnswer:
    """Return the scores of ``result.response: [{id, score}]``.

    Raises:
        BadAnswerError: as ``parse_rows``.
    """
    result = answer.get("result") if isinstance(answer, Mapping) else None
    return RerankAnswer(_in_order(result.get("response") if isinstance(result, Mapping) else None, count, "id"))


def _in_order(rows: Any, count: int, index: str) -> list[Any]:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        looks = ": it looks like vectors, is this an embedding model's server?" if _has_vectors(rows) else ""
        raise BadAnswerError(f"the response has no rows of scores{looks}", retryable=not looks)
    _check_count(rows, count)
    if _has_vectors(rows):
        raise BadAnswerError("vectors were returned instead of scores: the server runs an embedding model")
    places = order_of([row.get(index) for row in rows])
    if places is None and count > 1:
        # Most hosts sort: a row without its position belongs to no passage.
        raise BadAnswerError(
            f"the rows do not each have an {index} of their own, which would say to which passage a score belongs"
        )
    ordered = [rows[place] for place in (range(count) if places is None else places)]
    return [_first(row, "relevance_score", "score", "logit") for row in ordered]


def _has_vectors(rows: Any) -> bool:
    if not isinstance(rows, list) or not rows:
        return False
    return isinstance(rows[0], list) or (isinstance(rows[0], Mapping) and "embedding" in rows[0])


def _first(row: Mapping[str, Any], *names: str) -> Any:
    return next((row[name] for name in names if name in row), None)


def _check_count(rows: list[Any], count: int) -> None:
    if len(rows) != count:
        raise BadAnswerError(
            f"{len(rows)} scores were returned for {count} passages", positions=range(count), retryable=True
        )


def _tokens(answer: Mapping[str, Any]) -> int:
    meta = answer.get("meta")
    holders = [answer.get("usage"), answer.get("tokens"), meta.get("tokens") if isinstance(meta, Mapping) else None]
    found = (
        holder.get(name)
        for holder in holders
        if isinstance(holder, Mapping)
        for name in ("prompt_tokens", "total_tokens", "input_tokens")
    )
    # type() and not isinstance(): True is an int. 2**53 is where JSON's numbers stop being exact.
    return next((tokens for tokens in found if type(tokens) is int and 0 < tokens < 2**53), 0)


_ROOT_FIRST, _V1_FIRST = ("/rerank", "/v1/rerank"), ("/v1/rerank", "/rerank")
_BRIEF = documents_payload(return_documents=False)

RERANK_PROTOCOLS: dict[str, RerankProtocol] = {
    protocol.name: protocol
    for protocol in (
        RerankProtocol("tei", ("/rerank",), texts_payload, parse_rows),
        RerankProtocol("infinity", _ROOT_FIRST, documents_payload(raw_scores=True, return_documents=False), parse_rows),
        RerankProtocol("vllm", _ROOT_FIRST, vllm_payload, parse_rows),
        RerankProtocol("vllm-score", ("/score", "/v1/score"), pairs_payload, parse_pairs),
        RerankProtocol("llama.cpp", _V1_FIRST, documents_payload(), parse_rows),
        RerankProtocol("xinference", _V1_FIRST, _BRIEF, parse_rows),
        RerankProtocol("sglang", _V1_FIRST, _BRIEF, parse_rows),
        RerankProtocol("jina", _V1_FIRST, _BRIEF, parse_rows),
        RerankProtocol("cohere", ("/v2/rerank", "/v1/rerank", "/rerank"), documents_payload(), parse_rows),
        RerankProtocol("siliconflow", _V1_FIRST, _BRIEF, parse_rows),
        RerankProtocol("pinecone", ("/rerank",), pinecone_payload, parse_rows),
        RerankProtocol("cloudflare", ("/run/{model}",), cloudflare_payload, parse_cloudflare),
    )
}
