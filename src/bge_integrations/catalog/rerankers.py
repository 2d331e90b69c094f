"""The BGE rerankers: one record each."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from ..demo import RERANKER_FOLDER
from ..environment import expand_user
from ..errors import UnknownModelError
from .local_folder import is_model_folder, no_reranker, read_reranker_folder
from .records import RerankerCard
from .rerank_hosts import RERANK_HOSTS

__all__ = [
    "RERANKERS",
    "find_reranker",
    "is_reranker",
    "known_reranker",
]

_CHECKED = "2026-11-25"
_SOURCE = "FlagEmbedding README and examples; revisions: Xinference rerank/model_spec.json"
_BASE = "BAAI/bge-reranker-base"
_LARGE = "BAAI/bge-reranker-large"
_V2_M3 = "BAAI/bge-reranker-v2-m3"
_V2_GEMMA = "BAAI/bge-reranker-v2-gemma"
_DEMO = "demo-reranker"

RERANKERS: tuple[RerankerCard, ...] = (
    RerankerCard(
        id=_BASE,
        dimensions=768,
        max_tokens=512,
        query_instruction="",
        instruction_needed="none",
        languages=("zh", "en"),
        licence="mit",
        revision="465b4b7ddf2be0a020c8ad6e525b9bb1dbb708ae",
        parameters_millions=278,
        source=_SOURCE,
        checked=_CHECKED,
    ),
    RerankerCard(
        id=_LARGE,
        dimensions=1024,
        max_tokens=512,
        query_instruction="",
        instruction_needed="none",
        languages=("zh", "en"),
        licence="mit",
        revision="27c9168d479987529781de8474dff94d69beca11",
        parameters_millions=560,
        source=_SOURCE,
        checked=_CHECKED,
    ),
    RerankerCard(
        id=_V2_M3,
        dimensions=1024,
        max_tokens=8192,
        recommended_tokens=1024,
        query_instruction="",
        instruction_needed="none",
        languages=("multilingual",),
        licence="apache-2.0",
        revision="12e974610ba9083ed95f3edf08d7e899581f4de4",
        parameters_millions=568,
        note="Reads 8,192 tokens; was trained with 1,024, which its authors recommend.",
        source=_SOURCE,
        checked=_CHECKED,
    ),
    RerankerCard(
        id=_V2_GEMMA,
        dimensions=2048,
        max_tokens=8192,
        recommended_tokens=1024,
        query_instruction="",
        instruction_needed="none",
        pooling="last token",
        languages=("multilingual",),
        revision="1787044f8b6fb740a9de4557c3a12377f84d9e17",
        parameters_millions=2510,
        query_template="A: {text}\n",
        passage_template=(
            "B: {text}\nGiven a query A and a passage B, determine whether the passage contains an answer to the query "
            "by providing a prediction of either 'Yes' or 'No'."
        ),
        hosts_only="a decoder of 2.5 billion parameters that answers 'Yes': it needs a GPU and a server such as vLLM",
        note="The score is the logit of 'Yes'. vLLM serves it with --hf-overrides; the template is added here.",
        source=f"{_SOURCE}; template: vLLM's test of the model",
        checked=_CHECKED,
    ),
    RerankerCard(
        id=_DEMO,
        dimensions=96,
        max_tokens=512,
        query_instruction="",
        instruction_needed="none",
        languages=("en",),
        licence="mit",
        revision="66b4e20ce94518b1",
        parameters_millions=1.05,
        aliases=("demo",),
        folder=str(RERANKER_FOLDER),
        note="bundled, for demos and tests; not a BGE model",
        source="demo/reranker/README.md",
        checked=_CHECKED,
    ),
)

_REFUSED = {
    "bge-reranker-v2-minicpm-layerwise": "it runs code of its own repository, and its score depends on the layer that "
    "is read",
    "bge-reranker-v2.5-gemma2-lightweight": "it needs code from its repository, has 9 billion parameters, and its "
    "scores (8 to 26) stand on a scale of their own",
}
"""Rerankers that are not served here, and why."""


def known_reranker(name: str) -> RerankerCard | None:
    """Return the catalogue's reranker of that name in any spelling, or None; never looks for a folder."""
    plain = name.strip().lower().strip("/").removeprefix("local:").removesuffix(":latest").replace("___", ".")
    return _names().get(plain)


def is_reranker(name: str) -> bool:
    """Tell whether a name is a reranker's, or a folder holds one."""
    folder = expand_user(name) if name.startswith("~") else Path(name)
    if name.strip() and is_model_folder(folder):
        return not no_reranker(folder)
    return known_reranker(name) is not None and name.strip().lower() != "demo"  # the embedding model's name first


@lru_cache
def _names() -> dict[str, RerankerCard]:
    names = {card.id.lower(): card for card in RERANKERS}
    own = ((alias, card) for card in RERANKERS for alias in (card.id.partition("/")[2], *card.aliases) if alias)
    names |= {alias.lower(): card for alias, card in own}
    for host in RERANK_HOSTS:
        for offer in host.offers:
            names.setdefault(offer.wire.lower(), names[offer.model.lower()])
    return names


def find_reranker(name: str | os.PathLike[str]) -> RerankerCard:
    """Find a reranker by id, short name, any host's spelling (any case), or local folder.

    Raises:
        UnknownModelError: no such reranker; says what to take instead.
        ModelLoadError: a folder whose configuration cannot be read, or that holds no reranker.
    """
    typed = os.fspath(name)
    folder = expand_user(typed) if typed.startswith("~") else Path(typed)
    if typed.strip() and is_model_folder(folder):
        return read_reranker_folder(folder, _names())
    known = known_reranker(typed) if not isinstance(name, os.PathLike) else None
    if known is not None:
        return known
    for refused, reason in _REFUSED.items():
        if refused in typed.lower():
            raise UnknownModelError(f"{typed!r} is not supported: {reason}; use bge-reranker-v2-m3")
    close = get_close_matches(typed.lower(), _names(), n=4, cutoff=0.5)
    near = dict.fromkeys(_names()[match].id for match in close) or [card.id for card in RERANKERS]
    raise UnknownModelError(
        f"no reranker {typed!r} in the catalogue, and no folder of that name with a config.json; "
        f"near matches: {', '.join(near)}. For an embedding model, use load_encoder(...)"
    )
