"""Embed many texts through a host that fails at one request in five in every way, and kill the job again and again.

    python benchmarks/soak.py                        100,000 texts, five kills, and results/soak.json
    python benchmarks/soak.py --texts 3000 --kills 2 --dry

The job is a process of its own with a cache file. It is killed with SIGKILL at moments drawn by chance, begun again,
and at last let run to its end. Then every vector is compared with the truth, and every text that was sent twice, though
it had been answered, is counted against those that were in flight at a kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import rig as faults
from encoders import hash_vectors
from rig import Exchange, Rig, cut, first_is, ok, raw, reset_peer, rows, spoilt, status

BATCH, CONCURRENCY = 64, 8
RESULTS = Path(__file__).parent / "results" / "soak.json"
WAYS: dict[str, Any] = {
    "429": status(429, Retry_After_Ms=50),
    "429 without a word": status(429),
    "500": status(500),
    "503": status(503, Retry_After=0),
    "408": status(408),
    "reset before the head": reset_peer(),
    "reset in the body": reset_peer(5000),
    "short body": cut(),
    "JSON cut": cut(honest=True),
    "empty": raw(b""),
    "HTML": raw("<html>", "text/html"),
    "a row less": rows(lambda d: d[:-1]),
    "no rows": rows(lambda _: []),
    "rows in reverse": rows(lambda d: d[::-1]),
    "an index twice": rows(lambda d: [*d[:-1], {**d[-1], "index": 0}]),
    "all indexes 0": rows(lambda d: [{**row, "index": 0} for row in d]),
    "NaN": spoilt(first_is("@NaN@")),
    "null": spoilt(first_is(None)),
    "zeros": spoilt(lambda row: [0.0] * len(row)),
    "ragged": rows(lambda d: [{**d[0], "embedding": d[0]["embedding"][:-1]}, *d[1:]]),
    "bad base64": spoilt(lambda _: "A"),
    "slow": faults.latency(0.2),
    "slices": faults.slicer(20_000, 0.002),
    "hang": faults.timeout(8.0),
}

HARMLESS = ("", "rows in reverse", "all indexes 0", "slow", "slices")


def texts_of(count: int) -> list[str]:
    return [f"passage {i}: what is embedded in a long job over a bad network" for i in range(count)]


class Host:
    """A rig that fails one request in five and knows which texts it has answered well."""

    def __init__(self, seed: int, share: float) -> None:
        self.rig = Rig(default=self.answer)
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.requests = 0
        self.mark, self.victim = float("inf"), 0
        self._share, self._random, self._lock = share, random.Random(seed), threading.Lock()

    def answer(self, exchange: Exchange) -> None:
        texts = exchange.texts
        with self._lock:
            self.requests += 1
            self.rig.requests.clear()  # a log of all bodies would be a leak here
            way = self._random.choice(sorted(WAYS)) if self._random.random() < self._share else ""
            self.failed.update([way] if way else [])
            if way in HARMLESS:
                self.answered.update(texts)
            if kill := len(self.answered) >= self.mark:
                self.mark = float("inf")
        if kill:
            # A moment later, so that others are answered, read or half committed; this one keeps the job from ending.
            time.sleep(self._random.uniform(0, 0.03))
            os.kill(self.victim, signal.SIGKILL)
        WAYS.get(way, ok)(exchange)


def job(url: str, cache: str, count: int) -> None:
    """Embed all texts and leave the vectors in a file beside the cache."""
    from dataclasses import replace

    from bge_integrations import load_encoder
    from bge_integrations.errors import HostError

    encoder = load_encoder(
        "bge-small", base_url=url, api_key="k", cache=cache, max_inputs=BATCH, max_concurrency=CONCURRENCY,
        max_retries=8, show_progress=False, timeout=None
    )  # fmt: skip
    engine: Any = encoder.engine
    engine.limits = replace(engine.limits, backoff=0.02, read_timeout=3.0)
    texts = texts_of(count)
    for _ in range(20):
        try:
            vectors = encoder.encode(texts, role="document")
        except HostError as error:
            print(f"{type(error).__name__}: {error} ({len(error.finished)} finished)", flush=True)
        else:
            np.save(f"{cache}.npy", vectors)
            encoder.close()
            return
    sys.exit("gave up")


def begin(url: str, cache: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--job", url, str(cache), "--texts", str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def soak(count: int, kills: int, *, share: float = 0.2, seed: int = 0, limit: float = 3000.0) -> dict[str, Any]:
    """Run the job to its end in spite of all, and return what was found.

    Raises:
        AssertionError: a vector is wrong, a text is missing, or more was sent twice than was in flight.
    """
    marks = sorted(random.Random(seed).uniform(0.1, 0.9) * count for _ in range(kills))
    host, began, said = Host(seed, share), time.monotonic(), ""
    with tempfile.TemporaryDirectory(prefix="bge-soak-") as folder, host.rig as rig:
        cache = Path(folder) / "cache.sqlite"
        for mark in marks:
            process = begin(rig.url, cache, count)
            host.victim, host.mark = process.pid, mark
            said += process.communicate(timeout=limit)[0]
            assert process.returncode == -signal.SIGKILL, said
        last = begin(rig.url, cache, count)
        said += last.communicate(timeout=limit)[0]
        assert last.returncode == 0, said
        vectors, wrong = np.load(f"{cache}.npy"), 0
        for first in range(0, count, 10_000):
            truth = hash_vectors(texts_of(count)[first : first + 10_000], vectors.shape[1])
            wrong += int((np.abs(vectors[first : first + 10_000] - truth).max(axis=1) > 1e-5).sum())
    twice = sum(times - 1 for times in host.answered.values())
    return {
        "texts": count,
        "kills": kills,
        "requests": host.requests,
        "failed_requests": sum(host.failed.values()),
        "ways_to_fail": len(host.failed),
        "wrong_vectors": wrong,
        "missing": count - len(host.answered),
        "answered_twice": twice,
        "in_flight_at_kills": kills * CONCURRENCY * BATCH,
        "errors_on_the_way": said.count("finished)"),
        "seconds": round(time.monotonic() - began, 1),
    }


def check(found: dict[str, Any]) -> None:
    """Refuse what the promise does not allow."""
    assert found["wrong_vectors"] == 0, found
    assert found["missing"] == 0, found
    assert found["answered_twice"] <= found["in_flight_at_kills"], found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.2, help="of requests that fail")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(*arguments.job, arguments.texts)
        return
    found = soak(arguments.texts, arguments.kills, share=arguments.share, seed=arguments.seed)
    print(json.dumps(found, indent=1))
    check(found)
    if not arguments.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
