"""LlamaIndex's ``BaseEmbedding`` over an encoder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
    from llama_index.core.node_parser import SentenceSplitter
except ImportError as error:
    from ..errors import MissingExtraError

    raise MissingExtraError('LlamaIndex is not installed: pip install "bge-integrations[llama-index]"') from error

from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, field_serializer

from ..catalog import MODELS
from ..catalog.records import ModelCard
from ..core.checks import check_texts
from ..core.encoder import Encoder
from ..errors import ConfigError, SpaceMismatchError
from ..load import Options, check_encoder, engine_of, load_encoder, token_counter
from ..options import Pooling, check_names
from ..remote.rate_limit import PortableLimiter

__all__ = ["BGEEmbedding"]

_DISPATCHER = get_dispatcher(__name__)
_SHOWN: ContextVar[bool] = ContextVar("bge_llama_index_progress", default=False)


class BGEEmbedding(BaseEmbedding):
    """BGE embeddings for LlamaIndex: queries get the model's instruction, documents never do.

    Takes the keywords of ``load_encoder`` and all fields of ``BaseEmbedding``. ``embeddings_cache`` is used with the
    role and the model in its keys. ``to_dict`` holds what decides the vectors and where they come from, so that an
    ingestion pipeline's cache is missed when vectors may differ and hit when only keys, batches or patience do;
    ``from_dict`` refuses to make another space of them. No key is ever in it.

    Args:
        model: a name of the catalogue in any spelling, or a local folder; ``BAAI/bge-small-en-v1.5`` when None.
        encoder: an encoder made elsewhere, instead of all options of ``load_encoder``.
        **fields: see ``bge_integrations.Options`` and ``BaseEmbedding``.

    Raises:
        ConfigError: an unknown model, provider or option, or a host that does not serve the model.
        SpaceMismatchError: ``from_dict`` of vectors that this machine would make differently.

    Example:
        >>> from bge_integrations.llama_index import BGEEmbedding
        >>> len(BGEEmbedding("demo").get_query_embedding("a query"))
        256
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    model_name: str = Field(default="", description="Id of the model.")
    space: str = Field(default="", description="Name of the vector space.")
    provider: str | None = None
    base_url: str | None = None
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    wire_model: str | None = None
    query_instruction: str | None = None
    truncate: Literal["warn", "error"] | None = None
    blank: Literal["error", "keep"] | None = None
    device: str | None = None
    backend: str | None = None
    precision: str | None = None
    trust_remote_code: bool | None = None
    tokenizer: Any = None
    verify: Literal["first-use"] | None = None
    allow_withdrawn: bool | None = None
    accept_space: Pooling | None = None
    cache: bool | str | Path | None = Field(default=None, exclude=True)
    timeout: float | None = Field(default=None, exclude=True)
    max_retries: int | None = Field(default=None, exclude=True)
    max_concurrency: int | None = Field(default=None, exclude=True)
    max_inputs: int | None = Field(default=None, exclude=True)
    requests_per_minute: float | None = Field(default=None, exclude=True)
    tokens_per_minute: float | None = Field(default=None, exclude=True)
    show_progress: bool | None = Field(default=None, exclude=True)
    # The encoder plans its own requests: all texts in one call fill them best, and positions in errors count from 0.
    embed_batch_size: int = Field(default=1 << 20, gt=0, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True)

    _encoder: Encoder = PrivateAttr()
    _store: Any = PrivateAttr(default=None)

    def __init__(
        self, model: str | os.PathLike[str] | None = None, *, encoder: Encoder | None = None, **fields: Any
    ) -> None:
        named = fields.pop("model_name", None)
        name, store = os.fspath(model or named or ""), fields.pop("embeddings_cache", None)
        check_names(fields, type(self).model_fields)
        try:
            super().__init__(model_name=name, **fields)
        except ValidationError as error:
            raise _without_values(error) from None
        self._encoder = load_encoder(name or None, **_options(self)) if encoder is None else encoder
        if encoder is not None:
            check_encoder(encoder, name, {**_options(self), "rate_limiter": None})
        asked_by_engine = encoder is None and hasattr(engine_of(self._encoder), "rate_limiter")
        if self.rate_limiter is not None:
            # An engine for hosts asks it before each request; the base class would ask once more.
            self.rate_limiter = None if asked_by_engine else PortableLimiter(self.rate_limiter)
        self._settle()
        self._remember(store)

    def _remember(self, store: Any) -> None:
        if self._store is not None:
            self._encoder = self._encoder.inner  # type: ignore[attr-defined]
        if store is not None:
            self._encoder = _cached(self._encoder, store)
        self._store = store

    def __setattr__(self, name: str, value: Any) -> None:
        # The base class would keep a query and a document in one place, whatever the model.
        if name == "embeddings_cache":
            self._remember(value)
        else:
            super().__setattr__(name, value)

    def _settle(self) -> None:
        expected, card = self.space, self._encoder.card
        self.model_name, self.space = self.model_name or _name(card), self._encoder.space
        if expected and expected != self.space:
            raise SpaceMismatchError(f"saved for space {expected!r}, but this machine makes {self.space!r}")

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex saves it."""
        return "BGEEmbedding"

    @property
    def encoder(self) -> Encoder:
        """The encoder that does the work."""
        return self._encoder

    @field_serializer("tokenizer")
    def _plain_tokenizer(self, tokenizer: Any) -> str | None:
        return os.fspath(tokenizer) if isinstance(tokenizer, (str, os.PathLike)) else None

    def __getstate__(self) -> dict[str, Any]:
        left_behind = {"api_key", "callback_manager"}  # a secret, and handlers that belong to this process
        fields = {name: value for name, value in self.__dict__.items() if name not in left_behind}
        return {"fields": {**fields, "embeddings_cache": self._store, "encoder": self._encoder}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fields = dict(state["fields"])
        encoder, store = fields.pop("encoder"), fields.pop("embeddings_cache")
        super().__init__(**fields)
        self._encoder, self._store = encoder, store

    def _get_query_embedding(self, query: str) -> Embedding:
        return cast("Embedding", self._encoder.encode([query], role="query")[0].tolist())

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return cast("Embedding", (await self._encoder.aencode([query], role="query"))[0].tolist())

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", self._shown().encode(texts, role="document").tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", (await self._shown().aencode(texts, role="document")).tolist())

    @_DISPATCHER.span
    def get_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **_: Any,
    ) -> list[Embedding]:
        """Embed documents; all of them are checked before the first is sent, and one bar moves as they are finished.

        Raises:
            InputError: a text cannot be embedded; ``positions`` says which.
            HostError: the host failed; says what was finished.
        """
        rows: list[Embedding] = []
        with _showing(show_progress):
            for part in self._parts(texts):
                with self._telling(part) as told:
                    if self.rate_limiter is not None:
                        self.rate_limiter.acquire()
                    rows += told(self._get_text_embeddings(part))
        return rows

    @_DISPATCHER.span
    async def aget_text_embedding_batch(
        self,
        texts: list[str],
        show_progress: bool = False,
        **_: Any,
    ) -> list[Embedding]:
        """Embed documents without blocking the event loop; otherwise as ``get_text_embedding_batch``."""
        parts = self._parts(texts)
        slots = asyncio.Semaphore(self.num_workers or len(parts))

        async def embed(part: list[str]) -> list[Embedding]:
            async with slots:
                with self._telling(part) as told:
                    if self.rate_limiter is not None:
                        await self.rate_limiter.async_acquire()
                    return told(await self._aget_text_embeddings(part))

        with _showing(show_progress):
            return list(chain.from_iterable(await asyncio.gather(*map(embed, parts))))

    def _parts(self, texts: list[str]) -> list[list[str]]:
        checked, size = check_texts(texts, blank=self._encoder.blank), self.embed_batch_size
        return [checked[first : first + size] for first in range(0, len(checked), size)]

    @contextmanager
    def _telling(self, chunks: list[str]) -> Iterator[Callable[[list[Embedding]], list[Embedding]]]:
        """Tell what listens to LlamaIndex; as the base class does, but for its copy and check of every number."""
        about = {"class_name": self.class_name(), "model_name": self.model_name}
        _DISPATCHER.event(EmbeddingStartEvent(model_dict=about))
        with self.callback_manager.event(CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: about}) as event:

            def told(embeddings: list[Embedding]) -> list[Embedding]:
                event.on_end(payload={EventPayload.CHUNKS: chunks, EventPayload.EMBEDDINGS: embeddings})
                _DISPATCHER.event(EmbeddingEndEvent.model_construct(chunks=chunks, embeddings=embeddings))
                return embeddings

            yield told

    def _shown(self) -> Encoder:
        if not _SHOWN.get():
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


class _ModelSplitter(SentenceSplitter):
    """Counts in a model's tokens on the other side of a pickle too, where its base would fall back on tiktoken."""

    _counts_for: Encoder = PrivateAttr()

    def __reduce__(self) -> tuple[Any, ...]:
        return _splitter, (self._counts_for, self.chunk_size, self.chunk_overlap)


_SPECIAL = 2  # [CLS] and [SEP], or whatever a model puts around a text


def _splitter(encoder: Encoder, chunk_size: int, chunk_overlap: int) -> SentenceSplitter:
    count = token_counter(encoder)
    # The splitter counts with len(tokenizer(text)).
    splitter = _ModelSplitter(
        chunk_size=chunk_size,
        chunk_overlap=chunk_overlap,
        tokenizer=lambda text: range(max(count([text])[0] - _SPECIAL, 0)),  # type: ignore[call-arg]
    )
    splitter._counts_for = encoder  # noqa: SLF001 - a private attribute of pydantic's, set where the object is made
    return splitter


def _name(card: ModelCard) -> str:
    # The bundled model's folder is another one on the next machine; its name is not.
    return card.id if card in MODELS else card.folder or card.id


@contextmanager
def _showing(show_progress: bool) -> Iterator[None]:
    token = _SHOWN.set(show_progress)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def _without_values(error: ValidationError) -> ConfigError:
    # pydantic's own message quotes what was given, which may be a key.
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    return ConfigError("; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems))


def _options(face: BGEEmbedding) -> Options:
    names = set(Options.__annotations__) & set(type(face).model_fields) - {"model_name"}
    given = {name: value for name in names if (value := getattr(face, name)) is not None}
    return cast("Options", {**given, **({"rate_limiter": face.rate_limiter} if face.rate_limiter else {})})


def _cached(encoder: Encoder, store: Any) -> Encoder:
    from ..wrappers.cache import CachedEncoder

    return CachedEncoder(encoder, store)
