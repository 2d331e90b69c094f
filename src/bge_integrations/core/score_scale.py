"""Scales of scores, and what two published pairs say of a host's: on which they stand, or what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import RerankerCard
from ..catalog.rerank_hosts import Scale
from ..catalog.score_values import published_scores
from ..errors import ConfigError

__all__ = [
    "SCALES", "ScaleJudgement", "check_scale", "judge_pairs", "judge_scores", "logits_of", "order_by_logit", "sigmoid",
]  # fmt: skip

SCALES: tuple[Scale, ...] = ("logit", "sigmoid")
SAME = 0.05  # float16 stays within 0.02 of float32 on the published pairs
COARSER = 0.6  # an 8-bit copy
SATURATED = 745.0  # float64's smallest number above 0 is exp(-744.4)
"""What 0.0 and 1.0 become, which have no logit: they tie, and nothing that has one lies beyond."""

Numbers = NDArray[np.float64]


def check_scale(scale: Scale) -> None:
    """Refuse anything but the two scales.

    Raises:
        ConfigError: ``scale`` is neither ``"sigmoid"`` nor ``"logit"``.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale must be 'sigmoid' or 'logit', not {scale!r}")


def sigmoid(logits: NDArray[Any]) -> Numbers:
    """Return 1 / (1 + exp(-x)), computed without overflow."""
    wide = logits.astype(np.float64)
    # Only of numbers up to 0, where exp cannot overflow.
    small = np.exp(-np.abs(wide))
    return np.where(wide >= 0, 1 / (1 + small), small / (1 + small))


def order_by_logit(logits: NDArray[Any]) -> list[int]:
    """Return positions, best first; equal logits stay in their order."""
    order: list[int] = np.argsort(-logits, kind="stable").tolist()
    return order


def logits_of(scores: Numbers, scale: Scale) -> Numbers:
    """Return logits of checked scores; for sigmoids, which must lie between 0 and 1, the inverse."""
    if scale == "logit":
        return scores
    with np.errstate(divide="ignore"):
        logits: Numbers = np.clip(np.log(scores) - np.log1p(-scores), -SATURATED, SATURATED)
    return logits


@dataclass(frozen=True)
class ScaleJudgement:
    """What the scores of two published pairs are.

    Attributes:
        scale: on which they stand; None where they are not this model's.
        cause: in a few words; "" where all is well.
        off: largest difference to the published logits on that scale.
    """

    scale: Scale | None
    cause: str = ""
    off: float = 0.0


def judge_scores(card: RerankerCard, scores: Sequence[float]) -> ScaleJudgement | None:
    """Judge a host's scores of a model's two published pairs, or return None where none are published."""
    published = published_scores(card)
    return judge_pairs(published[0].logits, scores) if published else None


def judge_pairs(logits: Sequence[float], scores: Sequence[float]) -> ScaleJudgement:
    """Judge a host's scores of passages of one query whose logits are known."""
    found, wanted = np.array(scores, np.float64), np.array(logits)
    within = bool(((found >= 0) & (found <= 1)).all())
    seen: dict[Scale, Numbers] = {"logit": found}
    if within:
        seen["sigmoid"] = logits_of(found, "sigmoid")
    off = {scale: float(np.abs(numbers - wanted).max()) for scale, numbers in seen.items()}
    best = min(off, key=lambda scale: off[scale])
    if off[best] <= SAME or (within and _is_half_precision(found, wanted, seen["sigmoid"])):
        return ScaleJudgement("sigmoid" if within and off[best] > SAME else best, off=off[best])
    cause = _cause(found, wanted, within)
    if cause:
        return ScaleJudgement(None, cause, off[best])
    if off[best] <= COARSER:
        return ScaleJudgement(best, f"a copy at lower precision: off by up to {off[best]:.2f} in the logit", off[best])
    return ScaleJudgement(None, "not this model's scores", off[best])


def _is_half_precision(found: Numbers, wanted: Numbers, logits: Numbers) -> bool:
    """Tell sigmoids that were rounded to bfloat16, which keeps few digits near 1 and all that are needed near 0."""
    near_one = (wanted > 0) & (np.abs(found - sigmoid(wanted)) <= 0.004)  # bfloat16's step below 1 is 2 ** -8
    return bool((near_one | (np.abs(logits - wanted) <= SAME)).all())


def _cause(found: Numbers, wanted: Numbers, within: bool) -> str:
    if within and np.abs(found - sigmoid(sigmoid(wanted))).max() <= 0.01:
        return "the sigmoid is applied twice by the host"
    softmax = np.exp(wanted - wanted.max())
    if within and abs(found.sum() - 1) < 1e-3 and np.abs(found - softmax / softmax.sum()).max() <= 0.01:
        return "a softmax over the list: scores of one request depend on its other passages"
    if len(found) == 1:
        return ""
    if np.abs(found[::-1] - wanted).max() <= SAME or (within and np.abs(found[::-1] - sigmoid(wanted)).max() <= 0.01):
        return "the right scores for the wrong passages: the host's positions are not those of the request"
    if within and found.min() > 0.15 and found.max() < 0.99:
        return "cosines of an embedding model, not a reranker's scores"
    return ""
