"""Near-duplicates: what a comparison of all pairs in memory says, over many shards and blocks."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest

from bge_integrations.bulk import Columns, duplicates, embed_files, near_duplicates
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError
from encoders import HashEncoder

pytest.importorskip("pyarrow")


class ClusterEncoder(HashEncoder):
    """Texts of one first word lie near each other, as near as their number says."""

    def vectors(self, texts, role):
        rows = []
        for text in texts:
            word, number = text.split()
            center, off = (super(ClusterEncoder, self).vectors([each], role)[0] for each in (word, text))
            row = center + int(number) % 7 / 20 * off
            rows.append(row / np.linalg.norm(row))
        return np.array(rows, np.float32)


def reference(vectors, above):
    """One row after the other, all in memory."""
    leaders = []
    for i, row in enumerate(vectors):
        firsts = [j for j in range(i) if leaders[j] == j]
        cosines = vectors[firsts] @ row
        near = bool(firsts) and cosines.max() >= above - 1e-6
        leaders.append(firsts[int(cosines.argmax())] if near else i)
    return leaders


@pytest.fixture
def texts():
    random = np.random.default_rng(5)
    return [f"w{random.integers(60)} {random.integers(50)}" for _ in range(500)]


@pytest.fixture
def shards(texts, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    embed_files(str(path), tmp_path / "out", ClusterEncoder(), columns=Columns(id="key"), shard_rows=70)
    return tmp_path / "out"


@pytest.mark.parametrize(("block", "piece"), [(8192, 2048), (100, 30), (64, 64), (20, 1)])
@pytest.mark.parametrize("above", [0.9, 0.97, 1.0])
def test_groups_are_those_of_a_comparison_in_memory(block, piece, above, shards, texts, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    monkeypatch.setattr(duplicates, "_PIECE", piece)
    vectors = ClusterEncoder().encode(texts, role="document")
    leaders, told = reference(vectors, above), []
    groups = near_duplicates(shards, above=above, on_rows=told.append)
    assert told[-1] == 500
    found = {row.row: group.representative.row for group in groups for row in group.duplicates}
    assert found == {i: leader for i, leader in enumerate(leaders) if leader != i}
    assert len(found) > 50
    for group in groups:
        first = group.representative
        assert (first.id, first.text, first.score) == (f"k{first.row}", texts[first.row], 1)
        for row in group.duplicates:
            assert (row.id, row.text) == (f"k{row.row}", texts[row.row])
            assert row.score == pytest.approx(min(1, float(vectors[row.row] @ vectors[first.row])), abs=1e-5)
    sizes = [len(group.duplicates) for group in groups]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("block", [2048, 100, 64])
@pytest.mark.parametrize("above", [0.9, 0.97, 1.0])
def test_an_index_of_which_all_cells_are_looked_into_finds_the_same(block, above, shards, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(duplicates, "_PIECE", block)
    monkeypatch.setattr(duplicates, "_PROBED", 10_000)
    exact, found = (
        {
            row.row: (group.representative.row, row.score)
            for group in near_duplicates(shards, above=above, approximate=approximate)
            for row in group.duplicates
        }
        for approximate in (False, True)
    )
    assert {row: leader for row, (leader, _) in found.items()} == {row: leader for row, (leader, _) in exact.items()}
    assert len(found) > 50


def test_an_index_finds_near_rows_and_most_of_them(shards, texts, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(duplicates, "_PIECE", 64)
    monkeypatch.setattr(duplicates, "_PROBED", 1)
    vectors = ClusterEncoder().encode(texts, role="document")
    exact, groups = (near_duplicates(shards, above=0.95, approximate=approximate) for approximate in (False, True))
    for group in groups:
        for row in group.duplicates:
            assert vectors[row.row] @ vectors[group.representative.row] >= 0.9499
    count = [sum(len(group.duplicates) for group in each) for each in (exact, groups)]
    assert 0.5 * count[0] < count[1] <= count[0]


def test_the_command_prints_groups_and_writes_what_to_drop(shards, tmp_path, capsys):
    groups = near_duplicates(shards, above=0.97)
    drop = tmp_path / "drop.txt"
    assert main(["dups", str(shards), "--above", "0.97", "-n", "1", "--drop", str(drop)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(str(groups[0].representative.id))
    rows = sum(len(group.duplicates) for group in groups)
    assert told[-1] == f"{rows} near-duplicates in {len(groups)} groups, cosine at least 0.97"
    assert len(drop.read_text().splitlines()) == rows
    if find_spec("faiss"):
        assert main(["dups", str(shards), "--above", "0.97", "--approximate"]) == 0
        assert "near-duplicates in" in capsys.readouterr().out
    assert main(["dups", str(shards), "--json", "--above", "0.97"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["representative"]["id"] for line in lines] == [group.representative.id for group in groups]


def test_no_duplicates_are_no_groups_and_a_wrong_bound_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(30)))
    embed_files(str(tmp_path / "rows.jsonl"), tmp_path / "out", HashEncoder(), shard_rows=7)
    assert near_duplicates(tmp_path / "out", above=0.99) == []
    for above in (0, 1.1, -1):
        with pytest.raises(ConfigError, match="above"):
            near_duplicates(tmp_path / "out", above=above)
