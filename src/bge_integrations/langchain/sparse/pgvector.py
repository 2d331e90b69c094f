"""``pgvector.SparseVector`` for a ``sparsevec`` column, by whatever driver."""

from __future__ import annotations

from typing import Any

from ...core.encoder import Encoder
from ...core.token_outputs import SparseVector
from ...errors import BGEWarning, warn
from ...extras import require

__all__ = ["Sparse", "adapter"]

_INDEXABLE = 1000  # elements of a sparsevec in an HNSW index; https://github.com/pgvector/pgvector#sparse-vectors
_STORABLE = 16_000


class Sparse:
    """Sparse vectors for a column ``sparsevec(250002)`` (the size of the model's vocabulary).

    Values are ``pgvector.SparseVector`` with token ids as indices, which count from 0; in SQL's own text form pgvector
    counts from 1, and its client converts.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._type = _type()

    @property
    def dimensions(self) -> int:
        """Size of the column: the model's vocabulary."""
        return self.encoder.card.vocabulary

    def embed_documents(self, texts: list[str]) -> list[Any]:
        """Return a ``pgvector.SparseVector`` of each document; warns of those that an HNSW index refuses."""
        rows = self.encoder.encode_outputs(texts, role="document", outputs=["sparse"]).sparse or []
        return self._vectors(rows)

    def embed_query(self, text: str) -> Any:
        """Return a ``pgvector.SparseVector`` of a query."""
        return self._vectors(self.encoder.encode_outputs([text], role="query", outputs=["sparse"]).sparse or [])[0]

    async def aembed_documents(self, texts: list[str]) -> list[Any]:
        """Return vectors without blocking the event loop."""
        outputs = await self.encoder.aencode_outputs(texts, role="document", outputs=["sparse"])
        return self._vectors(outputs.sparse or [])

    async def aembed_query(self, text: str) -> Any:
        """Return the vector of a query without blocking the event loop."""
        outputs = await self.encoder.aencode_outputs([text], role="query", outputs=["sparse"])
        return self._vectors(outputs.sparse or [])[0]

    def _vectors(self, rows: list[SparseVector]) -> list[Any]:
        large = [position for position, row in enumerate(rows) if len(row) > _INDEXABLE]
        if large:
            warn(
                f"{len(large)} sparse vector(s) have more than {_INDEXABLE} elements (the first: text {large[0]}): "
                f"pgvector stores up to {_STORABLE}, but an HNSW index refuses them; use shorter chunks",
                BGEWarning,
            )
        return [self._type(row, self.dimensions) for row in rows]


def _type() -> Any:
    # The class has moved between releases of the package.
    module = require("pgvector.utils", install="pgvector", purpose="m3.sparse('pgvector')")
    import pgvector

    return getattr(pgvector, "SparseVector", None) or module.SparseVector


def adapter(encoder: Encoder) -> Sparse:
    """Return sparse vectors for pgvector."""
    return Sparse(encoder)
