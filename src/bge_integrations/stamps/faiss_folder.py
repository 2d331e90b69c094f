"""FAISS indexes that LangChain or LlamaIndex saved, with their texts; a pickle is read without running what it says."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

from ..core.files import is_partial
from ..errors import ConfigError
from ..extras import require

__all__ = ["SavedFaiss", "find_index", "langchain_texts", "read_faiss"]

_KNOWN = {
    ("langchain_community.docstore.in_memory", "InMemoryDocstore"),
    ("langchain_core.documents.base", "Document"),
    # What loaders leave in metadata.
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("datetime", "timezone"),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
}


class SavedFaiss(NamedTuple):
    """An index that was read.

    Attributes:
        index: of FAISS.
        ids: of the rows, in the order of the index.
        documents: by id: LangChain's ``Document`` or LlamaIndex's node.
        path: of the index.
    """

    index: Any
    ids: list[str]
    documents: dict[str, Any]
    path: Path


class _Texts(pickle.Unpickler):
    """Reads what LangChain saved and nothing else, since a pickle may run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def langchain_texts(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """Return the documents and the ids by position that LangChain's ``FAISS`` saved.

    Raises:
        pickle.UnpicklingError: something else is in it.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        texts, ids = _Texts(file).load()
    return dict(texts._dict), dict(ids)  # noqa: SLF001 - there is no public way to all of them


def read_faiss(folder: Path, name: str | None = None) -> SavedFaiss:
    """Read an index that LangChain's ``save_local`` or LlamaIndex's ``persist`` left in a folder.

    Args:
        folder: of the index.
        name: of the index; not needed where the folder holds one. LangChain's is ``"index"``, LlamaIndex's
            ``"default"``, unless they were told otherwise.

    Raises:
        ConfigError: no such index, or it cannot be read.
        MissingExtraError: FAISS or the framework is not installed.
    """
    faiss = require("faiss", install="faiss-cpu", purpose=f"the index in {str(folder)!r}")
    path = find_index(folder, name)
    try:
        index = faiss.read_index(str(path))
        documents, ids = _langchain(path) if path.suffix == ".faiss" else _llama_index(folder)
        return SavedFaiss(index, [ids[i] for i in range(index.ntotal)], documents, path)
    except (OSError, pickle.UnpicklingError, RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the FAISS index {str(path)!r} cannot be read: {str(error)[:300]}") from error


def find_index(folder: Path, name: str | None = None) -> Path:
    """Return the file of the index that is named, or of the only one in a folder.

    Raises:
        ConfigError: there is none, or there are several and none was named.
    """
    endings = (".faiss", "__vector_store.json")
    paths = (path for ending in endings for path in folder.glob(f"*{ending}"))
    found = sorted(path for path in paths if not is_partial(path.name))  # which a killed upload leaves
    if name is not None:
        found = [path for path in found if path.name in {name + ending for ending in endings}]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name.removesuffix(endings[0]).removesuffix(endings[1]) for path in found)
        raise ConfigError(f"{str(folder)!r} holds several FAISS indexes, choose one: {names}")
    wanted = "" if name is None else f" {name!r}"
    raise ConfigError(f"{str(folder)!r} holds no FAISS index{wanted} that LangChain or LlamaIndex saved")


def _langchain(path: Path) -> tuple[dict[str, Any], dict[int, str]]:
    require("langchain_community.docstore.in_memory", install="langchain-community", purpose=f"{path.name!r}")
    return langchain_texts(path.with_suffix(".pkl"))


def _llama_index(folder: Path) -> tuple[dict[str, Any], dict[int, str]]:
    require("llama_index.core", extra="llama-index", purpose=f"the index in {str(folder)!r}")
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.core.storage.index_store import SimpleIndexStore

    ids: dict[int, str] = {}
    for struct in SimpleIndexStore.from_persist_dir(str(folder)).index_structs():
        ids |= {int(place): node for place, node in getattr(struct, "nodes_dict", {}).items()}
    return dict(SimpleDocumentStore.from_persist_dir(str(folder)).docs), ids
