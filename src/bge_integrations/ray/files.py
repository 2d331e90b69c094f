"""Files that all nodes write into one folder: whole or not at all, and named by the ids in them."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.files import PARTIAL, is_partial
from ..errors import ConfigError, SpaceMismatchError, no_thread
from ..stamps.slots import KEY

__all__ = ["Finished", "Folder", "Writer", "find_finished"]

_OWNER = ".job"
_FILE = re.compile(r"part-[0-9a-f]{24}\.parquet")
# Version 0.1 named unfinished files so.
_OLD_PARTIAL = re.compile(r"\.part-[0-9a-f]{24}\.parquet\.[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class Folder:
    """Where files go, what they hold, and which job may write them."""

    path: str
    id: str
    embedding: str
    stamp: dict[str, Any]
    job: str = field(default_factory=lambda: uuid.uuid4().hex)

    def take(self) -> None:
        """Make the folder this job's: what workers of a killed one still have in hand must not follow.

        Raises:
            ConfigError: the folder has files that are not of such a job; nothing was touched.
        """
        system, path = self.open()
        foreign = [name for name in self._names(system, path) if not _is_ours(name)]
        if foreign:
            raise ConfigError(
                f"{self.path!r} holds {foreign[0]!r}, which embed_dataset did not write: choose a new or empty folder"
            )
        system.create_dir(path, recursive=True)
        with system.open_output_stream(f"{path}/{_OWNER}") as file:
            file.write(self.job.encode())

    def check(self) -> None:
        """Refuse to continue where another job has taken the folder.

        Raises:
            ConfigError: it has.
        """
        system, path = self.open()
        with system.open_input_stream(f"{path}/{_OWNER}") as file:
            if file.read().decode() != self.job:
                raise ConfigError(f"another job has taken over {self.path!r}: this one ends here")

    def clear(self) -> list[str]:
        """Remove what a kill or a lost machine left half written, and return the files that are whole, sorted."""
        system, path = self.open()
        names = self._names(system, path)
        for name in names:
            if _is_partial(name):
                system.delete_file(f"{path}/{name}")
        return [f"{path}/{name}" for name in names if _FILE.fullmatch(name)]

    def _names(self, system: Any, path: str) -> list[str]:
        from pyarrow import fs

        return sorted(about.base_name for about in system.get_file_info(fs.FileSelector(path, allow_not_found=True)))

    def open(self) -> tuple[Any, str]:
        """Return the file system and the path in it."""
        from pathlib import Path

        from pyarrow import fs

        if "://" in self.path:
            system, path = fs.FileSystem.from_uri(self.path)
            return system, path
        return fs.LocalFileSystem(), str(Path(self.path).absolute())


def _is_partial(name: str) -> bool:
    return is_partial(name) or bool(_OLD_PARTIAL.fullmatch(name))


def _is_ours(name: str) -> bool:
    return name == _OWNER or _is_partial(name) or bool(_FILE.fullmatch(name))


class Finished:
    """The ids that a folder's files hold, in the object store, so that workers of one node share them."""

    def __init__(self, ids: NDArray[Any] | None, files: int) -> None:
        self.rows, self.files = 0 if ids is None else len(ids), files
        self._ids = ids

    def filter(self, column: str) -> _Skip:
        """Return what takes finished rows out of a table."""
        import ray

        return _Skip(ray.put(self._ids), column)


class _Skip:
    def __init__(self, ids: Any, column: str) -> None:
        self.ids, self.column = ids, column

    def __call__(self, table: Any) -> Any:
        import pyarrow as pa
        import ray

        finished, own = ray.get(self.ids), ids_of(table, self.column)
        if not len(own):
            return table
        # Numbers are never found among digests: everything would be computed again.
        if own.dtype != finished.dtype:
            raise ConfigError(f"{self.column!r} holds ids of another type than the folder's files do")
        places = np.minimum(np.searchsorted(finished, own), len(finished) - 1)
        return table.filter(pa.array(finished[places] != own))


def ids_of(table: Any, column: str) -> NDArray[Any]:
    """Return ids as what can be sorted and shared without a copy: whole numbers, or digests of 16 bytes of all else.

    Raises:
        ConfigError: there is no such column, or a row has no id.
    """
    import pyarrow as pa

    if column not in table.column_names:
        raise ConfigError(f"no column {column!r} of ids; there are {', '.join(map(repr, table.column_names))}")
    values = table[column]
    if values.null_count:
        raise ConfigError(f"{values.null_count} rows have no id in {column!r}")
    if pa.types.is_integer(values.type):
        return np.asarray(values.to_numpy(), np.int64)
    # Of one width, so that NumPy sorts them and workers of a node share them without a copy.
    digests = [hashlib.blake2b(str(value).encode(), digest_size=16).digest() for value in values.to_pylist()]
    return np.array(digests, "S16")


class Writer:
    """Writes one block as one file; the same rows give the same name, so that a repetition replaces its own file."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def __call__(self, table: Any) -> dict[str, NDArray[Any]]:
        """Write a table and return how many rows it has."""
        if table.num_rows:
            name = hashlib.blake2b(ids_of(table, self.folder.id).tobytes(), digest_size=12).hexdigest()
            _write_whole(self._with_stamp(table), self.folder, f"part-{name}.parquet")
        return {"rows": np.array([table.num_rows] if table.num_rows else [], np.int64)}

    def _with_stamp(self, table: Any) -> Any:
        import pyarrow as pa

        column = table[self.folder.embedding].combine_chunks()
        vectors = np.ascontiguousarray(_matrix(column), np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        place = table.column_names.index(self.folder.embedding)
        stamp = json.dumps(self.folder.stamp, sort_keys=True)
        return table.set_column(place, self.folder.embedding, lists).replace_schema_metadata({KEY: stamp})


def _matrix(column: Any) -> NDArray[Any]:
    chunk = column.chunk(0) if hasattr(column, "chunk") else column
    # Tensors of Arrow and of Ray have this method; lists of a fixed size do not.
    convert = getattr(chunk, "to_numpy_ndarray", None)
    return np.asarray(convert() if convert else chunk.to_numpy(zero_copy_only=False))


def _write_whole(table: Any, folder: Folder, name: str) -> None:
    import pyarrow.parquet as parquet
    from pyarrow import fs

    system, path = folder.open()
    # An object store shows a file when its upload is finished; a disk shows it from the first byte on.
    disk = isinstance(system, fs.LocalFileSystem)
    first = f"{path}/{PARTIAL}{uuid.uuid4().hex}-{name}.partial" if disk else f"{path}/{name}"
    if not disk:
        folder.check()
    parquet.write_table(table, first, filesystem=system, compression="zstd", version="2.6", use_dictionary=False)
    if disk:
        folder.check()
        system.move(first, f"{path}/{name}")


def find_finished(folder: Folder) -> Finished:
    """Take a folder, clear away what a kill left half written, and return the ids in its files.

    Raises:
        SpaceMismatchError: a file holds vectors of another space.
        ConfigError: a file without a stamp, or an id in two files.
    """
    folder.take()
    system, _ = folder.open()
    shards = folder.clear()
    with ThreadPoolExecutor(16) as pool:
        try:
            reads = [pool.submit(_ids_in, name, system, folder) for name in shards]
        except RuntimeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise no_thread("files", error) from error
        parts = [read.result() for read in reads]
    if not parts:
        return Finished(None, 0)
    ids = np.sort(np.concatenate(parts))
    if len(twice := np.flatnonzero(ids[1:] == ids[:-1])):
        raise ConfigError(f"{len(twice)} ids are in {folder.path!r} more than once: ids must be unique")
    return Finished(ids, len(shards))


def _ids_in(name: str, system: Any, folder: Folder) -> NDArray[Any]:
    import pyarrow.parquet as parquet

    with system.open_input_file(name) as file, parquet.ParquetFile(file) as opened:
        _check_stamp(opened.schema_arrow.metadata or {}, name, folder.stamp)
        return ids_of(opened.read(columns=[folder.id]), folder.id)


def _check_stamp(metadata: dict[bytes, bytes], name: str, stamp: dict[str, Any]) -> None:
    line = metadata.get(KEY.encode())
    if line is None:
        raise ConfigError(f"{name!r} was not written by an embedding job: choose another folder")
    written = json.loads(line)
    if written["space"] != stamp["space"]:
        differences = {key: (written.get(key), value) for key, value in stamp.items() if written.get(key) != value}
        raise SpaceMismatchError(
            f"{name!r} holds vectors of {written['space']!r}, not {stamp['space']!r}: choose another folder",
            differences=differences,
            reembed=True,
        )
