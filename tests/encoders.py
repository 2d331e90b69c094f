"""A small real encoder for tests: its vectors depend on every byte that a model would read."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np

from bge_integrations.catalog.records import ModelCard, Role
from bge_integrations.core.checks import refuse_truncation
from bge_integrations.core.encoder import Batch, Blank, Encoder, Stream, Usage, Vectors
from bge_integrations.core.outputs import Output, Rows
from bge_integrations.core.token_outputs import Several, SparseVector

CARD = ModelCard(
    id="test/hash",
    dimensions=16,
    max_tokens=512,
    query_instruction="Represent this sentence for searching relevant passages: ",
    revision="0123456789abcdef",
)


def hash_vectors(formatted: Sequence[str], dimensions: int) -> Vectors:
    """Return a unit vector for each text, decided by its bytes alone."""
    raw = b"".join(hashlib.shake_256(text.encode()).digest(4 * dimensions) for text in formatted)
    numbers = np.frombuffer(raw, np.uint32).reshape(len(formatted), dimensions).astype(np.float32) / 2**31 - 1
    return (numbers / np.linalg.norm(numbers, axis=1, keepdims=True)).astype(np.float32)


class HashEncoder(Encoder):
    """Vectors by hash, in batches, on threads of its own, and a record of all that it was sent.

    Args:
        card: the model; 16 dimensions unless said otherwise.
        batch: texts per batch, that is per call of ``on_batch``.
        delay: seconds that each batch takes.
        before_batch: called with the batch's indices and texts before it is finished; what it raises ends the call.
        max_words: texts of more words are cut and reported, as an engine does with tokens.

    Attributes:
        calls: the texts of each call, in the order in which calls began.
        sent: all texts that were begun, one by one.
        threads: calls that are worked on at a time.
    """

    threads = 64

    def __init__(
        self,
        card: ModelCard = CARD,
        *,
        batch: int = 32,
        delay: float = 0.0,
        query_instruction: str | None = None,
        blank: Blank = "error",
        variant: str = "",
        truncate: Any = "warn",
        max_words: int | None = None,
        before_batch: Callable[[Sequence[int], list[str]], None] | None = None,
    ) -> None:
        self.card, self.batch, self.delay = card, batch, delay
        self.query_instruction, self.blank, self.variant, self.truncate = query_instruction, blank, variant, truncate
        self.max_words, self.before_batch = max_words, before_batch
        self.usage = Usage()
        self.calls: list[list[str]] = []
        self.closed = 0
        self._reset()

    def _reset(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=self.threads, thread_name_prefix="hash-encoder")

    @property
    def sent(self) -> list[str]:
        return [text for call in self.calls for text in call]

    def expected(self, texts: Sequence[str], role: Role) -> Vectors:
        """Return what ``encode`` must return."""
        return hash_vectors(self.format(texts, role), self.card.dimensions)

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self.calls.append(list(texts))
        long = self._too_long(texts)
        if self.truncate == "error":
            refuse_truncation(long, model=self.card.id, max_tokens=self.max_words)
        self._pool.submit(self._run, texts, role, stream, set(long))

    def _too_long(self, texts: list[str]) -> list[int]:
        return [i for i, text in enumerate(texts) if self.max_words and len(text.split()) > self.max_words]

    def _run(self, texts: list[str], role: Role, stream: Stream, long: set[int]) -> None:
        try:
            self.work(texts, role, stream, long)
        except BaseException as error:  # noqa: BLE001 - as an engine does
            stream.fail(error)
        else:
            stream.finish()

    def work(self, texts: list[str], role: Role, stream: Stream, long: set[int]) -> None:
        for first in range(0, len(texts), self.batch):
            if stream.cancelled:
                return
            rows = list(range(first, min(first + self.batch, len(texts))))
            if self.delay:
                time.sleep(self.delay)
            part = [texts[i] for i in rows]
            if self.before_batch:
                self.before_batch(rows, part)
            self.usage.add(requests=1)
            tokens = sum(len(text.split()) for text in part)
            answer = self.rows(part, role, stream.output)
            stream.put(Batch(rows, answer, tokens, [i for i in rows if i in long]))

    def rows(self, texts: list[str], role: Role, output: Output) -> Rows:
        return self.vectors(texts, role)

    def vectors(self, texts: list[str], role: Role) -> Vectors:
        return hash_vectors(self.format(texts, role), self.card.dimensions)

    def close(self) -> None:
        self.closed += 1
        self._pool.shutdown(wait=False)
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_pool", "_lock", "_pid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class WordsEncoder(HashEncoder):
    """Sparse vectors as well: an id per word, and as its weight how often it is there."""

    def __init__(self, card: ModelCard = CARD, **options: Any) -> None:
        super().__init__(replace(card, outputs=("dense", "sparse"), vocabulary=5000), **options)

    def rows(self, texts: list[str], role: Role, output: Output) -> Rows:
        vectors = self.vectors(texts, role)
        if not isinstance(output, Several):
            return vectors
        return output.check({"dense": vectors, "sparse": [self.sparse(text) for text in texts]}, len(texts))

    @staticmethod
    def sparse(text: str) -> SparseVector:
        counts = Counter(crc32(word.encode()) % 5000 for word in text.split())
        return {token: float(count) for token, count in counts.items()}
