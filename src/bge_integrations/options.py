"""The keywords that ``load_encoder`` and the faces take, and what each may hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, Protocol, TypedDict, get_args

from .errors import ConfigError

Pooling = Literal["cls", "mean", "last token"]

__all__ = ["Options", "Secret", "check_names", "check_options"]


class Secret(Protocol):
    """What pydantic's SecretStr is, without pydantic."""

    def get_secret_value(self) -> str:
        """Return the secret."""
        ...


class Options(TypedDict, total=False):
    """The keywords of ``load_encoder``, ``BGEEmbeddings`` and ``BGEEmbedding``.

    Attributes:
        model_name: same as ``model``.
        provider: a host of the catalogue; ``"local"`` for this machine.
        base_url: an OpenAI-compatible endpoint without ``/embeddings``, or a Space.
        api_key: only where the host needs one; else read from the provider's variable or ``BGE_API_KEY``.
        wire_model: what is sent as ``model`` when it differs from the provider's name for it.
        query_instruction: ``None`` for the model's own, ``""`` for none, other text as it is.
        cache: ``True`` for the user's cache, a path of an SQLite file, or a store of LangChain or LlamaIndex.
        truncate: ``"warn"`` cuts over-long texts and warns once; ``"error"`` refuses them.
        blank: ``"error"`` refuses blank texts; ``"keep"`` embeds them.
        timeout: seconds for a whole call to a host.
        max_retries: times that a failed request is sent again.
        max_concurrency: requests in flight.
        max_inputs: texts per request.
        requests_per_minute: bound of all requests of the encoder together.
        tokens_per_minute: bound of all tokens of the encoder together.
        rate_limiter: a rate limiter of LangChain or LlamaIndex, asked before each request.
        device: ``"cuda"``, ``"mps"``, ``"cpu"``; chosen by itself when None.
        backend: ``"auto"``, ``"torch"``, ``"onnx"`` or ``"sentence-transformers"``.
        precision: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"`` (another space).
        trust_remote_code: run code that a model's repository carries.
        show_progress: one bar per call; ``None`` leaves it to the place where it runs.
        tokenizer: a ``tokenizer.json`` or its folder, for counting tokens before they are sent.
        verify: ``"first-use"`` checks a host's answer against published values before the first real request.
        allow_withdrawn: ask a host for a model that it has withdrawn.
        accept_space: the pooling of a host that pools otherwise than the model; its vectors get their own space.
    """

    model_name: str | None
    provider: str | None
    base_url: str | None
    api_key: str | Secret | None
    wire_model: str | None
    query_instruction: str | None
    cache: Any
    truncate: Literal["warn", "error"]
    blank: Literal["error", "keep"]
    timeout: float | None
    max_retries: int | None
    max_concurrency: int | None
    max_inputs: int | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    rate_limiter: Any
    device: str | None
    backend: str | None
    precision: str | None
    trust_remote_code: bool
    show_progress: bool | None
    tokenizer: Any
    verify: Literal["first-use"] | None
    allow_withdrawn: bool
    accept_space: Pooling | None


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that do not exist, and values that mean nothing; ``None`` always means the default.

    Raises:
        ConfigError: names the option that was meant, or the values that the option takes.
    """
    check_names(options, Options.__annotations__)
    for name, value in options.items():
        wanted, right = _WANTED.get(name, ("", None))
        if value is not None and right is not None and not right(value):
            shown = type(value).__name__ if name == "api_key" else repr(value)
            raise ConfigError(f"{name} must be {wanted}, not {shown}")


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known.

    Raises:
        ConfigError: names the one that was meant.
    """
    known = sorted(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"no option {name!r}{hint} (options: {', '.join(known)})")


_Wanted = tuple[str, Callable[[Any], bool]]


def _one_of(*values: str) -> _Wanted:
    return " or ".join(map(repr, values)), lambda value: isinstance(value, str) and value in values


def _number(wanted: str, kind: Any, least: float, *, above: bool = False) -> _Wanted:
    def right(value: Any) -> bool:
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        return bool(value > least if above else value >= least)

    return wanted, right


_TEXT: _Wanted = ("a string", lambda value: isinstance(value, str))
_SWITCH: _Wanted = ("True or False", lambda value: isinstance(value, bool))
_KEY: _Wanted = ("a string or a SecretStr", lambda v: isinstance(v, str) or hasattr(v, "get_secret_value"))
_COUNT = _number("a whole number of at least 1", Integral, 1)
_AMOUNT = _number("a number above 0", Real, 0, above=True)
_WANTED: dict[str, _Wanted] = {
    **dict.fromkeys(("model_name", "provider", "base_url", "wire_model", "query_instruction"), _TEXT),
    **dict.fromkeys(("trust_remote_code", "allow_withdrawn", "show_progress"), _SWITCH),
    **dict.fromkeys(("max_concurrency", "max_inputs"), _COUNT),
    **dict.fromkeys(("timeout", "requests_per_minute", "tokens_per_minute"), _AMOUNT),
    "max_retries": _number("a whole number of at least 0", Integral, 0),
    "api_key": _KEY,
    "truncate": _one_of("warn", "error"),
    "blank": _one_of("error", "keep"),
    "verify": _one_of("first-use"),
    "accept_space": _one_of(*get_args(Pooling)),
}
