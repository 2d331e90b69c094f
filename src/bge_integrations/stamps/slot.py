"""A slot: where one store keeps one line of text about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["KEY", "Slot"]

KEY = "bge_stamp"


class Slot(NamedTuple):
    """Where one store keeps its line.

    Attributes:
        read: returns the line, or None.
        write: replaces it.
        dimensions: returns the lengths of the vectors that the store holds or is made for; empty where unknown.
        empty: tells whether the store holds no row; False where unknown.
    """

    read: Callable[[], str | None]
    write: Callable[[str], None]
    dimensions: Callable[[], set[int]] = set
    empty: Callable[[], bool] = bool
