"""What encoders and rerankers have in common: names, addresses, keys and the endpoint that options describe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..catalog.records import ModelCard, Provider
from ..environment import cache_path, switched_on, variable
from ..errors import ConfigError
from ..keys import SECRET_NAMES, Key, hide_in_url
from ..remote.endpoint import Endpoint, split_url

__all__ = [
    "LIMITS",
    "cache_of",
    "check_ready",
    "endpoint_of",
    "host_key",
    "own_url",
    "plain_url",
    "present",
    "typed_model",
    "wire_name",
]

LIMITS = (
    "timeout",
    "read_timeout",
    "max_retries",
    "max_concurrency",
    "max_inputs",
    "requests_per_minute",
    "tokens_per_minute",
)
"""Options that bound requests and waiting."""


def present(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return those options that were passed."""
    return {name: options[name] for name in names if options.get(name) is not None}


def typed_model(*given: object) -> str | os.PathLike[str] | None:
    """Return the first model that was given, or None.

    Raises:
        ConfigError: it is neither a name nor a folder, or an empty name.
    """
    model = next((one for one in given if one is not None), None)
    if isinstance(model, str) and not model.strip():
        raise ConfigError("the model's name is empty: pass a name, or leave it out for the default")
    if (
        model is None
        or isinstance(model, str)
        or (isinstance(model, os.PathLike) and isinstance(os.fspath(model), str))
    ):
        return model
    raise ConfigError(f"model must be a name or a folder, not {type(model).__name__}")


def plain_url(url: str) -> str:
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


def own_url(provider: Provider | None) -> str:
    """Return the address of a provider for which the user passed none.

    Raises:
        ConfigError: it has none of its own, or a variable is missing that belongs into it.
    """
    assert provider is not None
    url = hide_in_url(variable(provider.base_url_env or "") or provider.base_url or variable("BGE_BASE_URL") or "")
    if not url:
        raise ConfigError(f"{provider.name} has no default address: pass base_url=, or set BGE_BASE_URL")
    for hole, name in provider.url_env:
        value = variable(name)
        if not value:
            raise ConfigError(f"{provider.name} needs {name} in the environment (its {hole}), or base_url=")
        url = url.replace(f"{{{hole}}}", value.rstrip("/"))
    return url


def wire_name(provider: Provider, card: ModelCard, typed: str | None) -> str:
    """Return what a host calls a model, in the spelling that the user typed where it is one of the host's."""
    typed = (typed or "").removeprefix("local:")
    offer = provider.offer(card.id)
    if offer is None:
        return typed or card.id
    spellings = (offer.wire, *offer.aliases)
    return next((spelling for spelling in spellings if spelling.lower() == typed.lower()), offer.wire)


def host_key(provider: Provider, url: str, options: Mapping[str, Any]) -> Key:
    """Return the key of a host: the user's, or that of the environment."""
    host = urlsplit(url).hostname or ""
    variables = provider.key_env
    if host != "huggingface.co" and not host.endswith(".huggingface.co"):
        # It opens a whole account of the hub, and anybody can put up a Space.
        variables = tuple(name for name in variables if name != "HF_TOKEN")
    return Key(options.get("api_key"), (*variables, "BGE_API_KEY"), needed=provider.needs_key, host=provider.name)


def endpoint_of(
    provider: Provider, url: str, wire: str, key: Key, headers: Mapping[str, str], options: Mapping[str, Any]
) -> Endpoint:
    """Return a host as it is used: under which name of the model, with which secrets, over plain http or not."""
    allow = options.get("allow_http")
    if allow is None:
        allow = switched_on("BGE_ALLOW_HTTP")
    return Endpoint(provider, url, wire, key, headers, allow_http=bool(allow), key_changes=key.changes)


def cache_of(options: Mapping[str, Any]) -> Any:
    """Return the cache that the options or the environment ask for, or None."""
    cache = options.get("cache")
    if cache is None:
        cache = variable("BGE_CACHE")
    if cache is None or cache is False:
        return None
    return cache_path() if cache is True else cache


def check_ready(kind: str, card: ModelCard, model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
    """Refuse what a ready encoder or reranker would have to ignore.

    Raises:
        ConfigError: ``model`` is another one's name, or an option is passed.
    """
    typed = typed_model(model)
    if typed is not None and os.fspath(typed) not in (card.id, card.folder):
        raise ConfigError(f"{kind}= holds {card.id!r}, not {os.fspath(typed)!r}: pass one of the two")
    passed = sorted(name for name, value in options.items() if value is not None)
    if passed:
        raise ConfigError(
            f"{kind}= has been created already: pass {', '.join(passed)} to load_{kind}(...), which creates it"
        )
