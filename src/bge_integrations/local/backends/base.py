"""The seam between the worker and what computes: tokens in, raw vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...core.tokenizer import Tokens


class Backend(Protocol):
    """What computes vectors; used by one thread only.

    Attributes:
        budget: tokens per batch at which it is fastest.
        padded: whether the texts of a batch are padded to the longest.
    """

    budget: int
    padded: bool

    def tokenize(self, texts: list[str]) -> Tokens:
        """Return the tokens of each text, cut to what the model reads."""
        ...

    def forward(self, items: Sequence[Any]) -> NDArray[np.float32]:
        """Return pooled vectors of any length, shape (n, dimensions), of items that stand longest first."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return precision, device and threads as plain data."""
        ...
