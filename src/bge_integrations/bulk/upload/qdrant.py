"""Qdrant, in LangChain's layout: a cosine vector, ``page_content`` and ``metadata`` in the payload.

The vector has no name; where there are sparse vectors as well, the two are named ``dense`` and ``sparse``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from ...errors import ConfigError
from ...extras import require
from ...stamps.slots import qdrant_slot
from ..part import Part
from .target import Key, Place, Target, UploadBatch, check_dimensions, pages

BATCH_ROWS = 256
TAKES = ("url", "path", "client")
PACKAGES = {"qdrant_client": "qdrant-client"}
MARKS: tuple[str, ...] = (".lock",)  # the client holds it, and leaves it
SPARSE = True
LASTS = True
_PAGE = 1000
# A request may have 32 MB, and a number is up to 22 characters of it.
_NUMBERS = 300_000
DENSE, SPARSE_NAME = "dense", "sparse"


def point_id(value: str | int) -> str | int:
    """Return the id of a Qdrant point, which is a whole number or a UUID, for an id that may be anything.

    Numbers and UUIDs stay; any other text gives the same UUID each time. The row's own id is in ``metadata["id"]``.
    """
    if isinstance(value, int) and value >= 0:
        return value
    try:
        return str(UUID(str(value)))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, f"bge:{value}"))


class _Target(Target):
    def __init__(self, client: Any, place: Place) -> None:
        self.client, self.place = client, place
        self.stamped = qdrant_slot(client, place.collection)

    def count(self) -> int:
        return int(self.client.count(self.place.collection).count)

    def put(self, batch: UploadBatch) -> None:
        from qdrant_client.models import Batch as Points

        step = max(1, min(BATCH_ROWS, _NUMBERS // self.place.dimensions))
        sparse = list(batch.sparse or ())
        for first in range(0, len(batch.ids), step):
            part = slice(first, first + step)
            rows = zip(batch.texts[part], batch.metadata[part], strict=True)
            points = Points(
                ids=[point_id(row["id"]) for row in batch.metadata[part]],
                vectors=_vectors(batch.vectors[part].tolist(), sparse[part]),
                payloads=[{"page_content": text, "metadata": metadata} for text, metadata in rows],
            )
            # wait: the record notes next that the rows are there.
            self.client.upsert(self.place.collection, points=points, wait=True)

    def keys(self, part: Part) -> Sequence[Key]:
        return [point_id(value) for value in part.ids]

    def held(self) -> Iterator[list[tuple[Key, str | None]]]:
        first = None
        while True:
            points, first = self.client.scroll(
                self.place.collection, limit=_PAGE, offset=first, with_payload=["page_content"], with_vectors=False
            )
            yield [(point.id, (point.payload or {}).get("page_content")) for point in points]
            if first is None:
                return

    def delete(self, keys: Sequence[Key]) -> None:
        from qdrant_client.models import PointIdsList

        for page in pages(keys, _PAGE):
            self.client.delete(self.place.collection, points_selector=PointIdsList(points=page), wait=True)


def _vectors(dense: list[list[float]], sparse: list[Any]) -> Any:
    if not sparse:
        return dense
    from qdrant_client.models import SparseVector

    rows = [SparseVector(indices=ids.tolist(), values=weights.tolist()) for ids, weights in sparse]
    return {DENSE: dense, SPARSE_NAME: rows}


@contextmanager
def open_target(place: Place) -> Iterator[_Target]:
    """Open the collection, made where it is missing.

    Raises:
        MissingExtraError: there is no qdrant-client.
        ConfigError: the collection has another layout.
    """
    qdrant = require("qdrant_client", install="qdrant-client", purpose="the upload")
    given = {"path": place.path} if place.path else {"url": place.url, "api_key": place.key}
    client = place.ready(lambda: qdrant.QdrantClient(**given))
    try:
        _ready(client, place, qdrant.models)
        yield _Target(client, place)
    finally:
        if place.client is None:
            client.close()


def _ready(client: Any, place: Place, models: Any) -> None:
    config = models.VectorParams(size=place.dimensions, distance=models.Distance.COSINE)
    if not client.collection_exists(place.collection):
        if place.vocabulary:
            sparse = {SPARSE_NAME: models.SparseVectorParams()}
            client.create_collection(place.collection, vectors_config={DENSE: config}, sparse_vectors_config=sparse)
        else:
            client.create_collection(place.collection, vectors_config=config)
        return
    params = client.get_collection(place.collection).config.params
    vectors = params.vectors
    if place.vocabulary:
        if not isinstance(vectors, dict) or DENSE not in vectors or SPARSE_NAME not in (params.sparse_vectors or {}):
            raise ConfigError(
                f"{place.collection!r} has no vectors named {DENSE!r} and {SPARSE_NAME!r}: choose another collection"
            )
        vectors = vectors[DENSE]
    elif not hasattr(vectors, "size"):
        raise ConfigError(
            f"{place.collection!r} has named vectors, but LangChain's default is one vector without a "
            "name: choose another collection"
        )
    check_dimensions(vectors.size, place)


def how_to_open(place: Place, model: str) -> str:
    """Return Python that opens the collection."""
    where = f"path={place.path!r}" if place.path else f"url={place.url!r}"
    if place.vocabulary:
        names = f"{place.collection!r}, m3.dense, RetrievalMode.HYBRID, {DENSE!r}"
        return (
            f"m3 = BGEM3({model!r})\n"
            f"QdrantVectorStore(QdrantClient({where}), {names}, sparse_embedding=m3.sparse('qdrant'), "
            f"sparse_vector_name={SPARSE_NAME!r})  # langchain_qdrant\n"
            f"QdrantVectorStore({place.collection!r}, client=QdrantClient({where}), text_key='page_content', "
            f"enable_hybrid=True, dense_vector_name={DENSE!r}, sparse_vector_name={SPARSE_NAME!r}, "
            "sparse_doc_fn=m3.sparse_documents, sparse_query_fn=m3.sparse_queries)  # llama_index.vector_stores.qdrant"
        )
    return (
        f"QdrantVectorStore(QdrantClient({where}), {place.collection!r}, BGEEmbeddings({model!r}))"
        "  # langchain_qdrant\n"
        f"QdrantVectorStore({place.collection!r}, client=QdrantClient({where}), text_key='page_content')"
        "  # llama_index.vector_stores.qdrant"
    )
