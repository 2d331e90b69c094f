"""Chroma, in a layout that LangChain and LlamaIndex both read: documents and flat metadata, compared by cosine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import ConfigError
from ...extras import require
from ...stamps.places import chroma_address
from .target import Key, Place, Target, UploadBatch, check_dimensions, pages

BATCH_ROWS = 1000
TAKES = ("url", "path", "client")
PACKAGES = {"chromadb": "chromadb"}
MARKS: tuple[str, ...] = ("chroma.sqlite3",)
SPARSE = False
LASTS = True
_PAGE = 5000


class _Target(Target):
    def __init__(self, client: Any, collection: Any) -> None:
        self.stamped = self.collection = collection
        self.most = min(BATCH_ROWS, client.get_max_batch_size())

    def count(self) -> int:
        return int(self.collection.count())

    def put(self, batch: UploadBatch) -> None:
        for first in range(0, len(batch.ids), self.most):
            part = slice(first, first + self.most)
            self.collection.upsert(
                ids=batch.ids[part],
                embeddings=batch.vectors[part],
                documents=batch.texts[part],
                metadatas=[_flat(metadata) for metadata in batch.metadata[part]],
            )

    def held(self) -> Iterator[list[tuple[Key, str | None]]]:
        first = 0
        while (page := self.collection.get(limit=_PAGE, offset=first, include=["documents"]))["ids"]:
            yield list(zip(page["ids"], page["documents"], strict=True))
            first += len(page["ids"])

    def delete(self, keys: Sequence[Key]) -> None:
        for page in pages(keys, self.most):
            self.collection.delete(ids=page)


def _flat(metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for name, value in metadata.items()
    }


@contextmanager
def open_target(place: Place) -> Iterator[_Target]:
    """Open the collection, made where it is missing.

    Raises:
        MissingExtraError: there is no chromadb.
        ConfigError: the collection has vectors of another size.
    """
    chroma = require("chromadb", install="chromadb", purpose="the upload")
    client = place.ready(lambda: _client(chroma, place))
    try:
        # Without None, Chroma would keep its default model with the collection.
        collection = client.get_or_create_collection(
            place.collection, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
    except (ValueError, chroma.errors.InvalidArgumentError) as error:
        raise ConfigError(
            f"Chroma refuses the collection {place.collection!r} ({error}): pass another name as "
            "collection= (--collection)"
        ) from error
    seen = collection.peek(1)["embeddings"]
    check_dimensions(len(seen[0]) if seen is not None and len(seen) else None, place)
    yield _Target(client, collection)


def _client(chroma: Any, place: Place) -> Any:
    if place.path:
        return chroma.PersistentClient(place.path)
    host, port, ssl = chroma_address(place.url or "")
    headers = {"x-chroma-token": place.key} if place.key else None
    return chroma.HttpClient(host=host, port=port, ssl=ssl, headers=headers)


def how_to_open(place: Place, model: str) -> str:
    """Return Python that opens the collection."""
    if place.path:
        where, client = f"persist_directory={place.path!r}", f"PersistentClient({place.path!r})"
    else:
        host, port, ssl = chroma_address(place.url or "")
        where = f"host={host!r}, port={port}, ssl={ssl}"
        client = f"HttpClient({where})"
    return (
        f"Chroma({place.collection!r}, BGEEmbeddings({model!r}), {where})  # langchain_chroma\n"
        f"ChromaVectorStore(chromadb.{client}.get_collection({place.collection!r}))"
        "  # llama_index.vector_stores.chroma"
    )
