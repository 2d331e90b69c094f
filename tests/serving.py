"""An encoder to serve in tests: its vectors depend on the text and the role, and it can be slow, stuck or wrong."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from bge_integrations.catalog import find_model
from bge_integrations.core.encoder import Batch, Encoder, Usage
from bge_integrations.server import serve

CARD = replace(find_model("bge-small-en-v1.5"), dimensions=32, max_tokens=16)


def vector_of(text: str, role: str = "document", card=CARD) -> np.ndarray:
    seed = hashlib.sha256(card.format(text, role).encode()).digest()[:8]
    row = np.random.default_rng(int.from_bytes(seed, "big")).normal(size=card.dimensions).astype(np.float32)
    return row / np.linalg.norm(row)


class ServedEncoder(Encoder):
    """Works on one thread, waits at ``gate`` where one is set, and calls ``spoil`` on each result."""

    def __init__(self, gate: threading.Event | None = None, spoil=None, delay: float = 0.0, card=CARD) -> None:
        self.card = card
        self.usage = Usage()
        self.gate = gate
        self.spoil = spoil
        self.delay = delay
        self.seen: list[str] = []
        self._worker = ThreadPoolExecutor(1)

    def batches(self, texts, role, stream):
        work = self._worker.submit(self._work, texts, role, stream)
        stream.on_cancel(work.cancel)

    def _work(self, texts, role, stream):
        if self.gate is not None:
            self.gate.wait(30)
        time.sleep(self.delay)
        self.seen += self.format(texts, role)
        vectors = np.stack([vector_of(text, role, self.card) for text in texts])
        if self.spoil is not None:
            vectors = self.spoil(vectors)
        stream.put(Batch(range(len(texts)), vectors))
        stream.finish()

    def count_tokens(self, texts):
        return [len(text.split()) + 2 for text in texts]

    def close(self):
        self._worker.shutdown(wait=False)

    def __getstate__(self):
        return {"delay": self.delay}

    def __setstate__(self, state):
        self.__init__(**state)


class Failing(ServedEncoder):
    """Raises what it is told to."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def batches(self, texts, role, stream):
        stream.fail(self.error)


if __name__ == "__main__":
    host, workers, delay = sys.argv[1:]
    serve(ServedEncoder(delay=float(delay)), host=host, port=0, workers=int(workers))
