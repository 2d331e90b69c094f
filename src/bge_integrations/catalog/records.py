"""Frozen records of models and hosts, and how a model wants a text for a role.

Roles are ``"query"`` and ``"document"``. Only a query ever gets an instruction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeVar

from ..errors import ConfigError, UnknownProviderError
from ..options import Pooling

Role = Literal["query", "document"]
Protocol = Literal["openai", "space"]
OutputName = Literal["dense", "sparse", "multivector"]


@dataclass(frozen=True)
class ModelCard:
    """One embedding model.

    Attributes:
        id: the name on the hub, or the folder's name for a local model.
        dimensions: length of a vector.
        max_tokens: tokens that the model reads, special tokens included; the rest of a text is ignored.
        query_instruction: prepended to a query, byte for byte; ``""`` if the model takes none;
            ``None`` if its authors name no default task, so the user must.
        query_format: how the instruction and the query are joined.
        pooling: how token vectors become one vector: ``"cls"``, ``"mean"``, ``"last token"``, or what else
            sentence-transformers names, several joined by ``+``.
        pooling_stated: whether the authors or the model's files state it; otherwise the mean is assumed.
        revision: the commit that is loaded, or a fingerprint of a folder's weights.
        aliases: other names that users type for it.
        folder: where the weights are, for a model that is not on a hub.
        weights: SHA-256 of the published weight files, if known; a folder with other weights is another revision.
        outputs: what it gives: ``"dense"``, and with the heads of bge-m3 ``"sparse"`` and ``"multivector"``.
        vocabulary: number of token ids; 0 without sparse output.
        heads: fingerprint of a folder's heads; empty if they are the revision's published ones.
        source: where these facts were read.
        checked: the date on which they were read.
    """

    id: str
    dimensions: int
    max_tokens: int
    query_instruction: str | None
    query_format: str = "{instruction}{text}"
    pooling: str = "cls"
    instruction_needed: Literal["needed", "optional", "none", "unknown"] = "optional"
    languages: tuple[str, ...] = ()
    licence: str | None = None
    revision: str | None = None
    parameters_millions: float | None = None
    aliases: tuple[str, ...] = ()
    folder: str | None = None
    pooling_stated: bool = True
    weights: tuple[str, ...] = ()
    outputs: tuple[OutputName, ...] = ("dense",)
    vocabulary: int = 0
    heads: str = ""
    note: str = ""
    source: str = ""
    checked: str = ""

    def instruction(self, query_instruction: str | None = None) -> str:
        """Return the instruction for a query: the user's if given, else the card's.

        Args:
            query_instruction: ``None`` for the card's own, ``""`` for none, any other string as it is.

        Raises:
            ConfigError: the card names no default and the user gave none.
        """
        chosen = self.query_instruction if query_instruction is None else query_instruction
        if chosen is None:
            raise ConfigError(
                f"{self.id!r} has no default query instruction: pass query_instruction= with the task in a "
                "sentence, or query_instruction='' for none"
            )
        return chosen

    def format(self, text: str, role: Role, query_instruction: str | None = None) -> str:
        """Return exactly what the model reads for ``text`` in ``role``.

        Raises:
            ConfigError: the card names no default instruction and the user gave none.
        """
        if role == "document":
            return text
        head, tail = self.around_query(query_instruction)
        return head + text + tail

    def around_query(self, query_instruction: str | None = None) -> tuple[str, str]:
        """Return what the model is to read before and after the text of a query.

        Raises:
            ConfigError: the card names no default instruction and the user gave none.
        """
        instruction = self.instruction(query_instruction)
        if not instruction:
            return "", ""
        head, tail = self.query_format.split("{text}")
        return head.replace("{instruction}", instruction), tail

    def document_space(self, variant: str = "") -> str:
        """Name the space of document vectors, which no query instruction changes.

        Args:
            variant: what distinguishes the vectors from the model's own, such as ``"int8"`` or ``"mean"``.
        """
        revision = (self.revision or "unpinned")[:16]
        return "/".join(filter(None, [f"{self.id}@{revision}", self.pooling, str(self.dimensions), variant]))

    def output_space(self, name: OutputName, variant: str = "") -> str:
        """Name the space of one output's document vectors; sparse and multivector ones have their own."""
        if name == "dense":
            return self.document_space(variant)
        size = self.vocabulary if name == "sparse" else self.dimensions
        revision = (self.revision or "unpinned")[:16]
        return "/".join(filter(None, [f"{self.id}@{revision}", name, str(size), self.heads, variant]))

    def space(self, query_instruction: str | None = None, variant: str = "") -> str:
        """Name the vector space; vectors of the same space are comparable."""
        chosen = self.query_instruction if query_instruction is None else query_instruction
        digest = hashlib.sha256(chosen.encode("utf-8", "surrogatepass")).hexdigest()[:8] if chosen else "none"
        return f"{self.document_space(variant)}/query:{digest}"


@dataclass(frozen=True)
class RerankerCard(ModelCard):
    """One reranker: it reads query and passage together and gives one logit.

    Attributes:
        dimensions: width of its hidden states.
        max_tokens: tokens of query and passage together, special tokens included.
        recommended_tokens: tokens that its authors recommend, if it reads more.
        query_template: what is sent to a host for a query, if more than the query itself.
        passage_template: likewise for a passage.
        hosts_only: why it cannot run locally.
    """

    recommended_tokens: int | None = None
    query_template: str = "{text}"
    passage_template: str = "{text}"
    hosts_only: str = ""


@dataclass(frozen=True)
class Offer:
    """A provider's name for a model, and its terms.

    Attributes:
        model: id of the model's card.
        wire: what the provider expects as ``model``.
        withdrawn: the date since which the provider no longer serves it.
        usd_per_million_tokens: the price that the provider states.
        aliases: other spellings that the provider accepts.
        note: what is not confirmed about it.
    """

    model: str
    wire: str
    withdrawn: str | None = None
    usd_per_million_tokens: float | None = None
    aliases: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Provider:
    """One provider, or one kind of server that people run themselves.

    Attributes:
        name: what users type.
        base_url: without ``/embeddings``; ``{account_id}``-style holes are filled from ``url_env``;
            ``None`` if the user has to pass it.
        key_env: environment variables for the key; the first one that is set is used.
        base_url_env: variable that holds the base URL.
        url_env: (hole, variable) pairs of ``base_url``.
        offers: the models it serves; empty for servers that can run any model.
        max_inputs: texts per request.
        needs_key: whether a call without a key cannot work.
        base64: whether it supports ``encoding_format="base64"``; ``None`` if unknown.
        pooling: its pooling, if that differs from the model's.
        output_dialect: how bge-m3's sparse and multivector output is asked for, one of
            ``remote.protocols.OUTPUT_PROTOCOLS``; ``""`` where dense vectors alone are given, None where the server is
            asked which one it is.
        refused: the reason, for a provider that serves no BGE model.
        quirks: what to know about it.
    """

    name: str
    title: str = ""
    base_url: str | None = None
    key_env: tuple[str, ...] = ()
    base_url_env: str | None = None
    url_env: tuple[tuple[str, str], ...] = ()
    offers: tuple[Offer, ...] = ()
    max_inputs: int | None = None
    needs_key: bool = False
    protocol: Protocol = "openai"
    base64: bool | None = None
    pooling: Pooling | None = None
    output_dialect: str | None = ""
    refused: str = ""
    quirks: str = ""
    source: str = ""
    checked: str = ""

    def offer(self, model_id: str) -> Offer | None:
        """Return the provider's offer for a model, or None."""
        return next((offer for offer in self.offers if offer.model == model_id), None)


P = TypeVar("P", bound=Provider)


def find_named(name: str, providers: Sequence[P], kind: str) -> P:
    """Return the provider of that name, in any case; ``kind`` is what the error calls them.

    Raises:
        UnknownProviderError: no such provider; names near matches.
    """
    named = {provider.name: provider for provider in providers}
    found = named.get(name.lower())
    if found is None:
        near = get_close_matches(name.lower(), named, n=3, cutoff=0.4) or sorted(named)
        raise UnknownProviderError(f"no {kind} {name!r} in the catalogue; did you mean: {', '.join(near)}?")
    return found
