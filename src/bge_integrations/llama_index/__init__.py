"""LlamaIndex adapters."""

from ..extras import require

require("llama_index.core", extra="llama-index", purpose="bge_integrations.llama_index")

from .embeddings import BGEEmbedding  # noqa: E402 - first say what is missing
from .m3 import BGEM3  # noqa: E402
from .reranker import BGEReranker  # noqa: E402
from .stores import open_store  # noqa: E402

__all__ = ["BGEM3", "BGEEmbedding", "BGEReranker", "open_store"]
