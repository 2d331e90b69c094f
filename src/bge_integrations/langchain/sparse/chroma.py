"""``chromadb``'s ``SparseEmbeddingFunction``; sparse indexes are Chroma Cloud's, a local Chroma refuses them."""

from __future__ import annotations

from typing import Any

from ...catalog import known_model
from ...core.encoder import Encoder
from ...core.token_outputs import sparse_arrays
from ...extras import require
from ...load import load_m3

require("chromadb.api.types", install="chromadb>=1.3", purpose="m3.sparse('chroma')")

from chromadb.api.types import SparseEmbeddingFunction, SparseVector  # noqa: E402 - first say what is missing
from chromadb.utils.embedding_functions import register_sparse_embedding_function  # noqa: E402

__all__ = ["Sparse", "adapter"]


class Sparse(SparseEmbeddingFunction[Any]):  # type: ignore[misc]
    """Sparse vectors for ``SparseVectorIndexConfig(embedding_function=...)``.

    Chroma writes the model's name into the collection and makes the function from it when the collection is opened
    again; a host is read from the environment then.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __call__(self, input: list[str]) -> list[SparseVector]:
        """Return ids and weights of each document."""
        return self._vectors(input, "document")

    def embed_query(self, input: list[str]) -> list[SparseVector]:
        """Return ids and weights of each query."""
        return self._vectors(input, "query")

    def _vectors(self, texts: list[str], role: Any) -> list[SparseVector]:
        rows = self.encoder.encode_outputs(texts, role=role, outputs=["sparse"]).sparse or []
        arrays = map(sparse_arrays, rows)
        return [SparseVector(indices=ids.tolist(), values=weights.tolist()) for ids, weights in arrays]

    @staticmethod
    def name() -> str:
        """Return the name under which Chroma knows this function."""
        return "bge_integrations_m3"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Sparse:
        """Return the function of a collection that is opened again."""
        return Sparse(load_m3(config["model"]))

    def get_config(self) -> dict[str, Any]:
        """Return what Chroma writes into the collection."""
        card = self.encoder.card
        named = known_model(card.id)  # the bundled model's folder is wherever the package is installed
        ours = card.folder is None or (named is not None and named.folder == card.folder)
        return {"model": card.id if ours else card.folder}


register_sparse_embedding_function(Sparse)


def adapter(encoder: Encoder) -> Sparse:
    """Return sparse vectors for Chroma."""
    return Sparse(encoder)
