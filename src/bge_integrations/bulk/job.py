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
from .chunking import Chunker
from .columns import kept_kinds, place_kinds
from .folder import FolderRecord, read_manifest
from .formats import FORMATS, Format
from .manifest import Manifest, check_ours
from .parquet_shards import need_pyarrow
from .part import SparseRows
from .pipeline import EmbeddedShard, OnError, ShardEmbedder, embed_shards, stopped_at, with_sparse
from .readers import read_rows
from .report import Report
from .rows import Columns, Row, RowParser, Shard, cut_shards
from .shard_format import Contents
from .sources import STDIN, TEXTS, find_inputs, input_fingerprint, input_kind
from .splitting import TextSplitter, find_counter

SHARD_ROWS = 10_000
_HOPELESS = 100  # rows, none of them good, in the first shard: the wrong column


OnProgress = Callable[[Report], None]


class InputsChangedError(ConfigError):
    """The inputs of a job that is resumed are others now."""


class Job:
    """Rows of the inputs into the shards of a folder; the arguments are those of ``embed_files``."""

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
        self.inputs = input_fingerprint(self.files)
        self.parser = self.make_parser(columns, read_manifest(folder))
        named = columns.id is not None or self.parser.named
        written = replace(columns, keep=(*columns.keep, *self.parser.places))
        kinds = (*self.parser.kinds, *place_kinds(self.parser.places, format))
        self.contents = Contents(written, encoder.stamp(sparse=self.sparse), half, kinds, named)
        self.report = Report(bytes=None if STDIN in self.files else self.inputs["bytes"])
        self.ids = array("q")
        self.watch(None, None)

    def make_parser(self, columns: Columns, record: FolderRecord | None) -> RowParser:
        """Return what makes rows, in a folder of version 0.1 as that did: text files whole."""
        kinds = self.find_kinds(columns, record)
        blank, named = self.encoder.blank == "keep", any(input_kind(file) in TEXTS for file in self.files)
        if self.chunk:
            return RowParser(columns, kinds, blank=blank, named=True, chunk=self.chunk)
        if record is not None and record.shards:
            named = named and "split" in record.job.get("options", {})
        count = find_counter(self.encoder) if named else None
        split = TextSplitter(count, self.encoder.card.max_tokens) if count else None
        return RowParser(columns, kinds, blank=blank, split=split, named=named)

    def find_kinds(self, columns: Columns, record: FolderRecord | None) -> tuple[Any, ...]:
        """Return the types of kept values; in a folder of version 0.1 they are strings."""
        kinds = kept_kinds(self.files, columns, self.format)
        old = record.job.get("options", {}).get("kinds", ()) if record and record.shards else ()
        return tuple(None if name is None else kind for name, kind in zip(old, kinds, strict=False)) or kinds

    def watch(self, on_shard: OnProgress | None, on_progress: OnProgress | None) -> None:
        """Set what is called after each shard, and as rows are finished."""
        self.on_shard, self._on_progress = on_shard, on_progress

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
        """Embed what is not in the folder yet."""
        with explain(self.folder):
            manifest = Manifest(self.folder, self.described())
        with manifest:
            self.embed_left(manifest, on)

    def embedder(self, on: Callable[..., ShardEmbedder]) -> ShardEmbedder:
        """Return what embeds the shards."""
        return on(self.encoder, **({"sparse": True} if self.sparse else {}))

    def embed_left(self, manifest: Manifest, on: Callable[..., ShardEmbedder]) -> None:
        """Embed the shards that the manifest does not name."""
        with self.embedder(on) as embedder:
            with closing(embed_shards(self._left(manifest), embedder, self.on_error, self.embedded_rows)) as done:
                for shard, embedded in done:
                    self._keep(manifest, Shard(shard.number, embedded.rows), embedded)
            self.check_unchanged()
            self.report.repeated = len(self.ids) - len(np.unique(np.asarray(self.ids)))
            with explain(self.folder):
                manifest.end()

    def _keep(self, manifest: Manifest, shard: Shard, embedded: EmbeddedShard) -> None:
        writer, contents = FORMATS[self.format], replace(self.contents, stamp=manifest.job["stamp"])
        path = self.folder / f"part-{shard.number:06}{writer.ending}"
        dtype = np.float16 if contents.half else np.float32
        with explain(self.folder):
            sparse = None if embedded.sparse is None else SparseRows.of(embedded.sparse)
            writer.write(path, shard.good, np.ascontiguousarray(embedded.vectors, dtype), contents, sparse)
            if shard.number >= len(manifest.shards):
                digest = self._digests.pop(shard.number)
                line = {"file": path.name, "bytes": path.stat().st_size, "digest": digest}
                truncated = [int(i) for i in embedded.truncated]
                counts = {"rows": len(shard.good), "errors": len(shard.bad), "truncated": truncated}
                manifest.finish({**line, **counts}, [row.error() for row in shard.bad])
        self._count(manifest.shards[shard.number])
        if self.on_shard:
            self.on_shard(self.report)

    def _left(self, manifest: Manifest) -> Iterator[Shard]:
        """Read all rows, compare those of finished shards with what they were, and yield the rest."""
        self._digests: dict[int, str] = {}
        finished, number = list(manifest.shards), -1
        for shard in cut_shards(self.rows(), self.shard_rows):
            number, digest = shard.number, shard.digest()
            if number < len(finished) and finished[number]["digest"] != digest:
                raise InputsChangedError(
                    f"the rows of shard {number} in {str(self.folder)!r} have changed since they were embedded: "
                    "--update (update=True) brings them up to date, or use another folder"
                )
            if manifest.holds(number):
                self.report.resumed += 1
                self.report.resumed_rows += len(shard.rows)
                self._count(finished[number])
                self.embedded_rows(0)
                continue
            self._check_hope(shard)
            self._digests[number] = digest
            yield shard
        if number + 1 < len(finished):
            raise InputsChangedError(
                f"the inputs have rows for {number + 1} shards now, {str(self.folder)!r} holds {len(finished)}: they "
                "have changed; --update (update=True) brings them up to date, or use another folder"
            )

    def rows(self) -> Iterator[Row]:
        """Yield all rows of the inputs."""
        for row in read_rows(self.files, self.parser, self.report.tally):
            if row.reason and self.on_error == "stop":
                raise stopped_at(row)
            if isinstance(row.id, str):  # others are row numbers, which never repeat
                self.ids.append(hash(row.id))  # eight bytes a row, whatever the ids are
            self.report.read += 1
            yield row

    def _check_hope(self, shard: Shard) -> None:
        if shard.number == 0 and len(shard.rows) >= _HOPELESS and not shard.good:
            first = shard.rows[0]
            raise InputError(
                f"none of the first {len(shard.rows)} rows can be embedded (line {first.line} of {first.source!r}: "
                f"{first.reason}): is it the right column?"
            )

    def check_unchanged(self) -> None:
        """Refuse inputs that were changed while they were read."""
        if self.report.bytes is not None and input_fingerprint(self.files) != self.inputs:
            raise ConfigError(
                f"the inputs changed while they were being read: --update (update=True) brings {str(self.folder)!r} up "
                "to date and keeps what is embedded, or use another folder"
            )

    def _count(self, line: dict[str, Any]) -> None:
        self.report.shards += 1
        self.report.rows += line["rows"] + line["errors"]
        self.report.errors += line["errors"]
        self.report.cut += len(line.get("truncated", ()))

    def embedded_rows(self, rows: int) -> None:
        """Note rows that were embedded, and tell whoever watches."""
        self.report.embedded += rows
        if self._on_progress:
            self._on_progress(self.report)

    def warn(self) -> None:
        """Warn of texts that were truncated, in this call or before."""
        report, card = self.report, self.encoder.card
        if report.cut:
            told = f"{report.cut} of {report.rows - report.errors} texts are longer than the {card.max_tokens} tokens"
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
def explain(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one that says what stays."""
    try:
        yield
    except BGEError:
        raise
    except OSError as error:
        raise ConfigError(
            f"cannot write into {str(folder)!r}: {error.strerror or error}; finished shards are kept: "
            "repeat the call to resume"
        ) from error
