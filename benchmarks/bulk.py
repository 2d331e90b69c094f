"""Rows per second of ``bge embed`` beside the bare encoder, its memory, Ray with one and two workers, and the sums.

    python benchmarks/bulk.py                      everything, and results/bulk.json
    python benchmarks/bulk.py --only local remote  some of it: local, remote, pipeline, memory, ray, paper
    python benchmarks/bulk.py --scale 0.05 --rounds 1 --counts 2000 20000 --dry    a smoke run

In each round the bare encoder embeds the texts from a list in one call, then ``embed_files`` embeds the same texts from
a JSONL file into Parquet shards with the same encoder, or the other way round; the medians of the rounds' ratios count.
The host is a process of its own on loopback with canned 1024-dimensional answers (stub_server.py).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]
RESULTS = HERE / "results" / "bulk.json"
PARTS = ("local", "remote", "pipeline", "memory", "ray", "paper")


def passage(number: int, words: int) -> str:
    """Return a text of so many words, no two alike."""
    line = f"passage {number} tells what a text of a common length looks like when it is embedded in bulk".split()
    return " ".join([*(line * (words // len(line) + 1))[:words], str(number)])


def write_rows(path: Path, count: int, words: int) -> Path:
    with path.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"id": f"row-{number}", "text": passage(number, words)}) + "\n")
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bge-bulk-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# Speed


def compare(name: str, encoder: Any, count: int, words: int, *, shards: int, rounds: int) -> dict[str, Any]:
    """Return rows per second of both ways, and the median of their ratio."""
    texts = [passage(number, words) for number in range(count)]
    samples: dict[str, list[float]] = {"bare": [], "bulk": []}
    with scratch() as folder:
        rows = write_rows(folder / "rows.jsonl", count, words)
        ways = {"bare": lambda: bare(encoder, texts), "bulk": lambda: bulk(encoder, rows, folder, count // shards)}
        bare(encoder, texts[:20])  # loads the model, opens the connections
        bulk(encoder, write_rows(folder / "few.jsonl", 20, words), folder, 20)  # imports pyarrow
        for turn in range(rounds):
            for way in list(ways) if turn % 2 else reversed(list(ways)):
                samples[way].append(count / ways[way]())
    ratios = [one / other for one, other in zip(samples["bulk"], samples["bare"], strict=True)]
    found = {way: round(statistics.median(rates), 1) for way, rates in samples.items()}
    result = {
        "name": name, "rows": count, "words": words, "shards": shards, **found,
        "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
    }  # fmt: skip
    print(f"{name:34} bare {found['bare']:>9,} rows/s   bulk {found['bulk']:>9,} rows/s   {result['ratio']:.3f} ×")
    return result


def bare(encoder: Any, texts: list[str]) -> float:
    began = time.perf_counter()
    encoder.encode(texts, role="document")
    return time.perf_counter() - began


def bulk(encoder: Any, rows: Path, folder: Path, shard_rows: int) -> float:
    from bge_integrations.bulk import Columns, embed_files

    out = folder / "out"
    began = time.perf_counter()
    report = embed_files(str(rows), out, encoder, columns=Columns(id="id"), shard_rows=shard_rows)
    spent = time.perf_counter() - began
    assert report.errors == 0
    shutil.rmtree(out)
    return spent


def local(scale: float, rounds: int) -> list[dict[str, Any]]:
    import models
    from bge_integrations import load_encoder

    found = []
    with load_encoder("demo", show_progress=False) as encoder:
        found.append(compare("demo model", encoder, int(20_000 * scale), 20, shards=4, rounds=rounds))
    small = models.folder("bge-small", layers=12)
    with load_encoder(str(small), query_instruction="", show_progress=False) as encoder:
        found.append(
            compare("bge-small shape, short", encoder, int(2000 * scale), 14, shards=4, rounds=max(1, rounds // 2))
        )
        found.append(
            compare("bge-small shape, passages", encoder, int(400 * scale), 100, shards=4, rounds=max(1, rounds // 2))
        )
    return found


def remote(scale: float, rounds: int) -> list[dict[str, Any]]:
    from stub_server import stub

    from bge_integrations import load_encoder

    found = []
    with stub() as url:
        for latency, kind in ((0, "both"), (0, "float"), (20, "both")):
            address = f"{url}/{latency}/{kind}/v1"
            with load_encoder("bge-large", base_url=address, api_key="not-a-key", show_progress=False) as encoder:
                name = f"host, {latency} ms, {'base64' if kind == 'both' else 'floats'}"
                found.append(compare(name, encoder, int(100_000 * scale), 20, shards=10, rounds=rounds))
    return found


def free_encoder(dimensions: int) -> Any:
    """Return an encoder that costs nothing, to see what reading and writing alone can do."""
    from bge_integrations.catalog import find_model
    from bge_integrations.core.encoder import Batch, Encoder, Usage

    class Free(Encoder):
        def __init__(self) -> None:
            self.card = replace(find_model("bge-large"), dimensions=dimensions)
            self.usage = Usage()

        def batches(self, texts: list[str], role: Any, stream: Any) -> None:  # noqa: ARG002 - the seam's signature
            stream.put(Batch(range(len(texts)), np.full((len(texts), dimensions), dimensions**-0.5, np.float32)))
            stream.finish()

    return Free()


def pipeline(scale: float, rounds: int) -> list[dict[str, Any]]:
    """Return rows per second and bytes per row of reading and writing alone, by dimensions."""
    found = []
    for dimensions in (384, 1024):
        count, rates, size = int(100_000 * scale), [], 0
        with scratch() as folder:
            rows = write_rows(folder / "rows.jsonl", count, 100)
            for _ in range(rounds):
                rates.append(count / bulk(free_encoder(dimensions), rows, folder, max(1, count // 10)))
            size = sizes(rows, folder, dimensions, count)
        found.append({"dimensions": dimensions, "rows_per_second": round(statistics.median(rates)), "bytes": size})
        print(f"reading and writing alone, {dimensions:>4} dimensions {found[-1]['rows_per_second']:>9,} rows/s")
    return found


def sizes(rows: Path, folder: Path, dimensions: int, count: int) -> int:
    from bge_integrations.bulk import embed_files

    embed_files(str(rows), folder / "out", free_encoder(dimensions))
    return round(sum(path.stat().st_size for path in (folder / "out").glob("*.parquet")) / count)


# Memory


def memory(counts: list[int]) -> list[dict[str, Any]]:
    """Return the peak of each count, each in a process of its own, against the host on loopback."""
    from stub_server import stub

    found = []
    with stub() as url:
        for count in counts:
            command = [sys.executable, __file__, "--weigh", str(count), "--url", f"{url}/0/both/v1"]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(f"{count:>9,} rows: {found[-1]['peak_mb']} MB at most, {found[-1]['seconds']} s")
    return found


def weigh(url: str, count: int) -> None:
    """Embed rows into shards and print the peak of this process's memory, in MB."""
    from peers import peak_mb

    from bge_integrations import load_encoder
    from bge_integrations.bulk import embed_files

    with scratch() as folder, load_encoder("bge-large", base_url=url, api_key="k", show_progress=False) as encoder:
        rows = write_rows(folder / "rows.jsonl", count, 20)
        began = time.perf_counter()
        # A finished shard is not needed again: a million rows of 1024 numbers would fill 4 GB of disk.
        report = embed_files(str(rows), folder / "out", encoder, shard_rows=10_000, on_shard=lambda _: empty(folder))
        spent = time.perf_counter() - began
    assert report.rows == count
    print(json.dumps({"rows": count, "peak_mb": round(peak_mb()), "seconds": round(spent, 1)}))


def empty(folder: Path) -> None:
    for path in (folder / "out").glob("*.parquet"):
        path.write_bytes(b"")


# Ray


def ray(scale: float) -> dict[str, Any]:
    """Return what ray_scaling.py finds, in a process of its own, since its workers' threads are set before imports."""
    with scratch() as folder:
        out = folder / "ray.json"
        command = [
            sys.executable,
            str(HERE / "ray_scaling.py"),
            "--passages",
            str(int(1000 * scale)),
            "--out",
            str(out),
        ]
        subprocess.run(command, check=True)
        return dict(json.loads(out.read_text()))


# On paper


def paper(given: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """Return hours and dollars of a billion passages, by GPUs and by providers, with the bottleneck named.

    hours = passages × tokens / (tokens per second of a GPU × GPUs) / 3600, unless one machine reads and writes more
    slowly than that; dollars = GPUs × hours × dollars per hour, or tokens × the provider's price. The rate and the
    price of a GPU are parameters of this script, assumed and not measured; all else is measured or in the catalogue.
    """
    tokens = given.passages * given.tokens
    alone = next((row for row in known.get("pipeline", []) if row["dimensions"] == 384), None)
    limit = alone["rows_per_second"] if alone else None
    return {
        "assumed": {
            "passages": given.passages, "tokens_per_passage": given.tokens, "gpu_tokens_per_second": given.gpu_rate,
            "gpu_usd_per_hour": given.gpu_usd, "host_tokens_per_second": given.host_rate,
        },
        "measured": {"rows_per_second_of_reading_and_writing_on_one_machine": limit},
        "terabytes": {dimensions: round(given.passages * dimensions * 4 / 1e12, 2) for dimensions in (384, 768, 1024)},
        "gpus": [on_gpus(given, count, limit) for count in (1, 2, 4, 8, 16, 64)],
        "providers": sorted(by_provider(tokens, given.host_rate), key=lambda row: (row["model"], row["usd"])),
    }  # fmt: skip


def on_gpus(given: argparse.Namespace, count: int, limit: float | None) -> dict[str, Any]:
    compute = given.gpu_rate * count / given.tokens
    bound = limit is not None and limit < compute
    hours = given.passages / (limit if bound and limit else compute) / 3600
    return {
        "gpus": count, "hours": round(hours, 1), "usd": round(count * hours * given.gpu_usd),
        "bottleneck": "one machine's reading and writing: give each machine its own files" if bound else "the GPUs",
    }  # fmt: skip


def by_provider(tokens: int, rate: float) -> Iterator[dict[str, Any]]:
    from bge_integrations import PROVIDERS

    for provider in PROVIDERS:
        for offer in provider.offers:
            if offer.usd_per_million_tokens is not None and not offer.withdrawn:
                yield {
                    "provider": provider.name, "model": offer.model, "usd_per_million": offer.usd_per_million_tokens,
                    "usd": round(tokens * offer.usd_per_million_tokens / 1e6), "hours": round(tokens / rate / 3600),
                    "bottleneck": "the host's rate limit, which the account decides",
                }  # fmt: skip


def show_paper(found: dict[str, Any]) -> None:
    assumed = found["assumed"]
    print(f"on paper, {assumed['passages']:,} passages of {assumed['tokens_per_passage']} tokens; assumed: "
          f"{assumed['gpu_tokens_per_second']:,} tokens/s and ${assumed['gpu_usd_per_hour']}/h of a GPU")  # fmt: skip
    for row in found["gpus"]:
        print(f"  {row['gpus']:>3} GPUs {row['hours']:>8,} h  ${row['usd']:>8,}   {row['bottleneck']}")
    for row in found["providers"]:
        print(
            f"  {row['provider']:>14} {row['model']:24} ${row['usd']:>8,}   {row['hours']:>6,} h at the assumed limit"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of rows")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--counts", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="rows, for memory")
    parser.add_argument("--passages", type=int, default=10**9)
    parser.add_argument("--tokens", type=int, default=120, help="per passage")
    parser.add_argument(
        "--gpu-rate", type=float, default=400_000, help="tokens/s of one GPU: an assumption, not measured"
    )
    parser.add_argument("--gpu-usd", type=float, default=2.5, help="dollars per hour of one GPU: an assumption")
    parser.add_argument(
        "--host-rate", type=float, default=1e6 / 60 * 10, help="tokens/s that a host's limits let through"
    )
    parser.add_argument("--dry", action="store_true", help="do not write the results file")
    parser.add_argument("--weigh", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.weigh:
        weigh(given.url, given.weigh)
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    work: dict[str, Callable[[], Any]] = {
        "local": lambda: local(given.scale, given.rounds),
        "remote": lambda: remote(given.scale, given.rounds),
        "pipeline": lambda: pipeline(given.scale, given.rounds),
        "memory": lambda: memory(given.counts),
        "ray": lambda: ray(given.scale),
        "paper": lambda: paper(given, known),
    }
    for part in PARTS:
        if part in given.only:
            known[part] = work[part]()
    if "paper" in given.only:
        show_paper(known["paper"])
    known["machine"] = {"python": platform.python_version(), "machine": platform.machine()}
    if not given.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
