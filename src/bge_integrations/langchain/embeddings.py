"""LangChain's ``Embeddings`` over an encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Unpack, cast

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    from ..errors import MissingExtraError

    raise MissingExtraError('LangChain is not installed: pip install "bge-integrations[langchain]"') from error

from ..core.encoder import Encoder
from ..errors import ConfigError, MissingExtraError
from ..load import Options, check_encoder, key_of, load_encoder, token_counter

if TYPE_CHECKING:
    from langchain_text_splitters import TextSplitter
    from pydantic import SecretStr

__all__ = ["BGEEmbeddings"]


class BGEEmbeddings(Embeddings):
    """BGE embeddings for LangChain: queries get the model's instruction, documents never do.

    Takes the keywords of ``load_encoder``, and those of ``HuggingFaceBgeEmbeddings`` that have a meaning here.

    Args:
        model: a name of the catalogue in any spelling, or a local folder; ``BAAI/bge-small-en-v1.5`` when None.
        encoder: an encoder made elsewhere, instead of all other arguments.
        encode_kwargs: as ``HuggingFaceBgeEmbeddings`` takes it; ``normalize_embeddings`` may only be True.
        model_kwargs: likewise; ``device`` and ``trust_remote_code`` are taken.
        **options: see ``bge_integrations.Options``.

    Raises:
        ConfigError: an unknown model, provider or option, or a host that does not serve the model.

    Example:
        >>> from bge_integrations.langchain import BGEEmbeddings
        >>> embeddings = BGEEmbeddings("demo")
        >>> len(embeddings.embed_query("a query"))
        256
    """

    def __init__(
        self,
        model: str | PathLike[str] | None = None,
        *,
        encoder: Encoder | None = None,
        encode_kwargs: Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        _check_encode_kwargs(encode_kwargs or {})
        merged = cast("Options", {**_from_model_kwargs(model_kwargs or {}), **options})
        if encoder is not None:
            check_encoder(encoder, str(model or options.get("model_name") or ""), {**merged, "model_name": None})
        self.encoder = load_encoder(model, **merged) if encoder is None else encoder

    @property
    def model(self) -> str:
        """Id of the model."""
        return self.encoder.card.id

    @property
    def space(self) -> str:
        """Name of the vector space: same string, comparable vectors."""
        return self.encoder.space

    @property
    def api_key(self) -> SecretStr | None:
        """The host's key, masked wherever it is printed."""
        from pydantic import SecretStr

        key = key_of(self.encoder)
        return SecretStr(key) if key else None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents; no instruction is added.

        Raises:
            InputError: a text cannot be embedded; ``positions`` says which.
            HostError: the host failed; says what was finished.
        """
        return cast("list[list[float]]", self.encoder.encode(texts, role="document").tolist())

    def embed_query(self, text: str) -> list[float]:
        """Embed a query with the model's instruction in front.

        Raises:
            InputError: the text cannot be embedded.
            HostError: the host failed.
        """
        return cast("list[float]", self.encoder.encode([text], role="query")[0].tolist())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop; otherwise as ``embed_documents``."""
        return cast("list[list[float]]", (await self.encoder.aencode(texts, role="document")).tolist())

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop; otherwise as ``embed_query``."""
        return cast("list[float]", (await self.encoder.aencode([text], role="query"))[0].tolist())

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
        try:
            from langchain_text_splitters import RecursiveCharacterTextSplitter
        except ImportError as error:
            raise MissingExtraError("pip install langchain-text-splitters") from error
        count, limit = token_counter(self.encoder), self.encoder.card.max_tokens
        return RecursiveCharacterTextSplitter(
            chunk_size=min(chunk_size or limit, limit),
            chunk_overlap=chunk_overlap,
            length_function=partial(_length, count),
            separators=list(separators) if separators else None,
        )

    def __repr__(self) -> str:
        return f"BGEEmbeddings({self.encoder.describe()})"


def _length(count: Callable[[Sequence[str]], list[int]], text: str) -> int:
    return count([text])[0]


def _check_encode_kwargs(encode_kwargs: Mapping[str, Any]) -> None:
    if not encode_kwargs.get("normalize_embeddings", True):
        raise ConfigError("encode_kwargs: normalize_embeddings=False is not to be had: vectors here have length 1")
    unknown = set(encode_kwargs) - {"normalize_embeddings", "batch_size", "show_progress_bar"}
    if unknown:
        raise ConfigError(f"encode_kwargs: {sorted(unknown)} have no meaning here; see bge_integrations.Options")


def _from_model_kwargs(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(model_kwargs) - {"device", "trust_remote_code"}
    if unknown:
        raise ConfigError(f"model_kwargs: {sorted(unknown)} have no meaning here; see bge_integrations.Options")
    return dict(model_kwargs)
