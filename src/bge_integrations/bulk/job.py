"""One job: rows to shards, one after the other, reading and writing while the encoder works."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..catalog.records import OutputName
from ..core.encoder import Encoder
from ..errors import BGEError, ConfigError, InputError, TruncationWarning, warn
from .chunking import Chunker, chunker_for
from .columns import kept_kinds, place_kinds
from .folder import Record, read_manifest
from .formats import FORMATS, Contents, Format, need_pyarrow
from .manifest import Manifest, check_ours
from .part import SparseRows
from .pipeline import Embedded, EncoderShards, OnError, ShardEmbedder, embed_shards, stopped_at, with_sparse
from .readers import read_rows
from .report import Report
from .rows import Columns, Row, RowParser, Shard, cut_shards
from .sources import STDIN, TEXTS, find_inputs, fingerprint, input_kind
from .splitting import TextSplitter, find_counter

SHARD_ROWS = 10_000
_HOPELESS = 100  # rows, none of them good, in the first shard: the wrong column


OnProgress = Callable[[Report], None]


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
    on_error: OnError = "record",
    on_shard: OnProgress | None = None,
    on_progress: OnProgress | None = None,
    on: Callable[..., ShardEmbedder] = EncoderShards,
) -> Report:
    """Embed the rows of files as documents into shards; the same call again resumes.

    Killed at any moment and called again, on the same machine, the folder ends with the bytes of an undisturbed run.
    At most three shards of rows and their vectors are in memory. Rows are not compared: one that stands twice in the
    input stands twice in the shards.

    Args:
        inputs: files, globs or folders (JSON lines, CSV, TSV, Parquet, text; also packed by gzip, bzip2, xz, zstd), or
            ``"-"`` for JSON lines on standard input. A text file is one row with the fields text and path.
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
        on_error: note rows that cannot be embedded in ``.errors.jsonl``, or stop at the first.
        on_shard: called after each shard.
        on_progress: called as rows are finished, from the encoder's thread, and as finished shards are passed over.
        on: makes what embeds the shards; ``partial(RayShards, workers=8)`` of ``bge_integrations.ray`` has it done by
            a Ray cluster.

    Raises:
        ConfigError: the model gives no such output, an input cannot be read or has changed, another job's shards lie in
            the folder, another process is at work there, or the disk is full. Finished shards stay.
        SpaceMismatchError: the folder holds vectors of another space.
        InputError: a bad row and ``on_error="stop"``, or not one good row among the first.
        HostError: the host failed; finished shards stay.
    """
    chunker = chunker_for(encoder, chunk, overlap)
    job = _Job(
        inputs, Path(folder), encoder, columns or Columns(), shard_rows, format, half, outputs, on_error, chunker
    )
    job.watch(on_shard, on_progress)
    job.run(on)
    job.warn()
    return job.report


class _Job:
    def __init__(
        self,
        inputs: str | Sequence[str],
        folder: Path,
        encoder: Encoder,
        columns: Columns,
        shard_rows: int,
        format: Format,
        half: bool,
        outputs: Sequence[OutputName],
        on_error: OnError,
        chunk: Chunker | None,
    ) -> None:
        _check(shard_rows, format, on_error)
        self.sparse = with_sparse(outputs, encoder)
        check_ours(folder)
        self.folder, self.encoder, self.on_error, self.shard_rows = folder, encoder, on_error, shard_rows
        self.format, self.chunk = format, chunk
        self.files = find_inputs(inputs, besides=folder, documents=chunk is not None)
        self.inputs = fingerprint(self.files)
        self.parser = self._make_parser(columns, read_manifest(folder))
        named = columns.id is not None or self.parser.named
        written = replace(columns, keep=(*columns.keep, *self.parser.places))
        kinds = (*self.parser.kinds, *place_kinds(self.parser.places, format))
        self.contents = Contents(written, encoder.stamp(sparse=self.sparse), half, kinds, named)
        self.report = Report(bytes=None if STDIN in self.files else self.inputs["bytes"])
        self._ids = array("q")
        self.watch(None, None)

    def _make_parser(self, columns: Columns, record: Record | None) -> RowParser:
        """Return what makes rows, in a folder of version 0.1 as that did: types as strings, text files whole."""
        kinds = kept_kinds(self.files, columns, self.format)
        blank, named = self.encoder.blank == "keep", any(input_kind(file) in TEXTS for file in self.files)
        if self.chunk:
            return RowParser(columns, kinds, blank=blank, named=True, chunk=self.chunk)
        if record is not None and record.shards:
            options = record.job.get("options", {})
            old = options.get("kinds", ())
            kinds = tuple(None if name is None else kind for name, kind in zip(old, kinds, strict=False)) or kinds
            named = named and "split" in options
        count = find_counter(self.encoder) if named else None
        split = TextSplitter(count, self.encoder.card.max_tokens) if count else None
        return RowParser(columns, kinds, blank=blank, split=split, named=named)

    def watch(self, on_shard: OnProgress | None, on_progress: OnProgress | None) -> None:
        self._on_shard, self._on_progress = on_shard, on_progress

    def described(self) -> dict[str, Any]:
        """Return all that decides the bytes of the shards."""
        parser = self.parser
        options = {
            "columns": vars(parser.columns),
            "kinds": [kind and str(kind) for kind in parser.kinds],
            "blank": parser.blank,
            "shard_rows": self.shard_rows,
            "format": self.format,
            "half": self.contents.half,
        }
        if parser.chunk:
            options |= {"chunk": parser.chunk.size, "overlap": parser.chunk.overlap}
        elif parser.named:
            options["split"] = parser.split and parser.split.limit
        return {"inputs": self.inputs, "options": options, "stamp": self.contents.stamp}

    def run(self, on: Callable[..., ShardEmbedder]) -> None:
        with _explain(self.folder):
            manifest = Manifest(self.folder, self.described())
        with manifest, on(self.encoder, **({"sparse": True} if self.sparse else {})) as embedder:
            with closing(embed_shards(self._left(manifest), embedder, self.on_error, self._embedded)) as done:
                for shard, embedded in done:
                    self._keep(manifest, Shard(shard.number, embedded.rows), embedded)
            self._check_unchanged()
            self.report.repeated = len(self._ids) - len(np.unique(np.asarray(self._ids)))
            with _explain(self.folder):
                manifest.end()

    def _keep(self, manifest: Manifest, shard: Shard, embedded: Embedded) -> None:
        writer, contents = FORMATS[self.format], replace(self.contents, stamp=manifest.job["stamp"])
        path = self.folder / f"part-{shard.number:06}{writer.ending}"
        dtype = np.float16 if contents.half else np.float32
        with _explain(self.folder):
            sparse = None if embedded.sparse is None else SparseRows.of(embedded.sparse)
            writer.write(path, shard.good, np.ascontiguousarray(embedded.vectors, dtype), contents, sparse)
            if shard.number >= len(manifest.shards):
                digest = self._digests.pop(shard.number)
                line = {"file": path.name, "bytes": path.stat().st_size, "digest": digest}
                counts = {"rows": len(shard.good), "errors": len(shard.bad)}
                manifest.finish({**line, **counts}, [row.error() for row in shard.bad])
        self.report.cut += embedded.truncated
        self._count(manifest.shards[shard.number])
        if self._on_shard:
            self._on_shard(self.report)

    def _left(self, manifest: Manifest) -> Iterator[Shard]:
        """Read all rows, compare those of finished shards with what they were, and yield the rest."""
        self._digests: dict[int, str] = {}
        finished, number = list(manifest.shards), -1
        for shard in cut_shards(self._rows(), self.shard_rows):
            number, digest = shard.number, shard.digest()
            if number < len(finished) and finished[number]["digest"] != digest:
                raise ConfigError(
                    f"the rows of shard {number} in {str(self.folder)!r} are others now than when they were embedded: "
                    "name another folder"
                )
            if manifest.holds(number):
                self.report.resumed += 1
                self.report.resumed_rows += len(shard.rows)
                self._count(finished[number])
                self._embedded(0)
                continue
            self._check_hope(shard)
            self._digests[number] = digest
            yield shard
        if number + 1 < len(finished):
            raise ConfigError(
                f"the inputs have rows for {number + 1} shards now, {str(self.folder)!r} holds {len(finished)}: they "
                "have changed; name another folder"
            )

    def _rows(self) -> Iterator[Row]:
        for row in read_rows(self.files, self.parser, self.report.tally):
            if row.reason and self.on_error == "stop":
                raise stopped_at(row)
            if isinstance(row.id, str):
                self._ids.append(hash(row.id))
            self.report.read += 1
            yield row

    def _check_hope(self, shard: Shard) -> None:
        if shard.number == 0 and len(shard.rows) >= _HOPELESS and not shard.good:
            first = shard.rows[0]
            raise InputError(
                f"none of the first {len(shard.rows)} rows can be embedded (line {first.line} of {first.source!r}: "
                f"{first.reason}): is it the right column?"
            )

    def _check_unchanged(self) -> None:
        if self.report.bytes is not None and fingerprint(self.files) != self.inputs:
            raise ConfigError("the inputs were changed while they were read: start anew in another folder")

    def _count(self, line: dict[str, Any]) -> None:
        self.report.shards += 1
        self.report.rows += line["rows"] + line["errors"]
        self.report.errors += line["errors"]

    def _embedded(self, rows: int) -> None:
        self.report.embedded += rows
        if self._on_progress:
            self._on_progress(self.report)

    def warn(self) -> None:
        report, card = self.report, self.encoder.card
        if report.cut:
            told = f"{report.cut} of {report.embedded} texts are longer than the {card.max_tokens} tokens"
            warn(f"{told} that {card.id!r} reads: the rest was truncated; split them to keep it", TruncationWarning)


def _check(shard_rows: int, format: str, on_error: str) -> None:
    if shard_rows < 1:
        raise ConfigError(f"shard_rows must be at least 1, not {shard_rows}")
    if format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if on_error not in ("stop", "record"):
        raise ConfigError(f"on_error must be 'stop' or 'record', not {on_error!r}")
    if format == "parquet":
        need_pyarrow()


@contextmanager
def _explain(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what stays."""
    try:
        yield
    except BGEError:
        raise
    except OSError as error:
        raise ConfigError(
            f"cannot write into {str(folder)!r}: {error.strerror or error}; finished shards stay, and the same call "
            "goes on from there"
        ) from error
