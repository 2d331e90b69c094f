"""LlamaIndex adapters."""

from .embeddings import BGEEmbedding

__all__ = ["BGEEmbedding"]
