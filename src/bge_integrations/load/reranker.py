"""Compose a reranker from names and options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack, cast
from urllib.parse import urlsplit

from ..catalog import find_model
from ..catalog.records import Provider, RerankerCard
from ..catalog.rerank_hosts import DIALECTS, RERANK_HOSTS, RerankHost, find_rerank_host, who_reranks
from ..catalog.rerankers import find_reranker, known_reranker
from ..errors import ConfigError, NotServedError
from ..keys import HiddenValues, hide_secrets
from ..options import RERANKER_OPTIONS, Options, RerankerOptions, check_options
from .encoder import load_encoder
from .host import (
    LIMITS,
    cache_of,
    check_ready,
    endpoint_of,
    host_key,
    own_url,
    plain_url,
    present,
    typed_model,
    wire_name,
)

if TYPE_CHECKING:
    from ..core.reranker import Reranker
    from ..remote.endpoint import Endpoint

__all__ = ["check_reranker", "load_reranker"]

DEFAULT_RERANKER = "bge-reranker-v2-m3"


def load_reranker(model: str | os.PathLike[str] | None = None, **options: Unpack[RerankerOptions]) -> Reranker:
    """Return a reranker for a model, local or remote.

    Nothing is loaded and nothing is sent before the first call. ``BGE_PROVIDER`` and ``BGE_BASE_URL`` name a host of
    embeddings, so they are not read here.

    Args:
        model: a name in the catalogue in any spelling, or a local folder; ``BAAI/bge-reranker-v2-m3`` when None.
        **options: see ``RerankerOptions``.

    Raises:
        ConfigError: an unknown model, host or option, or a host that does not serve the model.

    Example:
        >>> from bge_integrations import load_reranker
        >>> load_reranker("bge-reranker-base", provider="cloudflare")  # doctest: +SKIP
    """
    hide_secrets(cast("dict[str, Any]", options))
    check_options(options, RERANKER_OPTIONS)
    typed = typed_model(model, options.get("model_name"))
    weights = options.get("weights")
    # "demo" is both: a reranker, unless weights are given.
    named = typed is not None and known_reranker(os.fspath(typed)) is not None
    if typed is not None and (weights is not None or not named) and _gives_multivectors(typed):
        return _remembering(_multivector_reranker(typed, options), options)
    if weights is not None:
        raise ConfigError("weights= are for bge-m3's three scores: load_reranker('bge-m3', weights=...)")
    card = find_reranker(typed or DEFAULT_RERANKER)
    where = _rerank_host(options)
    if where is None:
        if card.hosts_only:
            raise NotServedError(f"{card.id!r} cannot run locally: it is {card.hosts_only}; pass base_url=")
        return _remembering(_local_reranker(card, options), options)
    return _remembering(_remote_reranker(card, *where, options), options)


def _gives_multivectors(typed: str | os.PathLike[str]) -> bool:
    try:
        return "multivector" in find_model(typed).outputs
    except ConfigError:
        return False


def _multivector_reranker(typed: str | os.PathLike[str], options: RerankerOptions) -> Reranker:
    from ..wrappers.multivector import MultivectorReranker

    own = {name: value for name, value in options.items() if name not in ("weights", "cache", "model_name")}
    encoder = load_encoder(typed, **cast("Options", {**own, "cache": False, "show_progress": False}))
    return MultivectorReranker(encoder, weights=options.get("weights"))


def _remembering(reranker: Reranker, options: RerankerOptions) -> Reranker:
    cache = cache_of(options)
    if cache is None:
        return reranker
    from ..wrappers.cache import CachedReranker

    return CachedReranker(reranker, cache)


def _rerank_host(options: RerankerOptions) -> tuple[RerankHost | None, str] | None:
    """Return the record of the host, None to ask it which server it is, and its root; None for this machine."""
    name, url, dialect = options.get("provider"), options.get("base_url"), options.get("dialect")
    if dialect is not None and dialect not in DIALECTS:
        raise ConfigError(f"no dialect {dialect!r}; choose one of {', '.join(DIALECTS)}")
    if name == "local" or (not name and not url):
        if dialect is not None:
            raise ConfigError(f"dialect={dialect!r} is the API of a server: pass its base_url=")
        return None
    found = find_rerank_host(name) if name else None
    if not url:
        url = own_url(found)
    root = _root(url)
    if found is None:
        known = (host for host in RERANK_HOSTS if host.base_url and "{" not in host.base_url)
        found = next((host for host in known if urlsplit(host.base_url).hostname == urlsplit(root).hostname), None)
    if dialect is not None:
        found = DIALECTS[dialect] if found is None else replace(found, dialect=DIALECTS[dialect].dialect)
    return found, root


def _root(url: str) -> str:
    """Return a server's root: without the endpoint, and without the version that stands before it."""
    address, _, query = plain_url(url).partition("?")
    for ending in ("/rerank", "/score"):
        address = address.removesuffix(ending)
    for version in ("/v1", "/v2"):
        address = address.removesuffix(version)
    return f"{address}?{query}" if query else address


def _remote_reranker(card: RerankerCard, host: RerankHost | None, url: str, options: RerankerOptions) -> Reranker:
    from ..remote.endpoint import HostLimits
    from ..remote.reranker import RemoteReranker

    _check_reranks(host, card, options)
    named = host if host is not None and host.base_url else None
    provider = named or Provider(name=urlsplit(url).netloc, max_inputs=host.max_inputs if host else None)
    wire = options.get("wire_model") or wire_name(provider, card, card.id)
    own_header = host is not None and host.dialect == "pinecone"
    return RemoteReranker(
        card,
        _rerank_endpoint(provider, url, wire, options, own_header=own_header),
        host=host,
        limits=HostLimits(**present(options, *LIMITS)),
        rate_limiter=options.get("rate_limiter"),
        verify=options.get("verify") is not None,
        variant=_score_variant(host, card, options),
        **present(options, "blank", "truncate", "tokenizer"),
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
    key = host_key(provider, url, options)
    headers: Mapping[str, str] = options.get("headers") or {}
    if own_header:
        # https://docs.pinecone.io/reference/api/authentication: no bearer token
        headers = HiddenValues(
            {"X-Pinecone-API-Version": "2025-04"} | ({"Api-Key": key.value} if key.value else {}) | dict(headers)
        )
    return endpoint_of(provider, url, wire, key, headers, options)


def _check_reranks(host: RerankHost | None, card: RerankerCard, options: RerankerOptions) -> None:
    if host is None or not host.offers or host.offer(card.id) is not None or options.get("wire_model"):
        return
    others = who_reranks(card.id)
    raise NotServedError(
        f"{host.name} does not serve {card.id!r} (it serves {', '.join(o.model for o in host.offers)}); served by: "
        f"{', '.join(others) or 'no provider in the catalogue: run a server, or compute it here'}"
    )


def _local_reranker(card: RerankerCard, options: RerankerOptions) -> Reranker:
    from ..local.reranker import LocalReranker

    return LocalReranker(
        card, **present(options, "blank", "truncate", "device", "devices", "backend", "precision", "trust_remote_code")
    )


def check_reranker(reranker: Reranker, model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
    """Refuse what a ready reranker would have to ignore.

    Raises:
        ConfigError: ``model`` is another one's name, or an option is passed.
    """
    check_ready("reranker", reranker.card, model, options)
