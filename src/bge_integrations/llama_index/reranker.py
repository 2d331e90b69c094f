"""LlamaIndex's ``BaseNodePostprocessor`` over a reranker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import ConfigDict, Field, PrivateAttr

from ..core.reranker import Ranked, Reranker, check_top_n
from ..errors import InputError
from ..keys import hide_secrets
from ..load import check_reranker, load_reranker
from ..options import RERANKER_OPTIONS

__all__ = ["BGEReranker"]

_DISPATCHER = get_dispatcher(__name__)
Finish = Callable[[Sequence[Ranked]], list[NodeWithScore]]


class BGEReranker(BaseNodePostprocessor):
    """BGE rerankers for LlamaIndex: a node postprocessor whose scores are Python floats from 0 to 1.

    The nodes that are passed are not changed; new nodes around the same content are returned. The model reads the
    text with the metadata that is meant for embedding.

    Args:
        model: a name in the catalogue in any spelling, or a local folder; ``BAAI/bge-reranker-v2-m3`` when None.
        reranker: an existing reranker, instead of all options of ``load_reranker``.
        top_n: how many nodes to return; all when None.
        keep_retrieval_score: keep each node's score before reranking in ``metadata["retrieval_score"]``.
        metadata_mode: which part of a node's metadata is read with its text.
        callback_manager: LlamaIndex's.
        options: of ``load_reranker``, as ``to_dict`` has them.
        **more: options of ``load_reranker``; see ``bge_integrations.RerankerOptions``.

    Raises:
        ConfigError: an unknown model, provider or option, or a provider that does not serve the model.

    Example:
        >>> from bge_integrations.llama_index import BGEReranker
        >>> reranker = BGEReranker("bge-reranker-v2-m3", top_n=5)
        >>> engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])  # doctest: +SKIP
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    model: str = Field(description="Id of the model.")
    top_n: int | None = Field(default=None, description="How many nodes to return; all when None.")
    keep_retrieval_score: bool = Field(default=False, description="Keep the score before reranking in the metadata.")
    metadata_mode: MetadataMode = Field(default=MetadataMode.EMBED, description="Metadata read with a node's text.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of load_reranker, without secrets.")

    _reranker: Reranker = PrivateAttr()

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        reranker: Reranker | None = None,
        top_n: int | None = None,
        keep_retrieval_score: bool = False,
        metadata_mode: MetadataMode | str = MetadataMode.EMBED,
        callback_manager: CallbackManager | None = None,
        options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        more.pop("class_name", None)  # from_dict
        chosen = {**(options or {}), **more}
        hide_secrets(chosen)
        del more, options  # tracebacks with locals would show their secrets
        if reranker is not None:
            check_reranker(reranker, model, chosen)
        made = load_reranker(model, **chosen) if reranker is None else reranker
        fields: dict[str, Any] = {
            "model": fspath(model) if model else made.card.id,
            "top_n": check_top_n(top_n),
            "keep_retrieval_score": keep_retrieval_score,
            "metadata_mode": MetadataMode(metadata_mode),
            "options": {name: value for name, value in chosen.items() if _is_saved(name, value)},
        }
        if callback_manager is not None:
            fields["callback_manager"] = callback_manager
        super().__init__(**fields)
        self._reranker = made

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex saves it."""
        return "BGEReranker"

    @property
    def reranker(self) -> Reranker:
        """The reranker that does the work."""
        return self._reranker

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        with self._event(nodes, query) as finish:
            return finish(self._reranker.rank(query, self._texts(nodes), top_n=self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        with self._event(nodes, query) as finish:
            return finish(await self._reranker.arank(query, self._texts(nodes), top_n=self.top_n))

    def _texts(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [node.node.get_content(metadata_mode=self.metadata_mode) for node in nodes]

    @contextmanager
    def _event(self, nodes: list[NodeWithScore], query: str) -> Iterator[Finish]:
        """Tell LlamaIndex of a run; yields what turns ranks into nodes and tells of them."""
        name, most = self._reranker.card.id, len(nodes) if self.top_n is None else self.top_n
        _DISPATCHER.event(ReRankStartEvent(query=query, nodes=nodes, top_n=most, model_name=name))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: most,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:

            def finish(ranks: Sequence[Ranked]) -> list[NodeWithScore]:
                best = [self._scored(nodes[position], score) for position, score in ranks]
                event.on_end(payload={EventPayload.NODES: best})
                _DISPATCHER.event(ReRankEndEvent(nodes=best))
                return best

            yield finish

    def _scored(self, given: NodeWithScore, score: float) -> NodeWithScore:
        node = given.node
        if self.keep_retrieval_score:
            before = None if given.score is None else float(given.score)  # numpy's floats are not JSON
            # For whoever reads the metadata, not for the model that answers.
            hidden = {name: [*getattr(node, name), "retrieval_score"] for name in _EXCLUDED}
            node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": before}, **hidden})
        return NodeWithScore(node=node, score=score)

    def __repr__(self) -> str:
        try:
            return f"{type(self).__name__}({self.model!r}, top_n={self.top_n})"
        except Exception as error:  # noqa: BLE001 - what reports an error shows objects that are half made
            return f"<{type(self).__name__}: {type(error).__name__}>"

    __str__ = __repr__


_EXCLUDED = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")


def _is_saved(name: str, value: Any) -> bool:
    option = RERANKER_OPTIONS.get(name)
    return option is not None and option.decides == "vectors" and isinstance(value, (str, bool, int, float))


def _query_of(bundle: QueryBundle | None) -> str:
    if bundle is None:
        raise InputError("a reranker needs the query: pass query_str= or query_bundle=")
    return bundle.query_str
