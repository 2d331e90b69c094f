"""Compose an encoder from names and options."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast
from urllib.parse import urlsplit

from ..catalog import check_served, find_model, find_provider, known_model, near_matches, provider_at, who_serves
from ..catalog.records import ModelCard, Provider
from ..catalog.rerankers import known_reranker
from ..environment import cache_folder, variable
from ..errors import ConfigError, InstructionWarning, ModelLoadError, NotServedError, UnknownModelError, warn
from ..keys import hide_in_url, hide_secrets
from ..options import Options, check_options
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
    from ..core.encoder import Encoder
    from ..wrappers.memo import MemoEncoder

__all__ = ["check_encoder", "load_encoder", "load_m3"]

DEFAULT_MODEL = "bge-small-en-v1.5"
_LOG = logging.getLogger("bge_integrations")


def load_encoder(model: str | os.PathLike[str] | None = None, **options: Unpack[Options]) -> Encoder:
    """Return an encoder for a model, local or remote.

    Nothing is loaded and nothing is sent before the first call. What is not passed is read from ``BGE_MODEL``,
    ``BGE_PROVIDER``, ``BGE_BASE_URL``, ``BGE_API_KEY``, ``BGE_CACHE`` and ``BGE_ALLOW_HTTP``; a folder never goes to a
    host that only the environment names.

    Args:
        model: a name in the catalogue in any spelling, a local folder, or ``owner/name`` of the hub, such as a
            fine-tune; ``BAAI/bge-small-en-v1.5`` when None. A path (``/``, ``./``, ``~``, a ``PathLike``) is always a
            folder, and so is a name that is a model's folder here. Of a model of the hub that is not in the catalogue
            the configuration files are fetched now, unless they are here; its space is its own, by commit.
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
    typed = typed_model(model, options.get("model_name"), variable("BGE_MODEL"))
    if isinstance(typed, str) and typed.strip().lower().startswith("local:"):
        options["provider"] = options.get("provider") or "local"
    card = _card(typed, options)
    where = _where(card, options)
    name = None if typed is None else os.fspath(typed).strip()
    engine = _local(card, options) if where is None else _remote(card, name, *where, options)
    return _wrapped(engine, where and where[1], options)


def load_m3(model: str | os.PathLike[str] | None = None, **options: Unpack[Options]) -> MemoEncoder:
    """Return an encoder of dense, sparse and multivector output that computes all those in use from one pass.

    Args:
        model: ``BAAI/bge-m3`` when None.
        **options: see ``Options``.

    Raises:
        ConfigError: as ``load_encoder``; or a model or a host that gives one dense vector alone.
    """
    from ..wrappers.memo import MemoEncoder

    encoder = load_encoder(typed_model(model, options.get("model_name"), "bge-m3"), **options)
    encoder.output_for(["sparse"])
    return MemoEncoder(encoder)


def _card(typed: str | os.PathLike[str] | None, options: Options) -> ModelCard:
    elsewhere = options.get("base_url") or options.get("provider") not in (None, "local")
    card = (
        _of_the_hub(typed, options) if _is_of_the_hub(typed) and not elsewhere else find_model(typed or DEFAULT_MODEL)
    )
    if options.get("revision") is not None and (elsewhere or not _is_of_the_hub(typed)):
        raise ConfigError(
            f"revision= is for a model on the hub that is not in the catalogue; {card.id!r} is pinned to "
            f"{card.revision or 'its newest'}: download the other revision and pass its folder"
        )
    if elsewhere and card.folder is not None and isinstance(typed, str):
        # The call names a host, so that a name is the host's before it is a folder of the same name here.
        card = known_model(typed) or card
    accept = options.get("accept_space")
    if accept:
        return _with_instruction(replace(card, pooling=accept, pooling_stated=True), options)
    if not card.pooling_stated:
        warn(
            f"{card.id!r}: its folder does not state its pooling, so the mean of all tokens is used, as "
            "sentence-transformers does; accept_space='cls' (or 'mean', 'last token') overrides it"
        )
    return _with_instruction(card, options)


def _is_of_the_hub(typed: str | os.PathLike[str] | None) -> bool:
    """Tell whether this is ``owner/name`` of the hub: not in the catalogue, and no folder here."""
    if not isinstance(typed, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", typed.strip()):
        return False
    return known_model(typed) is None and known_reranker(typed) is None and not Path(typed).exists()


def _of_the_hub(typed: str | os.PathLike[str] | None, options: Options) -> ModelCard:
    """Return the card of a model of the hub, read from its configuration files; these are fetched if need be."""
    from ..local.files import fetch_facts

    try:
        folder = fetch_facts(os.fspath(typed or "").strip(), options.get("revision"))
    except ModelLoadError as error:
        raise UnknownModelError(f"no model {typed!r} in the catalogue{near_matches(str(typed))}; {error}") from error
    card = replace(find_model(folder), folder=None)
    _LOG.info("%s: dimensions, length and pooling were read from its files at %s", card.id, card.revision)
    return card


def _with_instruction(card: ModelCard, options: Options) -> ModelCard:
    if card.instruction_needed == "unknown" and options.get("query_instruction") is None:
        warn(
            f"{card.id!r} is not in the catalogue: queries get no instruction; pass query_instruction= "
            "('' for none) to say what it was trained with",
            InstructionWarning,
        )
    return card


def _where(card: ModelCard, options: Options) -> tuple[Provider, str] | None:
    name, url, dialect = options.get("provider"), options.get("base_url"), options.get("dialect")
    if name is None and url is None and card.folder is None:
        name, url = variable("BGE_PROVIDER"), hide_in_url(variable("BGE_BASE_URL") or "")
    if name == "local" or (not name and not url):
        if dialect is not None:
            raise ConfigError(f"dialect={dialect!r} is the API of a server: pass its base_url=")
        return None
    provider = find_provider(name) if name else None
    url = plain_url(url or own_url(provider))
    provider = provider or provider_at(url) or Provider(name=urlsplit(url).netloc or url, output_dialect=None)
    return provider if dialect is None else _speaking(provider, dialect, card), url


def _speaking(provider: Provider, dialect: str, card: ModelCard) -> Provider:
    from ..remote.protocols import OUTPUT_PROTOCOLS

    if dialect not in OUTPUT_PROTOCOLS:
        raise ConfigError(
            f"no dialect {dialect!r} for sparse and multivector output; choose one of {', '.join(OUTPUT_PROTOCOLS)}"
        )
    if len(card.outputs) == 1:
        raise ConfigError(
            f"dialect= says how to request sparse and multivector output, which {card.id!r} does not have: leave it out"
        )
    return replace(provider, output_dialect=dialect)


def _check_provider(provider: Provider, url: str, card: ModelCard, options: Options) -> None:
    openai = urlsplit(url).hostname == "api.openai.com"
    if provider.refused and (openai or url == provider.base_url):
        raise NotServedError(f"{provider.refused}; {card.id!r} is served by: {', '.join(who_serves(card.id))}")
    if not (options.get("wire_model") and not provider.needs_key):
        check_served(provider, card, allow_withdrawn=options.get("allow_withdrawn") or False)
    if provider.pooling and provider.pooling != card.pooling:
        raise NotServedError(
            f"{provider.name} uses {provider.pooling} pooling, but {card.id!r} needs {card.pooling}: its "
            "vectors have the right dimensions, but lie in another space. Served in the model's own "
            f"space by: {', '.join(who_serves(card.id))}; accept_space={provider.pooling!r} accepts these "
            "vectors, in a space of their own"
        )


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
    from ..catalog.golden import read_golden

    return bool(read_golden().of(card))


def _remote(card: ModelCard, typed: str | None, provider: Provider, url: str, options: Options) -> Encoder:
    # Here, as every engine and wrapper in this module: `import bge_integrations` imports neither numpy nor them.
    from ..remote.engine import HostLimits, RemoteEngine

    _check_provider(provider, url, card, options)
    wire = options.get("wire_model") or wire_name(provider, card, typed)
    headers = options.get("headers") or {}
    endpoint = endpoint_of(provider, url, wire, host_key(provider, url, options), headers, options)
    return RemoteEngine(
        card,
        endpoint,
        limits=HostLimits(**present(options, *LIMITS)),
        rate_limiter=options.get("rate_limiter"),
        variant=_variant(provider, card, options),
        **present(options, *_COMMON, "tokenizer"),
    )


def _local(card: ModelCard, options: Options) -> Encoder:
    from ..local.engine import LocalEngine

    return LocalEngine(
        card, **present(options, *_COMMON, "device", "devices", "backend", "precision", "trust_remote_code")
    )


_COMMON = ("query_instruction", "blank", "truncate")


def _wrapped(encoder: Encoder, host: str | None, options: Options) -> Encoder:
    if options.get("verify") and host:
        from ..wrappers.verified import VerifiedEncoder

        encoder = VerifiedEncoder(encoder, host=host, memory=cache_folder() / "verified.json")
    cache = cache_of(options)
    if cache is not None:
        from ..wrappers.cache import CachedEncoder

        encoder = CachedEncoder(encoder, cache)
    show = options.get("show_progress")
    if show is not False:
        from ..wrappers.progress import ProgressEncoder

        encoder = ProgressEncoder(encoder, show)
    return encoder


def check_encoder(encoder: Encoder, model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> None:
    """Refuse what a ready encoder would have to ignore.

    Raises:
        ConfigError: ``model`` is another one's name, or an option is passed.
    """
    check_ready("encoder", encoder.card, model, options)
