"""Stores named by one line, such as ``chroma:PATH/NAME``: what ``bge verify --store`` and ``open_store`` take."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import BGEError, ConfigError
from ..extras import require
from .databases import is_collection
from .faiss_folder import find_index
from .stamp import check_or_stamp

__all__ = ["KINDS", "StorePlace", "chroma_address", "close_client", "open_place", "parse_place"]

KINDS = {
    "chroma": "chroma:PATH_OR_URL/COLLECTION",
    "qdrant": "qdrant:PATH_OR_URL/COLLECTION",
    "lancedb": "lancedb:PATH_OR_URL/TABLE",
    "faiss": "faiss:FOLDER/INDEX",
    "pgvector": "pgvector:postgresql://USER@HOST/DATABASE/TABLE",
}


class StorePlace(NamedTuple):
    """A store that was named.

    Attributes:
        kind: a key of ``KINDS``.
        place: a folder or an address.
        name: of the collection, table or index.
    """

    kind: str
    place: str
    name: str

    @property
    def shown(self) -> str:
        """The place without the password that may be in it."""
        return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", self.place)

    def opened(self, work: Callable[[], Any]) -> Any:
        """Return what ``work`` returns.

        Raises:
            ConfigError: the store's own package failed: no server, no such collection.
        """
        try:
            return work()
        except BGEError:
            raise
        except Exception as error:
            # Drivers repeat the address that they were given, with the password in it.
            told = " ".join(str(error).replace(self.place, self.shown).split())
            password = re.search(r"://[^:/@]*:([^@/]+)@", self.place)
            told = told.replace(password[1], "***") if password else told
            raise ConfigError(f"{self.kind} cannot open {self.name!r} in {self.shown!r}: {told[:300]}") from error

    def client(self) -> Any:
        """Return the client of the store: Chroma's, Qdrant's, a LanceDB connection, an SQLAlchemy engine; FAISS: None.

        Raises:
            ConfigError: it cannot be made.
            MissingExtraError: the store's package is not installed.
        """
        return self.opened(lambda: _CLIENTS[self.kind](self.place))

    def stamped(self, client: Any) -> Any:
        """Return what bears the stamp, as ``stamp_store`` and ``verify_store`` take it; it has to be there.

        Raises:
            ConfigError: there is no such collection, table or index, or no server.
        """
        return self.opened(lambda: _STAMPED[self.kind](client, self))


def open_place(named: str, holder: Any, openers: Mapping[str, Callable[..., Any]], options: dict[str, Any]) -> Any:
    """Open a store that was named, after its stamp was checked against an encoder; an empty one is stamped.

    Args:
        named: as ``parse_place`` takes it.
        holder: an encoder or an adapter that holds one.
        openers: for each kind, what makes the framework's store of the place, its client, ``holder`` and ``options``.
        options: of the store's class.

    Raises:
        SpaceMismatchError: its vectors are of another space.
        ConfigError: there is no such store, or it holds rows and no stamp.
        MissingExtraError: the store's packages are not installed.
    """
    where = parse_place(named)
    client = where.client()
    try:
        check_or_stamp(where.stamped(client), holder)
        return where.opened(lambda: openers[where.kind](where, client, holder, options))
    except BaseException:
        close_client(client)
        raise


def close_client(client: Any) -> None:
    """Close what ``StorePlace.client`` returned: a folder of Qdrant is locked and a connection open until then."""
    # SQLAlchemy's engine has dispose(); FAISS has no client at all.
    for close in ("close", "dispose"):
        if hasattr(client, close):
            getattr(client, close)()


def parse_place(named: str) -> StorePlace:
    """Return the kind, place and name of ``KIND:PLACE/NAME``.

    Raises:
        ConfigError: no such kind, or no such folder.
    """
    kind, _, rest = named.partition(":")
    # From the right: addresses and folders have colons and slashes of their own.
    place, _, name = rest.rpartition("/")
    if kind not in KINDS or not place or not name:
        raise ConfigError(f"a store is named as {', '.join(KINDS.values())}; not {named!r}")
    if kind == "pgvector" and not place.startswith(("postgresql", "postgres")):
        raise ConfigError(f"pgvector is named {KINDS[kind]}, not {named!r}")
    if "://" not in place and not Path(place).is_dir():
        raise ConfigError(f"the folder {place!r} does not exist")
    return StorePlace(kind, place, name)


def _chroma(place: str) -> Any:
    chromadb = require("chromadb", install="chromadb")
    if "://" not in place:
        return chromadb.PersistentClient(place)
    host, port, ssl = chroma_address(place)
    return chromadb.HttpClient(host=host, port=port, ssl=ssl)


def chroma_address(url: str) -> tuple[str, int, bool]:
    """Return host, port and whether TLS is used, as Chroma's client takes them."""
    parts = urlsplit(url)
    ssl = parts.scheme == "https"
    return parts.hostname or "localhost", parts.port or (443 if ssl else 8000), ssl


def _qdrant(place: str) -> Any:
    client = require("qdrant_client", install="qdrant-client").QdrantClient
    # A folder is Qdrant's local mode, which locks it until the client is closed.
    return client(url=place) if "://" in place else client(path=place)


def _lancedb(place: str) -> Any:
    return require("lancedb", install="lancedb").connect(place)


def _pgvector(place: str) -> Any:
    sqlalchemy = require("sqlalchemy", install="sqlalchemy")
    require("psycopg", install="'psycopg[binary]'")
    # Hosting providers hand out postgres://, which SQLAlchemy no longer knows.
    url = sqlalchemy.make_url(re.sub(r"^postgres:", "postgresql:", place))
    return sqlalchemy.create_engine(url.set(drivername="postgresql+psycopg"))


_CLIENTS: dict[str, Callable[[str], Any]] = {
    "chroma": _chroma,
    "qdrant": _qdrant,
    "lancedb": _lancedb,
    "pgvector": _pgvector,
    "faiss": lambda _: None,
}


def _qdrant_collection(client: Any, where: StorePlace) -> Any:
    client.get_collection(where.name)
    return client, where.name


def _pg_table(engine: Any, where: StorePlace) -> Any:
    from sqlalchemy import inspect

    with engine.connect() as connection:
        if not inspect(connection).has_table(where.name) and not is_collection(connection, where.name):
            raise ConfigError(
                f"no table or collection {where.name!r} in {where.shown!r}; LlamaIndex puts data_ in front of names"
            )
    return engine, where.name


_STAMPED: dict[str, Callable[[Any, StorePlace], Any]] = {
    "chroma": lambda client, where: client.get_collection(where.name),
    "qdrant": _qdrant_collection,
    "lancedb": lambda client, where: client.open_table(where.name),
    "pgvector": _pg_table,
    "faiss": lambda _, where: find_index(Path(where.place), where.name),
}
