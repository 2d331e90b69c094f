"""The hosts and servers that serve BGE's rerankers: one record each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .records import Offer, Provider, find_named

__all__ = [
    "DIALECTS",
    "RERANK_HOSTS",
    "Dialect",
    "RerankHost",
    "Scale",
    "find_rerank_host",
    "who_reranks",
]

_CHECKED = "2026-11-25"
_BASE = "BAAI/bge-reranker-base"
_V2_M3 = "BAAI/bge-reranker-v2-m3"

Dialect = Literal[
    "tei", "infinity", "vllm", "vllm-score", "llama.cpp", "xinference", "sglang", "jina", "cohere", "siliconflow",
    "pinecone", "cloudflare",
]  # fmt: skip
Scale = Literal["logit", "sigmoid"]


@dataclass(frozen=True)
class RerankHost(Provider):
    """One host of rerankers, or one kind of server that people run.

    Attributes:
        dialect: how it is spoken to.
        scale: of its scores, where we ask for raw scores if it takes such a wish; None where nothing says so, and two
            published pairs are measured.
        usd_per_thousand_requests: where the host does not price tokens.
        cuts_into_chunks: it scores a long document by its best chunk, which is not the model's score.
    """

    dialect: Dialect = "jina"
    scale: Scale | None = None
    usd_per_thousand_requests: float | None = None
    cuts_into_chunks: bool = False


def _server(name: Dialect, scale: Scale | None, quirks: str, max_inputs: int | None = None) -> RerankHost:
    return RerankHost(
        name=name, title=name, dialect=name, scale=scale, quirks=quirks, max_inputs=max_inputs, checked=_CHECKED,
        source="the server's source or documentation, 2026",
    )  # fmt: skip


RERANK_HOSTS: tuple[RerankHost, ...] = (
    _server("tei", "logit", "Raw scores are asked for; reverses ties; 424 where the model is no reranker.", 32),
    _server("infinity", "logit", "Raw scores are asked for; strips texts.", 2048),
    _server("vllm", "logit", "Raw scores are asked for (use_activation); answers with cosines for an embedding model."),
    _server("vllm-score", "logit", "As vllm, through /score."),
    _server("llama.cpp", "logit", "Needs --reranking; rows are not sorted; a pair must fit into -ub."),
    _server("xinference", "sigmoid", "Model ids without 'BAAI/'."),
    _server("sglang", "sigmoid", "400 on blank texts; a bare list."),
    _server("jina", None, "Jina's shape at /v1/rerank: LocalAI, TensorRT-LLM and others serve what they are given."),
    _server("cohere", None, "Cohere's shape at /v2/rerank."),
    RerankHost(
        name="siliconflow",
        title="SiliconFlow",
        base_url="https://api.siliconflow.cn/v1",
        key_env=("SILICONFLOW_API_KEY",),
        needs_key=True,
        offers=(Offer(_V2_M3, _V2_M3),),
        dialect="siliconflow",
        scale="sigmoid",
        cuts_into_chunks=True,
        quirks="Cuts long documents into chunks and answers with the best chunk's score, not the document's.",
        source="SiliconFlow documentation",
        checked=_CHECKED,
    ),
    RerankHost(
        name="novita",
        title="Novita AI",
        base_url="https://api.novita.ai/openai/v1",
        key_env=("NOVITA_API_KEY",),
        needs_key=True,
        offers=(Offer(_V2_M3, "baai/bge-reranker-v2-m3", usd_per_million_tokens=0.01),),
        dialect="jina",
        scale="sigmoid",
        quirks="8,000 tokens.",
        source="Novita documentation; LiteLLM's price table",
        checked=_CHECKED,
    ),
    RerankHost(
        name="apiyi",
        title="APIYI",
        base_url="https://api.apiyi.com/v1",
        key_env=("APIYI_API_KEY",),
        needs_key=True,
        offers=(Offer(_V2_M3, "bge-reranker-v2-m3", usd_per_million_tokens=0.01),),
        dialect="jina",
        scale="sigmoid",
        quirks="Documents as strings alone; 503 for a model it does not have; 400 for blank texts.",
        source="APIYI's page, tested by its authors 2026-07-30",
        checked=_CHECKED,
    ),
    RerankHost(
        name="pinecone",
        title="Pinecone",
        base_url="https://api.pinecone.io",
        key_env=("PINECONE_API_KEY",),
        needs_key=True,
        offers=(Offer(_V2_M3, "bge-reranker-v2-m3"),),
        max_inputs=100,
        dialect="pinecone",
        scale="sigmoid",
        usd_per_thousand_requests=2.0,
        quirks="1,024 tokens a pair, 100 documents a request; the key goes into the header Api-Key.",
        source="Pinecone documentation",
        checked=_CHECKED,
    ),
    RerankHost(
        name="cloudflare",
        title="Cloudflare Workers AI",
        base_url="https://api.cloudflare.com/client/v4/accounts/{account_id}/ai",
        key_env=("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"),
        url_env=(("account_id", "CLOUDFLARE_ACCOUNT_ID"),),
        needs_key=True,
        offers=(Offer(_BASE, "@cf/baai/bge-reranker-base"),),
        dialect="cloudflare",
        quirks="The scale is not written down: it is measured with two published pairs.",
        source="Cloudflare documentation",
        checked=_CHECKED,
    ),
)

DIALECTS: dict[str, RerankHost] = {
    host.name: replace(host, base_url=None, key_env=(), url_env=(), needs_key=False, offers=())
    for host in RERANK_HOSTS
    if host.name == host.dialect
}
"""The record of each dialect, for any server; no provider's key is sent there by default."""


def find_rerank_host(name: str) -> RerankHost:
    """Find a host of rerankers, or a kind of server, by name, any case.

    Raises:
        UnknownProviderError: no such host; names near matches.
    """
    return find_named(name, RERANK_HOSTS, "rerank provider")


def who_reranks(model_id: str) -> list[str]:
    """Name the hosts that serve a reranker."""
    return [host.name for host in RERANK_HOSTS if host.offer(model_id) is not None]
