"""What every encoder around another encoder shares: it is the inner one in all that decides the vectors."""

from __future__ import annotations

from typing import Any

from ..catalog.records import ModelCard
from ..core.encoder import Blank, FutureEncoder, Usage

__all__ = ["WrappedEncoder"]


class _Inner:
    """An attribute that is read from ``inner`` each time, since engines learn some of theirs late."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        return self if wrapper is None else getattr(wrapper.inner, self.name)


def _of_inner() -> Any:
    return _Inner()


class WrappedEncoder(FutureEncoder):
    """An encoder around ``inner``; subclasses implement ``start``.

    ``usage`` is the inner encoder's own object, so that nothing is counted twice.
    """

    card: ModelCard = _of_inner()
    query_instruction: str | None = _of_inner()
    blank: Blank = _of_inner()
    variant: str = _of_inner()
    usage: Usage = _of_inner()

    def __init__(self, inner: FutureEncoder) -> None:
        self.inner = inner

    @property
    def space(self) -> str:
        """Name of the vector space: same string, comparable vectors."""
        return self.inner.space

    @property
    def document_space(self) -> str:
        """Name of the space of document vectors, which no query instruction changes."""
        return self.inner.document_space

    def stamp(self) -> dict[str, Any]:
        """Return what a store must remember about its vectors, as plain data."""
        return self.inner.stamp()

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works, as plain data without secrets."""
        return self.inner.describe()

    def close(self) -> None:
        """Close the inner encoder."""
        self.inner.close()
