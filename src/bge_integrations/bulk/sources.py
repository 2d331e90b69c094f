"""Inputs: which files names, globs and folders stand for, and their bytes, unpacked."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import io
import lzma
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from ..errors import ConfigError
from ..extras import require
from .chunking import CODE
from .urls import RemoteFile, expand_url, is_url, open_url

STDIN = "-"
LINES, TABLES, TEXTS = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv"), (".txt", ".md", ".rst")
HTML, PDF = (".html", ".htm"), ".pdf"
DOCUMENTS = (*CODE, *HTML, PDF)
"""Read where texts are chunked."""
KINDS = (*LINES, *TABLES, ".parquet", *TEXTS)
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
_BUFFER = 1 << 20
_END = 65536


@dataclass
class BytesRead:
    """How many bytes of the inputs, before they are unpacked, have become rows.

    Attributes:
        taken: what was taken from the disk, ahead of the rows.
        read: what the rows so far were made of.
    """

    taken: int = 0
    read: int = 0

    def take(self, count: int) -> None:
        """Note bytes that were taken."""
        self.taken += count

    def settle(self) -> None:
        """Note that all that was taken has become rows."""
        self.read = self.taken


def find_inputs(inputs: str | Sequence[str], besides: Path | None = None, *, documents: bool = False) -> list[str]:
    """Return the files that names, globs and folders stand for, sorted within each, each once.

    Args:
        inputs: files, globs, folders, URLs of these, ``"-"``.
        besides: a folder whose files are passed over where a folder or a glob contains it.
        documents: take code, HTML and PDF as well.

    Raises:
        ConfigError: nothing is there, a file is of an unsupported type, or one that was named is in ``besides``.
    """
    names = [os.fspath(inputs)] if isinstance(inputs, (str, os.PathLike)) else [os.fspath(name) for name in inputs]
    found = (file for name in names for file in _expand(name, besides, documents=documents))
    files = list({getattr(file, "url", file): file for file in found}.values())
    if not files:
        raise ConfigError("no input: name files, globs or folders, or - for standard input")
    for file in files:
        if input_kind(file) in DOCUMENTS and not documents:
            raise ConfigError(f"{file!r} can only be read in chunks: pass their size, such as --chunk 400 (chunk=400)")
    return files


def _expand(name: str, besides: Path | None, *, documents: bool) -> Sequence[str]:
    kinds = (*KINDS, *DOCUMENTS) if documents else KINDS
    if name == STDIN:
        return [name]
    if name.startswith("file://"):
        name = name.removeprefix("file://")
        name = name if Path(name).exists() else unquote(name)  # typed as it is, or percent-encoded
    if is_url(name):
        remote = expand_url(name, lambda file: _endings(file)[0] in kinds)
        if not remote:
            raise ConfigError(f"no input at {str(RemoteFile(name))!r}; supported: {_known()}")
        return remote
    return _expand_path(Path(name), name, besides, kinds)


def _expand_path(path: Path, name: str, besides: Path | None, kinds: Sequence[str]) -> list[str]:
    if path.is_file():
        if _is_inside(name, besides):
            raise ConfigError(f"the input {name!r} is inside the output folder {str(besides)!r}: use another folder")
        return [name]
    if path.is_dir():
        known = (file for file in sorted(path.rglob("*")) if _endings(file.name)[0] in kinds and file.is_file())
        found = [str(file) for file in known if _is_visible(file, path)]
    elif path.exists():
        raise ConfigError(f"{name!r} is not a regular file: pipe it to standard input, and pass - as the input")
    else:
        found = [file for file in sorted(glob.glob(name, recursive=True)) if Path(file).is_file()]  # noqa: PTH207
    found = [file for file in found if not _is_inside(file, besides)]
    if not found:
        raise ConfigError(f"no input at {name!r}; supported files: {_known()}")
    return found


def _is_visible(file: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _is_inside(name: str, folder: Path | None) -> bool:
    if folder is None or not folder.is_dir():
        return False
    path, about = Path(name), Path(name).stat()
    if folder.resolve() in path.resolve().parents:
        return True
    # A hard link has a path of its own.
    others = folder.iterdir() if about.st_nlink > 1 else ()
    return any((other.lstat().st_dev, other.lstat().st_ino) == (about.st_dev, about.st_ino) for other in others)


def _known() -> str:
    return f"{', '.join(KINDS)}, also with {', '.join(PACKINGS)}; in chunks also {', '.join(DOCUMENTS)}"


def _endings(name: str) -> tuple[str, str]:
    path = Path(name.lower())
    packing = path.suffix if path.suffix in PACKINGS else ""
    return Path(path.stem if packing else path.name).suffix, packing


def input_kind(file: str) -> str:
    """Return the ending that says how a file is read.

    Raises:
        ConfigError: its type is not supported.
    """
    if file == STDIN:
        return ".jsonl"
    kind, packing = _endings(Path(file).name)
    if kind not in KINDS and kind not in DOCUMENTS:
        raise ConfigError(f"unsupported file type: {file!r}; supported: {_known()}")
    if kind == ".parquet" and packing:
        raise ConfigError(f"{file!r}: Parquet is compressed inside already: decompress the file")
    return kind


@contextmanager
def open_input(file: str, tally: BytesRead) -> Iterator[IO[bytes]]:
    """Open a file for its bytes, unpacked.

    Raises:
        OSError: it cannot be read.
        MissingExtraError: it is packed with zstd, which this Python cannot unpack.
    """
    if file == STDIN:
        yield sys.stdin.buffer
        return
    if isinstance(file, RemoteFile):
        with open_url(file, tally.take) as (raw, _), _unpacked(raw, _endings(file)[1]) as stream:
            yield stream
        return
    with io.BufferedReader(_Counted(file, tally), _BUFFER) as raw, _unpacked(raw, _endings(file)[1]) as stream:
        yield stream


class _Counted(io.FileIO):
    """A file that tells how much of it was taken from the disk."""

    def __init__(self, file: str, tally: BytesRead) -> None:
        super().__init__(file)
        self._tally = tally

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._tally.taken += count
        return count


def _unpacked(raw: IO[bytes], packing: str) -> Any:
    unpack: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
    return unpack[packing](raw) if packing else raw


def _zstd(raw: IO[bytes]) -> Any:
    pyarrow = require("pyarrow", extra="bulk", purpose=".zst")
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), "zstd")


def input_fingerprint(files: Sequence[str]) -> dict[str, Any]:
    """Return what tells whether inputs have changed: how many, how large, and a digest of their two ends.

    The middle is not read here: the digest of each shard's rows sees it.

    Raises:
        ConfigError: a file cannot be read.
    """
    digest, total = hashlib.sha256(), 0
    for file in files:
        if file != STDIN:
            total += _add(file, digest)
    return {"files": len(files), "first": files[0], "bytes": total, "ends": digest.hexdigest()}


@contextmanager
def open_seekable(file: str) -> Iterator[tuple[Any, int]]:
    """Open a file for its bytes as they are, to be read in any order; yields it and its size.

    Raises:
        ConfigError: it cannot be read.
    """
    if isinstance(file, RemoteFile):
        with open_url(file, lambda _: None, seekable=True) as opened:
            yield opened
    else:
        yield file, Path(file).stat().st_size


def _add(file: str, digest: Any) -> int:
    if isinstance(file, RemoteFile):
        return _add_remote(file, digest)
    try:
        with Path(file).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{size}\n".encode() + stream.read(_END))
            stream.seek(max(0, size - _END))
            digest.update(stream.read(_END))
    except OSError as error:
        raise ConfigError(f"{file!r} cannot be read: {error.strerror or error}") from error
    return size


def _add_remote(file: RemoteFile, digest: Any) -> int:
    with open_url(file, lambda _: None) as (stream, size):
        digest.update(f"{size}\n".encode() + stream.read(_END))
        if size and stream.seekable():  # else the digests of the shards' rows have to do
            stream.seek(max(0, size - _END))
            digest.update(stream.read(_END))
    return size
