"""LangChain adapters."""

from .embeddings import BGEEmbeddings

__all__ = ["BGEEmbeddings"]
