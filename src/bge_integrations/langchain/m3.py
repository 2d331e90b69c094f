"""bge-m3 for LangChain: dense and sparse vectors of one forward pass, and its multivectors as a second stage."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import Any, Unpack, cast

from ..errors import ConfigError
from ..keys import hide_secrets
from ..load import load_m3
from ..options import Options
from ..wrappers.multivector import MultivectorReranker
from .embeddings import BGEEmbeddings
from .reranker import BGEReranker

__all__ = ["BGEM3"]

_STORES = ("qdrant", "milvus", "pinecone", "chroma", "pgvector")


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
        >>> from bge_integrations.langchain import BGEM3
        >>> m3 = BGEM3()
        >>> QdrantVectorStore.from_documents(  # doctest: +SKIP
        ...     documents,
        ...     embedding=m3.dense,
        ...     sparse_embedding=m3.sparse("qdrant"),
        ...     retrieval_mode=RetrievalMode.HYBRID,
        ...     location=":memory:",
        ... )
    """

    def __init__(self, model: str | PathLike[str] | None = None, **options: Unpack[Options]) -> None:
        hide_secrets(cast("dict[str, Any]", options))
        self.encoder = load_m3(model, **options)

    @property
    def dense(self) -> BGEEmbeddings:
        """The dense vectors, as LangChain's ``Embeddings``."""
        self.encoder.use("dense")
        return BGEEmbeddings(encoder=self.encoder)

    def sparse(self, store: str) -> Any:
        """Return the sparse vectors in the form that a store expects.

        Args:
            store: ``"qdrant"`` for ``langchain_qdrant``'s ``SparseEmbeddings``, ``"milvus"`` for
                ``langchain_milvus``' ``BaseSparseEmbedding``, ``"pinecone"`` for ``langchain_pinecone``'s
                ``PineconeSparseEmbeddings``, ``"chroma"`` for ``chromadb``'s ``SparseEmbeddingFunction``,
                ``"pgvector"`` for methods that return ``pgvector.SparseVector``.

        Raises:
            ConfigError: another store.
            MissingExtraError: the store's package is not installed.
        """
        if store not in _STORES:
            raise ConfigError(f"sparse() takes {', '.join(map(repr, _STORES))}, not {store!r}")
        module = import_module(f"{__package__}.sparse.{store}")
        self.encoder.use("sparse")
        return module.adapter(self.encoder)

    def reranker(self, *, weights: Sequence[float] | None = None, top_n: int | None = None) -> BGEReranker:
        """Return a reranker that scores by token vectors (MaxSim), or by dense, sparse and multivector together.

        Args:
            weights: of the three scores; ``(0.4, 0.2, 0.4)`` are those of the model's card.
            top_n: how many documents to return; all when None.

        Raises:
            ConfigError: the model or host has no multivector output, or the weights are not three numbers.
        """
        return BGEReranker(reranker=MultivectorReranker(self.encoder, weights=weights), top_n=top_n)

    def __repr__(self) -> str:
        return f"BGEM3({self.encoder.describe()})"
