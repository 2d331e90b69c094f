"""Put an encoder together from names and options: the one place that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast
from urllib.parse import urlsplit

from .catalog import check_served, find_model, find_provider, provider_at, who_serves
from .catalog.records import ModelCard, Provider
from .errors import ConfigError, InstructionWarning, MissingKeyError, NotServedError
from .options import Options, Secret, check_options
from .remote.limiter import Limiter

if TYPE_CHECKING:
    from .core.encoder import Encoder

__all__ = [
    "Key",
    "Options",
    "cache_folder",
    "cache_path",
    "check_encoder",
    "engine_of",
    "key_of",
    "keys_from",
    "load_encoder",
    "token_counter",
]

DEFAULT_MODEL = "bge-small-en-v1.5"


class Key:
    """A host's key. Pickled without its value: the other side reads its own environment."""

    def __init__(self, value: str | Secret | None, variables: tuple[str, ...], *, needed: bool, host: str) -> None:
        self.variables = variables
        self.needed = needed
        self.host = host
        given = value if value is None or isinstance(value, str) else value.get_secret_value()
        self._value = given or self._from_environment()

    def _from_environment(self) -> str | None:
        return next((value for name in self.variables if (value := os.environ.get(name))), None)

    @property
    def value(self) -> str | None:
        """The key, or None where there is none."""
        return self._value

    def __call__(self) -> str | None:
        """Return the key.

        Raises:
            MissingKeyError: the host needs one and there is none.
        """
        if self._value is None and self.needed:
            names = " or ".join(self.variables) or "BGE_API_KEY"
            raise MissingKeyError(f"{self.host} needs a key: set {names} in the environment, or pass api_key=")
        return self._value

    def __repr__(self) -> str:
        return f"Key({self.host}, {'set' if self._value else 'not set'})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Key:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"variables": self.variables, "needed": self.needed, "host": self.host}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._value = self._from_environment()


def load_encoder(model: str | os.PathLike[str] | None = None, **options: Unpack[Options]) -> Encoder:
    """Return an encoder for a model, on this machine or at a host.

    Nothing is loaded and nothing is sent before the first call. What is not given is read from ``BGE_MODEL``,
    ``BGE_PROVIDER``, ``BGE_BASE_URL``, ``BGE_API_KEY`` and ``BGE_CACHE``.

    Args:
        model: a name of the catalogue in any spelling, or a local folder; ``BAAI/bge-small-en-v1.5`` when None.
        **options: see ``Options``.

    Raises:
        ConfigError: an unknown model, provider or option, or a host that does not serve the model.

    Example:
        >>> from bge_integrations import load_encoder
        >>> load_encoder("demo").encode(["a text"], role="document").shape
        (1, 256)
    """
    check_options(options)
    typed = _typed(model or options.get("model_name") or os.environ.get("BGE_MODEL"))
    card = find_model(typed or DEFAULT_MODEL)
    accept = options.get("accept_space")
    if accept:
        card = replace(card, pooling=accept)
    _warn_without_instruction(card, options.get("query_instruction"))
    where = _where(card, options)
    engine = _local(card, options) if where is None else _remote(card, typed, *where, options)
    return _wrapped(engine, where and where[1], options)


def _typed(model: object) -> str | None:
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if name is None or isinstance(name, str):
        return name
    raise ConfigError(f"model must be a name or a folder, not {type(model).__name__}")


def _warn_without_instruction(card: ModelCard, given: str | None) -> None:
    if card.instruction_needed == "unknown" and given is None:
        import warnings

        warnings.warn(
            f"{card.id!r} is not in the catalogue: queries get no instruction; pass query_instruction= "
            "('' for none) to say what it was trained with",
            InstructionWarning,
            stacklevel=3,
        )


def _where(card: ModelCard, options: Options) -> tuple[Provider, str] | None:
    name, url = options.get("provider"), options.get("base_url")
    if name is None and url is None and card.folder is None:
        name, url = os.environ.get("BGE_PROVIDER"), os.environ.get("BGE_BASE_URL")
    if name == "local" or (not name and not url):
        return None
    provider = find_provider(name) if name else None
    url = (url or _own_url(provider)).strip().rstrip("/")
    if "?" in url or "#" in url:
        raise ConfigError("base_url must end with its path, without ?...: a key belongs in api_key=")
    for ending in ("/embeddings", "/embed"):
        url = url.removesuffix(ending)
    provider = provider or provider_at(url) or Provider(name=urlsplit(url).netloc or url)
    return provider, url


def _own_url(provider: Provider | None) -> str:
    assert provider is not None
    url = os.environ.get(provider.base_url_env or "") or provider.base_url or os.environ.get("BGE_BASE_URL")
    if not url:
        raise ConfigError(f"{provider.name} has no address of its own: pass base_url=, or set BGE_BASE_URL")
    for hole, variable in provider.url_env:
        value = os.environ.get(variable)
        if not value:
            raise ConfigError(f"{provider.name} needs {variable} in the environment (its {hole}), or base_url=")
        url = url.replace(f"{{{hole}}}", value.rstrip("/"))
    return url


def _check_provider(provider: Provider, url: str, card: ModelCard, options: Options) -> None:
    openai = urlsplit(url).hostname == "api.openai.com"
    if provider.refused and (openai or url == provider.base_url):
        raise NotServedError(f"{provider.refused}; {card.id!r} is served by: {', '.join(who_serves(card.id))}")
    if not (options.get("wire_model") and not provider.needs_key):
        check_served(provider, card, allow_withdrawn=options.get("allow_withdrawn", False))
    if provider.pooling and provider.pooling != card.pooling:
        raise NotServedError(
            f"{provider.name} pools by {provider.pooling}, {card.id!r} by {card.pooling}: right dimensions, another "
            f"vector space. Served in the model's own by: {', '.join(who_serves(card.id))}; "
            f"accept_space={provider.pooling!r} takes these vectors with a space of their own"
        )


def _wire_model(provider: Provider, card: ModelCard, typed: str | None) -> str:
    offer = provider.offer(card.id)
    if offer is None:
        return typed or card.id
    spellings = (offer.wire, *offer.aliases)
    return next((spelling for spelling in spellings if spelling.lower() == (typed or "").lower()), offer.wire)


def _key(provider: Provider, url: str, options: Options) -> Key:
    host = urlsplit(url).hostname or ""
    variables = provider.key_env
    if "HF_TOKEN" in variables and not host.endswith((".hf.space", ".huggingface.co")):
        # An account-wide token of the hub is not for any other host.
        variables = tuple(name for name in variables if name != "HF_TOKEN")
    return Key(options.get("api_key"), (*variables, "BGE_API_KEY"), needed=provider.needs_key, host=provider.name)


def _remote(card: ModelCard, typed: str | None, provider: Provider, url: str, options: Options) -> Encoder:
    from .remote.engine import Endpoint, Limits
    from .remote.protocols.openai import OpenAIEngine
    from .remote.protocols.space import SpaceEngine

    _check_provider(provider, url, card, options)
    wire = options.get("wire_model") or _wire_model(provider, card, typed)
    endpoint = Endpoint(provider=provider, base_url=url, wire_model=wire, key=_key(provider, url, options))
    engine = SpaceEngine if provider.protocol == "space" else OpenAIEngine
    limits = Limits(**_given(options, "timeout", "max_retries", "max_concurrency", "max_inputs", *_RATES))
    limiter = options.get("rate_limiter")
    return engine(
        card,
        endpoint,
        limits=limits,
        rate_limiter=limiter and Limiter(limiter),
        **_given(options, *_COMMON, "tokenizer"),
    )


def _local(card: ModelCard, options: Options) -> Encoder:
    from .local.engine import LocalEngine

    return LocalEngine(card, **_given(options, *_COMMON, "device", "backend", "precision", "trust_remote_code"))


_RATES = ("requests_per_minute", "tokens_per_minute")
_COMMON = ("query_instruction", "blank", "truncate")


def _given(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _wrapped(encoder: Encoder, host: str | None, options: Options) -> Encoder:
    if options.get("verify") and host:
        from .wrappers.verified import VerifiedEncoder

        encoder = VerifiedEncoder(encoder, host=host, memory=cache_folder() / "verified.json")
    cache = options.get("cache")
    if cache is None:
        cache = os.environ.get("BGE_CACHE") or None
    if cache is not None and cache is not False:
        from .wrappers.cache import CachedEncoder

        encoder = CachedEncoder(encoder, cache_path() if cache is True else cache)
    show = options.get("show_progress")
    if show is not False:
        from .wrappers.progress import ProgressEncoder

        encoder = ProgressEncoder(encoder, show)
    return encoder


def check_encoder(encoder: Encoder, model: str | None, options: Mapping[str, Any]) -> None:
    """Refuse what a ready encoder would have to ignore.

    Raises:
        ConfigError: ``model`` is another one's name, or an option is given.
    """
    if model and model not in (encoder.card.id, encoder.card.folder):
        raise ConfigError(f"encoder= is of {encoder.card.id!r}, not {model!r}: pass one of the two")
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise ConfigError(f"encoder= is ready: {', '.join(given)} belong to load_encoder(...), which makes it")


def engine_of(encoder: Encoder) -> Encoder:
    """Return the engine under the wrappers."""
    while (inner := getattr(encoder, "inner", None)) is not None:
        encoder = inner
    return encoder


def key_of(encoder: Encoder) -> str | None:
    """Return the key that the encoder's engine holds, or None."""
    endpoint = getattr(engine_of(encoder), "endpoint", None)
    return getattr(getattr(endpoint, "key", None), "value", None)


def token_counter(encoder: Encoder) -> Callable[[Sequence[str]], list[int]]:
    """Return what counts the tokens of texts, special tokens included, as the model does.

    Raises:
        ConfigError: the model's tokenizer is not on this machine.
    """
    count = getattr(engine_of(encoder), "count_tokens", None)
    if count is not None:
        return cast("Callable[[Sequence[str]], list[int]]", count)
    raise ConfigError(
        f"no tokenizer of {encoder.card.id!r} on this machine: pass tokenizer= with a tokenizer.json, or "
        f"tokenizers.Tokenizer.from_pretrained({encoder.card.id!r})"
    )


def keys_from(variable: str | None) -> list[str]:
    """Return the keys, split by commas, that an environment variable holds; none where none is named.

    Raises:
        MissingKeyError: the variable is named but not set, so that a server would stand open by mistake.
    """
    if variable is None:
        return []
    keys = [key.strip() for key in os.environ.get(variable, "").split(",") if key.strip()]
    if not keys:
        raise MissingKeyError(f"{variable} is not set: put the server's keys into it, split by commas")
    return keys


@contextmanager
def variable_set(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the length of a ``with`` block, for processes that are started in it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def cache_folder() -> Path:
    """Return the user's folder for what this package keeps: ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bge-integrations"


def cache_path() -> Path:
    """Return the SQLite file that ``cache=True`` uses."""
    return Path(os.environ.get("BGE_CACHE") or cache_folder() / "vectors.sqlite")
