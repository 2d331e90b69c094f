"""``BaseSparseEmbeddingFunction`` of LlamaIndex's Milvus store."""

from __future__ import annotations

from ..core.encoder import Encoder
from ..core.token_outputs import SparseVector
from ..extras import require

require(
    "llama_index.vector_stores.milvus.utils",
    install="llama-index-vector-stores-milvus",
    purpose="m3.sparse('milvus')",
)

from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction  # noqa: E402 - first say what is missing

__all__ = ["Sparse"]


class Sparse(BaseSparseEmbeddingFunction):  # type: ignore[misc]
    """Sparse vectors for ``MilvusVectorStore(sparse_embedding_function=...)``; the async methods do not block."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode_queries(self, queries: list[str]) -> list[SparseVector]:
        """Return a map of token ids to weights of each query."""
        return self.encoder.encode_outputs(queries, role="query", outputs=["sparse"]).sparse or []

    def encode_documents(self, documents: list[str]) -> list[SparseVector]:
        """Return a map of token ids to weights of each document."""
        return self.encoder.encode_outputs(documents, role="document", outputs=["sparse"]).sparse or []

    async def async_encode_queries(self, queries: list[str]) -> list[SparseVector]:
        """Return maps without blocking the event loop."""
        return (await self.encoder.aencode_outputs(queries, role="query", outputs=["sparse"])).sparse or []

    async def async_encode_documents(self, documents: list[str]) -> list[SparseVector]:
        """Return maps without blocking the event loop."""
        return (await self.encoder.aencode_outputs(documents, role="document", outputs=["sparse"])).sparse or []
