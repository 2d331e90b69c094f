"""The seam: what an encoder is.

An encoder turns texts and a role into unit vectors. Engines, the cache and the progress bar all are encoders; the faces
for LangChain and LlamaIndex hold one.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np

from ..catalog.records import ModelCard, Role
from .checks import Blank, Truncate, Vectors, check_role, check_texts, check_vectors, on_cut, report_cut
from .tracing import span
from .usage import Usage

OnBatch: TypeAlias = Callable[[Sequence[int], Vectors], None]
"""Called with the caller's indices and their vectors as each part is finished, from the encoder's own thread."""

__all__ = [
    "Blank",
    "Encoder",
    "FutureEncoder",
    "OnBatch",
    "Role",
    "Truncate",
    "Usage",
    "Vectors",
    "check_role",
    "check_texts",
    "check_vectors",
    "on_cut",
    "report_cut",
    "stream",
]


@runtime_checkable
class Encoder(Protocol):
    """Anything that turns texts and a role into unit vectors."""

    @property
    def card(self) -> ModelCard:
        """The model."""
        ...

    @property
    def space(self) -> str:
        """Name of the vector space: same string, comparable vectors."""
        ...

    def encode(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Vectors:
        """Embed texts and wait for the vectors."""
        ...

    async def aencode(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Vectors:
        """Embed texts without blocking the caller's event loop."""
        ...

    def close(self) -> None:
        """Release threads, connections and models."""
        ...


class FutureEncoder(ABC):
    """An encoder whose work is a Future: ``encode`` waits for it, ``aencode`` awaits it.

    Subclasses set ``card``, ``usage``, ``query_instruction``, ``blank`` and ``variant`` and implement ``start``.
    """

    card: ModelCard
    query_instruction: str | None = None
    blank: Blank = "error"
    variant: str = ""
    usage: Usage

    @property
    def space(self) -> str:
        """Name of the vector space: same string, comparable vectors."""
        return self.card.space(self.query_instruction, self.variant)

    @property
    def document_space(self) -> str:
        """Name of the space of document vectors, which no query instruction changes."""
        return self.card.document_space(self.variant)

    def stamp(self) -> dict[str, Any]:
        """Return what a store must remember about its vectors, as plain data."""
        from importlib.metadata import version

        card = self.card
        chosen = card.query_instruction if self.query_instruction is None else self.query_instruction
        return {
            "space": self.space,
            "model": card.id,
            "revision": card.revision,
            "dimensions": card.dimensions,
            "pooling": card.pooling,
            "variant": self.variant,
            "query_instruction": chosen,
            "package_version": version("bge-integrations"),
        }

    def describe(self) -> dict[str, Any]:
        """Return how the encoder works (engine, backend, device, host), as plain data without secrets."""
        return {"engine": type(self).__name__, "model": self.card.id, "space": self.space}

    def format(self, texts: Sequence[str], role: Role) -> list[str]:
        """Return what the model is to read for each text.

        Raises:
            ConfigError: the model has no default query instruction and none was given.
        """
        return [self.card.format(text, role, self.query_instruction) for text in texts]

    @abstractmethod
    def start(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Future[Vectors]:
        """Begin to embed checked texts (at least one) and return at once."""

    def submit(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Future[Vectors]:
        """Begin to embed ``texts`` and return a Future of their vectors.

        Raises:
            InputTypeError: something is not a text; nothing was begun.
            InputError: a text is blank and ``blank="error"``.
        """
        check_role(role)
        checked = check_texts(texts, blank=self.blank)
        if not checked:
            empty: Future[Vectors] = Future()
            empty.set_result(np.empty((0, self.card.dimensions), np.float32))
            return empty
        return self.start(checked, role, on_batch)

    def encode(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Vectors:
        """Embed texts and wait for the vectors.

        Args:
            texts: the texts, without any instruction.
            role: ``"query"`` or ``"document"``; a query gets the model's instruction in front.
            on_batch: called with indices and vectors as each part is finished.

        Returns:
            float32, shape (n, dimensions), rows of length 1, in the order of ``texts``.

        Raises:
            InputError: a text cannot be embedded.
            HostError: the host failed; says what was finished.
        """
        with self._observed(texts, role):
            future = self.submit(texts, role=role, on_batch=on_batch)
            try:
                return future.result()
            except BaseException:
                future.cancel()
                raise

    async def aencode(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Vectors:
        """Embed texts without blocking the caller's event loop; otherwise as ``encode``.

        Raises:
            InputError: a text cannot be embedded.
            HostError: the host failed; says what was finished.
        """
        with self._observed(texts, role):
            return await asyncio.wrap_future(self.submit(texts, role=role, on_batch=on_batch))

    @contextmanager
    def _observed(self, texts: Sequence[str], role: Role) -> Iterator[None]:
        # The outermost encoder alone passes here (wrappers begin the inner one), so that nothing counts twice.
        began = time.perf_counter()
        try:
            with span(self, role, len(texts) if isinstance(texts, Sized) else None):
                yield
        finally:
            self.usage.add(seconds=time.perf_counter() - began)

    def close(self) -> None:  # noqa: B027 - having nothing to close is the common case
        """Release threads, connections and models; a later call makes them anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream(encoder: Encoder, texts: Iterable[str], *, role: Role, size: int = 8192) -> Iterator[Vectors]:
    """Embed any number of texts in bounded memory, ``size`` at a time, in order.

    Yields:
        Vectors of each slice.

    Raises:
        BGEError: as ``Encoder.encode``; positions count within the slice.
    """
    iterator = iter(texts)
    while part := list(islice(iterator, size)):
        yield encoder.encode(part, role=role)
