"""Bring a folder of shards up to date with its inputs: embed what is new, keep what is not, drop what is gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Vectors
from ..errors import ConfigError
from .folder import SHARD, FolderRecord, Line
from .formats import FORMATS, column_types
from .job import InputsChangedError, Job, explain
from .known import Known, id_numbers, row_digests, text_digests
from .manifest import Manifest, same_inputs
from .part import SparseRows
from .pipeline import EmbeddedShard, ShardEmbedder, embed_shards
from .report import Report
from .rows import JSON, Columns, Row, Shard, cut_shards
from .sources import STDIN
from .staging import Changes, Staging, discard

__all__ = ["Update"]

_BATCH = 1024


class Update(Job):
    """A job over a folder that has shards: rows are compared with theirs by digest, not by their place.

    A row that a shard holds as it is (id, text and kept columns) stays where it is. Old shards of which every row is
    still in the inputs are not touched, unless there are many small ones, which are merged. All other rows come into
    new shards, in the order of the inputs, and with them what is left of the old shards that lost a row; a row whose
    text has a vector in any old shard gets that one. Where an id is repeated, its last row in the inputs is the last in
    the folder; if the encoder refuses that row, which shows only when the others have their places, these stay there.
    How all of it becomes the folder's state in one step: ``staging``.
    """

    def find_kinds(self, columns: Columns, record: FolderRecord | None) -> tuple[Any, ...]:
        """Return the types of kept values that the folder's shards have."""
        written = record.job.get("options", {}).get("kinds", ()) if record and record.shards else ()
        if record is None or len(written) != len(columns.keep):
            return super().find_kinds(columns, record)
        found = (None,) * len(written) if STDIN in self.files else super().find_kinds(columns, record)
        types: dict[str, Any] = {}
        if self.format == "parquet":
            files = (self.folder / line["file"] for line in record.shards)
            types = next((column_types(file) for file in files if file.is_file()), {})
        return tuple(
            None if name is None else JSON if name == JSON else types.get(column, kind)
            for name, column, kind in zip(written, columns.keep, found, strict=True)
        )

    def run(self, on: Callable[..., ShardEmbedder]) -> None:
        """Embed what is new; where nothing was finished yet, or the same inputs were begun, as any job."""
        with explain(self.folder):
            manifest = Manifest(self.folder, self.described(), update=True)
        with manifest:
            if not self._resume(manifest, on):
                self._bring_up_to_date(manifest, on)

    def _resume(self, manifest: Manifest, on: Callable[..., ShardEmbedder]) -> bool:
        begun = not manifest.complete and STDIN not in self.files and same_inputs(manifest.job, self.described())
        if manifest.shards and not begun:
            return False
        try:
            self.embed_left(manifest, on)
        except InputsChangedError:
            vars(self.report).update(vars(Report(bytes=self.report.bytes)))
            return False
        return True

    def _bring_up_to_date(self, manifest: Manifest, on: Callable[..., ShardEmbedder]) -> None:
        job = {**json.loads(json.dumps(self.described())), "stamp": manifest.job["stamp"], "updated": True}
        self.contents = replace(self.contents, stamp=manifest.job["stamp"])
        self._old = [line for i, line in enumerate(manifest.shards) if manifest.holds(i)]
        self._order, self._parts = dict[str, None](), dict[int, tuple[str, Shard, NDArray[np.int64]]]()
        self._ids, self._numbers, self._new, self._found = (list[NDArray[np.int64]]() for _ in range(4))
        first = 1 + max(int(SHARD.fullmatch(line["file"])[1]) for line in manifest.shards)  # type: ignore[index]
        with explain(self.folder):
            staging = Staging(self.folder, job)
        old = [self.folder / line["file"] for line in self._old]
        others = [staging.path / line["file"] for line in staging.leftovers]
        known = Known(old, others, [line.get("truncated", ()) for line in (*self._old, *staging.leftovers)])
        shards = self._new_shards(known, staging)
        with (
            self.embedder(on) as embedder,
            closing(embed_shards(shards, embedder, self.on_error, self.embedded_rows)) as done,
        ):
            for shard, embedded in done:
                self._stage(shard.number, embedded, known, staging)
        self.check_unchanged()
        with explain(self.folder):
            self._replace(manifest, job, known, staging, first)

    # What is new

    def _new_shards(self, known: Known, staging: Staging) -> Iterator[Shard]:
        """Yield for each new shard the rows of it that have to be embedded."""
        yield from self._unstaged(cut_shards(self._unknown(known, staging), self.shard_rows), known, staging)
        self._behind, left = len(self._order), self._rest(known) if self._repeated else iter(())
        yield from self._unstaged(cut_shards(left, self.shard_rows, first=self._behind), known, staging)

    def _unstaged(self, shards: Iterator[Shard], known: Known, staging: Staging) -> Iterator[Shard]:
        for shard in shards:
            digest = shard.digest()
            while digest in self._order:  # a shard of the same rows again
                digest = hashlib.sha256(digest.encode()).hexdigest()
            self._order[digest] = None
            numbers = known.find(text_digests([row.text for row in shard.rows]))
            self._new.append(id_numbers([row.id for row in shard.rows]))
            self._found.append(numbers)
            if digest in staging.shards:
                self.report.resumed_rows += staging.shards[digest]["embedded"]
                self.embedded_rows(0)
                continue
            self._parts[shard.number] = digest, shard, numbers
            yield Shard(shard.number, [row for row, number in zip(shard.rows, numbers, strict=True) if number < 0])

    def _unknown(self, known: Known, staging: Staging) -> Iterator[Row]:
        """Yield the good rows that no old shard holds, then those of old shards that do not stay where they are."""
        rows = self.rows()
        while batch := list(islice(rows, _BATCH)):
            good = [row for row in batch if not row.reason]
            self._add_bad(staging, [row.error() for row in batch if row.reason])
            ids = [row.id for row in good]
            numbers = known.match(row_digests(ids, [row.text for row in good], self._stored(good)))
            self._ids.append(id_numbers(ids))
            self._numbers.append(numbers)
            self.report.resumed_rows += int((numbers >= 0).sum())
            self.embedded_rows(0)
            yield from (row for row, number in zip(good, numbers.tolist(), strict=True) if number < 0)
        places = _joined(self._numbers)
        if (places < 0).any() or not known.present.all():
            known.merge_small(self.shard_rows)
        self._repeated = known.move_last(_joined(self._ids), places)
        yield from self._taken(known, known.moved, range(len(self._old)))
        if not self._repeated:
            yield from self._rest(known)

    def _rest(self, known: Known) -> Iterator[Row]:
        """Yield what is left of old shards that do not stay."""
        return self._taken(known, known.present, [i for i in range(len(self._old)) if not known.is_unchanged(i)])

    def _taken(self, known: Known, rows: NDArray[np.bool_], shards: Iterable[int]) -> Iterator[Row]:
        for shard in shards:
            name = self._old[shard]["file"]
            yield from (Row(name, place + 1, *row) for place, *row in known.rows_of(shard, rows))

    def _add_bad(self, staging: Staging, errors: Sequence[Line]) -> None:
        self.report.errors += len(errors)
        if errors:
            staging.add_bad(errors)

    def _stored(self, rows: Sequence[Row]) -> list[list[Any]]:
        """Return the values of each kept column as shards hold them."""
        names, kinds, stored = self.contents.columns.keep, self.contents.kinds, FORMATS[self.format].stored
        columns = []
        for i, name in enumerate(names):
            kind = kinds[i] if kinds else None
            try:
                columns.append(stored([row.kept[i] for row in rows], kind))
            except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
                raise ConfigError(
                    f"the column {name!r} has type {kind} in {str(self.folder)!r}, which a value in or after line "
                    f"{rows[0].line} of {rows[0].source!r} does not fit ({error}): embed into another folder"
                ) from error
        return columns

    # New shards

    def _stage(self, number: int, embedded: EmbeddedShard, known: Known, staging: Staging) -> None:
        digest, shard, numbers = self._parts.pop(number)
        rows, fresh, old = list(shard.rows), np.flatnonzero(numbers < 0), np.flatnonzero(numbers >= 0)
        for place, row in zip(fresh.tolist(), embedded.rows, strict=True):
            rows[place] = row
        good = np.array([not row.reason for row in rows], bool)
        fresh = fresh[good[fresh]]
        vectors, sparse = self._vectors(len(rows), fresh, embedded, old, numbers[old], known)
        truncated = np.zeros(len(rows), bool)
        truncated[old] = known.truncated[numbers[old]]
        truncated[fresh[list(embedded.truncated)]] = True
        bad = [row.error() for row in rows if row.reason]
        writer, dtype = FORMATS[self.format], np.float16 if self.contents.half else np.float32
        path = staging.place(digest, writer.ending)
        words = SparseRows.joined([sparse[i] for i in np.flatnonzero(good).tolist()]) if self.sparse else None
        with explain(self.folder):
            kept = [row for row in rows if not row.reason]
            writer.write(path, kept, np.ascontiguousarray(vectors[good], dtype), self.contents, words)
            staging.keep(
                {
                    "file": path.name,
                    "bytes": path.stat().st_size,
                    "digest": digest,
                    "rows": len(kept),
                    "embedded": len(fresh),
                    "bad": bad,
                    "truncated": np.flatnonzero(truncated[good]).tolist(),
                }
            )
        if self.on_shard:
            self.on_shard(self.report)

    def _vectors(
        self,
        count: int,
        fresh: NDArray[np.int64],
        embedded: EmbeddedShard,
        old: NDArray[np.int64],
        numbers: NDArray[np.int64],
        known: Known,
    ) -> tuple[Vectors, dict[int, SparseRows]]:
        """Return vectors by place: new ones, and those that old shards hold."""
        dimensions = int(self.contents.stamp["dimensions"])
        vectors = np.zeros((count, dimensions), np.float32)
        vectors[fresh] = embedded.vectors
        vectors[old], words = known.vectors(numbers, dimensions, sparse=self.sparse)
        sparse = dict(zip(old.tolist(), words, strict=False))
        new = SparseRows.of(embedded.sparse or [])
        sparse |= {place: new.part(i, i + 1) for i, place in enumerate(fresh.tolist()) if self.sparse}
        return vectors, sparse

    # The new state

    def _check_any(self, known: Known, lines: Sequence[Line]) -> None:
        if len(known.ids) and not any(line["rows"] for line in lines):
            raise ConfigError(
                f"no row of the inputs can be embedded, and all {len(known.ids)} rows of {str(self.folder)!r} "
                "would be dropped: is it the right file? If so, remove the folder"
            )

    def check_unchanged(self) -> None:
        """Refuse inputs that were changed while they were read; what was embedded is used by the next run."""
        try:
            super().check_unchanged()
        except ConfigError:
            raise ConfigError("the inputs changed while they were being read: run it again") from None

    def _replace(self, manifest: Manifest, job: Line, known: Known, staging: Staging, first: int) -> None:
        ending = FORMATS[self.format].ending
        unchanged = [line for i, line in enumerate(self._old) if known.is_unchanged(i)]
        order = [*self._order]
        order = order[self._behind :] + order[: self._behind]
        waiting = [(f"part-{i:06}{ending}", staging.shards[digest]) for i, digest in enumerate(order, first)]
        for _, line in waiting:
            self._add_bad(staging, line["bad"])
        come = [(line["file"], name) for name, line in waiting if line["rows"]]
        names = {line["file"] for line in unchanged}
        go = [line["file"] for line in manifest.shards if line["file"] not in names]
        if not manifest.complete:  # a shard of a killed job that was not noted
            go += [name for name in [f"part-{first:06}{ending}"] if name not in [new for _, new in come]]
        new = [
            {"file": name, **{key: line[key] for key in ("bytes", "digest", "rows", "truncated")}}
            for name, line in waiting
            if line["rows"]
        ]
        self._check_any(known, [*unchanged, *new])
        self._tell(known, unchanged, [line for _, line in waiting])
        errors = staging.errors.read_bytes()
        if self._is_same(manifest, errors) and not come and not go:
            discard(staging.path)
            return
        lines = [{**line, "errors": 0, "errors_bytes": len(errors)} for line in (*unchanged, *new)]
        end = {"complete": True, "shards": len(lines), "errors": self.report.errors}
        manifest.update(Changes([job, *lines, end], come, go), staging)

    def _is_same(self, manifest: Manifest, errors: bytes) -> bool:
        before = manifest.errors.read_bytes() if manifest.errors.exists() else b""
        return manifest.complete and same_inputs(manifest.job, self.described()) and errors == before

    def _tell(self, known: Known, unchanged: Sequence[Line], new: Sequence[Line]) -> None:
        report, lines = self.report, [*unchanged, *new]
        good = sum(line["rows"] for line in lines)
        report.shards, report.resumed = sum(line["rows"] > 0 for line in lines), len(unchanged)
        report.rows = good + report.errors
        report.cut = sum(len(line.get("truncated", ())) for line in lines)
        ids = _joined(self._ids)
        report.repeated = len(ids) - len(np.unique(ids))
        report.kept = good - sum(line["embedded"] for line in new)
        report.dropped = known.dropped(ids, _joined(self._new), _joined(self._found))


def _joined(numbers: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *numbers])
