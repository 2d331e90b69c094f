"""The seam: an encoder turns texts and a role into batches, and a batch carries its own facts.

Engines, the cache, the first-use check and the progress bar are encoders; each writes one method, ``batches``. What
users call (``encode``, ``aencode``, ``submit``) is derived here, once, from the batches of a call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any, Protocol, Self

from ..catalog.records import ModelCard, OutputName, Role
from ..errors import ConfigError, TruncationWarning, shorten, warn
from .batches import Batch, OnBatch, OnTruncated, Relay, Stream
from .checks import Blank, Truncate, check_role, check_texts
from .collector import Collector, waited_for
from .outputs import Dense, Output, Rows, Vectors
from .token_outputs import NAMES, Outputs, SparseVector, check_output_names, output_of
from .tokenizer import TextTokenizer
from .usage import Usage

__all__ = [
    "Batch",
    "Blank",
    "Encoder",
    "HoldsEncoder",
    "OnBatch",
    "Outputs",
    "Relay",
    "Role",
    "Stream",
    "Truncate",
    "Usage",
    "Vectors",
    "held_encoder",
    "stream",
]


class Encoder(ABC):
    """Turns texts and a role into unit vectors.

    Subclasses set ``card`` and ``usage`` and implement ``batches``.

    Attributes:
        card: the model.
        usage: counters of the work done so far; shared by an engine and the wrappers around it.
        query_instruction: ``None`` for the model's own, ``""`` for none, other text as it is.
        blank: ``"error"`` refuses blank texts, ``"keep"`` embeds them.
        truncate: ``"warn"`` truncates over-long texts and warns, ``"error"`` refuses them.
        variant: what distinguishes the vectors from the model's own, such as ``"int8"``.
        remote: whether texts go to a host.
        base_url: the host's address, or None.
        price: USD per million tokens, if the provider states it.
        max_concurrency: requests in flight; 1 on this machine.
    """

    card: ModelCard
    usage: Usage
    query_instruction: str | None = None
    blank: Blank = "error"
    truncate: Truncate = "warn"
    variant: str = ""
    remote: bool = False
    base_url: str | None = None
    price: float | None = None
    max_concurrency: int = 1

    @abstractmethod
    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to embed checked texts (at least one) and return at once; batches go into ``stream``.

        Raises:
            BGEError: nothing was begun; the stream has not been touched.
        """

    @property
    def engine(self) -> Encoder:
        """The encoder that computes locally or calls a host, under all wrappers."""
        return self

    @property
    def output(self) -> Output:
        """The output of which ``encode`` returns one row per text."""
        return Dense(self.card.dimensions)

    @property
    def outputs(self) -> tuple[OutputName, ...]:
        """The available outputs: ``"dense"``, and with bge-m3's heads ``"sparse"`` and ``"multivector"``."""
        return self.card.outputs

    @property
    def key(self) -> str | None:
        """The host's key, or None."""
        return None

    @property
    def space(self) -> str:
        """Name of the vector space: vectors with the same name are comparable."""
        return self.card.space(self.query_instruction, self.variant)

    @property
    def document_space(self) -> str:
        """Name of the space of document vectors, which no query instruction changes."""
        return self.card.document_space(self.variant)

    def stamp(self, *, sparse: bool = False) -> dict[str, Any]:
        """Return what a store has to record about its vectors, as plain data.

        Args:
            sparse: whether it holds sparse vectors as well.
        """
        from importlib.metadata import version  # not at the top: a first vector does not need it

        card = self.card
        chosen = card.query_instruction if self.query_instruction is None else self.query_instruction
        heads = {"sparse_space": card.output_space("sparse", self.variant), "vocabulary": card.vocabulary}
        return {
            **(heads if sparse else {}),
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
        """Return exactly what the model reads for each text.

        Raises:
            ConfigError: the model has no default query instruction and none was passed.
        """
        if role == "document":
            return list(texts)
        head, tail = self.card.around_query(self.query_instruction)
        return [head + text + tail for text in texts]

    def tokenizer(self) -> TextTokenizer:
        """Return the model's tokenizer.

        Raises:
            ConfigError: it is not on this machine.
        """
        raise ConfigError(
            f"no tokenizer of {self.card.id!r} on this machine: pass tokenizer= with a tokenizer.json, or "
            f"tokenizers.Tokenizer.from_pretrained({self.card.id!r})"
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has for this model, special tokens included, before truncation.

        Raises:
            ConfigError: the model's tokenizer is not on this machine.
            ModelLoadError: the files of a local model cannot be found or fetched.
        """
        return self.tokenizer().count(texts)

    def submit(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        on_batch: OnBatch | None = None,
        on_truncated: OnTruncated | None = None,
    ) -> Future[Vectors]:
        """Begin to embed ``texts`` and return a Future of their vectors.

        Args:
            texts: the texts, without any instruction.
            role: ``"query"`` or ``"document"``.
            on_batch: called with indices and vectors as each part is finished.
            on_truncated: called once with the positions of texts longer than the model reads, instead of a warning.

        Raises:
            InputTypeError: something is not a text; nothing was begun.
            InputError: a text is blank and ``blank="error"``.
        """
        return self._begin(texts, role, on_batch, on_truncated or self._warn_truncated).future

    def submit_rows(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        output: Output,
        on_batch: OnBatch | None = None,
        on_truncated: OnTruncated | None = None,
    ) -> Future[Rows]:
        """Begin to embed ``texts`` and return a Future of the rows of an output; otherwise as ``submit``."""
        return self._begin(texts, role, on_batch, on_truncated or self._warn_truncated, output).future

    def _begin(
        self,
        texts: Sequence[str],
        role: Role,
        on_batch: OnBatch | None,
        on_truncated: OnTruncated | None = None,
        output: Output | None = None,
    ) -> Collector:
        check_role(role)
        checked = check_texts(texts, blank=self.blank)
        call = Collector(self, len(checked), on_batch, on_truncated, output)
        # Without texts no model is loaded and no host is asked.
        if checked:
            self.batches(checked, role, call)
        else:
            call.finish()
        return call

    def encode(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Vectors:
        """Embed texts and wait for the vectors.

        Args:
            texts: the texts, without any instruction.
            role: ``"query"`` or ``"document"``; a query is prefixed with the model's instruction.
            on_batch: called with indices and vectors as each part is finished.

        Returns:
            float32, shape (n, dimensions), rows of length 1, in the order of ``texts``.

        Raises:
            InputError: a text cannot be embedded.
            HostError: the host failed; the error says what was finished.
            BGEError: called from ``on_batch`` of the same encoder, or while the interpreter ends.
        """
        return self._rows(texts, role, on_batch, self.output)

    async def aencode(self, texts: Sequence[str], *, role: Role, on_batch: OnBatch | None = None) -> Vectors:
        """Embed texts without blocking the caller's event loop; otherwise as ``encode``.

        Raises:
            InputError: a text cannot be embedded.
            HostError: the host failed; the error says what was finished.
            ConfigError: the running event loop is not asyncio's.
        """
        return await self._arows(texts, role, on_batch, self.output)

    def encode_outputs(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        outputs: Sequence[OutputName] = NAMES,
        on_batch: OnBatch | None = None,
    ) -> Outputs:
        """Embed texts into several outputs from one forward pass, and wait for them.

        Args:
            texts: the texts, without any instruction.
            role: ``"query"`` or ``"document"``.
            outputs: some of ``"dense"``, ``"sparse"`` and ``"multivector"``.
            on_batch: called with indices and rows, a structured array with a field of each output (the array of
                vectors itself where only ``"dense"`` is asked for), as each part is finished.

        Returns:
            ``Outputs``, in the order of ``texts``; outputs that were not requested are None.

        Raises:
            ConfigError: the model, or this host, does not have one of the outputs.
            InputError: a text cannot be embedded.
            HostError: the host failed; the error says what was finished.
        """
        output = self.output_for(outputs)
        return Outputs.of(output, self._rows(texts, role, on_batch, output))

    async def aencode_outputs(
        self,
        texts: Sequence[str],
        *,
        role: Role,
        outputs: Sequence[OutputName] = NAMES,
        on_batch: OnBatch | None = None,
    ) -> Outputs:
        """Embed texts without blocking the caller's event loop; otherwise as ``encode_outputs``."""
        output = self.output_for(outputs)
        return Outputs.of(output, await self._arows(texts, role, on_batch, output))

    def _rows(self, texts: Sequence[str], role: Role, on_batch: OnBatch | None, output: Output) -> Rows:
        begin = partial(self._begin, texts, role, on_batch, output=output)
        with waited_for(self, begin, role, texts) as call:
            rows = call.future.result()
        if call.truncated:
            self._warn_truncated(call.truncated)
        return rows

    async def _arows(self, texts: Sequence[str], role: Role, on_batch: OnBatch | None, output: Output) -> Rows:
        import asyncio  # not at the top: callers without an event loop do not need it

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError("aencode needs asyncio's event loop: under trio, run encode in a thread") from None
        begin = partial(self._begin, texts, role, on_batch, output=output)
        with waited_for(self, begin, role, texts) as call:
            rows = await asyncio.wrap_future(call.future)
        if call.truncated:
            self._warn_truncated(call.truncated)
        return rows

    def output_for(self, names: Sequence[str]) -> Output:
        """Return the output of these names.

        Raises:
            ConfigError: none, no such output, or one that is not given here.
        """
        missing = [name for name in check_output_names(names) if name not in self.outputs]
        if missing:
            raise ConfigError(f"{self.card.id!r} has no {missing[0]} output here: {self.why_not(missing[0])}")
        return output_of(self.card, names)

    def why_not(self, name: str) -> str:
        """Return why an output is not available, and who serves it."""
        if name in self.card.outputs:
            return "its host returns only other outputs"
        return f"it has only {' and '.join(self.card.outputs)}; BAAI/bge-m3 has {', '.join(NAMES)}"

    def words(self, sparse: SparseVector) -> list[tuple[str, float]]:
        """Return a sparse vector as readable tokens with their weights, largest first.

        Raises:
            ConfigError: the model's tokenizer is not on this machine.
            InputError: a key is not a token id of the model.
        """
        tokenizer = self.tokenizer()
        largest_first = sorted(sparse.items(), key=lambda entry: -entry[1])
        return [(tokenizer.token(number), weight) for number, weight in largest_first]

    def _warn_truncated(self, positions: Sequence[int]) -> None:
        warn(
            f"{len(positions)} text(s) are longer than the {self.card.max_tokens} tokens that {self.card.id!r} "
            f"reads (positions {shorten(sorted(positions))}): the rest was truncated; split them to keep it",
            TruncationWarning,
        )

    def close(self) -> None:  # noqa: B027 - having nothing to close is the common case
        """Release threads, connections and models; a later call creates them again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HoldsEncoder(Protocol):
    """An adapter of a framework."""

    @property
    def encoder(self) -> Encoder:
        """The encoder that does the work."""
        ...


def held_encoder(holder: Encoder | HoldsEncoder) -> Encoder:
    """Return the encoder itself, or the one that an adapter holds."""
    return holder if isinstance(holder, Encoder) else holder.encoder


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
