"""Stamps in real vector stores: written, kept beside what else is there, and telling what differs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bge_integrations.errors import ConfigError, SpaceMismatchError
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.llama_index import BGEEmbedding
from bge_integrations.verify import check_store, read_stamp, stamp_store
from encoders import CARD, HashEncoder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
TEXTS = ["one", "two", "three"]


@pytest.fixture
def encoder():
    return HashEncoder()


@pytest.fixture
def face(encoder):
    return BGEEmbeddings(encoder=encoder)


def nodes(encoder):
    from llama_index.core.schema import TextNode

    vectors = encoder.encode(TEXTS, role="document").tolist()
    return [TextNode(text=text, embedding=vector) for text, vector in zip(TEXTS, vectors, strict=True)]


def langchain_chroma(face, tmp_path, _):
    from langchain_chroma import Chroma

    store = Chroma(
        "stamped",
        embedding_function=face,
        persist_directory=str(tmp_path / "chroma"),
        collection_metadata={"hnsw:space": "cosine", "owner": "somebody"},
    )
    store.add_texts(TEXTS)
    return store


def llama_index_chroma(face, tmp_path, _):
    import chromadb
    from llama_index.vector_stores.chroma import ChromaVectorStore

    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    store = ChromaVectorStore(client.get_or_create_collection("stamped"))
    store.add(nodes(face.encoder))
    return store


def langchain_qdrant(face, tmp_path, _):
    from langchain_qdrant import QdrantVectorStore

    return QdrantVectorStore.from_texts(TEXTS, face, path=str(tmp_path / "qdrant"), collection_name="stamped")


def llama_index_qdrant(face, tmp_path, _):
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    store = QdrantVectorStore("stamped", client=QdrantClient(path=str(tmp_path / "qdrant")))
    store.add(nodes(face.encoder))
    return store


def langchain_lancedb(face, tmp_path, _):
    import lancedb
    from langchain_community.vectorstores import LanceDB

    store = LanceDB(connection=lancedb.connect(tmp_path / "lance"), embedding=face, table_name="stamped")
    store.add_texts(TEXTS)
    return store


def llama_index_lancedb(face, tmp_path, _):
    from llama_index.vector_stores.lancedb import LanceDBVectorStore

    store = LanceDBVectorStore(uri=str(tmp_path / "lance"), table_name="stamped")
    store.add(nodes(face.encoder))
    return store


def langchain_faiss(face, tmp_path, _):
    from langchain_community.vectorstores import FAISS

    FAISS.from_texts(TEXTS, face).save_local(str(tmp_path / "faiss"))
    return tmp_path / "faiss"


def llama_index_faiss(face, tmp_path, _):
    import faiss
    from llama_index.core import StorageContext
    from llama_index.vector_stores.faiss import FaissVectorStore

    store = FaissVectorStore(faiss.IndexFlatIP(face.encoder.card.dimensions))
    store.add(nodes(face.encoder))
    StorageContext.from_defaults(vector_store=store).persist(str(tmp_path / "faiss"))
    return str(tmp_path / "faiss")


def langchain_pgvector(face, tmp_path, folder):
    from langchain_postgres import PGVector

    store = PGVector(
        face,
        connection=f"postgresql+psycopg://postgres@/postgres?host={folder}",
        collection_name=tmp_path.name,
        collection_metadata={"owner": "somebody"},
    )
    store.add_texts(TEXTS)
    return store


def langchain_pgvectorstore(face, tmp_path, folder):
    from langchain_postgres import PGEngine, PGVectorStore

    engine = PGEngine.from_connection_string(f"postgresql+psycopg://postgres@/postgres?host={folder}")
    engine.init_vectorstore_table(tmp_path.name, face.encoder.card.dimensions)
    store = PGVectorStore.create_sync(engine, face, tmp_path.name)
    store.add_texts(TEXTS)
    return store


def llama_index_pgvector(face, tmp_path, folder):
    from llama_index.vector_stores.postgres import PGVectorStore

    store = PGVectorStore.from_params(
        connection_string=f"postgresql+psycopg2://postgres@/postgres?host={folder}",
        async_connection_string=f"postgresql+asyncpg://postgres@/postgres?host={folder}",
        table_name=tmp_path.name,
        embed_dim=face.encoder.card.dimensions,
    )
    store.add(nodes(face.encoder))
    return store


STORES = [
    langchain_chroma,
    llama_index_chroma,
    langchain_qdrant,
    llama_index_qdrant,
    langchain_lancedb,
    llama_index_lancedb,
    langchain_faiss,
    llama_index_faiss,
    langchain_pgvector,
    langchain_pgvectorstore,
    llama_index_pgvector,
]
SEARCHABLE = [langchain_chroma, langchain_qdrant, langchain_lancedb, langchain_pgvector, langchain_pgvectorstore]


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def store(request, face, tmp_path):
    needed = {"faiss": "faiss", "chroma": "chromadb", "qdrant": "qdrant_client", "lance": "lancedb", "pg": "psycopg"}
    name = request.param.__name__
    pytest.importorskip(next(package for key, package in needed.items() if key in name))
    folder = request.getfixturevalue("socket_folder") if "pg" in name else None
    try:
        made = request.param(face, tmp_path, folder)
    except ImportError as error:
        pytest.skip(str(error))
    yield made
    close(made)


def close(store):
    """Close the connections that a store holds; each kind has its own way."""
    engine = getattr(store, "_engine", None)
    if hasattr(engine, "_run_as_sync"):
        engine._run_as_sync(engine.close())
    elif engine is not None:
        engine.dispose()
    client = getattr(store, "client", None)
    if hasattr(client, "close"):
        client.close()


def test_a_store_keeps_the_stamp_and_takes_the_same_encoder(store, encoder, face):
    with pytest.raises(ConfigError, match="no stamp"):
        check_store(store, encoder)
    assert stamp_store(store, face) == encoder.stamp()
    assert check_store(store, face) == encoder.stamp()
    assert check_store(store, HashEncoder()) == read_stamp(store)


def test_another_model_is_refused_and_needs_embedding_again(store, encoder):
    stamp_store(store, encoder)
    other = HashEncoder(replace(CARD, id="test/other", pooling="mean"))
    with pytest.raises(SpaceMismatchError, match="embed its documents again") as caught:
        check_store(store, other)
    assert set(caught.value.differences) == {"model", "pooling"}
    assert caught.value.reembed
    with pytest.raises(SpaceMismatchError):
        stamp_store(store, other)
    assert check_store(store, encoder)
    stamp_store(store, other, replace=True)
    assert check_store(store, other)


def test_another_query_instruction_leaves_the_documents_as_they_are(store, encoder):
    stamp_store(store, encoder)
    other = HashEncoder(query_instruction="query: ")
    with pytest.raises(SpaceMismatchError, match="need not be re-embedded") as caught:
        check_store(store, other)
    assert not caught.value.reembed
    stamp_store(store, other)
    assert check_store(store, other)["query_instruction"] == "query: "


@pytest.mark.parametrize("store", [langchain_chroma, langchain_pgvector], indirect=True)
def test_what_stood_there_before_stays(store, encoder):
    stamp_store(store, encoder)
    if hasattr(store, "_collection"):
        assert store._collection.metadata["owner"] == "somebody"
    else:
        with store._make_sync_session() as session:
            assert store.get_collection(session).cmetadata["owner"] == "somebody"


@pytest.mark.parametrize("store", SEARCHABLE, indirect=True)
def test_search_still_works_after_stamping(store, encoder):
    stamp_store(store, encoder)
    vector = encoder.encode(["two"], role="document")[0].tolist()
    assert store.similarity_search_by_vector(vector, k=1)[0].page_content == "two"


def test_a_table_comment_is_kept(socket_folder, face, tmp_path, encoder):
    import psycopg

    store = langchain_pgvectorstore(face, tmp_path, socket_folder)
    with psycopg.connect(host=socket_folder, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"""COMMENT ON TABLE "{tmp_path.name}" IS 'owner''s table, 100%'""")
        odd = HashEncoder(query_instruction="it's 100 % :odd \\ {x} ")
        stamp_store(store, odd)
        assert check_store(store, odd)["query_instruction"] == odd.query_instruction
        stamp_store(store, encoder)
        row = connection.execute("SELECT obj_description(to_regclass(%s))", [f'"{tmp_path.name}"']).fetchone()
    close(store)
    first, *rest = row[0].splitlines()
    assert first == "owner's table, 100%"
    assert [json.loads(line.removeprefix("bge_stamp: ")) for line in rest] == [encoder.stamp()]


def test_the_stamp_outlives_the_process_s_objects(face, tmp_path, encoder):
    import chromadb

    stamp_store(langchain_chroma(face, tmp_path, None), encoder)
    collection = chromadb.PersistentClient(str(tmp_path / "chroma")).get_collection("stamped")
    assert check_store(collection, encoder)
    assert (langchain_faiss(face, tmp_path, None) / "bge_stamp.json").exists() is False
    stamp_store(tmp_path / "faiss", encoder)
    assert json.loads((tmp_path / "faiss" / "bge_stamp.json").read_text())["space"] == encoder.space


def test_indexes_retrievers_and_llama_index_faces_are_taken(face, tmp_path, encoder):
    store = langchain_chroma(face, tmp_path, None)
    stamp_store(store.as_retriever(), BGEEmbedding(encoder=encoder))
    assert check_store(store, encoder)


def test_a_faiss_store_in_memory_and_unknown_things_say_what_to_do(face, tmp_path, encoder):
    from langchain_community.vectorstores import FAISS

    with pytest.raises(ConfigError, match="pass its folder"):
        stamp_store(FAISS.from_texts(TEXTS, face), encoder)
    with pytest.raises(ConfigError, match="save the index first"):
        stamp_store(tmp_path / "nowhere", encoder)
    with pytest.raises(ConfigError, match="object cannot be stamped"):
        check_store(object(), encoder)


def test_a_broken_stamp_is_said(tmp_path, encoder):
    (tmp_path / "bge_stamp.json").write_text("{nonsense")
    with pytest.raises(ConfigError, match="not written by this package"):
        check_store(tmp_path, encoder)


# ---- a stamp that contradicts the store


def test_an_encoder_of_other_dimensions_is_refused_whatever_is_said(store):
    other = HashEncoder(replace(CARD, dimensions=8))
    for replaced in (False, True):
        with pytest.raises(SpaceMismatchError, match="16 dimensions, but 'test/hash' has 8") as caught:
            stamp_store(store, other, replace=replaced)
        assert caught.value.differences == {"dimensions": (16, 8)}
    assert read_stamp(store) == {}


def test_a_store_that_holds_nothing_yet_takes_a_stamp(face, tmp_path, encoder):
    from langchain_chroma import Chroma

    assert stamp_store(Chroma("empty", face, persist_directory=str(tmp_path)), encoder)


@pytest.mark.parametrize("kind", ["IndexFlatIP", "IndexHNSWFlat", "IndexIDMap", "IndexLSH"])
def test_every_kind_of_faiss_index_is_asked_for_its_dimension(tmp_path, encoder, kind):
    import faiss

    arguments = {"IndexHNSWFlat": (8, 4), "IndexLSH": (8, 16)}.get(kind, (8,))
    index = faiss.IndexIDMap(faiss.IndexFlatL2(8)) if kind == "IndexIDMap" else getattr(faiss, kind)(*arguments)
    faiss.write_index(index, str(tmp_path / "any.name"))
    with pytest.raises(SpaceMismatchError, match="8 dimensions"):
        stamp_store(tmp_path, encoder)
    assert stamp_store(tmp_path, HashEncoder(replace(CARD, dimensions=8)))


def test_an_empty_folder_is_not_stamped(tmp_path, encoder):
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds no index"):
            stamp_store(tmp_path, encoder)
        (tmp_path / "bge_stamp.json").write_text("{}")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o600])
def test_a_stamp_is_as_readable_as_the_index_beside_it(face, tmp_path, encoder, mode):
    folder = langchain_faiss(face, tmp_path, None)
    (folder / "index.faiss").chmod(mode)
    for _ in range(2):
        stamp_store(folder, encoder, replace=True)
        assert (folder / "bge_stamp.json").stat().st_mode & 0o777 == mode
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[]", b"null", b'"x"', b"{", b"[" * 100_000, None], ids=repr)
def test_what_stands_in_the_place_of_a_stamp_is_refused_untouched(tmp_path, data):
    faiss = pytest.importorskip("faiss")
    encoder = HashEncoder()
    faiss.write_index(faiss.IndexFlatIP(encoder.card.dimensions), str(tmp_path / "index.faiss"))
    place = tmp_path / "bge_stamp.json"
    place.mkdir() if data is None else place.write_bytes(data)
    for look in (read_stamp, lambda store: check_store(store, encoder), lambda store: stamp_store(store, encoder)):
        with pytest.raises(ConfigError, match=r"not a readable stamp|not written by this package") as caught:
            look(tmp_path)
        assert "\n" not in str(caught.value)
    assert place.is_dir() if data is None else place.read_bytes() == data
    if data is not None and data != b"\xff\xfe":
        assert stamp_store(tmp_path, encoder, replace=True) == check_store(tmp_path, encoder)
