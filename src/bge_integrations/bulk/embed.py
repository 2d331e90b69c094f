"""Embed the rows of files into a folder of shards, anew or where that was done before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..catalog.records import OutputName
from ..core.encoder import Encoder
from ..environment import named_path
from .chunking import chunker_for
from .formats import Format
from .job import SHARD_ROWS, Job, OnProgress
from .pipeline import EncoderShards, OnError, ShardEmbedder
from .report import Report
from .rows import Columns
from .update import Update

__all__ = ["embed_files"]


def embed_files(
    inputs: str | Sequence[str],
    folder: str | Path,
    encoder: Encoder,
    *,
    columns: Columns | None = None,
    shard_rows: int = SHARD_ROWS,
    format: Format = "parquet",
    half: bool = False,
    outputs: Sequence[OutputName] = ("dense",),
    chunk: int | None = None,
    overlap: int = 0,
    update: bool = False,
    on_error: OnError = "record",
    on_shard: OnProgress | None = None,
    on_progress: OnProgress | None = None,
    on: Callable[..., ShardEmbedder] = EncoderShards,
) -> Report:
    """Embed the rows of files as documents into shards; repeating the call resumes the job.

    If it is killed at any moment and called again on the same machine, the result equals an uninterrupted run's.
    At most three shards of rows and their vectors are in memory; an update holds about 150 bytes for each row as well.
    Rows of the input are not compared with each other: one that stands twice in it stands twice in the shards.

    Args:
        inputs: files, globs or folders (JSON lines, CSV, TSV, Parquet, text; also packed by gzip, bzip2, xz, zstd),
            URLs of these (``s3://``, ``gs://``, ``hf://``, ``https://``), or ``"-"`` for JSON lines on standard input.
            A text file is one row with the fields text and path.
        folder: of the shards ``part-000000.parquet``, which pandas, pyarrow, DuckDB and ``datasets`` read as one
            table, ``.manifest.jsonl`` and ``.errors.jsonl``.
        encoder: what embeds; its stamp goes into each shard's schema.
        columns: which columns are text, id and kept. Kept numbers and booleans keep their type where all inputs agree;
            other values become strings (JSON where they are none).
        shard_rows: rows of the input per shard; fewer where they come to 64 million characters.
        format: ``"numpy"`` writes ``.npy`` with a ``.rows.jsonl`` beside it, ``"jsonl"`` a line for each row.
        half: float16 instead of float32, for dense vectors.
        outputs: ``("dense", "sparse")`` writes sparse vectors as well, from the same forward pass: columns
            ``sparse_indices`` (token ids, ascending) and ``sparse_values``; beside an ``.npy`` a ``.sparse.npz``, which
            ``scipy.sparse.load_npz`` reads.
        chunk: split every text into chunks of at most so many tokens, special tokens included: Markdown, HTML and RST
            at headings, PDF at pages, code at functions and classes, and what is still longer at paragraphs, lines,
            sentences and words. Code (``.py``, ``.js``, ...), HTML and PDF are then read as well. Each chunk is a row:
            its id is that of the whole (a document's path) with ``#1``, ``#2``, ..., and the columns ``path``,
            ``position`` (of its first character in the text), ``heading`` (with those above it) and ``page`` (of a PDF)
            are kept.
        overlap: tokens, in whole words, that a chunk may repeat of the one before it under the same heading.
        update: where the folder holds shards, bring it up to date with inputs that have grown, changed or shrunk. Rows
            whose id, text and kept columns are those of a shard stay; a text that any shard holds keeps its vector;
            other rows are embedded, and rows that are no longer in the inputs are dropped. Shards in which nothing
            changed are not touched; others are replaced by new ones with new numbers, in one step at the end. Killed at
            any moment and called again, the folder ends as after one undisturbed call; meanwhile whoever reads it gets
            the old state, the new one, or an error, and never some of each (``bge_integrations.bulk.staging`` says
            how). Rows are compared with all others, so their order in the inputs does not matter, and that of the
            shards is not theirs. Without a column of ids, a row's number is its id: one more row at the top then
            changes all others, whose shards are written again with the same vectors.
        on_error: note rows that cannot be embedded in ``.errors.jsonl``, or stop at the first.
        on_shard: called after each shard.
        on_progress: called as rows are finished, from the encoder's thread, and as finished shards are passed over.
        on: makes what embeds the shards; ``partial(RayShards, workers=8)`` of ``bge_integrations.ray`` has it done by
            a Ray cluster.

    Raises:
        ConfigError: the model gives no such output, an input cannot be read or has changed, another job's shards lie in
            the folder (of an update: shards of other options), another process is at work there, the disk is full, or
            an update would drop all rows. Finished shards stay.
        SpaceMismatchError: the folder holds vectors of another space.
        InputError: a bad row and ``on_error="stop"``, or not one good row among the first.
        HostError: the host failed; finished shards stay.
    """
    chunker = chunker_for(encoder, chunk, overlap)
    kind = Update if update else Job
    job = kind(
        inputs, named_path(folder), encoder, columns or Columns(), shard_rows, format, half, outputs, on_error, chunker
    )
    job.watch(on_shard, on_progress)
    job.run(on)
    job.warn()
    return job.report
