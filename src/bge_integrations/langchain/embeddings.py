"""LangChain's ``Embeddings`` over an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack, cast

from langchain_core.embeddings import Embeddings

from ..core.encoder import Encoder, Role
from ..errors import ConfigError
from ..extras import require
from ..keys import hide_secrets
from ..load import check_encoder, load_encoder
from ..options import Options, check_assignment

if TYPE_CHECKING:
    from langchain_text_splitters import TextSplitter
    from pydantic import SecretStr

__all__ = ["BGEEmbeddings"]


class BGEEmbeddings(Embeddings):
    """BGE embeddings for LangChain: queries are prefixed with the model's instruction, documents are not.

    Takes the keywords of ``load_encoder``, and those of ``HuggingFaceBgeEmbeddings`` that apply here.

    Args:
        model: a name in the catalogue in any spelling, or a local folder; ``BAAI/bge-small-en-v1.5`` when None.
        encoder: an existing encoder, instead of all other arguments.
        encode_kwargs: as ``HuggingFaceBgeEmbeddings`` takes it; ``normalize_embeddings`` may only be True.
        model_kwargs: likewise; ``device`` and ``trust_remote_code`` are used.
        **options: see ``bge_integrations.Options``.

    Raises:
        ConfigError: an unknown model, provider or option, or a host that does not serve the model.

    Example:
        >>> from bge_integrations.langchain import BGEEmbeddings
        >>> embeddings = BGEEmbeddings("demo")
        >>> len(embeddings.embed_query("a query"))
        256
    """

    _fixed_role: Role | None = None

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        encoder: Encoder | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        hide_secrets(cast("dict[str, Any]", options))
        _check_kwargs("encode_kwargs", encode_kwargs or {}, {"normalize_embeddings", "batch_size", "show_progress_bar"})
        _check_kwargs("model_kwargs", model_kwargs or {}, {"device", "trust_remote_code"})
        merged = cast("Options", {**(model_kwargs or {}), **options})
        if encoder is not None:
            check_encoder(
                encoder, options.get("model_name") if model is None else model, {**merged, "model_name": None}
            )
        self.encoder = load_encoder(model, **merged) if encoder is None else encoder

    def __setattr__(self, name: str, value: Any) -> None:
        check_assignment(type(self).__name__, name)
        super().__setattr__(name, value)

    @property
    def model(self) -> str:
        """Id of the model."""
        return self.encoder.card.id

    @property
    def space(self) -> str:
        """Name of the vector space: vectors with the same name are comparable."""
        return self.encoder.space

    @property
    def api_key(self) -> SecretStr | None:
        """The host's key, masked wherever it is printed."""
        from pydantic import SecretStr

        key = self.encoder.key
        return SecretStr(key) if key else None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents; no instruction is added.

        Raises:
            InputError: a text cannot be embedded; ``positions`` says which.
            HostError: the host failed; the error says what was finished.
        """
        return cast("list[list[float]]", self.encoder.encode(texts, role=self._fixed_role or "document").tolist())

    def embed_query(self, text: str) -> list[float]:
        """Embed a query, prefixed with the model's instruction.

        Raises:
            InputError: the text cannot be embedded.
            HostError: the host failed.
        """
        return cast("list[float]", self.encoder.encode([text], role=self._fixed_role or "query")[0].tolist())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop; otherwise as ``embed_documents``."""
        rows = await self.encoder.aencode(texts, role=self._fixed_role or "document")
        return cast("list[list[float]]", rows.tolist())

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop; otherwise as ``embed_query``."""
        rows = await self.encoder.aencode([text], role=self._fixed_role or "query")
        return cast("list[float]", rows[0].tolist())

    def as_queries(self) -> BGEEmbeddings:
        """Return a view that embeds every text as a query, for clients that search through ``embed_documents``."""
        return self._view("query")

    def as_documents(self) -> BGEEmbeddings:
        """Return a view that embeds every text as a document, for clients that index through ``embed_query``."""
        return self._view("document")

    def _view(self, role: Role) -> BGEEmbeddings:
        view = copy(self)
        vars(view)["_fixed_role"] = role
        return view

    def splitter(
        self, chunk_overlap: int = 0, *, chunk_size: int | None = None, separators: Sequence[str] | None = None
    ) -> TextSplitter:
        """Return a text splitter that counts in the model's own tokens; by default chunks are as long as it reads.

        Args:
            chunk_overlap: tokens that neighbouring chunks share.
            chunk_size: tokens per chunk; what the model reads when None.
            separators: where to split first; LangChain's own list when None.

        Raises:
            MissingExtraError: langchain-text-splitters is not installed.
            ConfigError: the model's tokenizer is not on this machine; pass ``tokenizer=``.
        """
        splitters = require("langchain_text_splitters", install="langchain-text-splitters", purpose="splitter()")
        self.encoder.count_tokens([])  # without a tokenizer, now and not at the first text
        limit = self.encoder.card.max_tokens
        return cast(
            "TextSplitter",
            splitters.RecursiveCharacterTextSplitter(
                chunk_size=min(chunk_size or limit, limit),
                chunk_overlap=chunk_overlap,
                length_function=self._length,
                separators=list(separators) if separators else None,
            ),
        )

    def _length(self, text: str) -> int:
        return self.encoder.count_tokens([text])[0]

    def __repr__(self) -> str:
        try:
            role = f", every text a {self._fixed_role}" if self._fixed_role else ""
            return f"{type(self).__name__}({self.encoder.describe()}{role})"
        except Exception as error:  # noqa: BLE001 - what reports an error shows objects that are half made
            return f"<{type(self).__name__}: {type(error).__name__}>"


def _check_kwargs(name: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Take the dictionaries of ``HuggingFaceBgeEmbeddings`` as far as they mean something here.

    Raises:
        ConfigError: they do not.
    """
    if not given.get("normalize_embeddings", True):
        raise ConfigError("encode_kwargs: vectors here always have length 1; leave normalize_embeddings=False out")
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"{name}: {unknown} are not supported; see bge_integrations.Options")
