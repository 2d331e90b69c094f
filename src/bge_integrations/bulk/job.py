"""One job: rows to shards, one after the other, reading and writing while the encoder works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..encoder import FutureEncoder, Vectors
from ..errors import ConfigError, InputError
from ..load import engine_of, token_counter
from .manifest import Manifest
from .shards import Layout, need_pyarrow
from .sources import Columns, Row, digest_rows, find_inputs, fingerprint, read_rows

OnError = Literal["stop", "record"]


@dataclass
class Report:
    """What a job has come to.

    Attributes:
        rows: rows read, bad ones included.
        errors: rows that could not be embedded.
        shards: shards in the folder.
        resumed: shards that were there already.
    """

    rows: int = 0
    errors: int = 0
    shards: int = 0
    resumed: int = 0


@dataclass(frozen=True)
class _Shard:
    number: int
    good: list[Row]
    bad: list[Row]
    digest: str


def embed_files(
    inputs: str | Sequence[str],
    folder: str | Path,
    encoder: FutureEncoder,
    *,
    columns: Columns | None = None,
    shard_rows: int = 10_000,
    half: bool = False,
    on_error: OnError = "record",
    on_shard: Callable[[Report], None] | None = None,
) -> Report:
    """Embed the rows of files as documents into Parquet shards; the same call again goes on where it was.

    Args:
        inputs: files, globs or folders, or ``"-"`` for JSONL on standard input.
        folder: of the shards ``part-000000.parquet``, ``manifest.jsonl`` and ``errors.jsonl``.
        encoder: what embeds; its stamp goes into each shard's schema.
        columns: which columns are text, id and kept (kept values become strings).
        shard_rows: rows of the input per shard; two shards are in memory at a time.
        half: float16 instead of float32.
        on_error: note rows that cannot be embedded in ``errors.jsonl``, or stop at the first.
        on_shard: called after each shard.

    Raises:
        ConfigError: an input cannot be read or has changed, another job's shards lie there, or the disk is full.
        InputError: a bad row and ``on_error="stop"``.
        HostError: the host failed; finished shards stay.
    """
    need_pyarrow()
    columns, folder = columns or Columns(), Path(folder)
    files = find_inputs([inputs] if isinstance(inputs, str) else inputs)
    options = {"columns": vars(columns), "shard_rows": shard_rows, "half": half}
    report = Report()
    try:
        job = {"inputs": [fingerprint(f) for f in files], "options": options, "stamp": encoder.stamp()}
        with Manifest(folder, job) as manifest:
            for shard, vectors in _embedded(_left(files, columns, shard_rows, manifest, report), encoder, on_error):
                layout = Layout(columns, encoder.stamp(), half=half, kinds=(None,) * len(columns.keep))
                size = layout.write(folder, shard.number, shard.good, vectors)
                line = {**_line(shard, layout.name(shard.number)), "bytes": size}
                manifest.finish(line, [_error(row) for row in shard.bad])
                _count(report, manifest.shards[-1])
                if on_shard:
                    on_shard(report)
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r}: {error}; finished shards stay, the same call goes on from there"
        ) from error
    return report


def _left(files: Sequence[str], columns: Columns, size: int, manifest: Manifest, report: Report) -> Iterator[_Shard]:
    finished = list(manifest.shards)
    number = -1
    for number, shard in enumerate(_cut(read_rows(files, columns), size)):
        if number >= len(finished):
            yield shard
            continue
        if finished[number]["digest"] != shard.digest:
            raise ConfigError(f"rows of shard {number} have changed since it was embedded: name another folder")
        report.resumed += 1
        _count(report, finished[number])
    if number + 1 < len(finished):
        raise ConfigError(f"the input has {number + 1} shards of rows now, the folder {len(finished)}: it has changed")


def _cut(rows: Iterator[Row], size: int) -> Iterator[_Shard]:
    number = 0
    while part := list(islice(rows, size)):
        good, bad = [row for row in part if not row.reason], [row for row in part if row.reason]
        yield _Shard(number, good, bad, digest_rows(part))
        number += 1


def _embedded(shards: Iterator[_Shard], encoder: FutureEncoder, on_error: OnError) -> Iterator[tuple[_Shard, Vectors]]:
    waiting: tuple[_Shard, Future[Vectors]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="bge-bulk") as pool:
        for shard in shards:
            if shard.bad and on_error == "stop":
                raise _stop(shard.bad[0])
            begun = shard, pool.submit(encoder.encode, [row.text for row in shard.good], role="document")
            if waiting:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting:
            yield waiting[0], waiting[1].result()


def _stop(row: Row) -> InputError:
    return InputError(f"line {row.line} of {row.source!r}: {row.reason}; on_error='record' goes on without such rows")


def _line(shard: _Shard, name: str) -> dict[str, Any]:
    return {"file": name, "rows": len(shard.good), "errors": len(shard.bad), "digest": shard.digest}


def _error(row: Row) -> dict[str, Any]:
    return {"source": row.source, "line": row.line, "id": row.id, "reason": row.reason}


def _count(report: Report, line: dict[str, Any]) -> None:
    report.shards += 1
    report.rows += line["rows"] + line["errors"]
    report.errors += line["errors"]


def plan_files(
    inputs: str | Sequence[str], encoder: FutureEncoder, *, columns: Columns | None = None
) -> dict[str, float | None]:
    """Count rows, tokens, texts that would be cut, and the price, before anything is sent.

    Raises:
        ConfigError: an input cannot be read, or the model's tokenizer is not on this machine.
    """
    files = find_inputs([inputs] if isinstance(inputs, str) else inputs)
    count, limit = token_counter(encoder), encoder.card.max_tokens
    rows = errors = tokens = cut = 0
    for shard in _cut(read_rows(files, columns or Columns()), 1000):
        counts = count([row.text for row in shard.good]) if shard.good else []
        rows, errors = rows + len(counts) + len(shard.bad), errors + len(shard.bad)
        tokens += sum(min(number, limit) for number in counts)
        cut += sum(number > limit for number in counts)
    price = _price(encoder)
    return {"rows": rows, "errors": errors, "tokens": tokens, "cut": cut, "usd": price and price * tokens / 1e6}


def _price(encoder: FutureEncoder) -> float | None:
    endpoint = getattr(engine_of(encoder), "endpoint", None)
    offer = endpoint and endpoint.provider.offer(encoder.card.id)
    return offer.usd_per_million_tokens if offer else None
