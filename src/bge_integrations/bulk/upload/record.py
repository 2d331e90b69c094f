"""What was uploaded from a folder into a store, beside the shards: so that an update knows what to delete.

A store may hold rows of other programs. An update deletes a row only if this record names its key, that is if
``bge upload`` wrote it from this folder, and if the store still holds a text under it that was written so: a row that
another program wrote or changed stays. The record is written before the store (the key, and which text will be there)
and again after it (that it is there), so whatever a kill leaves is uploaded, or deleted, again.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ...errors import BGEWarning, ConfigError, warn
from ..folder import is_finished, read_manifest
from ..formats import read_part
from ..known import row_digests, text_digests
from ..part import Part
from .target import Key, Place, Target

__all__ = ["UPLOADS", "UploadRecord", "open_record"]

UPLOADS = ".uploads"
_PIECE = 4096
_TABLES = """
CREATE TABLE IF NOT EXISTS uploaded (key PRIMARY KEY, row BLOB, text BLOB, next_row BLOB, next_text BLOB) WITHOUT ROWID;
CREATE TEMP TABLE current (key PRIMARY KEY, row BLOB, text BLOB, file INTEGER, place INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE held (key PRIMARY KEY, text BLOB) WITHOUT ROWID;
CREATE TEMP TABLE put (key PRIMARY KEY) WITHOUT ROWID;
"""
_CHANGED = """
SELECT file, place FROM current LEFT JOIN uploaded USING (key) LEFT JOIN held USING (key)
WHERE held.key IS NULL OR uploaded.row IS NOT current.row OR held.text IS NOT current.text ORDER BY file, place
"""
_GONE = """
SELECT key, held.text IS NOT NULL AND (held.text IS uploaded.text OR held.text IS uploaded.next_text),
    held.key IS NOT NULL
FROM uploaded LEFT JOIN current USING (key) LEFT JOIN held USING (key) WHERE current.key IS NULL
"""


class UploadRecord:
    """The record of one store; use ``open_record``."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def intend(self, keys: Sequence[Key], part: Part) -> None:
        """Note rows that are about to be written."""
        rows = zip(keys, _rows(part), _texts(part.texts), strict=True)
        self._many(
            "INSERT INTO uploaded (key, next_row, next_text) VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "row = NULL, next_row = excluded.next_row, next_text = excluded.next_text",
            rows,
        )
        self._many("INSERT OR REPLACE INTO put VALUES (?)", ((key,) for key in keys))
        self._database.commit()

    def confirm(self) -> None:
        """Note that the rows of ``intend`` are in the store."""
        self._database.execute(
            "UPDATE uploaded SET row = next_row, text = next_text, next_row = NULL, next_text = NULL "
            "WHERE key IN (SELECT key FROM put)"
        )
        self._database.execute("DELETE FROM put")
        self._database.commit()

    def compare(self, files: Sequence[Path], target: Target) -> None:
        """Read which rows the shards and the store hold."""
        for number, path in enumerate(files):
            place = 0
            for part in read_part(path, _PIECE, vectors=False):
                places = range(place, place := place + len(part.ids))
                rows = zip(
                    target.keys(part), _rows(part), _texts(part.texts), [number] * len(places), places, strict=True
                )
                self._many("INSERT OR REPLACE INTO current VALUES (?, ?, ?, ?, ?)", rows)
        for page in target.held():
            keys, texts = [key for key, _ in page], _texts([text for _, text in page])
            self._many("INSERT OR REPLACE INTO held VALUES (?, ?)", zip(keys, texts, strict=True))
        self._database.commit()

    def changed(self, files: int) -> Iterator[tuple[int, list[int]]]:
        """Yield for each shard the places of the rows that the store does not hold as they are."""
        places: list[list[int]] = [[] for _ in range(files)]
        for file, place in self._database.execute(_CHANGED):
            places[file].append(place)
        yield from enumerate(places)

    def current(self) -> int:
        """Return the number of ids in the shards."""
        return int(self._database.execute("SELECT count(*) FROM current").fetchone()[0])

    def gone(self) -> tuple[list[Key], int]:
        """Return the keys of rows to delete, and how many rows another program has changed and so stay."""
        found = self._database.execute(_GONE).fetchall()
        return [key for key, ours, _ in found if ours], sum(there and not ours for _, ours, there in found)

    def forget_gone(self) -> None:
        """Forget the rows that the shards do not hold any more."""
        self._database.execute("DELETE FROM uploaded WHERE key NOT IN (SELECT key FROM current)")
        self._database.commit()

    def _many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._database.executemany(statement, rows)


def _rows(part: Part) -> list[bytes]:
    return row_digests(part.ids, part.texts, [*part.kept.values()])


def _texts(texts: Iterable[str | None]) -> list[bytes]:
    # PostgreSQL's text cannot hold a NUL.
    return text_digests((text or "").replace("\0", "\ufffd") for text in texts)


@contextmanager
def open_record(folder: Path, into: str, place: Place, *, update: bool) -> Iterator[UploadRecord | None]:
    """Open the record of a store; None where none can be kept, which is warned of.

    Raises:
        ConfigError: of an update: none can be kept, or the folder's job is not finished, so that rows would be missed
            as gone which only are not there yet. Else: another process is at work with it.
    """
    if update and not is_finished(folder):
        raise ConfigError(
            f"the job of {str(folder)!r} is not finished, so the rows that are gone are not known yet: "
            "run bge embed again first"
        )
    database = None
    try:
        database = _open(folder, into, place)
    except (sqlite3.Error, OSError, ConfigError) as error:
        if "locked" in str(error):
            raise ConfigError(f"another upload of {str(folder)!r} into this store is running: wait for it") from error
        reason = f"no record of the upload can be kept in {str(folder)!r} ({error})"
        if update:
            raise ConfigError(f"{reason}: upload from a folder that can be written") from error
        warn(f"{reason}: a later --update will not know which rows to delete", BGEWarning)
    try:
        yield UploadRecord(database) if database else None
    finally:
        if database:
            database.close()


def _open(folder: Path, into: str, place: Place) -> sqlite3.Connection:
    if read_manifest(folder) is None:
        raise ConfigError("it has no manifest of bge embed")
    records = folder / UPLOADS
    if records.is_symlink():
        raise ConfigError(f"{UPLOADS} is a link")
    records.mkdir(exist_ok=True)
    name = hashlib.sha256("\n".join([_address(place), place.collection]).encode()).hexdigest()[:16]
    database = sqlite3.connect(records / f"{into}-{name}.sqlite", timeout=0)
    try:
        # The first write takes SQLite's lock, and this mode keeps it until the file is closed: one upload at a time.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN IMMEDIATE")
        database.commit()
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database


def _address(place: Place) -> str:
    """Return where a store is, without user and password."""
    if place.path is not None:
        return str(Path(place.path).resolve())
    if place.url is None:
        return "client"
    url = urlsplit(place.url)
    return f"{url.hostname}:{url.port}{url.path}?{parse_qs(url.query).get('host', '')}"
