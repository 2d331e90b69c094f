"""Files of a job: shards that are there whole or not at all, and the manifest that says which are finished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..encoder import Vectors
from ..errors import ConfigError, MissingExtraError
from ..stores import KEY
from .sources import STDIN, Columns, Row

_SAMPLE = 65536


def fingerprint(file: str) -> dict[str, Any]:
    """Return what tells whether a file has changed: size, time, and a digest of its two ends."""
    if file == STDIN:
        return {"path": STDIN}
    about = Path(file).stat()
    with Path(file).open("rb") as stream:
        digest = hashlib.sha256(stream.read(_SAMPLE))
        stream.seek(max(0, about.st_size - _SAMPLE))
        digest.update(stream.read())
    return {"path": file, "bytes": about.st_size, "mtime_ns": about.st_mtime_ns, "ends": digest.hexdigest()}


def digest_rows(rows: Sequence[Row]) -> str:
    """Return a digest of all that a shard is made of."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.id, row.text, row.kept, row.reason]).encode())
    return digest.hexdigest()


def write_shard(
    path: Path, rows: Sequence[Row], vectors: Vectors, *, columns: Columns, stamp: dict[str, Any], half: bool
) -> None:
    """Write one Parquet shard under its name only when all of it is on the disk; the same input gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    kind = pa.float16() if half else pa.float32()
    flat = np.ascontiguousarray(vectors, np.float16 if half else np.float32).reshape(-1)
    ids = pa.string() if columns.id else pa.int64()
    kept = {name: pa.array([row.kept[i] for row in rows], pa.string()) for i, name in enumerate(columns.keep)}
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(flat, kind), vectors.shape[1])
    arrays = {
        "id": pa.array([row.id for row in rows], ids),
        "text": pa.array([row.text for row in rows], pa.string()),
        **kept,
        "embedding": embedding,
    }
    table = pa.table(arrays).replace_schema_metadata({KEY: json.dumps(stamp, sort_keys=True)})
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        parquet.write_table(table, file, compression="zstd", version="2.6", use_dictionary=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def need_pyarrow() -> None:
    """Say which extra is missing.

    Raises:
        MissingExtraError: there is no pyarrow.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise MissingExtraError("shards need pyarrow: pip install 'bge-integrations[bulk]'") from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Manifest:
    """What a folder holds: the job on the first line, then a line for each finished shard.

    Args:
        folder: of the shards; made where it is missing.
        job: inputs, options and stamp; all of it decides the bytes of the shards.

    Raises:
        ConfigError: the folder holds another job's shards.
    """

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.errors = folder / "manifest.jsonl", folder / "errors.jsonl"
        lines = self._whole_lines()
        self.shards = lines[1:]
        if lines:
            _check_same(lines[0], job)
        elif any(folder.glob("part-*")):
            raise ConfigError(f"{str(folder)!r} holds shards without a manifest: name an empty folder")
        else:
            self._append(self.path, [job])
        self._cut(self.errors, self.shards[-1]["errors_bytes"] if self.shards else 0)

    def _whole_lines(self) -> list[dict[str, Any]]:
        raw = self.path.read_bytes() if self.path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        # A kill in the middle of a line leaves a part of it, which the next line must not follow.
        self._cut(self.path, len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    @staticmethod
    def _cut(path: Path, size: int) -> None:
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    @staticmethod
    def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
        with path.open("ab") as file:
            file.write(b"".join(json.dumps(line, ensure_ascii=True, sort_keys=True).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, shard: dict[str, Any], errors: Sequence[dict[str, Any]]) -> None:
        """Note a shard that is on the disk, its bad rows first."""
        if errors:
            self._append(self.errors, errors)
        size = self.errors.stat().st_size if self.errors.exists() else 0
        self._append(self.path, [{**shard, "errors_bytes": size}])
        self.shards.append({**shard, "errors_bytes": size})


def _check_same(written: dict[str, Any], job: dict[str, Any]) -> None:
    job = json.loads(json.dumps(job))
    changed = [name for name in job if written.get(name) != job[name]]
    if changed:
        told = "; ".join(f"{name}: {str(written.get(name))[:200]} then, {str(job[name])[:200]} now" for name in changed)
        raise ConfigError(f"the folder holds another job's shards ({told}): name another folder, or empty it")
