"""The encoder, and LangChain and LlamaIndex, sync and async, under one name each; and where no key may be found."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from bge_integrations import load_encoder
from bge_integrations.cache import SQLiteStore
from bge_integrations.errors import BGEError
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.wrappers.cache.rows import keyer, unpack

CANARY = "sk-canary-5ac1f0"
FACES = ("langchain", "langchain-async", "llama-index", "llama-index-async")
MAKERS = {"encoder": load_encoder, "langchain": BGEEmbeddings, "llama-index": BGEEmbedding}


@dataclass
class Outcome:
    """What came of a call."""

    vectors: np.ndarray | None
    error: BGEError | None
    warnings: list[str]


@dataclass
class Face:
    """The encoder or one of its adapters, over a rig.

    Attributes:
        name: ``"encoder"`` or one of ``FACES``.
        object: the encoder or the framework's object.
        cache: its cache's file.
    """

    name: str
    cache: Path
    options: dict[str, Any]
    object: Any = field(init=False)

    def __post_init__(self) -> None:
        common = {"api_key": CANARY, "cache": str(self.cache), "show_progress": False, "timeout": 20.0}
        self.object = MAKERS[self.name.removesuffix("-async")]("bge-small", **{**common, **self.options})
        # No option: users have no use for it, and tests no time to wait.
        engine = self.encoder.engine
        engine.limits = replace(engine.limits, backoff=0.005)

    @property
    def encoder(self) -> Any:
        return self.object if self.name == "encoder" else self.object.encoder

    def documents(self, texts: list[str]) -> Any:
        if self.name == "encoder":
            return self.object.encode(texts, role="document")
        if self.name == "langchain":
            return self.object.embed_documents(texts)
        if self.name == "langchain-async":
            return asyncio.run(self.object.aembed_documents(texts))
        if self.name == "llama-index":
            return self.object.get_text_embedding_batch(texts)
        return asyncio.run(self.object.aget_text_embedding_batch(texts))

    def query(self, text: str) -> Any:
        if self.name == "encoder":
            return self.object.encode([text], role="query")[0]
        if self.name == "langchain":
            return self.object.embed_query(text)
        if self.name == "langchain-async":
            return asyncio.run(self.object.aembed_query(text))
        if self.name == "llama-index":
            return self.object.get_query_embedding(text)
        return asyncio.run(self.object.aget_query_embedding(text))

    def call(self, texts: list[str]) -> Outcome:
        """Embed documents and note what came of it; anything but a typed error is let through."""
        vectors, error = None, None
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                rows = self.documents(texts)
            except BGEError as caught:
                error = caught
            else:
                assert self.name == "encoder" or all(type(number) is float for row in rows for number in row[:2])
                vectors = np.asarray(rows, np.float32)
        return Outcome(vectors, error, [str(one.message) for one in said])

    def held(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return what the cache file holds of documents, read by another hand."""
        store = SQLiteStore(self.cache)
        try:
            keys = list(map(keyer(self.encoder, "document", self.encoder.output), texts))
            found = unpack(keys, store.get_many(keys), self.encoder.output)
        finally:
            store.close()
        return {texts[i]: vector for i, vector in zip(found.indices, found.rows, strict=True)}

    def close(self) -> None:
        self.encoder.close()


def leaks(face: Face, error: BaseException | None, records: Iterable[logging.LogRecord]) -> list[str]:
    """Return the places in which the key is found."""
    thing = face.object
    places: dict[str, Any] = {
        "repr": f"{thing!r} {thing} {face.encoder!r} {face.encoder.describe()}",
        "pickle": pickle.dumps(thing),
        "logs": " ".join(f"{record.getMessage()} {record.__dict__}" for record in records),
        "usage": repr(face.encoder.usage),
    }
    if hasattr(thing, "to_dict"):
        places["to_dict"] = f"{thing.to_dict()} {thing.to_json()} {thing.model_dump_json()}"
    if error is not None:
        chain = [error, *_causes(error)]
        places["error"] = " ".join(f"{one!r} {one} {one.args} {vars(one)}" for one in chain)
        places["pickled error"] = pickle.dumps(error)
        places["traceback"] = "".join(traceback.format_exception(error))
        walked = ((frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_ours(frame))
        places["locals"] = "".join(traceback.StackSummary.extract(walked, capture_locals=True).format())
    for path in face.cache.parent.glob("*"):
        places[f"file {path.name}"] = path.read_bytes()
    return [
        name for name, held in places.items() if CANARY in (held if isinstance(held, str) else held.decode("latin1"))
    ]


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").startswith("bge_integrations")


def _causes(error: BaseException) -> Iterable[BaseException]:
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        yield error
