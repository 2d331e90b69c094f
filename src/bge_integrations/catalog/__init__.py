"""The records of models and hosts, and how a name finds its record."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from ..environment import expand_user
from ..errors import NotServedError, UnknownModelError
from .local_folder import describe_contents, is_model_folder, read_folder
from .models import MODELS
from .providers import PROVIDERS
from .records import ModelCard, Provider, find_named

__all__ = [
    "MODELS",
    "PROVIDERS",
    "check_served",
    "find_model",
    "find_provider",
    "is_path",
    "known_model",
    "near_matches",
    "provider_at",
    "spellings",
    "who_serves",
]


def is_path(name: str | os.PathLike[str]) -> bool:
    """Return whether this is a path and no name: a ``PathLike``, or begun by ``/``, ``./``, ``~``, a drive."""
    if isinstance(name, os.PathLike):
        return True
    return name in (".", "..", "~") or bool(re.match(r"\.{0,2}[/\\]|~[^/\\]*[/\\]|[A-Za-z]:[/\\]", name))


def find_model(name: str | os.PathLike[str]) -> ModelCard:
    """Find a model by id, short name, any provider's spelling (in any case), or local folder.

    A path (a ``PathLike``, or what begins with ``/``, ``./``, ``~`` or a drive) is a folder and nothing else; so is a
    name that is a model's folder in the working directory. ``bge-small``, ``bge-base`` and ``bge-large`` are the newest
    English model of that size. A folder that is named like a known model and has its dimensions gets that model's
    card, with a revision of its own if it holds other weights.

    Raises:
        UnknownModelError: no such model; names near matches.
        ModelLoadError: a folder whose configuration cannot be read.
    """
    typed = os.fspath(name)
    folder = expand_user(typed) if typed.strip() and is_path(name) else Path(typed)
    if typed.strip() and is_model_folder(folder):
        return read_folder(folder, _names())
    if is_path(name):
        if not folder.is_dir():
            raise UnknownModelError(f"{typed!r} is a path, but there is no such folder: pass the model's folder")
        contents = describe_contents(folder) or "pass the model's folder"
        raise UnknownModelError(f"{typed!r} is a path, but the folder has no config.json: {contents}")
    known = known_model(typed)
    if known is not None:
        return known
    raise UnknownModelError(
        f"no model {typed!r} in the catalogue, and no folder of that name with a config.json{near_matches(typed)}. "
        f"{_remedy(typed)}"
    )


def near_matches(name: str) -> str:
    """Return what to add to an error about a name: the models that are called nearly so."""
    close = get_close_matches(_plain(name), _names(), n=4, cutoff=0.5)
    near = list(dict.fromkeys(_names()[match].id for match in close))
    return f"; near matches: {', '.join(near)}" if near else ""


def _remedy(name: str) -> str:
    if "rerank" in name.lower():
        return "For a reranker, use load_reranker(...)"
    owned = re.fullmatch(r"[\w.-]+/[\w.-]+", name.strip())
    fetch = (
        f"For a model on the hub: hf download {name.strip()} --local-dir FOLDER, and pass the folder. " if owned else ""
    )
    return f"{fetch}If it is a provider's own name for a model, pass it as wire_model="


def known_model(name: str) -> ModelCard | None:
    """Return the catalogue's model of that name, or None; never looks for a folder, so that any host's word will do."""
    return _names().get(_plain(name)) if not is_path(name) else None


def _plain(name: str) -> str:
    """Return a name as the catalogue has it: ModelScope writes ``___`` for a dot, Ollama appends ``:latest``."""
    plain = name.strip().lower().strip("/").removeprefix("local:").removesuffix(":latest")
    return plain.replace("___", ".")


def spellings(card: ModelCard) -> list[str]:
    """Return what hosts call a model, its id first."""
    wires = [offer.wire for provider in PROVIDERS if (offer := provider.offer(card.id)) is not None]
    return list(dict.fromkeys([card.id, *wires, *card.aliases]))


@lru_cache
def _names() -> dict[str, ModelCard]:
    names = {card.id.lower(): card for card in MODELS}
    own = [(alias, card) for card in MODELS for alias in (card.id.partition("/")[2], *card.aliases) if alias]
    offers = [offer for provider in PROVIDERS for offer in provider.offers]
    hosts = [(spelling, names[o.model.lower()]) for o in offers for spelling in (o.wire, *o.aliases)]
    for name, card in own + hosts:
        names.setdefault(name.lower(), card)
    return names


def find_provider(name: str) -> Provider:
    """Find a provider or a kind of server by its name, in any case.

    Raises:
        UnknownProviderError: no such provider; names near matches.
    """
    return find_named(name, PROVIDERS, "provider")


def provider_at(base_url: str) -> Provider | None:
    """Return the record of the host that a URL points to, or None where it is not a known host."""
    host = urlsplit(base_url).hostname
    # Servers that users run themselves all answer at http://localhost: that address identifies none of them.
    hosts = ((urlsplit(p.base_url), p) for p in PROVIDERS if (p.base_url or "").startswith("https://"))
    return next((p for at, p in hosts if "{" not in at.netloc and at.hostname == host), None)


def who_serves(model_id: str) -> list[str]:
    """Name the hosts that serve a model today, in the model's own vector space."""
    return [
        provider.name
        for provider in PROVIDERS
        if provider.pooling is None and (offer := provider.offer(model_id)) is not None and not offer.withdrawn
    ]


def check_served(provider: Provider, card: ModelCard, *, allow_withdrawn: bool = False) -> None:
    """Refuse a host that does not serve the model (any more).

    Raises:
        NotServedError: says why, and who serves the model now.
    """
    if not provider.offers:
        return
    offer = provider.offer(card.id)
    others = f"; served by: {', '.join(who_serves(card.id)) or 'no provider in the catalogue: run it locally'}"
    if offer is None:
        serves = ", ".join(o.model for o in provider.offers)
        raise NotServedError(f"{provider.name} does not serve {card.id!r} (it serves {serves}){others}")
    if offer.withdrawn and not allow_withdrawn:
        raise NotServedError(
            f"{provider.name} withdrew {card.id!r} on {offer.withdrawn}{others}; pass "
            "allow_withdrawn=True to call it anyway"
        )
