"""Shards are searched exactly, as queries, and in their own space only."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from bge_integrations.bulk import formats, search
from bge_integrations.bulk.part import Part
from bge_integrations.bulk.search import encoder_of, search_files
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, InputError, SpaceMismatchError, UnknownModelError
from bge_integrations.langchain import BGEEmbeddings
from bulk_shards import ANSWER, QUESTION, TEXTS, make_shards
from encoders import CARD, HashEncoder

MANY = {f"k{i}": f"text number {i}" for i in range(50)}


@pytest.fixture(scope="module")
def shards(demo, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("demo") / "out", demo)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("many") / "out", HashEncoder(), MANY, shard_rows=7)


@pytest.fixture(params=["faiss", "numpy"])
def counter(request, monkeypatch):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(search, "find_spec", lambda name: None)


def nearest(encoder, texts, question):
    """Return ids and scores as one matrix product gives them."""
    vectors = encoder.encode(list(texts.values()), role="document")
    scores = vectors @ encoder.encode([question], role="query")[0]
    order = np.argsort(-scores)
    return [list(texts)[i] for i in order], scores[order]


@pytest.mark.usefixtures("counter")
@pytest.mark.parametrize("k", [1, 4, 49, 50, 500])
def test_the_nearest_rows_of_all_shards_in_order(many, k, monkeypatch):
    monkeypatch.setattr(search, "_PIECE", 2)
    encoder, folder = HashEncoder(), many
    questions = ["one question", "another", "a third"]
    for question, hits in zip(questions, search_files(folder, questions, encoder, k=k), strict=True):
        ids, scores = nearest(encoder, MANY, question)
        assert [hit.id for hit in hits] == ids[:k]
        assert np.allclose([hit.score for hit in hits], scores[:k], atol=1e-6)
        assert all(hit.text == MANY[hit.id] for hit in hits)
        assert all(hit.kept["note"] == (f"of {hit.id}" if int(hit.id[1:]) % 2 else None) for hit in hits)


@pytest.mark.usefixtures("counter")
@pytest.mark.parametrize("questions", [1, 30])  # FAISS counts many in another way than few
def test_of_equal_scores_the_earlier_rows_are_found_at_every_k(questions):
    # Whole numbers: their products are exact, whoever adds them up.
    numbers = np.random.default_rng(7)
    rows = numbers.integers(-1, 2, (300, 4)).astype(np.float32)
    queries = numbers.integers(-2, 3, (questions, 4)).astype(np.float32)
    order = np.argsort(-(queries @ rows.T), axis=1, kind="stable")
    for size in (300, 70):
        pieces = [Part([], [], rows[first : first + size], {}) for first in range(0, 300, size)]
        for k in (1, 2, 5, 10, 69, 70, 120, 299, 300):
            scores, found = search.nearest(pieces, queries, k)
            assert np.array_equal(found, order[:, :k])
            assert np.array_equal(scores, np.take_along_axis(queries @ rows.T, order, 1)[:, :k])


def test_the_question_gets_the_instruction_and_each_is_sent_once(tmp_path):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder)
    begun = len(encoder.calls)
    hit = search_files(folder, "lists", BGEEmbeddings(encoder=encoder), k=1)[0][0]
    assert encoder.calls[begun:] == [["lists"]]
    assert hit.score == pytest.approx(
        max(encoder.expected(list(TEXTS.values()), "document") @ encoder.expected(["lists"], "query")[0])
    )


def test_without_an_encoder_the_stamp_s_model_is_asked(shards):
    hits = search_files(shards, QUESTION, k=2)[0]
    assert (hits[0].id, hits[0].text) == (ANSWER, TEXTS[ANSWER])
    assert hits[0].score > hits[1].score
    with encoder_of(shards) as encoder:
        assert encoder.card.id == "demo"


def test_the_stamp_s_own_instruction_is_taken_up(demo, tmp_path):
    with encoder_of(make_shards(tmp_path / "one", demo)) as encoder:
        assert encoder.space == demo.space
    from bge_integrations import load_encoder

    with load_encoder("demo", query_instruction="", show_progress=False) as plain:
        folder = make_shards(tmp_path / "two", plain)
    with encoder_of(folder) as encoder:
        assert encoder.space == plain.space != demo.space


def test_another_space_is_refused_before_anything_is_embedded(tmp_path):
    folder = make_shards(tmp_path / "out", HashEncoder())
    other = HashEncoder(replace(CARD, id="test/other"))
    with pytest.raises(SpaceMismatchError, match="test/other") as caught:
        search_files(folder, "a question", other)
    assert caught.value.reembed
    assert other.calls == []
    with pytest.raises(SpaceMismatchError) as caught:
        search_files(folder, "a question", HashEncoder(query_instruction=""))
    assert not caught.value.reembed
    with pytest.raises(SpaceMismatchError):
        encoder_of(folder, "demo")


def test_a_model_that_nobody_knows_has_to_be_named(tmp_path):
    folder = make_shards(tmp_path / "out", HashEncoder())
    with pytest.raises(ConfigError, match="'test/hash', which is not in the catalogue"):
        search_files(folder, "a question")
    with pytest.raises(UnknownModelError):
        encoder_of(folder, "no-such-model")


def test_only_finished_shards_count(tmp_path):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder)
    (folder / "part-000009.parquet").write_bytes(b"half of a sha")
    assert {hit.id for hit in search_files(folder, "q", encoder, k=99)[0]} == set(TEXTS)
    (folder / "part-000001.parquet").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="part-000001"):
        search_files(folder, "q", encoder)
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="out"):
        search_files(folder, "q", encoder)


def test_a_folder_without_a_manifest_is_read_by_its_shards(demo, tmp_path):
    folder = make_shards(tmp_path / "out", demo)
    (folder / ".manifest.jsonl").unlink()
    assert search_files(folder, QUESTION, k=1)[0][0].id == ANSWER


def test_the_command_says_that_a_job_is_not_finished(demo, tmp_path, capsys):
    folder = make_shards(tmp_path / "out", demo)
    assert main(["search", str(folder), QUESTION, "-k", "1"]) == 0
    assert capsys.readouterr().err == ""
    manifest = folder / ".manifest.jsonl"
    job, first, *_ = manifest.read_text().splitlines(keepends=True)
    manifest.write_text(job + first)
    assert main(["search", str(folder), QUESTION, "-k", "99"]) == 0
    told = capsys.readouterr()
    assert "not finished" in told.err
    assert len(told.out.splitlines()) == 3


def test_no_question_no_row_and_wrong_numbers(tmp_path):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder)
    assert search_files(folder, [], encoder) == []
    with pytest.raises(ConfigError, match="k must be"):
        search_files(folder, "q", encoder, k=0)
    with pytest.raises(InputError):
        search_files(folder, ["good", " "], encoder)
    nothing = make_shards(tmp_path / "none", encoder, {"a": " ", "b": ""})
    assert search_files(nothing, "q", encoder) == [[]]


@pytest.mark.usefixtures("counter")
def test_half_precision_finds_the_same(tmp_path):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder, MANY, half=True)
    ids, scores = nearest(encoder, MANY, "q")
    hits = search_files(folder, "q", encoder, k=5)[0]
    assert {hit.id for hit in hits[:3]} <= set(ids[:5])
    assert np.allclose([hit.score for hit in hits], scores[:5], atol=2e-3)


@pytest.mark.parametrize("form", ["parquet", "numpy", "jsonl"])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_pieces_of_every_format_are_the_whole(tmp_path, form, size):
    encoder = HashEncoder()
    folder = make_shards(tmp_path / "out", encoder, MANY, shard_rows=20, format=form)
    from bge_integrations.bulk.folder import read_shards, shard_files

    for path, whole in zip(shard_files(folder), read_shards(folder), strict=True):
        parts = list(formats.read_part(path, size))
        assert max(len(part.ids) for part in parts) <= size
        assert [key for part in parts for key in part.ids] == whole.ids
        assert [text for part in parts for text in part.texts] == whole.texts
        assert np.array_equal(np.concatenate([part.vectors for part in parts]), whole.vectors)
        assert [value for part in parts for value in part.kept["letters"]] == whole.kept["letters"]
        assert all(part.vectors.size == 0 for part in formats.read_part(path, size, vectors=False))
        assert all(part.ids == [] for part in formats.read_part(path, size, rows=False))
    assert [hit.id for hit in search_files(folder, "q", encoder)[0]] == nearest(encoder, MANY, "q")[0][:10]


def test_the_command_prints_score_id_and_text(shards, capsys):
    assert main(["search", str(shards), QUESTION, "-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    score, key, text = lines[0].split("\t")
    assert (len(lines), key, text) == (2, ANSWER, TEXTS[ANSWER])
    assert 0 < float(score) <= 1


def test_the_command_reads_questions_and_prints_json(shards, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\nwhich command finds lines that match a pattern?\n"))
    assert main(["search", str(shards), "--json", "-k", "1"]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["question"] == QUESTION
    assert first["hits"][0]["id"] == ANSWER
    assert first["hits"][0]["kept"]["note"] == f"of {ANSWER}"
    assert second["hits"][0]["text"] == TEXTS["grep"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["search", str(shards)]) == 1


def test_the_command_shows_a_table_on_a_terminal(demo, tmp_path, capsys, monkeypatch):
    pytest.importorskip("rich")
    folder = make_shards(tmp_path / "out", demo, {"[bold]a[/]": "first [red]line\n  second line " + "word " * 200})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["search", str(folder), "one", "two"]) == 0
    out = capsys.readouterr().out
    assert "[bold]a[/]" in out
    assert "first [red]line second line" in out
    assert out.count("score") == 2


def test_the_command_refuses_another_space(shards, capsys):
    assert main(["search", str(shards), "a question", "--query-instruction", "other: "]) == 2
    assert "query_instruction" in capsys.readouterr().err
