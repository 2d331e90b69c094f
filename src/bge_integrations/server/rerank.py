# No "from __future__ import annotations" here: FastAPI reads the routes' annotations, which name local things.
"""``/rerank`` in TEI's shape, and in that of Jina and Cohere, which ``/v1/rerank`` and ``/v2/rerank`` speak alone."""

import asyncio
import uuid
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, model_validator
from starlette.responses import JSONResponse

from ..core.reranker import Pair, Reranker, Scores
from ..core.score_scale import order_by_logit
from . import schemas
from .limits import APIError
from .responses import truncated_header
from .service import Service

__all__ = ["RERANK_PATHS", "add_reranking"]

RERANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


def _text_of(document: Any) -> Any:
    return document.get("text") if isinstance(document, dict) else document


# A blank passage is scored; a blank question is refused.
Passage = Annotated[str, BeforeValidator(_text_of), AfterValidator(schemas.whole)]
Passages = Annotated[list[Passage], Field(fail_fast=True)]


class JinaRequest(schemas.Strict):
    """Jina's and Cohere's request."""

    query: schemas.Text
    documents: Passages = Field(description='Strings, or objects with "text".')
    model: str | None = Field(default=None, description="The reranker that is served, if any.")
    top_n: int | None = Field(default=None, ge=0)
    return_documents: StrictBool = False
    raw_scores: StrictBool = Field(default=False, description="Logits instead of scores from 0 to 1, as in Infinity.")
    rank_fields: list[Literal["text"]] | None = Field(default=None, description='Accepted where it is ["text"].')
    max_tokens_per_doc: int | None = Field(default=None, description="Accepted and ignored.")
    max_chunks_per_doc: int | None = Field(
        default=None, description="Accepted and ignored: passages are not split into chunks."
    )
    truncation: StrictBool | None = Field(default=None, description="false refuses pairs that are too long.")


class RerankRequest(schemas.Strict):
    """TEI's request, with ``texts``, or Jina's, with ``documents``; both take the fields of either."""

    query: schemas.Text
    texts: Passages | None = None
    documents: Passages | None = None
    model: str | None = None
    top_n: int | None = Field(default=None, ge=0)
    truncate: StrictBool | None = Field(default=None, description="false refuses pairs that are too long.")
    truncation_direction: Literal["Right", "right"] | None = Field(default=None, description="Texts lose their end.")
    raw_scores: StrictBool = False
    return_text: StrictBool = False
    return_documents: StrictBool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> "RerankRequest":
        if (self.texts is None) == (self.documents is None):
            raise ValueError("one of texts (TEI's request) and documents (Jina's) is needed")
        return self


def add_reranking(app: FastAPI, service: Service, reranker: Reranker) -> None:
    """Add the routes."""
    errors = schemas.errors(schemas.Detail)

    @app.post("/rerank", responses=errors, summary="Rerank, in TEI's or Jina's format")
    async def rerank(body: RerankRequest, request: Request) -> Response:
        returned = body.return_text or body.return_documents
        if body.documents is not None:
            jina = JinaRequest(
                query=body.query, documents=body.documents, model=body.model, top_n=body.top_n,
                return_documents=returned, raw_scores=body.raw_scores, truncation=body.truncate,
            )  # fmt: skip
            return await as_jina(jina, request)
        _check_model(service, reranker, body.model)
        texts = body.texts or []
        logits, truncated, _ = await _score(service, reranker, request, body.query, texts, body.truncate)
        scores = reranker.scaled(logits, "logit" if body.raw_scores else "sigmoid").tolist()
        rows: list[dict[str, Any]] = [{"index": i, "score": scores[i]} for i in order_by_logit(logits)[: body.top_n]]
        if returned:
            rows = [{**row, "text": texts[row["index"]]} for row in rows]
        return JSONResponse(rows, headers=truncated_header(truncated))

    async def as_jina(body: JinaRequest, request: Request) -> Response:
        _check_model(service, reranker, body.model)
        found = await _score(service, reranker, request, body.query, body.documents, body.truncation)
        return JSONResponse(_jina_answer(body, reranker, *found), headers=truncated_header(found[1]))

    @app.post("/v1/rerank", responses=schemas.errors(schemas.OpenAIError), summary="Rerank, Jina's way")
    async def rerank_v1(body: JinaRequest, request: Request) -> Response:
        return await as_jina(body, request)

    @app.post("/v2/rerank", responses=errors, summary="Rerank, Cohere's way")
    async def rerank_v2(body: JinaRequest, request: Request) -> Response:
        return await as_jina(body, request)


def _jina_answer(
    body: JinaRequest, reranker: Reranker, logits: Scores, truncated: list[int], tokens: int
) -> dict[str, Any]:
    del truncated
    scores = reranker.scaled(logits, "logit" if body.raw_scores else "sigmoid").tolist()
    rows: list[dict[str, Any]] = [
        {"index": i, "relevance_score": scores[i]} for i in order_by_logit(logits)[: body.top_n]
    ]
    if body.return_documents:
        rows = [{**row, "document": {"text": body.documents[row["index"]]}} for row in rows]
    return {
        "id": str(uuid.uuid4()),
        "object": "rerank",  # as Infinity has it, whose own client takes nothing else
        "model": reranker.card.id,
        "results": rows,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
    }


async def _score(
    service: Service, reranker: Reranker, request: Request, query: str, passages: list[str], truncate: bool | None
) -> tuple[Scores, list[int], int]:
    """Return logits, the positions of pairs that were truncated, and tokens that were computed.

    Raises:
        APIError: too much, too many waiting, too long with ``truncate`` false, or the reranker failed.
    """
    truncated: list[int] = []
    async with service.admitted([query, *passages]):
        call = reranker.begin([Pair(query, passage) for passage in passages], truncated.extend)
        logits: Scores = await asyncio.wrap_future(call.future)
    if truncated and truncate is False:
        raise APIError(
            413,
            f"passage {truncated[0]}, together with the query, is too long: {reranker.card.id!r} reads "
            f"{reranker.card.max_tokens} tokens",
        )
    request.state.bge_work = {"passages": len(passages)}
    return logits, truncated, call.tokens


def _check_model(service: Service, reranker: Reranker, name: str | None) -> None:
    if name is None or name.lower() in service.reranker_names:
        return
    shown = name if len(name) <= 100 else f"{name[:100]}…"
    raise APIError(404, f"model {shown!r} is not served here; {reranker.card.id!r} is", param="model")
