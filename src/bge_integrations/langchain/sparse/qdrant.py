"""``langchain_qdrant``'s ``SparseEmbeddings``."""

from __future__ import annotations

from ...core.encoder import Encoder
from ...core.token_outputs import SparseVector as Weights
from ...core.token_outputs import sparse_arrays
from ...extras import require

require("langchain_qdrant.sparse_embeddings", install="langchain-qdrant", purpose="m3.sparse('qdrant')")

from langchain_qdrant.sparse_embeddings import SparseEmbeddings, SparseVector  # noqa: E402 - first say what is missing

__all__ = ["Sparse", "adapter"]


class Sparse(SparseEmbeddings):  # type: ignore[misc]
    """Sparse vectors for ``QdrantVectorStore(sparse_embedding=...)``."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Return ids and weights of each document."""
        return _vectors(self.encoder.encode_outputs(texts, role="document", outputs=["sparse"]).sparse)

    def embed_query(self, text: str) -> SparseVector:
        """Return ids and weights of a query."""
        return _vectors(self.encoder.encode_outputs([text], role="query", outputs=["sparse"]).sparse)[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Return ids and weights without blocking the event loop."""
        outputs = await self.encoder.aencode_outputs(texts, role="document", outputs=["sparse"])
        return _vectors(outputs.sparse)

    async def aembed_query(self, text: str) -> SparseVector:
        """Return ids and weights of a query without blocking the event loop."""
        outputs = await self.encoder.aencode_outputs([text], role="query", outputs=["sparse"])
        return _vectors(outputs.sparse)[0]


def _vectors(rows: list[Weights] | None) -> list[SparseVector]:
    arrays = [sparse_arrays(row) for row in rows or ()]
    return [SparseVector(indices=ids.tolist(), values=weights.tolist()) for ids, weights in arrays]


def adapter(encoder: Encoder) -> Sparse:
    """Return sparse vectors for ``langchain_qdrant``."""
    return Sparse(encoder)
