"""LangChain's ``BaseDocumentCompressor`` and ``BaseCrossEncoder`` over a reranker, and a retriever that reranks."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Unpack, cast

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from pydantic import ConfigDict, PrivateAttr

from ..core.reranker import Ranked, Reranker, check_top_n
from ..keys import hide_secrets
from ..load import check_reranker, load_reranker
from ..options import RerankerOptions

__all__ = ["BGEReranker", "RerankingRetriever"]


class BGEReranker(BaseDocumentCompressor, BaseCrossEncoder):
    """BGE rerankers for LangChain: a document compressor, a cross encoder, and ``wrap`` for any retriever.

    Returned documents are copies in the order of their scores, with ``metadata["relevance_score"]``, a Python
    float from 0 to 1. Nothing but the query and ``page_content`` is read or sent.

    Args:
        model: a name in the catalogue in any spelling, or a local folder; ``BAAI/bge-reranker-v2-m3`` when None.
        reranker: an existing reranker, instead of all options of ``load_reranker``.
        top_n: how many documents to return; all when None.
        **options: see ``bge_integrations.RerankerOptions``.

    Raises:
        ConfigError: an unknown model, provider or option, or a provider that does not serve the model.

    Example:
        >>> from bge_integrations.langchain import BGEReranker
        >>> reranker = BGEReranker("bge-reranker-v2-m3", top_n=5)
        >>> retriever = reranker.wrap(store.as_retriever(search_kwargs={"k": 50}))  # doctest: +SKIP
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    top_n: int | None = None

    _reranker: Reranker = PrivateAttr()

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        reranker: Reranker | None = None,
        top_n: int | None = None,
        **options: Unpack[RerankerOptions],
    ) -> None:
        hide_secrets(cast("dict[str, Any]", options))
        fields: dict[str, Any] = {"top_n": check_top_n(top_n)}
        super().__init__(**fields)
        if reranker is not None:
            named = options.get("model_name") if model is None else model
            check_reranker(reranker, named, {**options, "model_name": None})
        self._reranker = load_reranker(model, **options) if reranker is None else reranker

    @property
    def model(self) -> str:
        """Id of the model."""
        return self._reranker.card.id

    @property
    def reranker(self) -> Reranker:
        """The reranker that does the work."""
        return self._reranker

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return the best documents, best first.

        Args:
            documents: the candidates; they are not changed.
            query: the question.
            callbacks: notified of the run, its documents and its errors.

        Raises:
            InputError: the query is blank.
            HostError: the host failed.
        """
        return self.run.invoke(_given(documents, query, self.top_n), _config(callbacks))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return the best documents without blocking the event loop; otherwise as ``compress_documents``."""
        return await self.run.ainvoke(_given(documents, query, self.top_n), _config(callbacks))

    @property
    def run(self) -> Runnable[dict[str, Any], list[Document]]:
        """The reranking of ``{"query", "documents", "top_n"}`` as a run that callbacks are notified of."""
        # LangChain makes no run of a compressor by itself, so that tracers would not see it.
        return RunnableLambda(self._compress, self._acompress, name=type(self).__name__)

    def _compress(self, given: dict[str, Any]) -> list[Document]:
        documents: Sequence[Document] = given["documents"]
        texts = [document.page_content for document in documents]
        return _in_order(documents, self._reranker.rank(given["query"], texts, top_n=given["top_n"]))

    async def _acompress(self, given: dict[str, Any]) -> list[Document]:
        documents: Sequence[Document] = given["documents"]
        texts = [document.page_content for document in documents]
        return _in_order(documents, await self._reranker.arank(given["query"], texts, top_n=given["top_n"]))

    def score(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return a score from 0 to 1 for each (query, passage) pair, in their order."""
        return cast("list[float]", self._reranker.score_pairs(text_pairs).tolist())

    async def ascore(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return scores without blocking the event loop; otherwise as ``score``."""
        return cast("list[float]", (await self._reranker.ascore_pairs(text_pairs)).tolist())

    def wrap(self, retriever: Runnable[str, list[Document]]) -> RerankingRetriever:
        """Return a retriever that reranks what another one finds; it needs only langchain-core.

        Args:
            retriever: finds the candidates; it should return several times ``top_n``.
        """
        return RerankingRetriever(retriever=retriever, reranker=self, top_n=self.top_n)

    def __repr__(self) -> str:
        try:
            return f"{type(self).__name__}({self._reranker.describe()}, top_n={self.top_n})"
        except Exception as error:  # noqa: BLE001 - what reports an error shows objects that are half made
            return f"<{type(self).__name__}: {type(error).__name__}>"

    __str__ = __repr__


class RerankingRetriever(BaseRetriever):
    """A retriever that reranks what another one finds.

    Attributes:
        retriever: finds the candidates; gets every keyword of ``invoke`` but ``top_n``.
        reranker: orders them.
        top_n: how many come back, which ``invoke(query, top_n=...)`` may change for once; all when None.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    retriever: Runnable[str, list[Document]]
    reranker: BGEReranker
    top_n: int | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        # Taken out: the inner retriever would pass a keyword on that its store does not know.
        top_n = check_top_n(options.pop("top_n", self.top_n))
        config = _config(run_manager.get_child())
        documents = self.retriever.invoke(query, config, **options)
        return self.reranker.run.invoke(_given(documents, query, top_n), config) if documents else []

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **options: Any
    ) -> list[Document]:
        top_n = check_top_n(options.pop("top_n", self.top_n))
        config = _config(run_manager.get_child())
        documents = await self.retriever.ainvoke(query, config, **options)
        return await self.reranker.run.ainvoke(_given(documents, query, top_n), config) if documents else []


def _given(documents: Sequence[Document], query: str, top_n: int | None) -> dict[str, Any]:
    return {"query": query, "documents": documents, "top_n": top_n}


def _config(callbacks: Callbacks | None) -> RunnableConfig | None:
    return None if callbacks is None else {"callbacks": callbacks}


def _in_order(documents: Sequence[Document], ranks: Sequence[Ranked]) -> list[Document]:
    # Copies: an in-memory store returns the very metadata that it holds.
    return [
        documents[position].model_copy(update={"metadata": {**documents[position].metadata, "relevance_score": score}})
        for position, score in ranks
    ]
