"""Stores are opened by one line in both frameworks, for their own model only, and verified by the same line."""

from __future__ import annotations

import json
import pickle
import time
from dataclasses import replace

import pytest

pytest.importorskip("pyarrow")

from bge_integrations.bulk import upload_files
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, SpaceMismatchError
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.langchain import open_store as open_langchain
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.llama_index import open_store as open_llama_index
from bge_integrations.verify import check_store, read_stamp, stamp_store
from bulk_shards import ANSWER, QUESTION, TEXTS, make_shards
from encoders import CARD, HashEncoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PACKAGES = {
    "qdrant": "qdrant_client",
    "chroma": "chromadb",
    "lancedb": "lancedb",
    "pgvector": "psycopg",
    "faiss": "faiss",
}
OTHER = HashEncoder(replace(CARD, id="test/other", pooling="mean", dimensions=256))


@pytest.fixture(scope="module")
def shards(demo, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("demo") / "out", demo)


@pytest.fixture(params=PACKAGES)
def uploaded(request, shards, tmp_path):
    """The line that names a store of the bundled model's vectors, which ``upload_files`` has filled."""
    kind = request.param
    pytest.importorskip(PACKAGES[kind])
    if kind == "pgvector":
        folder = request.getfixturevalue("socket_folder")
        url = f"postgresql://postgres@/postgres?host={folder}"
        upload_files(shards, kind, url=url, collection=tmp_path.name)
        yield f"pgvector:{url}/{tmp_path.name}"
        assert not connections(folder), "something was left open"
    else:
        upload_files(shards, kind, path=tmp_path / "store", collection="notes")
        yield f"{kind}:{tmp_path / 'store'}/notes"


def connections(folder):
    """How many connections to the database are open, once those that just ended are gone."""
    import psycopg

    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    with psycopg.connect(host=folder, user="postgres", dbname="postgres") as connection:
        until = time.monotonic() + 30
        while (count := connection.execute(query).fetchone()[0]) and time.monotonic() < until:
            connection.rollback()
            time.sleep(0.05)
        return count


def close(store):
    engine = getattr(store, "_engine", None)
    if hasattr(engine, "_run_as_sync"):
        engine._run_as_sync(engine.close())
    elif engine is not None:
        engine.dispose()
    client = getattr(store, "client", None)
    if hasattr(client, "close"):
        client.close()


def test_langchain_refuses_another_model_leaves_nothing_open_and_opens_what_was_uploaded(uploaded, demo):
    with pytest.raises(SpaceMismatchError, match="test/other"):
        open_langchain(uploaded, BGEEmbeddings(encoder=OTHER))
    with pytest.raises(ConfigError):  # what its class refuses
        open_langchain(uploaded, BGEEmbeddings(encoder=demo), no_such_option=1)
    store = open_langchain(uploaded, BGEEmbeddings(encoder=demo))
    assert store.similarity_search(QUESTION, k=1)[0].page_content == TEXTS[ANSWER]
    close(store)


def test_the_command_verifies_what_was_uploaded(uploaded, capsys):
    assert main(["verify", "--model", "demo", "--store", uploaded, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["verdict"], report["rows"], report["sampled"]) == ("same space", len(TEXTS), len(TEXTS))
    assert report["stamp"]["model"] == "demo"
    assert main(["verify", "--model", "demo", "--store", f"{uploaded}-not-there"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("uploaded", ["qdrant", "chroma", "lancedb"], indirect=True)
def test_llama_index_opens_what_was_uploaded_in_a_layout_that_it_reads(uploaded, demo):
    from llama_index.core import VectorStoreIndex

    with pytest.raises(SpaceMismatchError):
        open_llama_index(uploaded, BGEEmbedding(encoder=OTHER))
    embed_model = BGEEmbedding(encoder=demo)
    store = open_llama_index(uploaded, embed_model)
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)
    assert index.as_retriever(similarity_top_k=1).retrieve(QUESTION)[0].text == TEXTS[ANSWER]
    close(store)


@pytest.mark.parametrize("uploaded", ["faiss", "pgvector"], indirect=True)
def test_llama_index_says_which_layout_it_does_not_read(uploaded, demo):
    with pytest.raises(ConfigError, match=r"open it with LangChain"):
        open_llama_index(uploaded, BGEEmbedding(encoder=demo))


# ---- stores that the frameworks made


def nodes(encoder):
    from llama_index.core import Document, StorageContext, VectorStoreIndex

    def index(store):
        # Metadata is embedded with the text.
        documents = [Document(text=text, metadata={"name": name}) for name, text in TEXTS.items()]
        context = StorageContext.from_defaults(vector_store=store)
        VectorStoreIndex.from_documents(documents, embed_model=BGEEmbedding(encoder=encoder), storage_context=context)
        return context

    return index


def test_a_faiss_index_of_llama_index_is_verified_stamped_and_opened(demo, tmp_path, capsys):
    faiss = pytest.importorskip("faiss")
    from llama_index.core import StorageContext, load_index_from_storage
    from llama_index.vector_stores.faiss import FaissVectorStore

    nodes(demo)(FaissVectorStore(faiss.IndexFlatIP(256))).persist(str(tmp_path / "saved"))
    named, embed_model = f"faiss:{tmp_path}/saved/default", BGEEmbedding(encoder=demo)
    assert main(["verify", "--model", "demo", "--store", named]) == 0
    assert f"{len(TEXTS)} of {len(TEXTS)} sampled rows" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no stamp"):
        open_llama_index(named, embed_model)
    stamp_store(tmp_path / "saved", demo)
    store = open_llama_index(named, embed_model)
    context = StorageContext.from_defaults(vector_store=store, persist_dir=str(tmp_path / "saved"))
    found = load_index_from_storage(context, embed_model=embed_model).as_retriever(similarity_top_k=1)
    assert TEXTS[ANSWER] in found.retrieve(QUESTION)[0].text
    with pytest.raises(ConfigError, match="no FAISS index 'index'"):
        open_langchain(named.replace("default", "index"), BGEEmbeddings(encoder=demo))


def test_tables_of_both_frameworks_in_postgres(demo, socket_folder, tmp_path, capsys):
    from langchain_postgres import PGVector
    from llama_index.core import VectorStoreIndex
    from llama_index.vector_stores.postgres import PGVectorStore

    name, url = tmp_path.name, f"postgresql://postgres@/postgres?host={socket_folder}"
    embeddings, embed_model = BGEEmbeddings(encoder=demo), BGEEmbedding(encoder=demo)
    old = PGVector(
        embeddings, connection=url.replace("postgresql:", "postgresql+psycopg:"), collection_name=f"{name}-c"
    )
    old.add_texts(list(TEXTS.values()))
    made = PGVectorStore.from_params(
        connection_string=url.replace("postgresql:", "postgresql+psycopg:"),
        async_connection_string=url.replace("postgresql:", "postgresql+asyncpg:"),
        table_name=name,
        embed_dim=256,
    )
    nodes(demo)(made)
    for store, named in ((old, f"pgvector:{url}/{name}-c"), (made, f"pgvector:{url}/data_{name}")):
        assert main(["verify", "--model", "demo", "--store", named]) == 0
        assert "same space" in capsys.readouterr().out
        stamp_store(store, demo)
    opened = open_langchain(f"pgvector:{url}/{name}-c", embeddings)
    assert opened.similarity_search(QUESTION, k=1)[0].page_content == TEXTS[ANSWER]
    with pytest.raises(SpaceMismatchError):
        open_langchain(f"pgvector:{url}/{name}-c", BGEEmbeddings(encoder=OTHER))
    store = open_llama_index(f"pgvector:{url}/data_{name}", embed_model)
    found = VectorStoreIndex.from_vector_store(store, embed_model=embed_model).as_retriever(similarity_top_k=1)
    assert TEXTS[ANSWER] in found.retrieve(QUESTION)[0].text
    for each in (old, opened, made, store):
        close(each)


def test_a_ready_store_is_checked_by_what_it_asks_with_too(tmp_path):
    from langchain_chroma import Chroma

    encoder = HashEncoder()
    embeddings, other = BGEEmbeddings(encoder=encoder), BGEEmbeddings(encoder=OTHER)
    store = open_langchain(Chroma("notes", embeddings, persist_directory=str(tmp_path)), embeddings)
    assert read_stamp(store) == encoder.stamp()  # it was empty
    store.add_texts(["a", "b"])
    assert open_langchain(store, embeddings) is store
    with pytest.raises(SpaceMismatchError):
        open_langchain(Chroma("notes", other, persist_directory=str(tmp_path)), embeddings)
    unstamped = Chroma("others", embeddings, persist_directory=str(tmp_path))
    unstamped.add_texts(["a"])
    with pytest.raises(ConfigError, match="no stamp"):
        open_langchain(unstamped, embeddings)
    assert check_store(store, encoder)


def test_llama_index_takes_stores_and_indexes_that_are_open():
    from llama_index.core import Document, VectorStoreIndex
    from llama_index.core.vector_stores import SimpleVectorStore

    embed_model = BGEEmbedding(encoder=HashEncoder())
    store = open_llama_index(SimpleVectorStore(), embed_model)
    index = VectorStoreIndex.from_documents([Document(text="a")], embed_model=embed_model)
    with pytest.raises(ConfigError, match="no stamp"):
        open_llama_index(index, embed_model)
    stamp_store(index, embed_model)
    assert open_llama_index(index, embed_model) is index
    for each in (index, store):
        with pytest.raises(SpaceMismatchError):
            open_llama_index(each, BGEEmbedding(encoder=OTHER))


class Evil:
    def __reduce__(self):
        return exec, ("print('it ran')",)


def test_a_pickle_beside_an_index_is_not_run(shards, tmp_path, capsys):
    pytest.importorskip("faiss")
    upload_files(shards, "faiss", path=tmp_path / "store", collection="notes")
    (tmp_path / "store" / "notes.pkl").write_bytes(pickle.dumps((Evil(), {})))
    assert main(["verify", "--model", "demo", "--store", f"faiss:{tmp_path}/store/notes"]) == 2
    told = capsys.readouterr()
    assert "it holds a builtins.exec" in told.err
    assert "it ran" not in told.out + told.err


def test_a_line_that_names_no_store(tmp_path):
    embeddings = BGEEmbeddings(encoder=HashEncoder())
    for named in ("notes", "redis:a/b", "chroma:notes", f"chroma:{tmp_path}/nowhere/notes", "pgvector:a/b"):
        with pytest.raises(ConfigError):
            open_langchain(named, embeddings)
    with pytest.raises(ConfigError) as caught:
        open_langchain("pgvector:postgresql://me:secret@127.0.0.1:1/db/notes", embeddings)
    assert "secret" not in str(caught.value)
    assert "me:***@127.0.0.1" in str(caught.value)
