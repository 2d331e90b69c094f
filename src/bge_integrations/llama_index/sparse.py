"""LlamaIndex's ``BaseSparseEmbedding`` over an encoder."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding
from pydantic import PrivateAttr

from ..core.encoder import Encoder, Role
from ..core.token_outputs import SparseVector

__all__ = ["BGESparseEmbedding"]


class BGESparseEmbedding(BaseSparseEmbedding):
    """bge-m3's sparse vectors: maps of token ids to weights.

    Args:
        encoder: of a model that gives sparse output.
    """

    _encoder: Encoder = PrivateAttr()

    def __init__(self, encoder: Encoder) -> None:
        fields: dict[str, Any] = {"model_name": encoder.card.id}
        super().__init__(**fields)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex reports this class."""
        return "BGESparseEmbedding"

    def _rows(self, texts: list[str], role: Role) -> list[SparseVector]:
        return self._encoder.encode_outputs(texts, role=role, outputs=["sparse"]).sparse or []

    async def _arows(self, texts: list[str], role: Role) -> list[SparseVector]:
        return (await self._encoder.aencode_outputs(texts, role=role, outputs=["sparse"])).sparse or []

    def _get_query_embedding(self, query: str) -> SparseVector:
        return self._rows([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> SparseVector:
        return (await self._arows([query], "query"))[0]

    def _get_text_embedding(self, text: str) -> SparseVector:
        return self._rows([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> SparseVector:
        return (await self._arows([text], "document"))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseVector]:
        return self._rows(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseVector]:
        return await self._arows(texts, "document")
