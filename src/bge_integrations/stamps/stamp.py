"""Write into a vector store which space its vectors are of, and refuse an encoder of another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.encoder import Encoder, HoldsEncoder, held_encoder
from ..errors import ConfigError, SpaceMismatchError
from .slots import KEY, find_slot

__all__ = ["check_or_stamp", "check_stamp", "check_store", "read_stamp", "stamp_store"]

_DOCUMENTS = ("model", "revision", "dimensions", "pooling", "variant", "quantised")
_STAMPED = (*_DOCUMENTS, "query_instruction")
_SPARSE = ("sparse_space",)  # compared where both have it: who searches by dense vectors alone needs no head
_VECTORS = (*_DOCUMENTS, *_SPARSE)


Stamped = Encoder | HoldsEncoder | Mapping[str, Any]


def stamp_store(store: Any, encoder: Stamped, *, replace: bool = False) -> dict[str, Any]:
    """Write the encoder's stamp into a vector store.

    Args:
        store: of LangChain or LlamaIndex over Chroma, Qdrant, pgvector, LanceDB, Milvus, Redis, DuckDB, Elasticsearch,
            OpenSearch or sqlite-vec; LlamaIndex's ``SimpleVectorStore`` (``persist`` saves the stamp); a Chroma
            collection, LanceDB table or redisvl index; a pair of a client and the name of a collection, table or index
            (``QdrantClient``, ``MilvusClient``, ``Redis``, ``Elasticsearch``, ``OpenSearch``, SQLAlchemy's ``Engine``,
            a connection of DuckDB or sqlite3); or the folder in which a FAISS index was saved (the stamp becomes a file
            beside it). Collection and table have to exist: LlamaIndex makes some at the first ``add``.
        encoder: an encoder, an adapter of LangChain or LlamaIndex that holds one, or a stamp.
        replace: overwrite the stamp of another space, once the documents have been re-embedded.

    Returns:
        The stamp.

    Raises:
        SpaceMismatchError: the store is stamped with another space already. A new query instruction alone is written,
            since it leaves the documents' vectors as they are.
            Also where the store's vectors have other dimensions than the encoder's.
        ConfigError: no such kind of store, one that cannot keep a stamp, or an empty folder.
    """
    if isinstance(store, (str, Path)) and not _holds_files(Path(store)):
        raise ConfigError(f"{str(store)!r} holds no index: save the index first, then stamp its folder")
    slot, stamp = find_slot(store), _stamp(encoder)
    held = slot.dimensions()
    if held and stamp["dimensions"] not in held:
        sizes = " and ".join(map(str, sorted(held)))
        raise SpaceMismatchError(
            f"the store holds vectors of {sizes} dimensions, but {stamp['model']!r} has "
            f"{stamp['dimensions']}: pass the encoder that made them",
            differences={"dimensions": (min(held), stamp["dimensions"])},
            reembed=True,
        )
    line = slot.read()
    written = {} if replace else _parse(line)
    changed = [name for name in _differences(written, stamp) if name in _VECTORS] if written else []
    if changed:
        raise _mismatch(written, stamp)
    line = json.dumps(stamp, sort_keys=True)
    slot.write(line)
    if _parse(slot.read()) != stamp:
        raise ConfigError(f"{type(store).__name__} did not keep the stamp: its server is too old for metadata")
    return stamp


def check_store(store: Any, encoder: Stamped) -> dict[str, Any]:
    """Refuse an encoder whose vectors do not belong in a store.

    Args:
        store: as ``stamp_store`` takes it.
        encoder: an encoder, an adapter of LangChain or LlamaIndex that holds one, or a stamp.

    Returns:
        The store's stamp.

    Raises:
        SpaceMismatchError: the error says what differs and whether the documents have to be embedded again
            (``differences`` and ``reembed`` say it as data).
        ConfigError: the store has no stamp.
    """
    written = read_stamp(store)
    if not written:
        raise ConfigError(
            f"this {_kind(store)} has no stamp, so the model behind its vectors is unknown. If you "
            "know that this encoder made them, call stamp_store(store, encoder)"
        )
    check_stamp(written, encoder)
    return written


def check_or_stamp(store: Any, encoder: Stamped) -> dict[str, Any]:
    """Check a store as ``check_store`` does, and stamp one that holds nothing yet.

    Raises:
        SpaceMismatchError: as ``check_store`` does.
        ConfigError: the store holds rows and has no stamp.
    """
    slot = find_slot(store)
    if slot.read() is None and slot.empty():
        return stamp_store(store, encoder)
    return check_store(store, encoder)


def check_stamp(written: Mapping[str, Any], encoder: Stamped) -> None:
    """Refuse an encoder whose vectors do not belong to those that a stamp was written for.

    Args:
        written: a stamp.
        encoder: whatever has a ``stamp()``, or an adapter of LangChain or LlamaIndex that holds such a thing.

    Raises:
        SpaceMismatchError: as ``check_store`` does.
    """
    stamp = _stamp(encoder)
    if "sparse_space" in written and not isinstance(encoder, Mapping):
        held = held_encoder(encoder)
        stamp = held.stamp(sparse="sparse" in held.outputs)
    if _differences(written, stamp):
        raise _mismatch(written, stamp)


def read_stamp(store: Any) -> dict[str, Any]:
    """Return the stamp of a store; empty where it has none.

    Raises:
        ConfigError: no such kind of store.
    """
    return _parse(find_slot(store).read())


def _stamp(encoder: Stamped) -> dict[str, Any]:
    return dict(encoder) if isinstance(encoder, Mapping) else held_encoder(encoder).stamp()


def _parse(line: str | None) -> dict[str, Any]:
    try:
        data = json.loads(line or "{}")
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise ConfigError(
            f"the store's stamp was not written by this package: {line!r:.80}; overwrite it with "
            "stamp_store(..., replace=True)"
        )
    return data


def _differences(written: Mapping[str, Any], stamp: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*_STAMPED, *(name for name in _SPARSE if name in written and name in stamp)]
    pairs = {name: (written.get(name), stamp.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if (pair[0] or None) != (pair[1] or None)}


def _mismatch(written: Mapping[str, Any], stamp: Mapping[str, Any]) -> SpaceMismatchError:
    differences = _differences(written, stamp)
    reembed = any(name in _VECTORS for name in differences)
    listed = "; ".join(f"{name}: {old!r} in the store, {new!r} here" for name, (old, new) in differences.items())
    remedy = (
        "the vectors cannot be compared: use the store's model, or embed its documents again and "
        "stamp_store(..., replace=True)"
        if reembed
        else "its documents need not be re-embedded, because their vectors do not depend on the instruction: pass the "
        "store's query_instruction=, or switch to this one with stamp_store(store, encoder)"
    )
    return SpaceMismatchError(
        f"the store was made differently ({listed}): {remedy}", differences=differences, reembed=reembed
    )


def _holds_files(folder: Path) -> bool:
    return not folder.is_dir() or any(path.name != f"{KEY}.json" for path in folder.iterdir())


def _kind(store: Any) -> str:
    return "folder" if isinstance(store, (str, Path)) else type(store).__name__
