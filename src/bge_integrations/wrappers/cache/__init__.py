"""A role-aware cache around any encoder: crash-safe, and shared between processes."""

from .admin import clear, info, prune
from .encoder import CachedEncoder
from .reranker import CachedReranker
from .sqlite import SQLiteStore
from .stores import ByteStoreRows, KVStoreRows, Store

__all__ = [
    "ByteStoreRows",
    "CachedEncoder",
    "CachedReranker",
    "KVStoreRows",
    "SQLiteStore",
    "Store",
    "clear",
    "info",
    "prune",
]
