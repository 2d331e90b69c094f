"""The seam: what an encoder is, and the checks of texts going in and vectors coming out.

An encoder turns texts and a role into unit vectors. Engines, the cache and the progress bar all are encoders; the faces
for LangChain and LlamaIndex hold one.
"""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Literal, Protocol, Self, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .cards import ModelCard, Role
from .errors import BadAnswerError, ConfigError, InputError, InputTypeError, RepairWarning, TruncationWarning
from .telemetry import add_tokens, span

Vectors: TypeAlias = NDArray[np.float32]
"""float32, shape (n, dimensions), rows of length 1, in the order of the texts."""

OnBatch: TypeAlias = Callable[[Sequence[int], Vectors], None]
"""Called with the caller's indices and their vectors as each part is finished, from the encoder's own thread."""

Blank = Literal["error", "keep"]
Truncate = Literal["warn", "error"]

on_cut: ContextVar[Callable[[Sequence[int]], Sequence[int]] | None] = ContextVar("bge_on_cut", default=None)
"""Set by a wrapper that sends on a part of its texts: takes positions in the part, returns those to report."""

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


@dataclass
class Usage:
    """What an encoder has done so far.

    Attributes:
        texts: texts embedded; those found in a cache count in ``cache_hits`` instead.
        tokens: tokens as the host or the tokenizer counted them; 0 where nobody did.
        requests: requests sent to a host, retries included.
        retries: requests that were sent again.
        cache_hits: vectors that came out of a cache.
        seconds: time in which at least one call waited, summed over calls.
        usd: price of the tokens where the host states one, else None.
    """

    texts: int = 0
    tokens: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    seconds: float = 0.0
    usd: float | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Add to the counters; safe from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, (getattr(self, name) or 0) + amount)
        if "tokens" in amounts:
            add_tokens(amounts["tokens"])

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


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


def check_role(role: Role) -> None:
    """Refuse anything but the two roles.

    Raises:
        ConfigError: ``role`` is neither ``"query"`` nor ``"document"``.
    """
    if role not in ("query", "document"):
        raise ConfigError(f"role must be 'query' or 'document', not {role!r}")


def check_texts(texts: Sequence[str], *, blank: Blank = "error") -> list[str]:
    """Return the texts as a list that can be sent, or say which one cannot.

    A lone surrogate, which no encoding can carry, becomes U+FFFD with one warning. Nothing else is changed.

    Raises:
        InputTypeError: a bare string where a list belongs, or an item that is not a string.
        InputError: a blank text where ``blank="error"``.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InputTypeError(f"texts must be a list of strings, not {type(texts).__name__}")
    checked = list(texts)
    wrong = [i for i, text in enumerate(checked) if not isinstance(text, str)]
    if wrong:
        kind = type(checked[wrong[0]]).__name__
        raise InputTypeError(f"text {wrong[0]} is {kind}, not a string{_others(wrong)}", positions=wrong)
    if blank == "error":
        empty = [i for i, text in enumerate(checked) if not text.strip()]
        if empty:
            raise InputError(
                f"text {empty[0]} is blank{_others(empty)}: leave it out, or pass blank='keep'", positions=empty
            )
    return _without_surrogates(checked)


def _others(positions: Sequence[int]) -> str:
    return f" (and {len(positions) - 1} more)" if len(positions) > 1 else ""


def _without_surrogates(texts: list[str]) -> list[str]:
    broken = [i for i, text in enumerate(texts) if not text.isascii() and not _encodable(text)]
    for i in broken:
        texts[i] = texts[i].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if broken:
        warnings.warn(
            f"text {broken[0]} holds a lone surrogate{_others(broken)}: replaced with U+FFFD",
            RepairWarning,
            stacklevel=4,
        )
    return texts


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_vectors(rows: object, *, count: int, dimensions: int) -> Vectors:
    """Return rows as unit vectors, or say what is wrong with them.

    Raises:
        BadAnswerError: wrong count or dimension, not finite, or zero; ``positions`` are those of the rows concerned,
            or all where the rows cannot be told apart.
    """
    everything = range(count)
    try:
        array = np.asarray(rows)
    except ValueError:
        array = np.empty((0,), object)
    if isinstance(rows, Sized) and len(rows) != count:
        raise BadAnswerError(f"{len(rows)} vectors came back for {count} texts", positions=everything)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        wrong = _odd_rows(rows, dimensions)
        raise BadAnswerError(f"the answer's rows are not {dimensions} numbers each", positions=wrong or everything)
    if array.shape[1] != dimensions:
        raise BadAnswerError(
            f"vectors of {array.shape[1]} dimensions came back, the model has {dimensions}", positions=everything
        )
    with np.errstate(over="ignore"):
        vectors = array.astype(np.float32, copy=False)
        norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0)).tolist()
    if bad:
        raise BadAnswerError(f"vector {bad[0]} is not finite or is zero{_others(bad)}", positions=bad)
    return cast("Vectors", vectors / norms[:, None])


def _odd_rows(rows: object, dimensions: int) -> list[int]:
    def odd(row: object) -> bool:
        if not isinstance(row, Sequence) or len(row) != dimensions:
            return True
        return any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in row)

    return [i for i, row in enumerate(rows) if odd(row)] if isinstance(rows, Sequence) else []


def report_cut(positions: Sequence[int], *, model: str, max_tokens: int, truncate: Truncate) -> None:
    """Say once that texts are longer than the model reads.

    Raises:
        InputError: ``truncate="error"``.
    """
    if not positions:
        return
    listener = on_cut.get()
    if listener and truncate == "warn":  # an error is put right by the wrapper as all others are
        positions = listener(positions)
    shown = ", ".join(map(str, positions[:10])) + (", …" if len(positions) > 10 else "")
    message = (
        f"{len(positions)} text(s) are longer than the {max_tokens} tokens that {model!r} reads (positions {shown})"
    )
    if truncate == "error":
        raise InputError(f"{message}: split them, or pass truncate='warn' to cut them", positions=positions)
    warnings.warn(f"{message}: what is beyond was cut; split them to keep it", TruncationWarning, stacklevel=2)


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
