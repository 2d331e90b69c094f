"""Published values of the models' vectors, and what a host's vectors look like beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .output_values import OutputValues, output_values
from .records import ModelCard, Role

Verdict = Literal["same space", "same model at lower precision", "not this model"]
VERDICTS: tuple[Verdict, ...] = ("same space", "same model at lower precision", "not this model")

# float16 arithmetic stays above SAME (largest norm of the difference seen: 5e-3); 1 % of noise is 0.99995.
SAME = 0.99998
# int8 copies of BGE lie at 0.98 to 0.999; another pooling, instruction or revision lies below.
LOWER = 0.98
# A bfloat16 copy stays above this, even by the estimate from five components; an int8 copy, another space, does not.
ACCEPTED = 0.998
# What bfloat16 does to one component of a unit vector.
BFLOAT16 = 2.5e-3


@dataclass(frozen=True)
class Golden:
    """The vector that a model gives for a text, all of it or some of its components.

    Attributes:
        model: id of the model.
        text: as the model reads it; no instruction is added for ``role="document"``.
        at: component index to value, of the vector of length 1.
        role: the role in which the text is to be embedded.
        tolerance: per component, for partial vectors.
        cosine_at_least: what still counts as the same, for values of a less exact origin.
        prompt_tokens: tokens of the text, special tokens included.
        source: where the values were read.
    """

    model: str
    text: str
    at: Mapping[int, float]
    role: Role = "document"
    tolerance: float | None = None
    cosine_at_least: float | None = None
    prompt_tokens: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Similarity:
    """Published scores of queries against passages; they tell whether the query instruction is right."""

    model: str
    query_instruction: bool
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    source: str = ""


@dataclass(frozen=True)
class GoldenFile:
    """What a file of golden values holds."""

    vectors: tuple[Golden, ...] = ()
    similarities: tuple[Similarity, ...] = ()
    token_counts: Mapping[str, int] = field(default_factory=dict)
    outputs: OutputValues = field(default_factory=OutputValues)

    def of(self, card: ModelCard) -> tuple[Golden, ...]:
        """Return a model's values: the full vectors where there are any, else the partial ones."""
        own = tuple(golden for golden in self.vectors if golden.model == card.id)
        return tuple(golden for golden in own if len(golden.at) == card.dimensions) or own


@dataclass(frozen=True)
class Judgement:
    """How near a vector comes to a golden one.

    Attributes:
        verdict: one of ``VERDICTS``.
        cosine: to the golden vector; estimated from the known components where it is partial.
        deviation: largest absolute difference of a component.
    """

    verdict: Verdict
    cosine: float
    deviation: float


def read_golden(path: Path | None = None) -> GoldenFile:
    """Read golden values: the published ones that come with the package, or a file in the same format.

    Raises:
        ConfigError: the file cannot be read, or is not in that format.
    """
    return _published() if path is None else _parse(path)


@lru_cache(maxsize=1)
def _published() -> GoldenFile:
    values = _parse(Path(__file__).with_name("golden.json"))
    return replace(values, outputs=_parse(Path(__file__).with_name("golden_m3.json")).outputs)


def _parse(path: Path) -> GoldenFile:
    try:
        data = json.loads(path.read_text("utf-8"))
        outputs = output_values(data)
        return GoldenFile(
            vectors=tuple(_golden(item) for item in (data.get("vectors", ()) if outputs else data["vectors"])),
            similarities=tuple(_similarity(item) for item in data.get("similarities", ())),
            token_counts=dict(data.get("token_counts", {}).get("counts", {})),
            outputs=outputs,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{str(path)!r} is not a file of golden values ({type(error).__name__}: {error}); it needs a "
            "list 'vectors' of objects with 'model', 'text' and 'at', or 'm3_sparse' and 'm3_colbert'"
        ) from None


def _golden(item: Mapping[str, Any]) -> Golden:
    names = ("role", "tolerance", "cosine_at_least", "prompt_tokens", "source")
    known = {name: item[name] for name in names if item.get(name) is not None}
    at = {int(index): float(value) for index, value in item["at"].items()}
    if not at or item.get("role", "document") not in ("query", "document"):
        raise ValueError("a vector without components, or with a role that is neither 'query' nor 'document'")
    return Golden(model=str(item["model"]), text=str(item["text"]), at=at, **known)


def _similarity(item: Mapping[str, Any]) -> Similarity:
    return Similarity(
        model=item["model"],
        query_instruction=bool(item["query_instruction"]),
        queries=tuple(item["queries"]),
        passages=tuple(item["passages"]),
        scores=tuple(tuple(map(float, row)) for row in item["scores"]),
        source=item.get("source", ""),
    )


def judge(golden: Golden, vector: Sequence[float] | NDArray[np.float32]) -> Judgement:
    """Compare a unit vector with a golden one.

    A full vector is judged by its cosine. Of a partial one, components within ``tolerance`` are the same space and
    those within bfloat16's error lower precision; beyond, the cosine that the known components let one expect decides.

    Raises:
        ConfigError: the golden vector has components that the vector has not.
    """
    theirs = np.asarray(vector, np.float64)
    if max(golden.at) >= len(theirs):
        raise ConfigError(f"golden values of {golden.model!r} go beyond the {len(theirs)} dimensions of the vector")
    known = np.fromiter(golden.at.values(), np.float64)
    mine = theirs[list(golden.at)]
    deviation = float(np.abs(mine - known).max())
    if len(known) == len(theirs):
        cosine = float(mine @ known / (np.linalg.norm(mine) * np.linalg.norm(known)))
        return Judgement(_by_cosine(cosine, golden.cosine_at_least or SAME), cosine, deviation)
    # Two unit vectors: |a - b|^2 = 2 - 2 cos, and the known components are a sample of the differences.
    cosine = max(-1.0, 1 - len(theirs) * float(np.mean((mine - known) ** 2)) / 2)
    if deviation <= (golden.tolerance or 1e-3):
        return Judgement("same space", cosine, deviation)
    return Judgement(VERDICTS[1] if deviation <= BFLOAT16 or cosine >= LOWER else VERDICTS[2], cosine, deviation)


def _by_cosine(cosine: float, same: float) -> Verdict:
    if cosine >= same:
        return "same space"
    return "same model at lower precision" if cosine >= min(LOWER, same - 0.02) else "not this model"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of some verdicts."""
    return max(verdicts, key=VERDICTS.index)


def to_golden_json(vectors: Sequence[Golden], about: str) -> str:
    """Write golden values in the format that ``read_golden`` reads."""
    items = [
        {
            "model": golden.model,
            "text": golden.text,
            "role": golden.role,
            "at": {str(index): float(f"{value:.8g}") for index, value in golden.at.items()},
            **({"prompt_tokens": golden.prompt_tokens} if golden.prompt_tokens else {}),
            "source": golden.source,
        }
        for golden in vectors
    ]
    return json.dumps({"about": about, "vectors": items}, ensure_ascii=False, indent=1) + "\n"
