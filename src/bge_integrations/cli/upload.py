"""``bge upload`` (also ``bge load``): the shards of a folder into a vector store."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from ..keys import keys_from
from .search import tell_unfinished

_STORES = ("qdrant", "chroma", "lancedb", "pgvector", "faiss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bge upload``."""
    parser.epilog = (
        "Rows are stored in the layout of LangChain's store classes. LlamaIndex can read Chroma as it is, Qdrant with "
        "text_key='page_content', and LanceDB with doc_id_key='id', but not pgvector or FAISS. A row whose id exists "
        "already is replaced, so uploading again is safe. --update deletes only rows that an earlier upload from "
        "this folder wrote; the rows of other programs stay."
    )
    parser.add_argument("folder", metavar="FOLDER", help="output folder of bge embed")
    parser.add_argument("--into", required=True, choices=_STORES, help="the kind of store")
    parser.add_argument("--url", help="server URL (qdrant, chroma, lancedb), or postgresql://... for pgvector")
    parser.add_argument("--path", help="local folder (qdrant, chroma, lancedb, faiss)")
    parser.add_argument(
        "--collection", metavar="NAME", help="collection or table (default: the folder's name; faiss: index)"
    )
    parser.add_argument(
        "--update", action="store_true", help="write new and changed rows, and delete those no longer in the folder"
    )
    parser.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the server's API key")


def run(parsed: argparse.Namespace) -> int:
    """Upload, and print what it came to and how to open it."""
    from ..bulk.upload import upload_files

    keys = keys_from(parsed.key_env)
    tell_unfinished(parsed.folder)
    uploaded = upload_files(
        parsed.folder,
        parsed.into,
        collection=parsed.collection,
        url=parsed.url,
        path=parsed.path,
        key=keys[0] if keys else None,
        update=parsed.update,
        on_batch=tell_rate("written"),
    )
    counts = f", {uploaded.deleted} deleted, {uploaded.unchanged} unchanged" if parsed.update else ""
    print(
        f"{uploaded.rows} rows written{counts}, {uploaded.total} in {uploaded.collection!r}; "
        f"stamp {uploaded.stamp['space']}"
    )
    if uploaded.stayed:
        print(f"bge: {uploaded.stayed} rows that another program changed were kept", file=sys.stderr)
    print(uploaded.opens)
    return 0


def tell_rate(done: str) -> Callable[[int], None]:
    """Return what prints rows and rows per second on standard error, at most once a second."""
    began = told = time.monotonic()

    def tell(rows: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= 1:
            print(f"{rows} rows {done}, {rows / (now - began):.0f} rows/s", file=sys.stderr)
            told = now

    return tell
