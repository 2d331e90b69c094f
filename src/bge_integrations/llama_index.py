"""LlamaIndex's ``BaseEmbedding`` over an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
except ImportError as error:
    from .errors import MissingExtraError

    raise MissingExtraError('LlamaIndex is not installed: pip install "bge-integrations[llama-index]"') from error

from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from .cards import Pooling
from .encoder import FutureEncoder
from .errors import SpaceMismatchError
from .load import Options, load_encoder

if TYPE_CHECKING:
    from llama_index.core.node_parser import SentenceSplitter

__all__ = ["BGEEmbedding"]


class BGEEmbedding(BaseEmbedding):
    """BGE embeddings for LlamaIndex: queries get the model's instruction, documents never do.

    Takes the keywords of ``load_encoder`` and all fields of ``BaseEmbedding``. ``embeddings_cache`` is used with the
    role and the model in its keys. ``to_dict`` holds what decides the vectors and where they come from, so that an
    ingestion pipeline's cache is missed when vectors may differ and hit when only keys, batches or patience do;
    ``from_dict`` refuses to make another space of them. No key is ever in it.

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
    # The encoder plans its own requests; a large batch lets it fill them.
    embed_batch_size: int = Field(default=2048, gt=0, le=2048, exclude=True)
    num_workers: int | None = Field(default=None, exclude=True)
    embeddings_cache: Any = Field(default=None, exclude=True)

    _encoder: FutureEncoder = PrivateAttr()
    _store: Any = PrivateAttr(default=None)

    def __init__(self, model: str | None = None, *, encoder: FutureEncoder | None = None, **fields: Any) -> None:
        named = model or fields.pop("model_name", None) or None
        fields.pop("model_name", None)
        store = fields.pop("embeddings_cache", None)
        super().__init__(model_name=named or "", **fields)
        made = encoder or load_encoder(named, **_options(self))
        self._encoder, self._store = (made if store is None else _cached(made, store)), store
        self._settle()

    def _settle(self) -> None:
        expected, card = self.space, self._encoder.card
        self.model_name, self.space = self.model_name or card.folder or card.id, self._encoder.space
        if expected and expected != self.space:
            raise SpaceMismatchError(f"saved for space {expected!r}, but this machine makes {self.space!r}")

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex saves it."""
        return "BGEEmbedding"

    @property
    def encoder(self) -> FutureEncoder:
        """The encoder that does the work."""
        return self._encoder

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
        return cast("list[Embedding]", self._encoder.encode(texts, role="document").tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return cast("list[Embedding]", (await self._encoder.aencode(texts, role="document")).tolist())

    def splitter(self, chunk_overlap: int = 0, *, chunk_size: int | None = None) -> SentenceSplitter:
        """Return a node parser that counts in the model's own tokens; by default chunks are as long as it reads.

        LlamaIndex's default chunk, 1,024 tokens, is twice what BGE v1.5 reads.

        Args:
            chunk_overlap: tokens that neighbouring chunks share.
            chunk_size: tokens per chunk; what the model reads when None.

        Raises:
            ConfigError: the model's tokenizer is not on this machine; pass ``tokenizer=``.
        """
        from llama_index.core.node_parser import SentenceSplitter

        from .load import token_counter

        count, limit = token_counter(self._encoder), self._encoder.card.max_tokens - 2
        # The splitter counts with len(tokenizer(text)); two tokens of the limit are [CLS] and [SEP].
        return SentenceSplitter(
            chunk_size=min(chunk_size or limit, limit),
            chunk_overlap=chunk_overlap,
            tokenizer=lambda text: [0] * max(count([text])[0] - 2, 0),
        )


def _options(face: BGEEmbedding) -> Options:
    names = set(Options.__annotations__) & set(type(face).model_fields) - {"model_name"}
    given = {name: value for name in names if (value := getattr(face, name)) is not None}
    return cast("Options", {**given, **({"rate_limiter": face.rate_limiter} if face.rate_limiter else {})})


def _cached(encoder: FutureEncoder, store: Any) -> FutureEncoder:
    from .cache import CachedEncoder

    return CachedEncoder(encoder, store)
