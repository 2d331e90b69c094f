"""LangChain adapters."""

from ..extras import require

require("langchain_core.embeddings", extra="langchain", purpose="bge_integrations.langchain")

from .embeddings import BGEEmbeddings  # noqa: E402 - first say what is missing
from .m3 import BGEM3  # noqa: E402
from .reranker import BGEReranker  # noqa: E402
from .stores import open_store  # noqa: E402

__all__ = ["BGEM3", "BGEEmbeddings", "BGEReranker", "open_store"]
