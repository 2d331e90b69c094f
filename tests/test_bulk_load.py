"""Shards in real vector stores: as they were embedded, stamped, once, and open to the frameworks."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import pytest

pytest.importorskip("pyarrow")

from bge_integrations.bulk.upload import load_files, upload_files
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, MissingExtraError, SpaceMismatchError
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.verify import check_store, read_stamp, stamp_store
from bulk_shards import ANSWER, QUESTION, TEXTS, make_shards
from encoders import CARD, HashEncoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
STORES = {
    "qdrant": "qdrant_client",
    "chroma": "chromadb",
    "lancedb": "lancedb",
    "pgvector": "psycopg",
    "faiss": "faiss",
}
NAME = "loaded"


@pytest.fixture(scope="module")
def shards(demo, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("demo") / "out", demo)


@pytest.fixture(params=STORES)
def place(request, tmp_path):
    """Return the kind of store and the keywords that say where it is."""
    return place_of(request, request.param, tmp_path)


def place_of(request, into, tmp_path):
    pytest.importorskip(STORES[into])
    if into == "pgvector":
        folder = request.getfixturevalue("socket_folder")
        where = {"url": f"postgresql://postgres@/postgres?host={folder}", "collection": tmp_path.name}
    else:
        where = {"path": tmp_path / "store", "collection": NAME}
    return SimpleNamespace(into=into, where=where, name=where["collection"])


def open_langchain(place, face):
    path = str(place.where.get("path"))
    if place.into == "qdrant":
        from langchain_qdrant import QdrantVectorStore

        return QdrantVectorStore.from_existing_collection(place.name, face, path=path)
    if place.into == "chroma":
        from langchain_chroma import Chroma

        return Chroma(place.name, face, persist_directory=path)
    if place.into == "lancedb":
        import lancedb
        from langchain_community.vectorstores import LanceDB

        return LanceDB(lancedb.connect(path), face, table_name=place.name)
    if place.into == "faiss":
        from langchain_community.vectorstores import FAISS

        return FAISS.load_local(path, face, place.name, allow_dangerous_deserialization=True)
    from langchain_postgres import PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(place.where["url"].replace("postgresql:", "postgresql+psycopg:"))
    return PGVectorStore.create_sync(engine, face, place.name)


def open_llama_index(place):
    path = str(place.where.get("path"))
    if place.into == "qdrant":
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import QdrantClient

        return QdrantVectorStore(place.name, client=QdrantClient(path=path), text_key="page_content")
    if place.into == "chroma":
        import chromadb
        from llama_index.vector_stores.chroma import ChromaVectorStore

        return ChromaVectorStore(chromadb.PersistentClient(path).get_collection(place.name))
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    return LanceDBVectorStore(path, place.name, doc_id_key="id")


def close(store):
    """Close the connections that a store holds; each kind has its own way."""
    engine = getattr(store, "_engine", None)
    if hasattr(engine, "_run_as_sync"):
        engine._run_as_sync(engine.close())
    client = getattr(store, "client", None)
    if hasattr(client, "close"):
        client.close()


@pytest.fixture
def opened():
    """Return a list; what is put into it is closed in the end."""
    stores = []
    yield stores
    for store in stores:
        close(store)


def stamped(place, store):
    return place.where["path"] if place.into == "faiss" else store


def test_langchain_opens_it_and_finds_the_text(place, shards, demo, opened):
    loaded = load_files(shards, place.into, **place.where)
    assert (loaded.rows, loaded.total, loaded.collection) == (len(TEXTS), len(TEXTS), place.name)
    face = BGEEmbeddings(encoder=demo)
    store = open_langchain(place, face)
    opened.append(store)
    found = store.similarity_search(QUESTION, k=3)
    assert found[0].page_content == TEXTS[ANSWER]
    assert found[0].metadata["id"] == ANSWER
    assert int(found[0].metadata["letters"]) == len(TEXTS[ANSWER])
    assert found[0].metadata["note"] == f"of {ANSWER}"
    assert len({document.page_content for document in found}) == 3
    assert check_store(stamped(place, store), face) == loaded.stamp == demo.stamp()


@pytest.mark.parametrize("into", ["qdrant", "chroma", "lancedb"])
def test_llama_index_opens_it_and_finds_the_text(into, request, shards, demo, tmp_path, opened):
    pytest.importorskip("pandas")
    from llama_index.core import VectorStoreIndex

    place = place_of(request, into, tmp_path)
    load_files(shards, place.into, **place.where)
    store = open_llama_index(place)
    opened.append(store)
    face = BGEEmbedding(encoder=demo)
    index = VectorStoreIndex.from_vector_store(store, embed_model=face)
    node = index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0].node
    assert node.get_content() == TEXTS[ANSWER]
    assert check_store(store, face) == demo.stamp()


def test_loading_again_doubles_no_row_and_replaces_what_changed(place, shards, demo, tmp_path, opened):
    load_files(shards, place.into, **place.where)
    assert load_files(shards, place.into, **place.where).total == len(TEXTS)
    changed = {**TEXTS, ANSWER: "bees make honey out of nectar", "new": "bears like honey"}
    folder = make_shards(tmp_path / "changed", demo, changed)
    assert load_files(folder, place.into, **place.where).total == len(TEXTS) + 1
    store = open_langchain(place, BGEEmbeddings(encoder=demo))
    opened.append(store)
    found = store.similarity_search("bees make honey", k=len(changed) + 5)
    assert sorted(document.page_content for document in found) == sorted(changed.values())
    assert found[0].page_content == changed[ANSWER]


def test_a_load_that_was_stopped_is_done_again(place, shards):
    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_files(shards, place.into, **place.where, on_batch=stop)
    assert load_files(shards, place.into, **place.where).total == len(TEXTS)


def test_an_id_that_comes_twice_is_there_once_with_its_last_text(place, demo, tmp_path, opened):
    rows = tmp_path / "twice.jsonl"
    rows.write_text("".join(f'{{"key": "{key}", "text": "{text}"}}\n' for key, text in ["aA", "bB", "aC", "bD", "aE"]))
    from bge_integrations.bulk import Columns, embed_files

    embed_files(str(rows), tmp_path / "twice", demo, columns=Columns(id="key"), shard_rows=3)
    assert load_files(tmp_path / "twice", place.into, **place.where).total == 2
    store = open_langchain(place, BGEEmbeddings(encoder=demo))
    opened.append(store)
    assert {document.page_content for document in store.similarity_search("A", k=9)} == {"D", "E"}


def test_another_space_is_refused_and_nothing_is_written(place, shards, tmp_path, demo, opened):
    load_files(shards, place.into, **place.where)
    card = replace(CARD, dimensions=demo.card.dimensions)
    other = make_shards(tmp_path / "other", HashEncoder(card), {"x": "another model's text"})
    with pytest.raises(SpaceMismatchError, match="test/hash") as caught:
        load_files(other, place.into, **place.where)
    assert caught.value.reembed
    small = make_shards(tmp_path / "small", HashEncoder(), {"x": "another model's text"})
    with pytest.raises((ConfigError, SpaceMismatchError), match="dimensions"):
        load_files(small, place.into, **place.where)
    store = open_langchain(place, BGEEmbeddings(encoder=demo))
    opened.append(store)
    assert {document.page_content for document in store.similarity_search("q", k=99)} == set(TEXTS.values())
    with pytest.raises(SpaceMismatchError):
        check_store(stamped(place, store), HashEncoder(card))


def test_rows_without_a_stamp_are_left_alone(place, shards, demo, opened, tmp_path):
    if place.into == "faiss":
        from langchain_community.vectorstores import FAISS

        FAISS.from_texts(["unknown"], BGEEmbeddings(encoder=demo)).save_local(str(place.where["path"]), place.name)
    else:
        load_files(shards, place.into, **place.where)
        store = open_langchain(place, BGEEmbeddings(encoder=demo))
        from bge_integrations.stamps.slots import find_slot

        find_slot(store).write("{}")
        close(store)
    with pytest.raises(ConfigError, match="without a stamp"):
        load_files(shards, place.into, **place.where)


def test_a_store_keeps_its_own_query_instruction(place, shards, demo, opened):
    from bge_integrations import load_encoder

    load_files(shards, place.into, **place.where)
    with load_encoder("demo", query_instruction="ask: ", show_progress=False) as asking:
        store = open_langchain(place, BGEEmbeddings(encoder=asking))
        stamp_store(stamped(place, store), asking)
        close(store)
        load_files(shards, place.into, **place.where)
        store = open_langchain(place, BGEEmbeddings(encoder=asking))
        opened.append(store)
        assert read_stamp(stamped(place, store))["query_instruction"] == "ask: "


def test_row_numbers_are_ids_too(place, demo, tmp_path, opened):
    from bge_integrations.bulk import embed_files
    from bulk_shards import write_rows

    embed_files(str(write_rows(tmp_path / "rows.jsonl")), tmp_path / "numbered", demo, shard_rows=3)
    load_files(tmp_path / "numbered", place.into, **place.where)
    assert load_files(tmp_path / "numbered", place.into, **place.where).total == len(TEXTS)
    store = open_langchain(place, BGEEmbeddings(encoder=demo))
    opened.append(store)
    found = store.similarity_search(QUESTION, k=1)[0]
    assert (found.page_content, found.metadata["id"]) == (TEXTS[ANSWER], list(TEXTS).index(ANSWER))


def test_odd_texts_and_ids_arrive(place, demo, tmp_path, opened):
    odd = {'it\'s "quoted"': "it's 100 % \\ {odd}\ttab\nline", "日本": "日本語 🎉", "a/b c": "\\N \\. $1"}
    folder = make_shards(tmp_path / "odd", demo, odd)
    assert load_files(folder, place.into, **place.where).total == 3
    store = open_langchain(place, BGEEmbeddings(encoder=demo))
    opened.append(store)
    found = store.similarity_search("q", k=3)
    assert {document.metadata["id"]: document.page_content for document in found} == odd


def test_qdrant_ids_are_derived_and_the_same_each_time():
    from uuid import UUID

    from bge_integrations.bulk.upload.qdrant import point_id

    assert point_id(7) == 7
    assert point_id("7d444840-9dc0-11d1-b245-5ffdce74fad2") == "7d444840-9dc0-11d1-b245-5ffdce74fad2"
    assert point_id("doc-7") == point_id("doc-7") == str(UUID(point_id("doc-7"))) != point_id("doc-8")
    assert isinstance(point_id(-1), str)


@pytest.mark.parametrize(
    ("into", "where", "told"),
    [
        ("milvus", {"path": "x"}, "qdrant, chroma"),
        ("qdrant", {}, "url, path, client"),
        ("qdrant", {"path": "x", "url": "http://localhost"}, "url and path"),
        ("pgvector", {"path": "x"}, "url, client"),
        ("faiss", {"url": "http://localhost"}, "path"),
    ],
)
def test_where_to_is_checked_first(into, where, told, shards):
    with pytest.raises(ConfigError, match=told):
        load_files(shards, into, **where)


@pytest.mark.parametrize(("into", "module"), [*STORES.items(), ("faiss", "langchain_community.docstore.in_memory")])
def test_a_missing_package_is_named(into, module, shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    where = {"url": "postgresql://nowhere"} if into == "pgvector" else {"path": tmp_path / "store"}
    with pytest.raises(MissingExtraError, match="pip install"):
        load_files(shards, into, **where)


def test_an_unreachable_store_is_said_without_its_password(shards, tmp_path):
    pytest.importorskip("psycopg")
    url = f"postgresql://somebody:hunter2@/none?host={tmp_path}"
    with pytest.raises(ConfigError, match="pgvector 'table' after 0 rows") as caught:
        load_files(shards, "pgvector", url=url, collection="table")
    assert "hunter2" not in str(caught.value)


def test_a_foreign_pickle_is_not_run(shards, tmp_path):
    faiss = pytest.importorskip("faiss")
    store, ran = tmp_path / "store", tmp_path / "ran"
    store.mkdir()
    faiss.write_index(faiss.IndexFlatL2(256), str(store / "index.faiss"))

    class Evil:
        def __reduce__(self):
            return open, (str(ran), "w")

    (store / "index.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_files(shards, "faiss", path=store)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["mine.pkl", "mine.faiss"])
def test_half_an_index_is_somebodys_file_and_stays(name, shards, tmp_path):
    faiss = pytest.importorskip("faiss")
    faiss.write_index(faiss.IndexFlatL2(2), str(tmp_path / "another.faiss"))
    for file in (name, "mine.faiss.partial", "mine.pkl.partial"):
        (tmp_path / file).write_bytes(b"mine")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_files(shards, "faiss", path=tmp_path, collection="mine")
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith("mine") and path.read_bytes() == b"mine"}
    assert left == {name, "mine.faiss.partial", "mine.pkl.partial"}
    assert not list(tmp_path.glob(".bge-*"))


@pytest.mark.parametrize("into", ["qdrant", "chroma", "lancedb", "faiss"])
@pytest.mark.parametrize("name", ["photo.jpg", "meta.json", "index.pkl", "notes/today.md", ".env"])
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_was(into, name, shards, tmp_path, capsys):
    pytest.importorskip(STORES.get(into, "faiss"))
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    with pytest.raises(ConfigError, match=f"but no {into} store: choose a new or empty folder"):
        upload_files(shards, into, path=tmp_path / "mine", collection=NAME)
    assert main(["upload", str(shards), "--into", into, "--path", str(tmp_path / "mine"), "--collection", NAME]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "{}"


@pytest.mark.parametrize("into", ["qdrant", "chroma", "lancedb", "faiss"])
def test_a_file_is_no_folder_of_a_store(into, shards, tmp_path):
    pytest.importorskip(STORES.get(into, "faiss"))
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path / "notes.txt", tmp_path / "notes.txt" / "store"):
        with pytest.raises(ConfigError, match="Not a directory; name a folder"):
            upload_files(shards, into, path=path, collection=NAME)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_all_missing_packages_are_named_at_once(shards, tmp_path, monkeypatch):
    for module in ("faiss", "langchain_community", "sqlalchemy", "psycopg"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="faiss, langchain_community: pip install faiss-cpu langchain-comm"):
        upload_files(shards, "faiss", path=tmp_path / "new")
    with pytest.raises(MissingExtraError, match=r"sqlalchemy, psycopg: pip install sqlalchemy 'psycopg\[binary\]'"):
        upload_files(shards, "pgvector", url="postgresql://nowhere")
    assert not (tmp_path / "new").exists()


def test_a_ready_client_is_used_and_stays_open(shards):
    qdrant = pytest.importorskip("qdrant_client")
    client = qdrant.QdrantClient(":memory:")
    seen = []
    loaded = load_files(shards, "qdrant", client=client, collection=NAME, on_batch=seen.append)
    assert seen == [3, 6, 7]
    assert client.count(NAME).count == loaded.total == len(TEXTS)
    client.close()


def test_an_empty_lancedb_connection_is_taken(shards, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    connection = lancedb.connect(tmp_path / "store")
    assert load_files(shards, "lancedb", client=connection, collection=NAME).total == len(TEXTS)
    assert connection.open_table(NAME).count_rows() == len(TEXTS)


def test_a_collection_with_other_columns_is_refused(shards, demo, tmp_path):
    pytest.importorskip("lancedb")
    from bge_integrations.bulk import Columns, embed_files
    from bulk_shards import write_rows

    rows = write_rows(tmp_path / "rows.jsonl")
    embed_files(str(rows), tmp_path / "bare", demo, columns=Columns(id="key"))
    load_files(tmp_path / "bare", "lancedb", path=tmp_path / "store", collection=NAME)
    with pytest.raises(ConfigError, match="'letters', 'note'"):
        load_files(shards, "lancedb", path=tmp_path / "store", collection=NAME)


def test_the_command_says_how_to_open_it(place, shards, capsys):
    options = [f"--{name}={value}" for name, value in place.where.items()]
    assert main(["load", str(shards), "--into", place.into, *options]) == 0
    told, langchain, llama_index = capsys.readouterr().out.splitlines()
    assert f"{len(TEXTS)} rows written" in told
    store = opens(langchain)
    assert store.similarity_search(QUESTION, k=1)[0].page_content == TEXTS[ANSWER]
    close(store)
    if llama_index.startswith("LlamaIndex"):
        assert "cannot read this one" in llama_index
        return
    store = opens(llama_index)
    assert read_stamp(store)["model"] == "demo"
    close(store)


def opens(line: str):
    """Run a line that was printed, with what its comment says to import."""
    code, module = line.split("  # ")
    kind = code.partition("(")[0].partition(".")[0]
    wanted = {kind: getattr(import_module(module), kind), "BGEEmbeddings": BGEEmbeddings}
    for name in ("chromadb", "lancedb"):
        wanted[name] = sys.modules.get(name)
    for name, home in (("QdrantClient", "qdrant_client"), ("PGEngine", "langchain_postgres")):
        wanted[name] = getattr(sys.modules.get(home), name, None)
    return eval(code, wanted)


def test_the_command_refuses_a_key_that_is_not_set(shards, capsys, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert (
        main(["load", str(shards), "--into", "qdrant", "--url", "http://localhost:1", "--key-env", "NO_SUCH_KEY"]) == 2
    )
    assert "NO_SUCH_KEY" in capsys.readouterr().err
