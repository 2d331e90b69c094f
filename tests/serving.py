"""An encoder to serve in tests: vectors by hash, on one thread, and it can be slow, stuck or wrong."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import numpy as np

from bge_integrations.catalog import find_model
from bge_integrations.server import serve
from encoders import HashEncoder, WordsEncoder, hash_vectors

CARD = replace(find_model("bge-small-en-v1.5"), dimensions=32, max_tokens=16)


def vector_of(text: str, role: str = "document", card=CARD) -> np.ndarray:
    return hash_vectors([card.format(text, role)], card.dimensions)[0]


class ServedEncoder(HashEncoder):
    """Works on one thread, waits at ``gate`` where one is set, and calls ``spoil`` on each result.

    Attributes:
        seen: the texts that it has read, with their instruction.
    """

    threads = 1

    def __init__(self, gate: threading.Event | None = None, spoil=None, delay: float = 0.0, card=CARD) -> None:
        super().__init__(card, batch=10**6, delay=delay)
        self.gate, self.spoil = gate, spoil
        self.seen: list[str] = []

    def work(self, texts, role, stream, long):
        if not stream.cancelled:
            super().work(texts, role, stream, long)

    def vectors(self, texts, role):
        if self.gate is not None:
            self.gate.wait(30)
        self.seen += self.format(texts, role)
        vectors = super().vectors(texts, role)
        return self.spoil(vectors) if self.spoil else vectors

    def count_tokens(self, texts):
        return [len(text.split()) + 2 for text in texts]


class EveryOutput(ServedEncoder):
    """Has bge-m3's three outputs: a weight and a vector for each word."""

    def __init__(self) -> None:
        super().__init__(card=replace(CARD, outputs=("dense", "sparse", "multivector"), vocabulary=5000))

    def rows(self, texts, role, output):
        vectors = self.vectors(texts, role)
        if output.name != "several":
            return vectors
        words = [np.stack([vector] * len(text.split())) for vector, text in zip(vectors, texts, strict=True)]
        columns = {"dense": vectors, "sparse": [*map(WordsEncoder.sparse, texts)], "multivector": words}
        return output.check(columns, len(texts))


class Failing(ServedEncoder):
    """Raises what it is made with."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def vectors(self, texts, role):
        raise self.error


def main(arguments: list[str]) -> None:
    host, workers, delay = arguments
    serve(ServedEncoder(delay=float(delay)), host=host, port=0, workers=int(workers))


if __name__ == "__main__":
    main(sys.argv[1:])
