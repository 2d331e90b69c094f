"""The output folder: new, empty or ours; what is somebody's is refused and stays as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from bge_integrations.bulk import Columns, embed_files, read_shards, search_files
from bge_integrations.cli import main
from bge_integrations.core.files import PARTIAL
from bge_integrations.errors import ConfigError, HostUnavailableError
from encoders import HashEncoder, WordsEncoder

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{i}", "text": f"text {i}"}) + "\n" for i in range(25)))
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.lstat().st_ino) for path in folder.rglob("*") if path.is_file()}


def embed(rows: Path, out: Path, **options):
    return embed_files(str(rows), out, HashEncoder(), **{"shard_rows": 10, **options})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("thesis.md", "years of work"),
        ("download.partial", "half of a film"),
        ("part-000000.parquet.partial", "somebody's, since no manifest is there"),
        (".errors.jsonl", '{"mine": 1}\n'),
        (".manifest.jsonl", '{"mine": 1}'),
        (".manifest.jsonl", '{"mine": 1}\n'),
        (".manifest.jsonl", '{"inputs": 1, "stamp": "of a letter"}\n{"file": "../x"}\n'),
        (".manifest.jsonl", "a,b\n1,2\n"),
        (".git/config", "[core]"),
        (".bge-notes.md", "what I think of bge"),
        ("deep/er/notes.txt", "notes"),
    ],
)
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_was(rows, out, name, content, capsys):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(content)
    before = state(out)
    with pytest.raises(ConfigError) as caught:
        embed(rows, out)
    assert str(out) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert main(["embed", str(rows), "-o", str(out), "--model", "demo"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert state(out) == before


@pytest.mark.parametrize("name", [".manifest.jsonl", ".errors.jsonl"])
def test_no_link_is_followed(rows, tmp_path, out, name):
    target = tmp_path / "precious.jsonl"
    target.write_text("")
    (out / name).symlink_to(target)
    with pytest.raises(ConfigError):
        embed(rows, out)
    (out / name).unlink()
    embed(rows, out)
    if name == ".errors.jsonl":
        (out / name).symlink_to(target)
        target.write_text("kept")
        with pytest.raises(ConfigError, match="link"):
            embed(rows, out)
        assert target.read_text() == "kept"


def test_a_shard_whose_name_is_a_link_replaces_the_link_and_not_its_target(rows, tmp_path, out):
    embed(rows, out)
    target = tmp_path / "precious"
    target.write_text("kept")
    (out / "part-000001.parquet").unlink()
    (out / "part-000001.parquet").symlink_to(target)
    embed(rows, out)
    assert target.read_text() == "kept"
    assert [len(part.ids) for part in read_shards(out)] == [10, 10, 5]


def test_an_input_in_the_output_folder_is_refused(rows, out, tmp_path, monkeypatch):
    embed(rows, out)
    before = state(out)
    (out / "more.jsonl").write_text('{"text": "more"}\n')
    with pytest.raises(ConfigError, match=r"more.jsonl' is inside the output folder"):
        embed(out / "more.jsonl", out)
    (out / "more.jsonl").unlink()
    (out / ".errors.jsonl").write_text("")
    os.link(out / ".errors.jsonl", tmp_path / "linked.jsonl")
    with pytest.raises(ConfigError, match="is inside the output folder"):
        embed(tmp_path / "linked.jsonl", out)
    monkeypatch.chdir(out)
    with pytest.raises(ConfigError, match="is inside the output folder"):
        embed_files(".errors.jsonl", ".", HashEncoder(), shard_rows=10)
    (out / ".errors.jsonl").unlink()
    assert state(out) == before


def test_what_a_kill_left_is_cleared_and_files_put_beside_the_shards_stay(rows, out):
    embed(rows, out)
    manifest = (out / ".manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / ".manifest.jsonl").write_bytes(b"".join(manifest[:2]) + manifest[2][:20])
    (out / "part-000001.parquet").unlink()
    ours = [out / f"{PARTIAL}{16 * '0'}-part-000001.parquet.partial", out / "part-000001.parquet.partial"]
    theirs = [out / "film.partial", out / ".bge-notes.md", out / "part-of-it.partial"]
    for path in (*ours, *theirs):
        path.write_text("x")
    report = embed(rows, out)
    assert (report.resumed, report.shards) == (1, 3)
    assert not any(path.exists() for path in ours)
    assert all(path.read_text() == "x" for path in theirs)


def test_a_first_line_cut_by_a_kill_is_begun_anew(rows, out, tmp_path):
    embed(rows, tmp_path / "other")
    whole = (tmp_path / "other" / ".manifest.jsonl").read_bytes()
    for length in (0, 5, 60):
        (out / ".manifest.jsonl").write_bytes(whole[:length])
        assert embed(rows, out).shards == 3
        assert (out / ".manifest.jsonl").read_bytes() == whole
        for path in out.iterdir():
            path.unlink()


# A first try that failed


def fail(*_: object) -> None:
    raise HostUnavailableError("gone")


@pytest.mark.parametrize(
    "corrected",
    [
        {"columns": Columns(id="key")},
        {"shard_rows": 7},
        {"format": "numpy"},
        {"half": True},
        {"on": lambda _: pytest.fail("not reached")},
    ],
)
def test_a_first_try_that_finished_no_shard_does_not_refuse_the_corrected_command(rows, out, corrected):
    with pytest.raises(HostUnavailableError):
        embed_files(str(rows), out, HashEncoder(before_batch=fail), shard_rows=10)
    corrected = {key: value for key, value in corrected.items() if key != "on"}
    other = HashEncoder(variant="int8") if not corrected else HashEncoder()
    report = embed_files(str(rows), out, other, **{"shard_rows": 10, **corrected})
    assert report.rows == 25
    assert sum(len(part.ids) for part in read_shards(out)) == 25


@pytest.mark.parametrize("format", ["parquet", "numpy", "jsonl"])
def test_a_first_try_in_which_every_row_was_bad_does_not_refuse_the_corrected_command_either(rows, out, format):
    wrong = embed(rows, out, columns=Columns(text="nothing"), shard_rows=7, format=format)
    assert (wrong.rows, wrong.errors) == (25, 25)
    report = embed(rows, out)
    assert (report.rows, report.errors, report.resumed) == (25, 0, 0)
    assert sum(len(part.ids) for part in read_shards(out)) == 25
    assert not (out / ".errors.jsonl").exists() or not (out / ".errors.jsonl").read_bytes()
    assert {path.suffix for path in out.glob("part-*")} == {".parquet"}


def test_a_shard_that_was_not_noted_goes_with_the_try_that_wrote_it(rows, out):
    embed(rows, out)
    first = (out / ".manifest.jsonl").read_bytes().splitlines(keepends=True)[0]
    (out / ".manifest.jsonl").write_bytes(first)
    for number in (1, 2):
        (out / f"part-00000{number}.parquet").unlink()
    embed(rows, out, format="jsonl")
    assert not list(out.glob("*.parquet"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"columns": Columns(id="key")}, "id: None there, 'key' now"),
        ({"columns": Columns(keep=("key",))}, "keep: none there, key now"),
        ({"shard_rows": 11}, "shard_rows: 10 there, 11 now"),
    ],
)
def test_another_option_is_named_alone(rows, out, changed, named):
    embed(rows, out)
    with pytest.raises(ConfigError) as caught:
        embed(rows, out, **changed)
    assert named in str(caught.value)
    assert "{" not in str(caught.value)


# Folders of version 0.1


@pytest.mark.parametrize(
    ("begun", "inputs", "columns"),
    [("from-rows", "rows.jsonl", Columns(id="key", keep=("n", "ok"))), ("from-texts", "texts", Columns())],
)
def test_a_folder_that_version_0_1_began_is_finished_as_that_would_have(begun, inputs, columns, tmp_path, monkeypatch):
    shutil.copytree(Path(__file__).parent / "data" / "folders-0.1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    first = (tmp_path / begun / "part-000000.jsonl").read_bytes()
    report = embed_files(inputs, begun, HashEncoder(), columns=columns, shard_rows=2, format="jsonl")
    assert report.resumed == 1
    assert (tmp_path / begun / "part-000000.jsonl").read_bytes() == first
    ids, texts, kept = [], [], []
    for part in read_shards(begun):
        ids, texts, kept = ids + part.ids, texts + part.texts, kept + list(zip(*part.kept.values(), strict=True))
    if begun == "from-rows":
        assert ids == [f"k{i}" for i in range(7)]
        assert kept == [(str(i / 2), str(i % 3 == 0).lower()) for i in range(7)]  # strings, as in the first shard
    else:
        assert ids == list(range(4))  # numbers of rows, and each file whole
        assert texts == [f"file {i}\nsecond line\n" for i in range(4)]


def test_a_manifest_that_names_files_elsewhere_is_not_followed(rows, out, tmp_path):
    embed(rows, out)
    (tmp_path / "x.parquet").write_bytes((out / "part-000000.parquet").read_bytes())
    raw = (out / ".manifest.jsonl").read_text().replace("part-000001.parquet", "../x.parquet")
    (out / ".manifest.jsonl").write_text(raw)
    for read in (
        lambda: list(read_shards(out)),
        lambda: search_files(out, "a", HashEncoder()),
        lambda: embed(rows, out),
    ):
        with pytest.raises(ConfigError, match=r"'\.\./x\.parquet'"):
            read()


def without(name: str):
    return lambda row: row.pop(name)


@pytest.mark.parametrize(
    ("format", "change", "said"),
    [
        ("parquet", without("id"), "it has no column 'id'"),
        ("parquet", without("text"), "it has no column 'text'"),
        ("parquet", without("embedding"), "it has no column 'embedding'"),
        ("parquet", without("sparse_values"), "it has no column 'sparse_values'"),
        ("jsonl", without("embedding"), "line 1 of 'part-000001.jsonl' is not a row with 'embedding'"),
        ("jsonl", lambda row: row.update(text=None), "line 1 of 'part-000001.jsonl' is not a row with 'text'"),
        (
            "jsonl",
            lambda row: row.update(embedding=None),
            "line 1 of 'part-000001.jsonl' is not a row with 'embedding'",
        ),
        ("jsonl", lambda row: row.update(embedding=1.5), "not lists of numbers, all of one length"),
        ("jsonl", lambda row: row["embedding"].append(0) if row["id"] == 12 else None, "all of one length"),
        ("jsonl", lambda row: row["embedding"].insert(0, None), "one of its vectors holds null"),
        ("jsonl", lambda row: row.update(more=1) if row["id"] == 12 else None, "its rows have different fields"),
        (
            "jsonl",
            lambda row: row.pop("sparse_values") if row["id"] == 12 else None,
            "different numbers of token ids and weights",
        ),
        ("jsonl", without("sparse_values"), "different numbers of token ids and weights"),
    ],
)
def test_a_shard_that_lacks_something_is_refused_in_words(rows, out, format, change, said):
    embed_files(str(rows), out, WordsEncoder(), shard_rows=10, format=format, outputs=("dense", "sparse"))
    spoilt = out / f"part-000001.{format}"
    if format == "parquet":
        found = parquet.read_table(spoilt).to_pylist()
        for row in found:
            change(row)
        parquet.write_table(pyarrow.Table.from_pylist(found), spoilt)
    else:
        found = [json.loads(line) for line in spoilt.read_text().splitlines()]
        for row in found:
            change(row)
        spoilt.write_text("".join(json.dumps(row) + "\n" for row in found))
    with pytest.raises(ConfigError) as caught:
        list(read_shards(out))
    assert str(caught.value).startswith(f"{str(spoilt)!r} cannot be read: ")
    assert said in str(caught.value)
