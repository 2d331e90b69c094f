"""One table of keywords: what ``load_encoder``, both adapters, the command line and the docs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, get_args, get_origin

from .errors import ConfigError, ReadOnlyError

__all__ = [
    "OPTIONS",
    "RERANKER_OPTIONS",
    "Option",
    "Options",
    "Pooling",
    "RerankerOptions",
    "check_assignment",
    "check_names",
    "check_options",
]

Pooling = Literal["cls", "mean", "last token"]
Decides = Literal["vectors", "patience", "secret"]


class _Shared(TypedDict, total=False):
    """What embeddings and rerankers both take."""

    model_name: str | None
    provider: str | None
    base_url: str | None
    api_key: Any
    headers: Mapping[str, str] | None
    allow_http: bool | None
    dialect: str | None
    wire_model: str | None
    verify: Literal["first-use"] | None
    truncate: Literal["warn", "error"] | None
    blank: Literal["error", "keep"] | None
    tokenizer: Any
    device: str | None
    devices: Sequence[str] | None
    backend: str | None
    precision: str | None
    trust_remote_code: bool | None
    cache: Any
    timeout: float | None
    read_timeout: float | None
    max_retries: int | None
    max_concurrency: int | None
    max_inputs: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    rate_limiter: Any


class Options(_Shared, total=False):  # noqa: D101 - made from the table below
    revision: str | None
    query_instruction: str | None
    accept_space: Pooling | None
    allow_withdrawn: bool | None
    show_progress: bool | None


class RerankerOptions(_Shared, total=False):  # noqa: D101 - made from the table below
    weights: Any


@dataclass(frozen=True)
class Option:
    """One keyword.

    Attributes:
        name: with underscores; the command line has dashes.
        type: of a value, ``Any`` for objects; ``None`` always stands for the default.
        help: one line.
        decides: the vectors or where they come from (saved with an adapter), patience alone, or a secret.
        least: the smallest whole number; other numbers are above 0.
        flag: whether the command line has it.
    """

    name: str
    type: Any
    help: str
    decides: Decides = "vectors"
    least: int = 1
    flag: bool = True

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it takes, where they can be listed."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def wanted(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        return {int: f"a whole number of at least {self.least}", **_WANTED}.get(self.type, "any object")

    def check(self, value: Any) -> bool:
        """Return whether a value means something."""
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if self.type is int:
            return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= self.least
        return _CHECKS.get(self.type, lambda _: True)(value)


def _is_amount(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < inf
    except OverflowError:  # an int that no float holds
        return False


def _is_text_to_text(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(one, str) for pair in value.items() for one in pair)


def _is_key(value: Any) -> bool:
    return isinstance(getattr(value, "get_secret_value", lambda: value)(), str) or callable(value)


_WANTED: dict[Any, str] = {
    str: "a string that is not empty",
    "instruction": "a string",
    bool: "True or False",
    float: "a number above 0",
    "key": "a string, a SecretStr, or a function that returns the key",
    "headers": "a mapping of strings to strings",
    "weights": "three numbers",
    "names": "a list of strings that are not empty",
    Any: "an object, or a string that is not empty",
}
_CHECKS: dict[Any, Callable[[Any], bool]] = {
    # An empty one is most often a variable that is not set: with the default in its place, nobody would notice.
    str: lambda value: isinstance(value, str) and bool(value.strip()),
    "instruction": lambda value: isinstance(value, str),
    Any: lambda value: not isinstance(value, str) or bool(value.strip()),
    bool: lambda value: isinstance(value, bool),
    float: _is_amount,
    "key": _is_key,
    "headers": _is_text_to_text,
    "weights": lambda value: isinstance(value, (list, tuple)) and len(value) == 3,
    "names": lambda value: isinstance(value, (list, tuple)) and bool(value) and all(map(_CHECKS[str], value)),
}

OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("model_name", str, "same as model", flag=False),
        Option("provider", str, "a provider in the catalogue, or 'local' to run the model on this machine"),
        Option("base_url", str, "URL of an OpenAI-compatible endpoint, without /embeddings, or of a Space"),
        Option("api_key", "key", "API key; prefer the provider's environment variable", "secret"),
        Option("headers", "headers", "extra request headers; values are treated as secrets", "secret"),
        Option("allow_http", bool, "allow plain http to another machine: texts and key travel unencrypted", "patience"),
        Option("dialect", str, "API of the server for bge-m3's sparse and multivector output: vllm, tei, ..."),
        Option("wire_model", str, "model name to send to the server, if it uses another one"),
        Option("revision", str, "commit, tag or branch of a Hugging Face model that is not in the catalogue"),
        Option("query_instruction", "instruction", "query instruction instead of the model's own; '' for none"),
        Option(
            "accept_space",
            Pooling,
            "pooling used by a host, or by a folder that does not state it; a separate vector space",
        ),
        Option("verify", Literal["first-use"], "compare the host with published values before the first request"),
        Option("allow_withdrawn", bool, "call a provider for a model that it has withdrawn"),
        Option("truncate", Literal["warn", "error"], "over-long texts: truncate and warn (default), or refuse"),
        Option("blank", Literal["error", "keep"], "blank texts: refuse (default), or embed"),
        Option("tokenizer", Any, "tokenizer.json or its folder, to count tokens before a request"),
        Option("device", str, "cuda, mps or cpu (default: the best available)"),
        Option("devices", "names", "several devices of one kind, such as cuda:0,cuda:1, that share every batch"),
        Option("backend", str, "auto, torch, onnx or sentence-transformers"),
        Option("precision", str, "float32, bfloat16, float16 or int8 (a separate vector space)"),
        Option("trust_remote_code", bool, "run code from the model's repository"),
        Option(
            "cache",
            Any,
            "True for the user's cache, the path of an SQLite file, ':memory:', or, in Python, a store",
            "patience",
        ),
        Option("timeout", float, "seconds for a whole call to a host, retries included", "patience"),
        Option("read_timeout", float, "seconds to wait for the next byte of a response (default: 60)", "patience"),
        Option("max_retries", int, "how many times a failed request is retried", "patience", least=0),
        Option("max_concurrency", int, "maximum number of requests in flight", "patience"),
        Option("max_inputs", int, "maximum number of texts per request", "patience"),
        Option("requests_per_minute", float, "rate limit shared by all its requests", "patience"),
        Option("tokens_per_minute", float, "token rate limit shared by all its requests", "patience"),
        Option(
            "rate_limiter",
            Any,
            "a rate limiter of LangChain or LlamaIndex, consulted before each request",
            "patience",
            flag=False,
        ),
        Option(
            "show_progress",
            bool,
            "show progress; None: after two seconds, a bar in notebooks and lines in scripts",
            "patience",
            flag=False,
        ),
    )
}

_OF_PAIRS = {
    option.name: option
    for option in (
        Option("base_url", str, "URL of a rerank server; it may end in /v1, in /rerank or in neither"),
        Option("dialect", str, "API of the rerank server, if it cannot be detected: tei, vllm, ..."),
        Option(
            "blank",
            Literal["error", "keep"],
            "a blank query is refused and a blank passage above others is warned of; keep: neither",
        ),
        Option("precision", str, "float32, bfloat16, float16 or int8"),
        Option("weights", "weights", "bge-m3 only: weights of its dense, sparse and multivector scores"),
    )
}
RERANKER_OPTIONS: dict[str, Option] = {
    name: option for name, option in {**OPTIONS, **_OF_PAIRS}.items() if name in RerankerOptions.__annotations__
}
"""The keywords of ``load_reranker``: those of ``load_encoder`` that mean something for pairs, and two more."""

Options.__doc__ = (
    "The keywords of ``load_encoder``, ``BGEEmbeddings`` and ``BGEEmbedding``.\n\n    Attributes:\n"
    + "\n".join(f"        {option.name}: {option.help}." for option in OPTIONS.values())
)

RerankerOptions.__doc__ = (
    "The keywords of ``load_reranker`` and of both ``BGEReranker``.\n\n    Attributes:\n"
    + "\n".join(f"        {option.name}: {option.help}." for option in RERANKER_OPTIONS.values())
)

_ELSEWHERE = {
    "batch_size": "batches are planned here; max_inputs= limits the texts of one request to a host",
    "embed_batch_size": "batches are planned here; max_inputs= limits the texts of one request to a host",
    "normalize_embeddings": "vectors here always have length 1",
    "query_encode_kwargs": "query_instruction= replaces the model's own instruction",
    "embed_instruction": "documents never get an instruction",
    "text_instruction": "documents never get an instruction",
    "cache_folder": "the hub's cache is where HF_HOME says",
    "max_length": "the model's own; truncate='error' refuses longer texts",
    "api_base": "it is base_url= here",
    "openai_api_base": "it is base_url= here",
    "openai_api_key": "it is api_key= here",
    "default_headers": "it is headers= here",
    "pooling": "accept_space= names the pooling of a host, or of a folder that states none",
}
"""Keywords of other packages, and what is right here."""


def check_options(options: Mapping[str, Any], known: Mapping[str, Option] = OPTIONS) -> None:
    """Refuse options that do not exist, and values that mean nothing; ``None`` always means the default.

    Raises:
        ConfigError: names the option that was meant, or the values that the option takes.
    """
    check_names(options, known)
    for name, value in options.items():
        option = known[name]
        if value is not None and not option.check(value):
            shown = _shown(value) if option.decides != "secret" else _kind(value)
            raise ConfigError(f"{name} must be {option.wanted}, not {shown}")


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001 - a caller's own, or an int of over 4300 digits
        return f"a value of type {type(value).__name__}"
    return shown if len(shown) <= 100 else f"{shown[:100]}…"


def _kind(value: Any) -> str:
    """Name a secret's type, or those of the values of a mapping, without showing them."""
    if isinstance(value, Mapping):
        return f"of {', '.join(sorted({type(one).__name__ for one in (*value, *value.values())}))}"
    return f"of type {type(getattr(value, 'get_secret_value', lambda: value)()).__name__}"


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known.

    Raises:
        ConfigError: names the one that was meant.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            hint = f": {_ELSEWHERE[name]}" if name in _ELSEWHERE else hint
            raise ConfigError(f"no option {name!r}{hint} (options: {', '.join(known)})")


def check_assignment(owner: str, name: str) -> None:
    """Refuse to assign what is decided when an adapter is made: it would have no effect, or only half of one.

    Raises:
        ReadOnlyError: says how to make another adapter.
    """
    if name in OPTIONS or name in ("model", "space"):
        argument = "another model" if name == "space" else f"{name}=..."
        raise ReadOnlyError(
            f"{name} cannot be changed after a {owner} is created: create another one with {owner}({argument})"
        )
