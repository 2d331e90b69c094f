"""Base class of encoders around an encoder: forwards card, space and usage."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from ..catalog.records import OutputName
from ..core.encoder import Encoder
from ..core.outputs import Output
from ..core.tokenizer import TextTokenizer
from ..errors import ReadOnlyError

__all__ = ["Wrapper"]


def _inner(name: str) -> Any:
    """Return a property that reads ``inner``'s attribute each time, since engines learn some of theirs late."""

    def refuse(_: Encoder, __: object) -> None:
        raise ReadOnlyError(f"{name} cannot be changed any more: create another encoder with load_encoder")

    return property(attrgetter(f"inner.{name}"), refuse)


class Wrapper(Encoder):
    """An encoder around ``inner``; subclasses implement ``batches``.

    ``usage`` is the inner encoder's own object, so that nothing is counted twice.
    """

    card = _inner("card")
    usage = _inner("usage")
    query_instruction = _inner("query_instruction")
    blank = _inner("blank")
    truncate = _inner("truncate")
    variant = _inner("variant")
    remote = _inner("remote")
    base_url = _inner("base_url")
    price = _inner("price")
    max_concurrency = _inner("max_concurrency")
    engine: Encoder = _inner("engine")
    output: Output = _inner("output")
    outputs: tuple[OutputName, ...] = _inner("outputs")
    key: str | None = _inner("key")
    space: str = _inner("space")
    document_space: str = _inner("document_space")

    def __init__(self, inner: Encoder) -> None:
        self.inner = inner

    def stamp(self, *, sparse: bool = False) -> dict[str, Any]:
        """Return what a store has to record about its vectors, as plain data."""
        return self.inner.stamp(sparse=sparse)

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works, as plain data without secrets."""
        return self.inner.describe()

    def tokenizer(self) -> TextTokenizer:
        """Return the inner encoder's tokenizer."""
        return self.inner.tokenizer()

    def why_not(self, name: str) -> str:
        """Return why the inner encoder does not give an output."""
        return self.inner.why_not(name)

    def close(self) -> None:
        """Close the inner encoder."""
        self.inner.close()
