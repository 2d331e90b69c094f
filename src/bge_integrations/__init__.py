"""BAAI's BGE embeddings in LangChain and LlamaIndex, local or remote.

Queries are prefixed with the instruction the model was trained with; documents are not. Responses are validated,
interrupted jobs resume, and vectors with the same ``space`` are comparable. The adapters for the frameworks are
``bge_integrations.langchain.BGEEmbeddings`` and ``bge_integrations.llama_index.BGEEmbedding``.
"""

from typing import TYPE_CHECKING, Any

from .catalog import MODELS, PROVIDERS, find_model, find_provider
from .catalog.records import ModelCard, Offer, Provider, RerankerCard, Role
from .catalog.rerankers import RERANKERS
from .errors import (
    AuthenticationError,
    BadAnswerError,
    BGEError,
    BGEWarning,
    CacheError,
    ConfigError,
    DeadlineError,
    HostError,
    HostUnavailableError,
    InputError,
    InputTypeError,
    InsecureHostError,
    InstructionWarning,
    MissingExtraError,
    MissingKeyError,
    ModelLoadError,
    NotServedError,
    QuotaError,
    RateLimitError,
    ReadOnlyError,
    RepairWarning,
    RequestRefusedError,
    SpaceMismatchError,
    TextError,
    TooLargeError,
    TooLongError,
    TruncationWarning,
    UnknownModelError,
    UnknownProviderError,
    UnverifiedWarning,
)
from .load import Options, RerankerOptions, load_encoder, load_reranker

if TYPE_CHECKING:
    from .core.encoder import Encoder, Outputs, stream
    from .core.reranker import Reranker
    from .core.token_outputs import max_sim, sparse_score
    from .core.usage import Usage

__all__ = [
    "MODELS",
    "PROVIDERS",
    "RERANKERS",
    "AuthenticationError",
    "BGEError",
    "BGEWarning",
    "BadAnswerError",
    "CacheError",
    "ConfigError",
    "DeadlineError",
    "Encoder",
    "HostError",
    "HostUnavailableError",
    "InputError",
    "InputTypeError",
    "InsecureHostError",
    "InstructionWarning",
    "MissingExtraError",
    "MissingKeyError",
    "ModelCard",
    "ModelLoadError",
    "NotServedError",
    "Offer",
    "Options",
    "Outputs",
    "Provider",
    "QuotaError",
    "RateLimitError",
    "ReadOnlyError",
    "RepairWarning",
    "RequestRefusedError",
    "Reranker",
    "RerankerCard",
    "RerankerOptions",
    "Role",
    "SpaceMismatchError",
    "TextError",
    "TooLargeError",
    "TooLongError",
    "TruncationWarning",
    "UnknownModelError",
    "UnknownProviderError",
    "UnverifiedWarning",
    "Usage",
    "find_model",
    "find_provider",
    "load_encoder",
    "load_reranker",
    "max_sim",
    "sparse_score",
    "stream",
]

# numpy is imported with these, so that `import bge_integrations` alone stays light
_LAZY = {
    "Encoder": "core.encoder",
    "Outputs": "core.encoder",
    "Reranker": "core.reranker",
    "Usage": "core.usage",
    "max_sim": "core.token_outputs",
    "sparse_score": "core.token_outputs",
    "stream": "core.encoder",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
