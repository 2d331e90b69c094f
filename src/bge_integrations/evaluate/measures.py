"""Measures by ir-measures, and how sure they are: bootstrap intervals, paired permutation tests, Holm's correction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..extras import require

__all__ = ["Values", "check_measures", "holm", "interval", "measure", "p_value"]

Values = NDArray[np.float64]
"""Shape (questions,): a measure of each question."""

_RESAMPLES = 9999
_BLOCK = 2_000_000  # numbers that are resampled at a time, 16 MB


def _ir_measures() -> Any:
    return require("ir_measures", extra="eval", purpose="an evaluation")


def check_measures(names: Sequence[str], top: int | None = None) -> list[str]:
    """Return measures as ir-measures spells them.

    Args:
        names: such as ``"nDCG@10"``.
        top: passages that are kept for each question; any number when None.

    Raises:
        ConfigError: none, one that ir-measures does not know or cannot compute, or one that wants more than ``top``.
        MissingExtraError: the extra ``eval`` is not installed.
    """
    ir_measures = _ir_measures()
    if not names:
        raise ConfigError("no measures: name some, such as nDCG@10")
    parsed = [_parsed(ir_measures, name) for name in names]
    for one in parsed:
        if top is not None and one.params.get("cutoff", 0) > top:
            raise ConfigError(f"{one} needs more passages than the {top} that are kept: raise top (--top)")
    spelled = [str(one) for one in parsed]
    for name in spelled:  # some want a parameter, or a program that is not here: not said after hours of work
        measure([name], {"1": {"1": 1}}, [["1"]])
    return spelled


def _parsed(ir_measures: Any, name: str) -> Any:
    try:
        return ir_measures.parse_measure(name)
    except (NameError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"ir-measures does not know the measure {name!r}: {error}; examples: nDCG@10, R@100"
        ) from None


def measure(names: Sequence[str], qrels: Mapping[str, Mapping[str, int]], found: Sequence[Sequence[str]]) -> Any:
    """Return the measures of each question.

    Args:
        names: as ``check_measures`` returns them.
        qrels: grades of passages for each question.
        found: for each question of ``qrels``, in their order, ids of passages, best first.

    Returns:
        ``Values`` by name, in the order of ``qrels``.

    Raises:
        ConfigError: a measure that needs what is not there.
    """
    ir_measures = _ir_measures()
    # trec_eval orders by score and breaks ties by id: a score for each rank keeps the order of the search.
    run = {
        query: {passage: float(len(passages) - rank) for rank, passage in enumerate(passages)}
        for query, passages in zip(qrels, found, strict=True)
    }
    row = {query: i for i, query in enumerate(qrels)}
    values = {name: np.zeros(len(row)) for name in names}
    parsed = {_parsed(ir_measures, name): name for name in names}
    try:
        for metric in ir_measures.iter_calc(list(parsed), qrels, run):
            values[parsed[metric.measure]][row[metric.query_id]] = metric.value
    except Exception as error:  # its providers run programs, and assert
        raise ConfigError(f"ir-measures cannot compute {', '.join(names)}: {error}") from error
    return values


def interval(values: Values, seed: int) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by the percentile bootstrap over questions; None for fewer than two."""
    count = len(values)
    if count < 2:
        return None
    random = np.random.default_rng(seed)
    means = [values[random.integers(0, count, (rows, count))].mean(1) for rows in _blocks(count)]
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5)).tolist()
    return low, high


def p_value(values: Values, baseline: Values, seed: int) -> float | None:
    """Return how often so large a difference of means comes by chance alone; None for fewer than two questions.

    Two-sided paired permutation test: were both the same, each question's difference would have either sign. All ways
    are counted for up to 13 questions, 9,999 random ones for more.
    """
    differences = values - baseline
    count = len(differences)
    if count < 2:
        return None
    least = abs(differences.sum()) - 1e-9  # sums of other order differ in their last digits
    if 2**count <= _RESAMPLES:
        signs = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((abs((2 * signs - 1) @ differences) >= least).mean())
    random = np.random.default_rng(seed)
    as_large = sum(
        int((abs((2.0 * random.integers(0, 2, (rows, count)) - 1) @ differences) >= least).sum())
        for rows in _blocks(count)
    )
    return (as_large + 1) / (_RESAMPLES + 1)


def _blocks(count: int) -> Iterator[int]:
    """Yield how many resamples of so many numbers are made at a time."""
    size = max(1, _BLOCK // count)
    for first in range(0, _RESAMPLES, size):
        yield min(size, _RESAMPLES - first)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values that are adjusted for their number (Holm 1979), so that each may be compared with 0.05."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted, least = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        adjusted[i] = least = max(least, min(1.0, p * (len(known) - rank)))
    return adjusted
