"""The interface of a vector store to an upload: idempotent upserts in batches.

Each store is spoken to by its own client. LangChain's ``add_texts`` takes a multiple of the time for LanceDB, FAISS and
pgvector (benchmarks/upload.py), and replaces no rows in the first two. For Chroma and Qdrant it is as fast, but no
method of LangChain's lists what a store holds, which an update has to know, and its class would be one package more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ...errors import ConfigError
from ..part import Part

Key = str | int
"""What a store calls a row."""


@dataclass(frozen=True)
class Place:
    """Where rows go.

    Attributes:
        collection: name of the collection, table or index.
        dimensions: of the vectors.
        url: of a server.
        path: of a folder on this machine.
        key: of the server, where it wants one.
        client: a ready client, instead of all three.
        vocabulary: size of sparse vectors; 0 where there are none.
        shard: the first shard, for what a store has to know of its columns.
    """

    collection: str
    dimensions: int
    shard: Path
    url: str | None = None
    path: str | None = None
    key: str | None = None
    client: Any = None
    vocabulary: int = 0

    def ready(self, make: Callable[[], Any]) -> Any:
        """Return the client that was given, or a new one; LanceDB's is false while it has no table."""
        return make() if self.client is None else self.client


class UploadBatch:
    """Rows of a shard, each id once."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.ids = [str(value) for value in part.ids]
        self.texts, self.vectors = part.texts, part.vectors
        self.sparse = part.sparse

    @cached_property
    def metadata(self) -> list[dict[str, Any]]:
        """What is remembered beside each text: its id, and the kept columns that are not empty; plain JSON values."""
        columns = {"id": self.part.ids, **self.part.kept}
        return [
            {name: _plain(values[i]) for name, values in columns.items() if values[i] is not None}
            for i in range(len(self.ids))
        ]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value)


class Target(ABC):
    """A collection that is there and takes rows."""

    stamped: Any
    """What ``stamp_store`` takes."""

    @abstractmethod
    def count(self) -> int:
        """Return the number of rows that are there."""

    @abstractmethod
    def put(self, batch: UploadBatch) -> None:
        """Write rows; a row of the same id is replaced."""

    def keys(self, part: Part) -> Sequence[Key]:
        """Return what the store calls rows: their ids as strings, unless it says otherwise."""
        return [str(value) for value in part.ids]

    @abstractmethod
    def held(self) -> Iterator[list[tuple[Key, str | None]]]:
        """Yield keys and texts of all rows that are there, some at a time; texts are None where there are none."""

    @abstractmethod
    def delete(self, keys: Sequence[Key]) -> None:
        """Delete rows; a key that is not there is no error."""


class StoreKind(Protocol):
    """A kind of store: a module of this package."""

    BATCH_ROWS: int
    TAKES: tuple[str, ...]
    PACKAGES: dict[str, str]
    """What pip calls each package that it needs, by the name it is imported by."""
    MARKS: tuple[str, ...]
    """Names by which its folder is known, as patterns."""
    SPARSE: bool
    LASTS: bool
    """Whether what was put stays after a kill; else it does when the target was left without an error."""

    def open_target(self, place: Place) -> AbstractContextManager[Target]:
        """Make the collection where it is missing; leaving without an error makes all that was put last."""
        ...

    def how_to_open(self, place: Place, model: str) -> str:
        """Return Python that opens the collection."""
        ...


def pages(values: Sequence[Key], size: int) -> Iterator[list[Key]]:
    """Yield values, some at a time."""
    for first in range(0, len(values), size):
        yield list(values[first : first + size])


_NOBODYS = (".DS_Store", ".gitkeep")


def check_folder(path: Path, marks: tuple[str, ...], into: str) -> None:
    """Refuse a folder that is neither new, nor empty, nor of this kind of store.

    Raises:
        ConfigError: it is somebody's folder, or no folder; it was left as it was.
    """
    try:
        names = sorted(each.name for each in path.iterdir() if each.name not in _NOBODYS)
        known = any(True for mark in marks for _ in path.glob(mark))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{into} cannot use {str(path)!r}: {error.strerror}; name a folder") from None
    if names and not known:
        raise ConfigError(f"{str(path)!r} holds {names[0]!r}, but no {into} store: choose a new or empty folder")


def check_dimensions(found: int | None, place: Place) -> None:
    """Refuse a collection of other vectors.

    Raises:
        ConfigError: its vectors have another size.
    """
    if found is not None and found != place.dimensions:
        raise ConfigError(
            f"{place.collection!r} holds vectors of {found} dimensions, the shards have {place.dimensions}: "
            "choose another collection"
        )
