"""Sparse vectors in shards: written, resumed, read back, searched together with the dense ones, and uploaded."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from bge_integrations.bulk import (
    Columns,
    Hybrid,
    embed_files,
    read_shards,
    search,
    search_files,
    stamp_of,
    upload_files,
)
from bge_integrations.bulk.part import Part, SparseRows
from bge_integrations.cli import main
from bge_integrations.errors import BGEWarning, ConfigError, SpaceMismatchError
from bge_integrations.stamps.stamp import check_stamp
from bulk_shards import TEXTS, make_shards
from encoders import CARD, HashEncoder, WordsEncoder
from postgres import find_postgres, postgres

BOTH = ("dense", "sparse")
MANY = {f"k{i}": f"text number {i} of group {i % 7}" + " often" * (i % 3) for i in range(50)}


def dicts(rows: SparseRows) -> list[dict[int, float]]:
    return [dict(zip(ids.tolist(), weights.tolist(), strict=True)) for ids, weights in rows]


# Shards


@pytest.mark.parametrize("format", ["parquet", "numpy", "jsonl"])
def test_every_format_gives_sparse_vectors_back_in_order(format, tmp_path, monkeypatch):
    encoder = WordsEncoder()
    folder = make_shards(tmp_path / "out", encoder, MANY, shard_rows=20, format=format, outputs=BOTH)
    parts = list(read_shards(folder))
    assert [row for part in parts for row in dicts(part.sparse)] == [encoder.sparse(text) for text in MANY.values()]
    assert all((np.diff(ids.astype(int)) > 0).all() for part in parts for ids, _ in part.sparse)
    vectors = np.concatenate([part.vectors for part in parts])
    np.testing.assert_allclose(vectors, encoder.expected(list(MANY.values()), "document"), atol=1e-6)
    ids, _, _, kept = parts[0]  # still four
    assert (ids[0], set(kept)) == ("k0", {"letters", "note"})
    again = make_shards(tmp_path / "again", encoder, MANY, shard_rows=20, format=format, outputs=BOTH)
    for path in folder.glob("part-*"):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_parquet_and_scipy_read_them_by_themselves(tmp_path):
    parquet, scipy = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("scipy.sparse")
    encoder = WordsEncoder()
    make_shards(tmp_path / "parquet", encoder, outputs=BOTH)
    make_shards(tmp_path / "numpy", encoder, outputs=BOTH, format="numpy")
    table = parquet.read_table(tmp_path / "parquet" / "part-000000.parquet")
    assert str(table.schema.field("sparse_indices").type) == "list<element: uint32 not null>"
    assert str(table.schema.field("sparse_values").type) == "list<element: float not null>"
    matrix = scipy.load_npz(tmp_path / "numpy" / "part-000000.sparse.npz")
    assert matrix.shape == (3, 5000)
    for line, ids, values in zip(
        matrix.toarray(), table["sparse_indices"].to_pylist(), table["sparse_values"].to_pylist(), strict=True
    ):
        assert line[ids].tolist() == values
        assert np.count_nonzero(line) == len(ids)


def test_a_row_without_any_known_word_stays_a_row(tmp_path):
    class Silent(WordsEncoder):
        @staticmethod
        def sparse(text):
            return {} if "rm" in text else WordsEncoder.sparse(text)

    for format in ("parquet", "numpy", "jsonl"):
        folder = make_shards(tmp_path / format, Silent(), format=format, outputs=BOTH)
        rows = [row for part in read_shards(folder) for row in dicts(part.sparse)]
        assert [bool(row) for row in rows] == [key != "rm" for key in TEXTS]


def test_both_outputs_come_from_one_call(tmp_path):
    encoder = WordsEncoder()
    make_shards(tmp_path / "out", encoder, outputs=BOTH)
    assert sorted(encoder.sent) == sorted(TEXTS.values())


def test_dense_shards_are_as_they_were(tmp_path):
    folder = make_shards(tmp_path / "out", WordsEncoder())
    assert "sparse_space" not in stamp_of(folder)
    assert [part.sparse for part in read_shards(folder)] == [None] * 3
    assert not list(folder.glob("*.npz"))


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (("dense", "multivector"), "not dense,multivector.*load_reranker"),
        (("sparse",), "not sparse alone"),
        (("dense", "colbert"), "not 'colbert'"),
    ],
)
def test_other_outputs_are_refused_before_anything_is_made(outputs, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        make_shards(tmp_path / "out", WordsEncoder(), outputs=outputs)
    assert not (tmp_path / "out").exists()


def test_a_model_without_sparse_output_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no sparse output"):
        make_shards(tmp_path / "out", HashEncoder(), outputs=BOTH)


def test_another_head_does_not_resume_nor_search(tmp_path):
    folder = make_shards(tmp_path / "out", WordsEncoder(), outputs=BOTH)
    other = WordsEncoder(replace(CARD, heads="deadbeef"))
    with pytest.raises(SpaceMismatchError, match="sparse_space"):
        make_shards(folder, other, outputs=BOTH)
    with pytest.raises(SpaceMismatchError, match="sparse_space"):
        search_files(folder, "files", other, hybrid=True)
    check_stamp(stamp_of(folder), HashEncoder())  # dense vectors alone are of the same space


def test_dense_shards_do_not_become_hybrid_ones(tmp_path):
    folder = make_shards(tmp_path / "out", WordsEncoder())
    with pytest.raises(SpaceMismatchError, match="sparse_space"):
        make_shards(folder, WordsEncoder(), outputs=BOTH)


# Search


def expected(encoder, question, fuse):
    texts = list(MANY.values())
    dense = encoder.expected(texts, "document") @ encoder.expected([question], "query")[0]
    words = encoder.sparse(question)
    sparse = np.array([sum(w * words.get(i, 0) for i, w in encoder.sparse(text).items()) for text in texts])
    scores = fuse(dense, sparse)
    order = np.lexsort((np.arange(len(texts)), -scores))
    return [list(MANY)[i] for i in order], scores[order]


def ranks(scores):
    return np.argsort(np.lexsort((np.arange(len(scores)), -scores))) + 1


@pytest.mark.parametrize("k", [1, 7, 50, 80])
def test_a_weighted_sum_of_all_rows(k, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_PIECE", 3)
    encoder = WordsEncoder()
    folder = make_shards(tmp_path / "out", encoder, MANY, shard_rows=7, outputs=BOTH)
    for weights in [(0.4, 0.2), (1, 0), (0.1, 3)]:
        hits = search_files(folder, ["number 3 often", "group 5"], encoder, k=k, hybrid=Hybrid("sum", weights))
        for question, found in zip(["number 3 often", "group 5"], hits, strict=True):
            ids, scores = expected(encoder, question, lambda d, s, w=weights: w[0] * d + w[1] * s)
            assert [hit.id for hit in found] == ids[:k]
            np.testing.assert_allclose([hit.score for hit in found], scores[:k], atol=1e-5)
            assert all(hit.text == MANY[hit.id] for hit in found)
    default = search_files(folder, "group 5", encoder, k=k, hybrid=True)[0]
    assert [hit.id for hit in default] == expected(encoder, "group 5", lambda d, s: 0.4 * d + 0.2 * s)[0][:k]


def test_ranks_are_fused_and_a_row_without_common_words_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "_PIECE", 3)
    encoder = WordsEncoder()
    folder = make_shards(tmp_path / "out", encoder, MANY, shard_rows=7, outputs=BOTH)

    def fuse(dense, sparse):
        return 1 / (60 + ranks(dense)) + np.where(sparse > 0, 2 / (60 + ranks(sparse)), 0)

    hits = search_files(folder, "group often 6", encoder, k=10, hybrid=Hybrid("rrf", (1, 2)))[0]
    ids, scores = expected(encoder, "group often 6", fuse)
    assert [hit.id for hit in hits] == ids[:10]
    np.testing.assert_allclose([hit.score for hit in hits], scores[:10], atol=1e-7)


@pytest.mark.parametrize("fusion", ["sum", "rrf"])
def test_of_equal_sums_the_earlier_rows_are_found(fusion):
    # More rows than the 100 of each ranking that rrf looks at; whole numbers, whose sums are exact.
    vectors = np.ones((400, 4), np.float32)
    pieces = [Part([], [], vectors[:size], {}, SparseRows.of([{7: 1.0}] * size)) for size in (250, 150)]
    for k in (1, 3, 90):
        _, found = Hybrid(fusion).search(pieces, vectors[:2], [{7: 1.0}, {8: 1.0}], 10, k)
        assert found.tolist() == [list(range(k))] * 2


def test_hybrid_search_wants_sparse_shards_and_sound_weights(tmp_path):
    folder = make_shards(tmp_path / "out", WordsEncoder())
    with pytest.raises(ConfigError, match="no sparse vectors: embed with --outputs dense,sparse"):
        search_files(folder, "files", WordsEncoder(), hybrid=True)
    for weights in [(1,), (-1, 2), (0, 0), "ab", (float("nan"), 1)]:
        with pytest.raises(ConfigError, match="weights"):
            Hybrid("sum", weights)
    with pytest.raises(ConfigError, match="fusion must be one of sum, rrf"):
        Hybrid("max")


@pytest.mark.slow
def test_the_command_embeds_and_searches_by_words(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    codes = [f"the error code e{i}{i + 1}{i} of the pump in hall {i % 3}" for i in range(10, 40)]
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in codes))
    out = str(tmp_path / "out")
    assert main(["embed", str(rows), "-o", out, "--model", "demo", "--outputs", "dense,sparse"]) == 0
    capsys.readouterr()
    for more in ([], ["--fusion", "rrf"], ["--weights", "0.1", "1"]):
        assert main(["search", out, "e232423", "--hybrid", "-k", "1", "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["hits"][0]["text"] == codes[13]
    assert main(["search", out, "x", "--fusion", "rrf"]) == 2
    assert "for --hybrid" in capsys.readouterr().err
    assert main(["embed", str(rows), "-o", str(tmp_path / "m"), "--model", "demo", "--outputs", "multivector"]) == 2
    assert "shards can hold dense, or dense,sparse" in capsys.readouterr().err


# Upload


@pytest.fixture(scope="module")
def shards(demo, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("demo") / "out", demo, outputs=BOTH)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_qdrant_gets_both_and_langchain_searches_them(shards, demo, tmp_path):
    pytest.importorskip("qdrant_client")
    pytest.importorskip("langchain_qdrant")
    from langchain_qdrant import QdrantVectorStore, RetrievalMode
    from qdrant_client import QdrantClient

    from bge_integrations.langchain import BGEM3

    path = str(tmp_path / "store")
    for _ in range(2):  # the second replaces
        report = upload_files(shards, "qdrant", path=path, collection="both")
        assert (report.rows, report.total) == (7, 7)
    assert report.stamp == stamp_of(shards)
    client = QdrantClient(path=path)
    points, _ = client.scroll("both", limit=10, with_vectors=True)
    parts = [zip(part.texts, dicts(part.sparse), strict=True) for part in read_shards(shards)]
    wanted = dict(chain.from_iterable(parts))
    for point in points:
        held = point.vector["sparse"]
        assert dict(zip(held.indices, held.values, strict=True)) == wanted[point.payload["page_content"]]
    m3 = BGEM3("demo")
    names = {"RetrievalMode": RetrievalMode, "QdrantVectorStore": QdrantVectorStore, "m3": m3}
    names["QdrantClient"] = lambda **_: client
    store = eval(report.opens.splitlines()[1].partition("  #")[0], names)  # as it was printed
    assert store.retrieval_mode is RetrievalMode.HYBRID
    assert store.similarity_search("which command packs files into an archive", k=1)[0].metadata["id"] == "tar"
    store.retrieval_mode = RetrievalMode.SPARSE
    assert store.similarity_search("grep", k=1)[0].metadata["id"] == "grep"
    client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
def test_llama_index_searches_what_qdrant_got(shards, tmp_path):
    pytest.importorskip("llama_index.vector_stores.qdrant")
    from llama_index.core import VectorStoreIndex
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    from bge_integrations.llama_index import BGEM3

    path = str(tmp_path / "store")
    report = upload_files(shards, "qdrant", path=path, collection="both")
    client, m3 = QdrantClient(path=path), BGEM3("demo")
    names = {"QdrantVectorStore": QdrantVectorStore, "QdrantClient": lambda **_: client, "m3": m3}
    store = eval(report.opens.splitlines()[2].partition("  #")[0], names)
    index = VectorStoreIndex.from_vector_store(store, embed_model=m3.dense)
    retriever = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=1, sparse_top_k=3)
    assert retriever.retrieve("grep finds a pattern")[0].node.get_content() == TEXTS["grep"]
    client.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_collection_of_another_layout_is_refused(shards, demo, tmp_path):
    pytest.importorskip("qdrant_client")
    dense = make_shards(tmp_path / "dense", demo)
    upload_files(dense, "qdrant", path=tmp_path / "store", collection="plain")
    with pytest.raises(ConfigError, match="no vectors named 'dense' and 'sparse'"):
        upload_files(shards, "qdrant", path=tmp_path / "store", collection="plain")
    upload_files(shards, "qdrant", path=tmp_path / "store", collection="both")
    with pytest.raises(ConfigError, match="has named vectors"):
        upload_files(dense, "qdrant", path=tmp_path / "store", collection="both")


@pytest.mark.postgres
def test_pgvector_gets_a_sparsevec_column(shards, tmp_path):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip("psycopg")
    if find_postgres() is None:
        pytest.skip("no PostgreSQL with pgvector is installed")
    with postgres() as folder:
        url = f"postgresql://postgres@/postgres?host={folder}"
        for _ in range(2):
            assert upload_files(shards, "pgvector", url=url, collection="both").total == 7
        engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
        query = "SELECT content, sparse::text, (sparse <#> sparse)::float FROM both".replace("both", '"both"')
        with engine.connect() as connection:
            found = {text: (literal, product) for text, literal, product in connection.exec_driver_sql(query)}
        engine.dispose()
        for part in read_shards(shards):
            for text, row in zip(part.texts, dicts(part.sparse), strict=True):
                elements, _, size = found[text][0].strip("{").partition("}/")
                held = dict(element.split(":") for element in elements.split(","))  # counted from 1
                assert {int(i) - 1: float(weight) for i, weight in held.items()} == pytest.approx(row, rel=1e-5)
                assert size == "8000"
                assert -found[text][1] == pytest.approx(sum(weight**2 for weight in row.values()), rel=1e-4)
        long = {"long": " ".join(f"w{i}" for i in range(1400)), "short": "a b"}
        big = make_shards(tmp_path / "big", WordsEncoder(), long, outputs=BOTH)
        with pytest.warns(BGEWarning, match="row 'long' has more than 1000 sparse elements.*HNSW"):
            upload_files(big, "pgvector", url=url, collection="big")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("into", "package"), [("chroma", "chromadb"), ("lancedb", "lancedb"), ("faiss", "faiss")])
def test_other_stores_get_the_dense_vectors_and_say_so(into, package, shards, demo, tmp_path):
    pytest.importorskip(package)
    with pytest.warns(BGEWarning, match=f"only the dense vectors are uploaded into {into}; qdrant and pgvector"):
        report = upload_files(shards, into, path=tmp_path / "store")
    assert report.total == 7
    assert report.stamp == demo.stamp()


def test_an_id_that_comes_twice_keeps_its_last_sparse_vector(tmp_path):
    pytest.importorskip("qdrant_client")
    from qdrant_client import QdrantClient

    rows, encoder = tmp_path / "rows.jsonl", WordsEncoder()
    rows.write_text('{"k": "a", "text": "one"}\n{"k": "b", "text": "two"}\n{"k": "a", "text": "three"}\n')
    embed_files(str(rows), tmp_path / "out", encoder, columns=Columns(id="k"), outputs=BOTH)
    client = QdrantClient(":memory:")
    assert upload_files(tmp_path / "out", "qdrant", client=client, collection="twice").total == 2
    points, _ = client.scroll("twice", with_vectors=True)
    held = {point.payload["page_content"]: point.vector["sparse"].indices for point in points}
    assert held == {text: list(encoder.sparse(text)) for text in ("two", "three")}
