"""Slots in servers: Qdrant, Milvus, Redis, Elasticsearch and OpenSearch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .slot import KEY, Slot

__all__ = ["milvus_slot", "qdrant_slot", "redis_slot", "search_engine_slot", "waiting_search_engine_slot"]


def qdrant_slot(client: Any, name: str) -> Slot:
    """Return the slot that is in the metadata of a Qdrant collection."""
    if client is None:
        raise ConfigError("the store has only an asynchronous Qdrant client: give it a synchronous one too")

    def metadata() -> dict[str, Any]:
        return dict(getattr(client.get_collection(name).config, "metadata", None) or {})

    def write(line: str) -> None:
        client.update_collection(collection_name=name, metadata={**metadata(), KEY: line})

    def dimensions() -> set[int]:
        vectors = client.get_collection(name).config.params.vectors
        named = vectors.values() if isinstance(vectors, dict) else [vectors]  # one is not in a dictionary
        return {vector.size for vector in named if vector is not None}

    def empty() -> bool:
        return not client.scroll(name, limit=1, with_payload=False)[0]

    return Slot(lambda: metadata().get(KEY), write, dimensions, empty)


def milvus_slot(client: Any, name: str) -> Slot:
    """Return the slot that is a property of a Milvus collection.

    Args:
        client: a ``MilvusClient``.
        name: of the collection.
    """

    def read() -> str | None:
        found = dict(client.describe_collection(name).get("properties") or {}).get(KEY)
        return None if found is None else str(found)

    def dimensions() -> set[int]:
        fields = client.describe_collection(name)["fields"]
        return {int(field["params"]["dim"]) for field in fields if "dim" in (field.get("params") or {})}

    def empty() -> bool:
        client.flush(name)  # rows of growing segments are not in the statistics
        return int(client.get_collection_stats(name)["row_count"]) == 0

    return Slot(read, lambda line: client.alter_collection_properties(name, {KEY: line}), dimensions, empty)


def redis_slot(client: Any, name: str) -> Slot:
    """Return the slot that is the key ``bge_stamp:NAME`` beside the index; it goes when the database is flushed.

    Args:
        client: a synchronous ``redis.Redis``.
        name: of the index.
    """
    if client is None:
        raise ConfigError("the store has only an asynchronous Redis client: pass (redis.Redis(...), index)")
    key = f"{KEY}:{name}"

    def read() -> str | None:
        found = client.get(key)
        return found.decode() if isinstance(found, bytes) else found  # text where decode_responses is set

    return Slot(read, lambda line: client.set(key, line))


def waiting_search_engine_slot(store: Any) -> Slot:
    """Return the slot of LlamaIndex's ``ElasticsearchStore``, whose client is asynchronous.

    Its calls wait as the store's own do: on the thread's event loop, which the store has made to run within itself
    (nest_asyncio), so that its connections stay those of one loop.
    """
    return search_engine_slot(
        store.client, store.index_name, lambda call: asyncio.get_event_loop().run_until_complete(call)
    )


def search_engine_slot(client: Any, name: str, wait: Callable[[Any], Any] | None = None) -> Slot:
    """Return the slot that is in ``_meta`` of the mapping of an Elasticsearch or OpenSearch index.

    Args:
        client: a synchronous ``Elasticsearch`` or ``OpenSearch``, or with ``wait`` an asynchronous one.
        name: of the index, or an alias of one.
        wait: returns what a call of an asynchronous client returns.
    """
    if wait is None and type(client).__name__.startswith("Async"):
        raise ConfigError(
            f"an {type(client).__name__} is asynchronous: pass a synchronous client with the index's name"
        )

    finish = wait or (lambda answer: answer)

    def mapping() -> dict[str, Any]:
        found = [dict(each["mappings"]) for each in dict(finish(client.indices.get_mapping(index=name))).values()]
        if len(found) != 1:
            raise ConfigError(f"{name!r} names {len(found)} indices: name one")
        return found[0]

    def meta() -> dict[str, Any]:
        return dict(mapping().get("_meta") or {})

    def write(line: str) -> None:
        # A new _meta replaces the old one whole.
        changed = {**meta(), KEY: line}
        if type(client).__module__.partition(".")[0] == "opensearchpy":
            client.indices.put_mapping(index=name, body={"_meta": changed})
        else:
            finish(client.indices.put_mapping(index=name, meta=changed))

    def dimensions() -> set[int]:
        fields = dict(mapping().get("properties") or {}).values()
        sizes = [field.get("dims", field.get("dimension")) for field in fields]
        return {int(size) for size in sizes if size}

    return Slot(lambda: meta().get(KEY), write, dimensions, lambda: int(finish(client.count(index=name))["count"]) == 0)
