"""Heads: how the last hidden states of a text's tokens become its row.

Each is a small pure function; backends choose by the card's pooling. Packed states are a matrix (tokens, hidden) in
which texts stand one after another without padding, in runs of equal length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class LengthRun:
    """Texts of equal length that stand one after another.

    Attributes:
        first: position of the first text in the batch.
        start: row of its first token.
    """

    first: int
    count: int
    start: int
    length: int

    @cached_property
    def end(self) -> int:
        """Row after the last token."""
        return self.start + self.count * self.length


def find_runs(lengths: Integers, starts: Integers) -> list[LengthRun]:
    """Return the runs of texts of these lengths whose first tokens stand at these rows."""
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return [LengthRun(first, last - first, int(starts[first]), int(lengths[first])) for first, last in pairwise(edges)]


ONE_TOKEN: dict[str, Callable[[Integers, Integers], Integers]] = {
    "cls": lambda starts, lengths: starts,  # noqa: ARG005
    "last token": lambda starts, lengths: starts + lengths - 1,
}
"""Poolings that take one token's state: the rows of those tokens, from each text's first row and length."""

KNOWN = (*ONE_TOKEN, "mean")
"""The poolings that are computed here; any other is sentence-transformers' own."""


def mean_of_runs(states: Tensor, runs: Sequence[LengthRun]) -> Tensor:
    """Return the mean state of each text, float32, of packed states."""
    import torch

    # float() first: a sum over hundreds of tokens in half precision loses digits.
    means = [states[run.start : run.end].view(run.count, run.length, -1).float().mean(1) for run in runs]
    return torch.cat(means)


def pool(states: NDArray[Any], mask: NDArray[np.bool_], pooling: str) -> NDArray[np.float32]:
    """Return one state per text of padded states.

    Args:
        states: shape (texts, tokens, hidden).
        mask: where a token of the text stands, shape (texts, tokens); padding is on the right.
        pooling: one of ``KNOWN``.
    """
    if pooling == "cls":
        first: NDArray[np.float32] = states[:, 0]
        return first
    lengths = mask.sum(1)
    if pooling == "mean":
        means: NDArray[np.float32] = (states * mask[:, :, None]).sum(1) / lengths[:, None]
        return means
    rows = ONE_TOKEN[pooling](np.zeros_like(lengths), lengths)
    picked: NDArray[np.float32] = states[np.arange(len(states)), rows]
    return picked
