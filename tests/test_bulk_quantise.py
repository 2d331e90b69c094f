"""Quantised vectors: their codes, their shards, the search over them, and what may not be mixed with them."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from bge_integrations.bulk import (
    Hybrid,
    dequantise,
    embed_files,
    near_duplicates,
    quantise,
    quantise_files,
    read_shards,
    search_files,
    stamp_of,
    upload_files,
    value_ranges,
)
from bge_integrations.cli import main
from bge_integrations.errors import BGEWarning, ConfigError, InputError, SpaceMismatchError
from bge_integrations.verify import check_store, stamp_store
from bulk_shards import make_shards
from encoders import HashEncoder

MANY = {f"k{i}": f"text number {i}" for i in range(50)}
QUESTIONS = ["one question", "another", "a third"]


def unit_rows(count, dimensions):
    rows = np.random.default_rng(count).standard_normal((count, dimensions)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["parquet", "numpy"])
def floats(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "out"
    return make_shards(folder, HashEncoder(), MANY, shard_rows=7, format=request.param)


@pytest.fixture(params=["int8", "binary"])
def kind(request):
    return request.param


# ---- codes


@pytest.mark.slow
def test_codes_are_those_of_sentence_transformers():
    theirs = pytest.importorskip("sentence_transformers.util").quantize_embeddings
    vectors, others = unit_rows(200, 20), unit_rows(50, 20)
    ranges = value_ranges(vectors)
    assert (quantise(others, "int8", ranges=ranges) == theirs(others, "int8", ranges=ranges)).all()
    assert (quantise(vectors, "int8") == theirs(vectors, "int8", calibration_embeddings=vectors)).all()
    assert (quantise(vectors, "binary") == theirs(vectors, "ubinary")).all()


def test_floats_come_back_within_half_a_step():
    vectors = unit_rows(100, 12)
    vectors[:, 3] = 0.25  # one value only
    ranges = value_ranges(vectors)
    back = dequantise(quantise(vectors, "int8"), "int8", 12, ranges=ranges)
    assert (np.abs(back - vectors) <= (ranges[1] - ranges[0]) / 255 * 0.51 + 1e-6).all()
    assert (back[:, 3] == 0.25).all()
    signs = dequantise(quantise(vectors, "binary"), "binary", 12)
    assert ((signs > 0) == (vectors > 0)).all()
    assert np.allclose(np.linalg.norm(signs, axis=1), 1)


def test_values_beyond_the_ranges_are_clipped():
    codes = quantise([[-9.0, 9.0]], "int8", ranges=[[-1, -1], [1, 1]])
    assert codes.tolist() == [[-128, 127]]


def test_what_cannot_be_quantised_is_said():
    for vectors in ([1.0, 2.0], np.zeros((2, 2), np.int8)):
        with pytest.raises(InputError, match="floats of shape"):
            quantise(vectors, "binary")
    with pytest.raises(InputError, match="there are none"):
        quantise(np.empty((0, 4)), "int8")
    with pytest.raises(ConfigError, match="int8, binary"):
        quantise([[1.0]], "int4")
    with pytest.raises(ConfigError, match="shape"):
        quantise([[1.0]], "int8", ranges=[[0, 0], [1, 1]])
    with pytest.raises(ConfigError, match="for int8"):
        quantise([[1.0]], "binary", ranges=[[0], [1]])
    with pytest.raises(ConfigError, match="ranges"):
        dequantise(np.zeros((1, 1), np.int8), "int8", 1)


# ---- shards


def rows_of(folder):
    parts = list(read_shards(folder))
    kept = {name: [value for part in parts for value in part.kept[name]] for name in parts[0].kept}
    ids, texts = ([value for part in parts for value in part[i]] for i in (0, 1))
    return ids, texts, kept, np.concatenate([part.vectors for part in parts])


def test_all_but_the_vectors_stays_as_it_was(floats, tmp_path, kind):
    told = []
    done = quantise_files(floats, tmp_path / "small", kind, on_rows=told.append)
    *before, vectors = rows_of(floats)
    *after, codes = rows_of(tmp_path / "small")
    assert after == before
    stamp = stamp_of(tmp_path / "small")
    assert (codes == quantise(vectors, kind, ranges=stamp.get("ranges"))).all()
    assert codes.dtype == (np.int8 if kind == "int8" else np.uint8)
    assert told[-1] == done.rows == 50
    assert (done.bytes, done.small_bytes) == (64, {"int8": 16, "binary": 2}[kind])
    assert f"/quantised:{kind}" in stamp["space"]
    if kind == "int8":
        assert np.array_equal(stamp["ranges"], value_ranges(vectors))


def test_parquet_holds_a_byte_for_a_byte(tmp_path):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder, {f"k{i}": "t" for i in range(4000)}, shard_rows=4000)
    sizes = [quantise_files(folder, tmp_path / kind, kind).small_folder_bytes for kind in ("int8", "binary")]
    assert 4000 * 13 < sizes[0] - sizes[1] < 4000 * 15  # 16 bytes and 2


def test_a_stopped_run_is_resumed_to_the_same_bytes(floats, tmp_path, kind):
    class Killed(BaseException):
        pass

    def stop(rows):
        if rows > 20:
            raise Killed

    quantise_files(floats, tmp_path / "whole", kind)
    with pytest.raises(Killed):
        quantise_files(floats, tmp_path / "torn", kind, on_rows=stop)
    left = sorted(path for ending in ("parquet", "npy") for path in (tmp_path / "torn").glob(f"part-*.{ending}"))
    left[-1].write_bytes(b"half of a sha")
    with pytest.raises(ConfigError, match="not finished"):
        quantise_files(tmp_path / "torn", tmp_path / "next", kind)
    quantise_files(floats, tmp_path / "torn", kind)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "torn").iterdir())
    for name in names:
        if name != ".manifest.jsonl":
            assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_folders_that_are_not_taken(floats, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    quantise_files(floats, tmp_path / "small", "int8")
    for source, target, message in (
        (floats, floats, "holds the float vectors"),
        (floats, tmp_path / "mine", "notes.txt"),
        (tmp_path / "small", tmp_path / "next", "pass the folder that was quantised"),
        (make_shards(tmp_path / "lines", HashEncoder(), format="jsonl"), tmp_path / "next", "--format parquet"),
    ):
        with pytest.raises(ConfigError, match=message):
            quantise_files(source, target, "int8")
    assert not (tmp_path / "next").exists()
    with pytest.raises(SpaceMismatchError, match="quantised") as caught:
        quantise_files(floats, tmp_path / "small", "binary")
    assert len(str(caught.value)) < 500


# ---- search


def found(hits):
    return [[(hit.id, hit.text, round(hit.score, 4)) for hit in each] for each in hits]


def test_what_is_found_is_scored_by_the_floats_where_they_are(floats, tmp_path, kind):
    encoder = HashEncoder()
    quantise_files(floats, tmp_path / "small", kind)
    right = found(search_files(floats, QUESTIONS, encoder, k=5))
    assert found(search_files(tmp_path / "small", QUESTIONS, encoder, k=5)) == right
    assert found(search_files(tmp_path / "small", QUESTIONS[0], encoder, k=500)[:1]) == found(
        search_files(floats, QUESTIONS[0], encoder, k=500)
    )
    small = search_files(tmp_path / "small", QUESTIONS, encoder, k=5, rescore=0)
    queries = encoder.encode(QUESTIONS, role="query")
    ids, _, _, codes = rows_of(tmp_path / "small")
    stamp = stamp_of(tmp_path / "small")
    scores = queries @ dequantise(codes, kind, 16, ranges=stamp.get("ranges")).T
    assert [[hit.id for hit in each] for each in small] == [[ids[i] for i in np.argsort(-row)[:5]] for row in scores]
    assert np.allclose([[hit.score for hit in each] for each in small], -np.sort(-scores, axis=1)[:, :5], atol=1e-5)


def test_floats_that_are_gone_or_others_now_are_not_asked(tmp_path, kind):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder, MANY)
    quantise_files(folder, tmp_path / "small", kind)
    alone = found(search_files(tmp_path / "small", QUESTIONS, encoder, rescore=0))
    assert found(search_files(tmp_path / "small", QUESTIONS, encoder)) != alone
    shutil.move(folder, tmp_path / "away")
    assert found(search_files(tmp_path / "small", QUESTIONS, encoder)) == alone
    make_shards(tmp_path / "out", encoder, {name: f"other {text}" for name, text in MANY.items()})
    with pytest.warns(BGEWarning, match="have changed since .* quantise them into a new folder"):
        assert found(search_files(tmp_path / "small", QUESTIONS, encoder)) == alone
    with pytest.raises((ConfigError, SpaceMismatchError), match=r"have changed|of another space") as caught:
        quantise_files(tmp_path / "out", tmp_path / "small", kind)
    assert "--update" not in str(caught.value)


@pytest.mark.slow
def test_sparse_vectors_are_kept_and_searched_with(demo, tmp_path, kind):
    for format in ("parquet", "numpy"):
        folder = make_shards(tmp_path / format, demo, outputs=("dense", "sparse"), format=format)
        quantise_files(folder, tmp_path / f"{format}-small", kind)
        for before, after in zip(read_shards(folder), read_shards(tmp_path / f"{format}-small"), strict=True):
            assert (after.sparse.indices == before.sparse.indices).all()
            assert (after.sparse.values == before.sparse.values).all()
        hits = search_files(tmp_path / f"{format}-small", "pack files into an archive", demo, k=1, hybrid=Hybrid())
        assert hits[0][0].id == "tar"


def test_the_command_makes_and_asks_smaller_shards(demo, tmp_path, capsys):
    folder = make_shards(tmp_path / "out", demo)
    assert main(["quantize", str(folder), "-o", str(tmp_path / "small"), "--to", "binary"]) == 0
    told = capsys.readouterr().out
    assert "1,024 bytes per vector before, 32 now" in told
    for rescore in ("10", "0"):
        assert main(["search", str(tmp_path / "small"), "pack files", "-k", "1", "--rescore", rescore]) == 0
        assert "\ttar\t" in capsys.readouterr().out
    assert main(["search", str(tmp_path / "small"), "pack files", "--rescore", "-1"]) == 2


# ---- what is not mixed


def test_floats_and_codes_are_not_mixed(floats, tmp_path, kind):
    encoder = HashEncoder()
    quantise_files(floats, tmp_path / "small", kind)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(SpaceMismatchError, match="quantised"):
        embed_files(str(tmp_path / "rows.jsonl"), tmp_path / "small", encoder)
    with pytest.raises(ConfigError, match="quantised vectors"):
        near_duplicates(tmp_path / "small")
    with pytest.raises(ConfigError, match="quantised vectors"):
        upload_files(tmp_path / "small", "chroma", path=tmp_path / "chroma")
    with pytest.raises(SpaceMismatchError):
        search_files(tmp_path / "small", "a", HashEncoder(query_instruction="other: "))


def test_a_store_of_codes_refuses_floats_and_codes_of_other_ranges(tmp_path):
    encoder = HashEncoder()
    stamps = []
    for number in range(2):
        texts = {f"k{i}": f"text {i} of {number}" for i in range(9)}
        folder = make_shards(tmp_path / f"floats-{number}", encoder, texts)
        quantise_files(folder, tmp_path / f"small-{number}", "int8")
        stamps.append(stamp_of(tmp_path / f"small-{number}"))
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE notes (embedding BLOB)")
        store = (connection, "notes")
        stamp_store(store, stamps[0])
        assert check_store(store, stamps[0])
        for other in (stamps[1], encoder):
            with pytest.raises(SpaceMismatchError) as caught:
                check_store(store, other)
            assert set(caught.value.differences) == {"quantised"}
            assert caught.value.reembed
