"""Published scores of the rerankers: queries, passages and logits, each with its source."""

from __future__ import annotations

from typing import NamedTuple

from .records import ModelCard
from .rerankers import known_reranker

__all__ = ["KnownScores", "published_scores"]


class KnownScores(NamedTuple):
    """Passages of one query whose logits are known."""

    query: str
    passages: tuple[str, ...]
    logits: tuple[float, ...]


_PANDA = "what is panda?"
_GIANT = (
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a bear species "
    "endemic to China."
)
_TIGER = (
    "The tiger (Panthera tigris) is a member of the genus Panthera and the largest living cat species native to Asia."
)
_CAPITAL = "What is the capital of France?"
_PARIS = "Paris is the capital of France."
_PEOPLE = "The population of China is over 1.4 billion people."

_PUBLISHED: dict[str, tuple[KnownScores, ...]] = {
    "BAAI/bge-reranker-base": (
        # qdrant/fastembed tests/test_text_cross_encoder.py (float32)
        KnownScores(_CAPITAL, (_PARIS, "Berlin is the capital of Germany."), (6.15733337, -3.65939403)),
    ),
    "BAAI/bge-reranker-large": (
        # FlagEmbedding examples/inference/reranker/README.md (float16)
        KnownScores(_PANDA, (_GIANT, "hi"), (5.76171875, -5.60546875)),
        KnownScores("query", ("passage",), (-1.5263671875,)),
        # FlagEmbedding Tutorials/5_Reranking/5.1_Intro.ipynb (float32)
        KnownScores(
            _PANDA,
            ("Today is a sunny day", _TIGER, _GIANT),
            (-9.474676132202148, -2.823843240737915, 5.76226806640625),
        ),
    ),
    "BAAI/bge-reranker-v2-m3": (
        # FlagEmbedding examples/inference/reranker/README.md (float16)
        KnownScores(_PANDA, (_GIANT, "hi"), (5.26171875, -8.1875)),
        KnownScores("query", ("passage",), (-5.65234375,)),
    ),
    "BAAI/bge-reranker-v2-gemma": (
        # FlagEmbedding examples/inference/reranker/decoder_only/base_single_device.py (float16)
        KnownScores(_CAPITAL, (_PARIS, _PEOPLE), (9.171875, -4.49609375)),
        KnownScores("What is the population of China?", (_PARIS, _PEOPLE), (-5.5234375, 10.2109375)),
        # FlagEmbedding Tutorials/5_Reranking/5.2_BGE_Reranker.ipynb (float16)
        KnownScores("query", ("passage",), (1.974609375,)),
    ),
}


def published_scores(card: ModelCard) -> tuple[KnownScores, ...]:
    """Return what is published of a model's logits; nothing for a folder of other weights.

    The first entry has a passage that answers its query and one that does not, which is enough to tell a scale.
    """
    known = known_reranker(card.id)
    return _PUBLISHED.get(card.id, ()) if known is not None and known.revision == card.revision else ()
