"""``langchain_pinecone``'s ``PineconeSparseEmbeddings``."""

from __future__ import annotations

from typing import Any

from ...core.encoder import Encoder
from ...core.token_outputs import SparseVector, sparse_arrays
from ...extras import require

require("langchain_pinecone", install="langchain-pinecone", purpose="m3.sparse('pinecone')")

from langchain_pinecone import PineconeSparseEmbeddings  # noqa: E402 - first say what is missing
from pinecone import SparseValues  # noqa: E402
from pydantic import SecretStr  # noqa: E402

__all__ = ["Sparse", "adapter"]


class Sparse(PineconeSparseEmbeddings):  # type: ignore[misc]
    """Sparse vectors for ``PineconeSparseVectorStore(embedding=...)``; nothing is asked of Pinecone's own models."""

    encoder: Any = None

    def embed_documents(self, texts: list[str]) -> list[SparseValues]:
        """Return ids and weights of each document."""
        return _values(self.encoder.encode_outputs(texts, role="document", outputs=["sparse"]).sparse)

    def embed_query(self, text: str) -> SparseValues:
        """Return ids and weights of a query."""
        return _values(self.encoder.encode_outputs([text], role="query", outputs=["sparse"]).sparse)[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseValues]:
        """Return ids and weights without blocking the event loop."""
        outputs = await self.encoder.aencode_outputs(texts, role="document", outputs=["sparse"])
        return _values(outputs.sparse)

    async def aembed_query(self, text: str) -> SparseValues:
        """Return ids and weights of a query without blocking the event loop."""
        outputs = await self.encoder.aencode_outputs([text], role="query", outputs=["sparse"])
        return _values(outputs.sparse)[0]


def adapter(encoder: Encoder) -> Sparse:
    """Return sparse vectors for Pinecone."""
    # Without validation: the base class asks for a key and one of Pinecone's own models.
    made: Sparse = Sparse.model_construct(encoder=encoder, model=encoder.card.id, pinecone_api_key=SecretStr(""))
    return made


def _values(rows: list[SparseVector] | None) -> list[SparseValues]:
    arrays = [sparse_arrays(row) for row in rows or ()]
    return [SparseValues(indices=ids.tolist(), values=weights.tolist()) for ids, weights in arrays]
