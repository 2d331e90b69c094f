"""bge-m3 for LlamaIndex: dense and sparse vectors of one forward pass, and its multivectors as a second stage."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import Any, Unpack, cast

from ..core.encoder import Encoder, Role
from ..core.token_outputs import SparseVector, sparse_arrays
from ..errors import ConfigError
from ..keys import hide_secrets
from ..load import load_m3
from ..options import Options
from ..wrappers.multivector import MultivectorReranker
from .embeddings import BGEEmbedding
from .reranker import BGEReranker
from .sparse import BGESparseEmbedding

__all__ = ["BGEM3"]


class BGEM3:
    """The adapters of one bge-m3 model; what several of them need is computed once.

    Args:
        model: ``BAAI/bge-m3`` when None; ``"demo"`` for the bundled model, or a folder with bge-m3's heads.
        **options: see ``bge_integrations.Options``.

    Attributes:
        encoder: what does the work; ``encode_outputs`` gives all outputs.

    Raises:
        ConfigError: an unknown model, provider or option, or a model or host without sparse output.

    Example:
        >>> from bge_integrations.llama_index import BGEM3
        >>> m3 = BGEM3()
        >>> store = QdrantVectorStore(  # doctest: +SKIP
        ...     "docs",
        ...     client=client,
        ...     enable_hybrid=True,
        ...     sparse_doc_fn=m3.sparse_documents,
        ...     sparse_query_fn=m3.sparse_queries,
        ... )
        >>> index = VectorStoreIndex.from_vector_store(store, embed_model=m3.dense)  # doctest: +SKIP
    """

    def __init__(self, model: str | PathLike[str] | None = None, **options: Unpack[Options]) -> None:
        hide_secrets(cast("dict[str, Any]", options))
        self.encoder = load_m3(model, **options)
        self.encoder.use("dense", "sparse")

    @property
    def dense(self) -> BGEEmbedding:
        """The dense vectors, as LlamaIndex's ``BaseEmbedding``."""
        return BGEEmbedding(encoder=self.encoder)

    def sparse_documents(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return ids and weights of documents, for ``QdrantVectorStore(sparse_doc_fn=...)``."""
        return _lists(self.encoder, texts, "document")

    def sparse_queries(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Return ids and weights of queries, for ``QdrantVectorStore(sparse_query_fn=...)``.

        The store calls this on the event loop's thread; after the same query's dense vector it only looks it up.
        """
        return _lists(self.encoder, texts, "query")

    def sparse(self, store: str | None = None) -> Any:
        """Return the sparse vectors as LlamaIndex's ``BaseSparseEmbedding``, or in the form that a store expects.

        Args:
            store: ``"milvus"`` for ``MilvusVectorStore(sparse_embedding_function=...)``.

        Raises:
            ConfigError: another store.
            MissingExtraError: the store's package is not installed.
        """
        if store is None:
            return BGESparseEmbedding(encoder=self.encoder)
        if store != "milvus":
            raise ConfigError(
                f"sparse() takes 'milvus' or nothing, not {store!r}; for Qdrant, pass m3.sparse_documents and "
                "m3.sparse_queries"
            )
        return import_module(f"{__package__}.milvus").Sparse(self.encoder)

    def reranker(self, *, weights: Sequence[float] | None = None, top_n: int | None = None) -> BGEReranker:
        """Return a reranker that scores by token vectors (MaxSim), or by dense, sparse and multivector together.

        Args:
            weights: of the three scores; ``(0.4, 0.2, 0.4)`` are those of the model's card.
            top_n: how many nodes to return; all when None.

        Raises:
            ConfigError: the model or host has no multivector output, or the weights are not three numbers.
        """
        return BGEReranker(reranker=MultivectorReranker(self.encoder, weights=weights), top_n=top_n)

    def __repr__(self) -> str:
        return f"BGEM3({self.encoder.describe()})"


def _lists(encoder: Encoder, texts: list[str], role: Role) -> tuple[list[list[int]], list[list[float]]]:
    rows: list[SparseVector] = encoder.encode_outputs(texts, role=role, outputs=["sparse"]).sparse or []
    arrays = [sparse_arrays(row) for row in rows]
    return [ids.tolist() for ids, _ in arrays], [weights.tolist() for _, weights in arrays]
