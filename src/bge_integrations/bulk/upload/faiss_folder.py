"""A FAISS index in a folder, as LangChain saves it: exact, by distance, with the texts in a pickle beside it."""

from __future__ import annotations

import glob
import pickle
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...core.files import PARTIAL
from ...errors import ConfigError
from ...extras import require
from ...stamps.faiss_folder import langchain_texts
from ...stamps.slots import KEY
from .target import Key, Place, Target, UploadBatch, check_dimensions

BATCH_ROWS = 10_000
TAKES = ("path",)
PACKAGES = {"faiss": "faiss-cpu", "langchain_community": "langchain-community"}
MARKS: tuple[str, ...] = ("*.faiss", f"{KEY}.json")
SPARSE = False
LASTS = False
_TOKEN = 16


class _Target(Target):
    def __init__(self, folder: Path, index: Any, documents: dict[str, Any], ids: list[str]) -> None:
        self.stamped, self.index, self.documents, self.ids = folder, index, documents, ids

    def count(self) -> int:
        return len(self.ids)

    def put(self, batch: UploadBatch) -> None:
        from langchain_core.documents import Document

        self._remove({key for key in batch.ids if key in self.documents})
        self.index.add(np.ascontiguousarray(batch.vectors))
        self.ids += batch.ids
        for key, text, metadata in zip(batch.ids, batch.texts, batch.metadata, strict=True):
            self.documents[key] = Document(id=key, page_content=text, metadata=metadata)

    def held(self) -> Iterator[list[tuple[Key, str | None]]]:
        yield [(key, self.documents[key].page_content) for key in self.ids]

    def delete(self, keys: Sequence[Key]) -> None:
        gone = {str(key) for key in keys if key in self.documents}
        self._remove(gone)
        for key in gone:
            del self.documents[key]

    def _remove(self, replaced: set[str]) -> None:
        if replaced:
            self.index.remove_ids(np.array([i for i, key in enumerate(self.ids) if key in replaced], np.int64))
            self.ids = [key for key in self.ids if key not in replaced]

    def save(self, name: str) -> None:
        """Write both files beside the old ones, then give them their names.

        A kill never leaves vectors of one state and texts of another: between the two renames there are no texts, so
        that nobody can open the index, and the next upload completes it.
        """
        # A name that nobody can have put there before, as a file or as a link.
        token = secrets.token_hex(_TOKEN // 2)
        index, texts = (self.stamped / f"{PARTIAL}{token}-{name}.{ending}" for ending in ("faiss", "pkl"))
        try:
            self._write_index(index)
            self._write_texts(texts)
        except BaseException:
            index.unlink(missing_ok=True)
            texts.unlink(missing_ok=True)
            raise
        (self.stamped / f"{name}.pkl").unlink(missing_ok=True)  # from here on the new files count
        _complete(self.stamped, name)

    def _write_index(self, path: Path) -> None:
        import faiss

        faiss.write_index(self.index, str(path))

    def _write_texts(self, path: Path) -> None:
        from langchain_community.docstore.in_memory import InMemoryDocstore

        with path.open("xb") as file:
            pickle.dump((InMemoryDocstore(self.documents), dict(enumerate(self.ids))), file)


def _complete(folder: Path, name: str) -> None:
    """Give the last files that ``save`` wrote their names, if it was killed after it deleted the old texts."""
    index, texts = folder / f"{name}.faiss", folder / f"{name}.pkl"
    if texts.exists():
        return
    written = folder.glob(f"{PARTIAL}{'?' * _TOKEN}-{glob.escape(texts.name)}")
    last = max(written, key=lambda path: path.stat().st_mtime_ns, default=None)
    if last is None:
        return
    vectors = last.with_suffix(".faiss")
    if vectors.exists():
        vectors.replace(index)
    if index.exists():
        last.replace(texts)


@contextmanager
def open_target(place: Place) -> Iterator[_Target]:
    """Open the index, made where it is missing, and save it at the end; all of it is in memory meanwhile.

    Raises:
        MissingExtraError: there is no FAISS or langchain-community.
        ConfigError: the folder's index cannot be read, or is of another size.
    """
    faiss = require("faiss", install="faiss-cpu", purpose="the upload")
    require("langchain_community.docstore.in_memory", install="langchain-community", purpose="the upload")
    folder = Path(str(place.path))
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / f"{place.collection}.faiss").exists():
        _complete(folder, place.collection)
    if any((folder / f"{place.collection}.{ending}").exists() for ending in ("faiss", "pkl")):
        target = _read(faiss, folder, place)
    else:
        target = _Target(folder, faiss.IndexFlatL2(place.dimensions), {}, [])
    yield target
    target.save(place.collection)


def _read(faiss: Any, folder: Path, place: Place) -> _Target:
    try:
        index = faiss.read_index(str(folder / f"{place.collection}.faiss"))
        documents, held = langchain_texts(folder / f"{place.collection}.pkl")
        ids = [held[i] for i in range(index.ntotal)]
    except (OSError, pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"the index in {str(folder)!r} cannot be read ({error}): choose an empty folder") from error
    check_dimensions(index.d, place)
    return _Target(folder, index, documents, ids)


def how_to_open(place: Place, model: str) -> str:
    """Return Python that opens the index."""
    return (
        f"FAISS.load_local({place.path!r}, BGEEmbeddings({model!r}), {place.collection!r}, "
        "allow_dangerous_deserialization=True)  # langchain_community.vectorstores\n"
        "LlamaIndex's FaissVectorStore keeps texts elsewhere and cannot read this one."
    )
