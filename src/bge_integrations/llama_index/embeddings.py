"""LlamaIndex's ``BaseEmbedding`` over an encoder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, cast

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, create_model, field_serializer

from ..catalog import MODELS
from ..catalog.records import ModelCard
from ..core.checks import check_texts
from ..core.encoder import Encoder, Role
from ..errors import BGEError, ConfigError, SpaceMismatchError
from ..keys import hide_secrets
from ..load import check_encoder, load_encoder
from ..options import OPTIONS, Option, Options, check_assignment, check_names
from ..remote.rate_limit import PortableLimiter

__all__ = ["BGEEmbedding"]

_DISPATCHER = get_dispatcher(__name__)
# headers: pydantic would copy a Mapping into a dict, which shows its values
_TYPES: dict[Any, Any] = {
    "key": SecretStr | Callable[[], str],
    "headers": Any,
    "instruction": str,
    "names": Sequence[str],
}


def _field(option: Option) -> tuple[Any, Any]:
    """Return a pydantic field: in ``to_dict`` if it decides the vectors or where they come from."""
    secret = option.decides == "secret"
    field = Field(default=None, description=option.help, exclude=option.decides != "vectors", repr=not secret)
    return _TYPES.get(option.type, option.type) | None, field


if TYPE_CHECKING:
    _Fields = BaseEmbedding
else:
    own = {name: option for name, option in OPTIONS.items() if name not in BaseEmbedding.model_fields}
    _Fields = create_model("_Fields", __base__=BaseEmbedding, **{name: _field(own[name]) for name in own})


class BGEEmbedding(_Fields):
    """BGE embeddings for LlamaIndex: queries are prefixed with the model's instruction, documents are not.

    Takes the keywords of ``load_encoder`` and all fields of ``BaseEmbedding``. ``embeddings_cache`` is used with the
    role and the model in its keys. ``to_dict`` contains what determines the vectors and their origin, so that an
    ingestion pipeline's cache is missed when vectors may differ and hit when only keys, batches or timeouts do;
    ``from_dict`` refuses to change the space. It never contains a key.

    Args:
        model: a name in the catalogue in any spelling, or a local folder; ``BAAI/bge-small-en-v1.5`` when None.
        encoder: an existing encoder, instead of all options of ``load_encoder``.
        **fields: see ``bge_integrations.Options`` and ``BaseEmbedding``.

    Raises:
        ConfigError: an unknown model, provider or option, or a host that does not serve the model.
        SpaceMismatchError: ``from_dict`` describes vectors that this machine would compute differently.

    Example:
        >>> from bge_integrations.llama_index import BGEEmbedding
        >>> len(BGEEmbedding("demo").get_query_embedding("a query"))
        256
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model_name: str = Field(default="", description="Id of the model.")
    space: str = Field(default="", description="Name of the vector space.")
    # The encoder plans its own requests: all texts in one call fill them best, and positions in errors count from 0.
    embed_batch_size: int = Field(default=1 << 20, gt=0, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True)

    _encoder: Encoder = PrivateAttr()
    _store: Any = PrivateAttr(default=None)

    def __init__(
        self, model: str | os.PathLike[str] | None = None, *, encoder: Encoder | None = None, **fields: Any
    ) -> None:
        _hide_secrets(fields)
        named, store = fields.pop("model_name", None), fields.pop("embeddings_cache", None)
        model = named if model is None else model
        check_names(fields, type(self).model_fields)
        try:
            super().__init__(model_name=os.fspath(model) if isinstance(model, (str, os.PathLike)) else "", **fields)
        except ValidationError as error:
            raise _without_values(error) from None
        self._encoder = load_encoder(model, **_options(self)) if encoder is None else encoder
        if encoder is not None:
            check_encoder(encoder, model, {**_options(self), "rate_limiter": None})
        if self.rate_limiter is not None:
            # An engine for hosts asks it before each request; the base class would ask once more.
            self.rate_limiter = None if encoder is None and self._encoder.remote else PortableLimiter(self.rate_limiter)
        expected, card = self.space, self._encoder.card
        self.__dict__.update(model_name=self.model_name or _name(card), space=self._encoder.space)
        if expected and expected != self.space:
            raise SpaceMismatchError(f"saved for space {expected!r}, but this machine's space is {self.space!r}")
        self._remember(store)

    def _remember(self, store: Any) -> None:
        from ..wrappers.cache import CachedEncoder

        if self._store is not None:
            self._encoder = cast("CachedEncoder", self._encoder).inner
        if store is not None:
            self._encoder = CachedEncoder(self._encoder, store)
        self._store = store

    def __setattr__(self, name: str, value: Any) -> None:
        # The base class's own cache would keep a query and a document in one place, whatever the model.
        if name == "embeddings_cache":
            self._remember(value)
            return
        if name != "rate_limiter":
            check_assignment("BGEEmbedding", name)
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; fields that determine the vectors cannot be updated.

        Raises:
            ReadOnlyError: ``update`` names such a field.
        """
        for name in update or ():
            check_assignment("BGEEmbedding", name)
        return super().model_copy(update=update, deep=deep)

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex saves this class."""
        return "BGEEmbedding"

    @property
    def encoder(self) -> Encoder:
        """The encoder that does the work."""
        return self._encoder

    def as_queries(self) -> BGEEmbedding:
        """Return a view that embeds every text as a query, for clients that search through the document methods."""
        return self._view("query")

    def as_documents(self) -> BGEEmbedding:
        """Return a view that embeds every text as a document, for clients that index through the query methods."""
        return self._view("document")

    def _view(self, role: Role) -> BGEEmbedding:
        view = _OneRoleEmbedding.__new__(_OneRoleEmbedding)
        state = self.__getstate__()
        view.__setstate__({"fields": {**state["fields"], "fixed_role": role}})
        return view

    def _role(self, asked: Role) -> Role:
        return asked

    @field_serializer("tokenizer", check_fields=False)
    def _plain_tokenizer(self, tokenizer: Any) -> str | None:
        return os.fspath(tokenizer) if isinstance(tokenizer, (str, os.PathLike)) else None

    def __repr__(self) -> str:
        try:
            return super().__repr__()
        except Exception as error:  # noqa: BLE001 - what reports an error shows objects that are half made
            return f"<{type(self).__name__}: {type(error).__name__}>"

    __str__ = __repr__

    def __getstate__(self) -> dict[str, Any]:
        left_behind = {"api_key", "headers", "callback_manager"}  # secrets, and handlers that belong to this process
        fields = {name: value for name, value in self.__dict__.items() if name not in left_behind}
        return {"fields": {**fields, "embeddings_cache": self._store, "encoder": self._encoder}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fields = dict(state["fields"])
        encoder, store = fields.pop("encoder"), fields.pop("embeddings_cache")
        super().__init__(**fields)
        self._encoder, self._store = encoder, store

    def _get_query_embedding(self, query: str) -> Embedding:
        return cast("Embedding", self._encoder.encode([query], role=self._role("query"))[0].tolist())

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return cast("Embedding", (await self._encoder.aencode([query], role=self._role("query")))[0].tolist())

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", self._encoder.encode(texts, role=self._role("document")).tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", (await self._encoder.aencode(texts, role=self._role("document"))).tolist())

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed the nodes of a pipeline; one without content, such as an empty file's, is left unembedded."""
        kept = self._with_content(nodes)
        try:
            super().__call__([nodes[i] for i in kept], **kwargs)
        except BGEError as error:
            raise error.at(kept) from None
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed the nodes of a pipeline without blocking the event loop; otherwise as a call."""
        kept = self._with_content(nodes)
        try:
            await super().acall([nodes[i] for i in kept], **kwargs)
        except BGEError as error:
            raise error.at(kept) from None
        return nodes

    def _with_content(self, nodes: Sequence[BaseNode]) -> list[int]:
        # A document store marks documents as known before they are transformed, so an error here would lose them all:
        # the next run skips what it knows. VectorStoreIndex passes such nodes by, too.
        keep = self._encoder.blank == "keep"
        return [i for i, node in enumerate(nodes) if keep or node.get_content(MetadataMode.EMBED).strip()]

    @_DISPATCHER.span
    def get_text_embedding_batch(self, texts: list[str], show_progress: bool = False, **_: Any) -> list[Embedding]:
        """Embed documents; all are checked before the first is sent, and one progress bar shows those finished.

        Raises:
            InputError: a text cannot be embedded; ``positions`` says which.
            HostError: the host failed; the error says what was finished.
        """
        encoder, rows = self._with_bar(show_progress), list[Embedding]()
        for part in self._parts(texts):
            with self._event(part) as embeddings:
                if self.rate_limiter is not None:
                    self.rate_limiter.acquire()
                embeddings += encoder.encode(part, role=self._role("document")).tolist()
            rows += embeddings
        return rows

    @_DISPATCHER.span
    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **_: Any
    ) -> list[Embedding]:
        """Embed documents without blocking the event loop; otherwise as ``get_text_embedding_batch``."""
        encoder, parts = self._with_bar(show_progress), self._parts(texts)
        slots = asyncio.Semaphore(self.num_workers or len(parts))

        async def embed(part: list[str]) -> list[Embedding]:
            async with slots:
                with self._event(part) as embeddings:
                    if self.rate_limiter is not None:
                        await self.rate_limiter.async_acquire()
                    embeddings += (await encoder.aencode(part, role=self._role("document"))).tolist()
                return embeddings

        return list(chain.from_iterable(await asyncio.gather(*map(embed, parts))))

    def _parts(self, texts: list[str]) -> list[list[str]]:
        checked, size = check_texts(texts, blank=self._encoder.blank), self.embed_batch_size
        return [checked[first : first + size] for first in range(0, len(checked), size)]

    @contextmanager
    def _event(self, chunks: list[str]) -> Iterator[list[Embedding]]:
        """Tell LlamaIndex's listeners of a batch, whose embeddings go into the list that is yielded.

        As the base class does, without its copy and check of every number.
        """
        about, embeddings = {"class_name": self.class_name(), "model_name": self.model_name}, list[Embedding]()
        _DISPATCHER.event(EmbeddingStartEvent(model_dict=about))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: about}) as event:
            yield embeddings
            event.on_end(payload={EventPayload.CHUNKS: chunks, EventPayload.EMBEDDINGS: embeddings})
            _DISPATCHER.event(EmbeddingEndEvent.model_construct(chunks=chunks, embeddings=embeddings))

    def _with_bar(self, show_progress: bool) -> Encoder:
        if not show_progress:
            return self._encoder
        from ..wrappers.progress import ProgressEncoder

        inner = self._encoder.inner if isinstance(self._encoder, ProgressEncoder) else self._encoder
        return ProgressEncoder(inner, show=True)

    def splitter(self, chunk_overlap: int = 0, *, chunk_size: int | None = None) -> SentenceSplitter:
        """Return a node parser that counts in the model's own tokens; by default chunks are as long as it reads.

        LlamaIndex's default chunk, 1,024 tokens, is twice what BGE v1.5 reads.

        Args:
            chunk_overlap: tokens that neighbouring chunks share.
            chunk_size: tokens per chunk; what the model reads when None.

        Raises:
            ConfigError: the model's tokenizer is not on this machine; pass ``tokenizer=``.
        """
        limit = self._encoder.card.max_tokens - _SPECIAL
        return _splitter(self._encoder, min(chunk_size or limit, limit), chunk_overlap)


class _OneRoleEmbedding(BGEEmbedding):
    """Embeds all texts in one role, and is saved as another transformation than the adapter that it is a view of."""

    fixed_role: Role = Field(description="The role of all texts.")

    @classmethod
    def class_name(cls) -> str:
        return "BGEOneRoleEmbedding"

    def _role(self, asked: Role) -> Role:
        del asked
        return self.fixed_role


class _ModelSplitter(SentenceSplitter):
    """Counts in a model's tokens after it was pickled, too, where its base class would fall back on tiktoken."""

    _counts_for: Encoder = PrivateAttr()

    def __reduce__(self) -> tuple[Any, ...]:
        return _splitter, (self._counts_for, self.chunk_size, self.chunk_overlap)


_SPECIAL = 2  # [CLS] and [SEP], or whatever a model puts around a text


def _splitter(encoder: Encoder, chunk_size: int, chunk_overlap: int) -> SentenceSplitter:
    encoder.count_tokens([])  # without a tokenizer, now and not at the first text
    # The splitter counts with len(tokenizer(text)).
    splitter = _ModelSplitter(
        chunk_size=chunk_size,
        chunk_overlap=chunk_overlap,
        tokenizer=lambda text: range(max(encoder.count_tokens([text])[0] - _SPECIAL, 0)),  # type: ignore[call-arg]
    )
    splitter._counts_for = encoder  # noqa: SLF001 - a private attribute of pydantic's, set where the object is made
    return splitter


def _name(card: ModelCard) -> str:
    # The bundled model's folder is another one on the next machine; its name is not.
    return card.id if card in MODELS else card.folder or card.id


def _hide_secrets(fields: dict[str, Any]) -> None:
    # pydantic takes its own wrapper alone.
    if isinstance(fields.get("api_key"), str):
        fields["api_key"] = SecretStr(fields["api_key"])
    hide_secrets(fields)


def _without_values(error: ValidationError) -> ConfigError:
    # pydantic's own message quotes what was given, which may be a key.
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return ConfigError("; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in problems))


def _options(adapter: BGEEmbedding) -> Options:
    given = {name: getattr(adapter, name) for name in OPTIONS if name != "model_name"}
    return cast("Options", {name: value for name, value in given.items() if value is not None})
