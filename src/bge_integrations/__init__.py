"""BAAI's BGE embeddings in LangChain and LlamaIndex, on this machine or at a host.

A query gets the model's instruction in front, a document never does; what comes back is checked; finished work is not
lost; and vectors that share a ``space`` may be compared. The faces are ``bge_integrations.langchain.BGEEmbeddings`` and
``bge_integrations.llama_index.BGEEmbedding``.
"""

from .cards import ModelCard, Offer, Provider, Role
from .catalog import MODELS, PROVIDERS, find_model, find_provider
from .errors import (
    AuthenticationError,
    BadAnswerError,
    BGEError,
    BGEWarning,
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
    RepairWarning,
    RequestRefusedError,
    SpaceMismatchError,
    TooLargeError,
    TruncationWarning,
    UnknownModelError,
    UnknownProviderError,
)
from .load import Options, load_encoder

__all__ = [
    "MODELS",
    "PROVIDERS",
    "AuthenticationError",
    "BGEError",
    "BGEWarning",
    "BadAnswerError",
    "ConfigError",
    "DeadlineError",
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
    "Provider",
    "QuotaError",
    "RateLimitError",
    "RepairWarning",
    "RequestRefusedError",
    "Role",
    "SpaceMismatchError",
    "TooLargeError",
    "TruncationWarning",
    "UnknownModelError",
    "UnknownProviderError",
    "find_model",
    "find_provider",
    "load_encoder",
]
