"""``langchain_milvus``' ``BaseSparseEmbedding``."""

from __future__ import annotations

from ...core.encoder import Encoder
from ...core.token_outputs import SparseVector
from ...extras import require

require("langchain_milvus.utils.sparse", install="langchain-milvus", purpose="m3.sparse('milvus')")

from langchain_milvus.utils.sparse import BaseSparseEmbedding  # noqa: E402 - first say what is missing

__all__ = ["Sparse", "adapter"]


class Sparse(BaseSparseEmbedding):  # type: ignore[misc]
    """Sparse vectors for ``Milvus(embedding_function=[m3.dense, m3.sparse("milvus")])``."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Return a map of token ids to weights of each document."""
        return self.encoder.encode_outputs(texts, role="document", outputs=["sparse"]).sparse or []

    def embed_query(self, query: str) -> SparseVector:
        """Return a map of token ids to weights of a query."""
        return (self.encoder.encode_outputs([query], role="query", outputs=["sparse"]).sparse or [])[0]


def adapter(encoder: Encoder) -> Sparse:
    """Return sparse vectors for ``langchain_milvus``."""
    return Sparse(encoder)
