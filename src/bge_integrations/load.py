"""Compose an encoder from names and options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack, cast
from urllib.parse import parse_qsl, urlsplit

from .catalog import check_served, find_model, find_provider, known_model, provider_at, who_serves
from .catalog.records import ModelCard, Provider, RerankerCard
from .catalog.rerankers import (
    DIALECTS,
    RERANK_HOSTS,
    RerankHost,
    find_rerank_host,
    find_reranker,
    known_reranker,
    who_reranks,
)
from .environment import (
    SECRET_NAMES,
    HiddenValues,
    Key,
    cache_folder,
    cache_path,
    hide_in_url,
    hide_secrets,
    switched_on,
    variable,
)
from .errors import ConfigError, InstructionWarning, NotServedError, warn
from .options import RERANKER_OPTIONS, Options, RerankerOptions, check_options
from .remote.endpoint import split_url
from .remote.rate_limit import PortableLimiter

if TYPE_CHECKING:
    from .core.encoder import Encoder
    from .core.reranker import Reranker
    from .remote.endpoint import Endpoint

__all__ = [
    "Options",
    "RerankerOptions",
    "check_encoder",
    "check_reranker",
    "engine_of",
    "load_encoder",
    "load_reranker",
]

DEFAULT_MODEL = "bge-small-en-v1.5"
DEFAULT_RERANKER = "bge-reranker-v2-m3"


def load_encoder(model: str | os.PathLike[str] | None = None, **options: Unpack[Options]) -> Encoder:
    """Return an encoder for a model, on this machine or at a host.

    Nothing is loaded and nothing is sent before the first call. What is not passed is read from ``BGE_MODEL``,
    ``BGE_PROVIDER``, ``BGE_BASE_URL``, ``BGE_API_KEY``, ``BGE_CACHE`` and ``BGE_ALLOW_HTTP``; a folder never goes to a
    host that only the environment names.

    Args:
        model: a name of the catalogue in any spelling, or a local folder; ``BAAI/bge-small-en-v1.5`` when None. A path
            (``/``, ``./``, ``~``, a ``PathLike``) is always a folder, and so is a name that is a model's folder here.
        **options: see ``Options``.

    Raises:
        ConfigError: an unknown model, provider or option, or a host that does not serve the model.

    Example:
        >>> from bge_integrations import load_encoder
        >>> load_encoder("demo").encode(["a text"], role="document").shape
        (1, 256)
    """
    hide_secrets(cast("dict[str, Any]", options))
    check_options(options)
    typed = _typed(model or options.get("model_name") or variable("BGE_MODEL"))
    if isinstance(typed, str) and typed.strip().lower().startswith("local:"):
        options["provider"] = options.get("provider") or "local"
    card = _card(typed, options)
    where = _where(card, options)
    name = None if typed is None else os.fspath(typed).strip()
    engine = _local(card, options) if where is None else _remote(card, name, *where, options)
    return _wrapped(engine, where and where[1], options)


def _typed(model: object) -> str | os.PathLike[str] | None:
    if (
        model is None
        or isinstance(model, str)
        or (isinstance(model, os.PathLike) and isinstance(os.fspath(model), str))
    ):
        return model
    raise ConfigError(f"model must be a name or a folder, not {type(model).__name__}")


def _card(typed: str | os.PathLike[str] | None, options: Options) -> ModelCard:
    elsewhere = options.get("base_url") or options.get("provider") not in (None, "local")
    card = find_model(typed or DEFAULT_MODEL)
    if elsewhere and card.folder is not None and isinstance(typed, str):
        # The call names a host, so that a name is the host's before it is a folder of the same name here.
        card = known_model(typed) or card
    accept = options.get("accept_space")
    if accept:
        return _with_instruction(replace(card, pooling=accept, pooling_stated=True), options)
    if not card.pooling_stated:
        warn(
            f"{card.id!r}: its folder does not state how it pools, so the mean of all tokens is used, as "
            "sentence-transformers does; accept_space='cls' (or 'mean', 'last token') says how it was trained"
        )
    return _with_instruction(card, options)


def _with_instruction(card: ModelCard, options: Options) -> ModelCard:
    if card.instruction_needed == "unknown" and options.get("query_instruction") is None:
        warn(
            f"{card.id!r} is not in the catalogue: queries get no instruction; pass query_instruction= "
            "('' for none) to say what it was trained with",
            InstructionWarning,
        )
    return card


def _where(card: ModelCard, options: Options) -> tuple[Provider, str] | None:
    name, url = options.get("provider"), options.get("base_url")
    if name is None and url is None and card.folder is None:
        name, url = variable("BGE_PROVIDER"), hide_in_url(variable("BGE_BASE_URL") or "")
    if name == "local" or (not name and not url):
        return None
    provider = find_provider(name) if name else None
    url = _plain_url(url or _own_url(provider))
    return provider or provider_at(url) or Provider(name=urlsplit(url).netloc or url), url


def _plain_url(url: str) -> str:
    """Return a base URL without the endpoint that users copy with it; its query is kept.

    Raises:
        ConfigError: it is no http(s) URL, or holds a password or a key, which would be shown with the address.
    """
    split_url(url.strip())
    address, _, query = url.strip().partition("?")
    if "#" in url or any(word in name.lower() for name, _ in parse_qsl(query, True) for word in SECRET_NAMES):
        raise ConfigError("base_url must not hold a key or a fragment: a key belongs in api_key= or headers=")
    address = address.rstrip("/")
    for ending in ("/embeddings", "/embed"):
        address = address.removesuffix(ending)
    return f"{address}?{query}" if query else address


def _own_url(provider: Provider | None) -> str:
    assert provider is not None
    url = hide_in_url(variable(provider.base_url_env or "") or provider.base_url or variable("BGE_BASE_URL") or "")
    if not url:
        raise ConfigError(f"{provider.name} has no address of its own: pass base_url=, or set BGE_BASE_URL")
    for hole, name in provider.url_env:
        value = variable(name)
        if not value:
            raise ConfigError(f"{provider.name} needs {name} in the environment (its {hole}), or base_url=")
        url = url.replace(f"{{{hole}}}", value.rstrip("/"))
    return url


def _check_provider(provider: Provider, url: str, card: ModelCard, options: Options) -> None:
    openai = urlsplit(url).hostname == "api.openai.com"
    if provider.refused and (openai or url == provider.base_url):
        raise NotServedError(f"{provider.refused}; {card.id!r} is served by: {', '.join(who_serves(card.id))}")
    if not (options.get("wire_model") and not provider.needs_key):
        check_served(provider, card, allow_withdrawn=options.get("allow_withdrawn") or False)
    if provider.pooling and provider.pooling != card.pooling:
        raise NotServedError(
            f"{provider.name} pools by {provider.pooling}, {card.id!r} by {card.pooling}: right dimensions, another "
            f"vector space. Served in the model's own by: {', '.join(who_serves(card.id))}; "
            f"accept_space={provider.pooling!r} takes these vectors with a space of their own"
        )


def _wire_model(provider: Provider, card: ModelCard, typed: str | None) -> str:
    typed = (typed or "").removeprefix("local:")
    offer = provider.offer(card.id)
    if offer is None:
        return typed or card.id
    spellings = (offer.wire, *offer.aliases)
    return next((spelling for spelling in spellings if spelling.lower() == typed.lower()), offer.wire)


def _variant(provider: Provider, card: ModelCard, options: Options) -> str:
    """Name a model that the host calls by a name which the catalogue does not know: nothing says that it is this one.

    ``verify="first-use"`` does, where values are published.
    """
    wire = options.get("wire_model")
    if not wire or wire in (card.id, card.folder) or known_model(wire) == known_model(card.id) is not None:
        return ""
    offer = provider.offer(card.id)
    if offer is not None and wire.lower() in (name.lower() for name in (offer.wire, *offer.aliases)):
        return ""
    return "" if options.get("verify") and _has_published_values(card) else f"wire:{wire}"


def _has_published_values(card: ModelCard) -> bool:
    from .catalog.golden import read_golden

    return bool(read_golden().of(card))


def _key(provider: Provider, url: str, options: Options) -> Key:
    host = urlsplit(url).hostname or ""
    variables = provider.key_env
    if host != "huggingface.co" and not host.endswith(".huggingface.co"):
        # It opens a whole account of the hub, and anybody can put up a Space.
        variables = tuple(name for name in variables if name != "HF_TOKEN")
    return Key(options.get("api_key"), (*variables, "BGE_API_KEY"), needed=provider.needs_key, host=provider.name)


def _remote(card: ModelCard, typed: str | None, provider: Provider, url: str, options: Options) -> Encoder:
    from .remote.engine import Endpoint, Limits, RemoteEngine

    _check_provider(provider, url, card, options)
    wire = options.get("wire_model") or _wire_model(provider, card, typed)
    key = _key(provider, url, options)
    way: dict[str, Any] = _present(options, "headers")
    allow = options.get("allow_http")
    if switched_on("BGE_ALLOW_HTTP") if allow is None else allow:
        way["allow_http"] = True
    if key.changes:
        way["key_changes"] = True
    endpoint = Endpoint(provider=provider, base_url=url, wire_model=wire, key=key, **way)
    limiter = options.get("rate_limiter")
    return RemoteEngine(
        card,
        endpoint,
        limits=Limits(**_present(options, *_LIMITS)),
        rate_limiter=limiter and PortableLimiter(limiter),
        variant=_variant(provider, card, options),
        **_present(options, *_COMMON, "tokenizer"),
    )


def _local(card: ModelCard, options: Options) -> Encoder:
    from .local.engine import LocalEngine

    return LocalEngine(card, **_present(options, *_COMMON, "device", "backend", "precision", "trust_remote_code"))


_LIMITS = (
    "timeout",
    "read_timeout",
    "max_retries",
    "max_concurrency",
    "max_inputs",
    "requests_per_minute",
    "tokens_per_minute",
)
_COMMON = ("query_instruction", "blank", "truncate")


def _present(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if options.get(name) is not None}


def _wrapped(encoder: Encoder, host: str | None, options: Options) -> Encoder:
    if options.get("verify") and host:
        from .wrappers.verified import VerifiedEncoder

        encoder = VerifiedEncoder(encoder, host=host, memory=cache_folder() / "verified.json")
    cache = options.get("cache")
    if cache is None:
        cache = variable("BGE_CACHE")
    if cache is not None and cache is not False:
        from .wrappers.cache import CachedEncoder

        encoder = CachedEncoder(encoder, cache_path() if cache is True else cache)
    show = options.get("show_progress")
    if show is not False:
        from .wrappers.progress import ProgressEncoder

        encoder = ProgressEncoder(encoder, show)
    return encoder


def check_encoder(encoder: Encoder, model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
    """Refuse what a ready encoder would have to ignore.

    Raises:
        ConfigError: ``model`` is another one's name, or an option is passed.
    """
    if model and os.fspath(model) not in (encoder.card.id, encoder.card.folder):
        raise ConfigError(f"encoder= is of {encoder.card.id!r}, not {os.fspath(model)!r}: pass one of the two")
    passed = sorted(name for name, value in options.items() if value is not None)
    if passed:
        raise ConfigError(f"encoder= is ready: {', '.join(passed)} belong to load_encoder(...), which makes it")


def load_reranker(model: str | os.PathLike[str] | None = None, **options: Unpack[RerankerOptions]) -> Reranker:
    """Return a reranker for a model, on this machine or at a host.

    Nothing is loaded and nothing is sent before the first call. The host of the environment's ``BGE_PROVIDER`` and
    ``BGE_BASE_URL`` is one of embeddings, and is never asked.

    Args:
        model: a name of the catalogue in any spelling, or a local folder; ``BAAI/bge-reranker-v2-m3`` when None.
        **options: see ``RerankerOptions``.

    Raises:
        ConfigError: an unknown model, host or option, or a host that does not serve the model.

    Example:
        >>> from bge_integrations import load_reranker
        >>> load_reranker("bge-reranker-base", provider="cloudflare")  # doctest: +SKIP
    """
    hide_secrets(cast("dict[str, Any]", options))
    check_options(options, RERANKER_OPTIONS)
    typed = _typed(model or options.get("model_name"))
    card = find_reranker(typed or DEFAULT_RERANKER)
    where = _rerank_host(options)
    if where is None:
        if card.hosts_only:
            raise NotServedError(f"{card.id!r} is not computed here: it is {card.hosts_only}; pass base_url= of one")
        return _remembering(_local_reranker(card, options), options)
    return _remembering(_remote_reranker(card, *where, options), options)


def _remembering(reranker: Reranker, options: RerankerOptions) -> Reranker:
    cache = options.get("cache")
    if cache is None:
        cache = variable("BGE_CACHE")
    if cache is None or cache is False:
        return reranker
    from .wrappers.cache import CachedReranker

    return CachedReranker(reranker, cache_path() if cache is True else cache)


def _rerank_host(options: RerankerOptions) -> tuple[RerankHost | None, str] | None:
    """Return the record of the host, None to ask it which server it is, and its root; None for this machine."""
    name, url, dialect = options.get("provider"), options.get("base_url"), options.get("dialect")
    if dialect is not None and dialect not in DIALECTS:
        raise ConfigError(f"no dialect {dialect!r}: {', '.join(DIALECTS)}")
    if name == "local" or (not name and not url):
        if dialect is not None:
            raise ConfigError(f"dialect={dialect!r} is how a host is spoken to: pass its base_url=")
        return None
    found = find_rerank_host(name) if name else None
    if not url:
        url = _own_url(found)
    root = _root(url)
    if found is None:
        known = (host for host in RERANK_HOSTS if host.base_url and "{" not in host.base_url)
        found = next((host for host in known if urlsplit(host.base_url).hostname == urlsplit(root).hostname), None)
    if dialect is not None:
        found = DIALECTS[dialect] if found is None else replace(found, dialect=DIALECTS[dialect].dialect)
    return found, root


def _root(url: str) -> str:
    """Return a server's root: without the endpoint, and without the version that stands before it."""
    address, _, query = _plain_url(url).partition("?")
    for ending in ("/rerank", "/score"):
        address = address.removesuffix(ending)
    for version in ("/v1", "/v2"):
        address = address.removesuffix(version)
    return f"{address}?{query}" if query else address


def _remote_reranker(card: RerankerCard, host: RerankHost | None, url: str, options: RerankerOptions) -> Reranker:
    from .remote.endpoint import Limits
    from .remote.reranker import RemoteReranker

    _check_reranks(host, card, options)
    named = host if host is not None and host.base_url else None
    provider = named or Provider(name=urlsplit(url).netloc, max_inputs=host.max_inputs if host else None)
    wire = options.get("wire_model") or _wire_model(provider, card, card.id)
    limiter = options.get("rate_limiter")
    own_header = host is not None and host.dialect == "pinecone"
    return RemoteReranker(
        card,
        _rerank_endpoint(provider, url, wire, options, own_header=own_header),
        host=host,
        limits=Limits(**_present(options, *_LIMITS)),
        rate_limiter=limiter and PortableLimiter(limiter),
        verify=options.get("verify") is not None,
        variant=_score_variant(host, card, options),
        **_present(options, "blank", "truncate", "tokenizer"),
    )


def _score_variant(host: RerankHost | None, card: RerankerCard, options: RerankerOptions) -> str:
    """Name what sets a host's scores apart from the model's own, so that a cache keeps them apart."""
    wire = options.get("wire_model")
    named = wire if wire and not options.get("verify") and known_reranker(wire) != known_reranker(card.id) else ""
    chunks = "chunks" if host is not None and host.cuts_into_chunks else ""
    return "/".join(filter(None, [f"wire:{named}" if named else "", chunks]))


def _rerank_endpoint(
    provider: Provider, url: str, wire: str, options: RerankerOptions, *, own_header: bool
) -> Endpoint:
    from .remote.endpoint import Endpoint

    key = _key(provider, url, cast("Options", options))
    headers: Mapping[str, str] = options.get("headers") or {}
    if own_header:
        # https://docs.pinecone.io/reference/api/authentication: no bearer token
        headers = HiddenValues(
            {"X-Pinecone-API-Version": "2025-04"} | ({"Api-Key": key.value} if key.value else {}) | dict(headers)
        )
    way: dict[str, Any] = {"headers": headers} if headers else {}
    allow = options.get("allow_http")
    if switched_on("BGE_ALLOW_HTTP") if allow is None else allow:
        way["allow_http"] = True
    if key.changes:
        way["key_changes"] = True
    return Endpoint(provider=provider, base_url=url, wire_model=wire, key=key, **way)


def _check_reranks(host: RerankHost | None, card: RerankerCard, options: RerankerOptions) -> None:
    if host is None or not host.offers or host.offer(card.id) is not None or options.get("wire_model"):
        return
    others = who_reranks(card.id)
    raise NotServedError(
        f"{host.name} does not serve {card.id!r} (it serves {', '.join(o.model for o in host.offers)}); served by: "
        f"{', '.join(others) or 'no host in the catalogue: run a server, or compute it here'}"
    )


def _local_reranker(card: RerankerCard, options: RerankerOptions) -> Reranker:
    from .local.reranker import LocalReranker

    return LocalReranker(
        card, **_present(options, "blank", "truncate", "device", "backend", "precision", "trust_remote_code")
    )


def check_reranker(reranker: Reranker, model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
    """Refuse what a ready reranker would have to ignore.

    Raises:
        ConfigError: ``model`` is another one's name, or an option is passed.
    """
    if model and os.fspath(model) not in (reranker.card.id, reranker.card.folder):
        raise ConfigError(f"reranker= is of {reranker.card.id!r}, not {os.fspath(model)!r}: pass one of the two")
    passed = sorted(name for name, value in options.items() if value is not None)
    if passed:
        raise ConfigError(f"reranker= is ready: {', '.join(passed)} belong to load_reranker(...), which makes it")


def engine_of(encoder: Encoder) -> Encoder:
    """Return the engine under the wrappers; new code reads ``encoder.engine``."""
    return encoder.engine
