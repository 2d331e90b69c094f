"""Shards of vectors that no model made, for benchmarks of what is done with shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def unit_rows(count: int, dimensions: int, seed: int = 3) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def with_duplicates(count: int, dimensions: int, share: float, seed: int = 3) -> np.ndarray:
    """Return rows of which a share are near copies, with a cosine of 0.95 to 1, of rows before them."""
    random = np.random.default_rng(seed)
    rows = unit_rows(count, dimensions, seed)
    copies = np.flatnonzero(random.random(count) < share)[1:]
    for row in copies:
        cosine = random.uniform(0.95, 1)
        of = rows[random.integers(row)]
        off = rows[row] - (rows[row] @ of) * of
        rows[row] = cosine * of + np.sqrt(1 - cosine**2) * off / np.linalg.norm(off)
    return rows


def peak() -> int:
    """Return the most memory that the process has had; getrusage tells that of the parent, too, after a fork."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def write_shards(folder: Path, rows: np.ndarray, stamp: dict[str, Any], shard_rows: int = 10_000) -> None:
    """Write Parquet shards and a manifest, as a finished ``bge embed`` leaves them."""
    from bge_integrations.bulk.formats import FORMATS
    from bge_integrations.bulk.manifest import Manifest
    from bge_integrations.bulk.rows import Columns, Row
    from bge_integrations.bulk.shard_format import Contents

    with Manifest(folder, {"inputs": {}, "options": {}, "stamp": stamp}) as manifest:
        for number, first in enumerate(range(0, len(rows), shard_rows)):
            part = rows[first : first + shard_rows]
            texts = [Row("", i, first + i, f"text {first + i}") for i in range(len(part))]
            path = folder / f"part-{number:06}.parquet"
            FORMATS["parquet"].write(path, texts, part, Contents(Columns(), stamp))
            line = {"file": path.name, "bytes": path.stat().st_size, "digest": str(number), "rows": len(part)}
            manifest.finish({**line, "errors": 0}, [])
        manifest.end()
