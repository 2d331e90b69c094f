"""What comes out of files of every kind: a row, a bad row with line and reason, or a clear error."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import sys
from pathlib import Path

import pytest

from bge_integrations.bulk import embed_files, read_shards
from bge_integrations.bulk.columns import kept_kinds
from bge_integrations.bulk.readers import ROW_BYTES, read_lines, read_rows
from bge_integrations.bulk.rows import JSON, Columns, RowParser, cut_shards
from bge_integrations.bulk.sources import BytesRead, find_inputs, input_fingerprint
from bge_integrations.errors import BGEWarning, ConfigError
from encoders import HashEncoder

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def rows_of(path: Path | str, **columns):
    chosen = Columns(**columns)
    files = find_inputs(str(path))
    return list(read_rows(files, RowParser(chosen, kept_kinds(files, chosen))))


def texts_of(path, **columns):
    return [row.text for row in rows_of(path, **columns) if not row.reason]


def reasons_of(path, **columns):
    return [(row.line, row.reason) for row in rows_of(path, **columns) if row.reason]


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def zstd(data: bytes) -> bytes:
    half = len(data) // 2  # two frames, as parallel packers write them
    return b"".join(pyarrow.Codec("zstd").compress(part, asbytes=True) for part in (data[:half], data[half:]))


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
TEXTS = ["one\nline", "zwei, ü", 'quotes " and \t tab', "\ufeffmark inside", "nul \0 inside"]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv"])
def test_tables_come_out_as_they_went_in(kind, packing, tmp_path):
    if kind in ("csv", "tsv"):
        lines = ["text,n" if kind == "csv" else "text\tn"]
        mark = "," if kind == "csv" else "\t"
        lines += ['"' + text.replace('"', '""') + f'"{mark}{i}' for i, text in enumerate(TEXTS)]
        raw = "\r\n".join(lines)
    else:
        raw = "\r\n".join(json.dumps({"text": text, "n": i}) for i, text in enumerate(TEXTS))
    path = write(tmp_path / f"in.{kind}{packing}", PACK[packing](raw.encode()))
    tally = BytesRead()
    rows = list(read_rows([str(path)], RowParser(Columns(keep=("n",))), tally))
    assert [row.text for row in rows] == TEXTS
    assert [row.kept for row in rows] == [(str(i),) for i in range(5)]
    assert [row.id for row in rows] == list(range(5))
    assert tally.read == path.stat().st_size


def test_text_files_of_a_folder_are_rows(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / "b.txt", b"\xef\xbb\xbfwith a mark\r\n")
    write(tmp_path / "deep" / "a.md.gz", gzip.compress(b"# packed"))
    write(tmp_path / "c.txt", b"caf\xe9")
    write(tmp_path / "d.txt", b"\x7fELF\0\0")
    write(tmp_path / "e.txt", b" \n")
    write(tmp_path / ".git" / "hidden.txt", "not seen")
    write(tmp_path / "other.bin", "not seen")
    rows = rows_of(tmp_path, id="path", keep=("path",))
    assert [(Path(row.id).name, row.text) for row in rows if not row.reason] == [
        ("b.txt", "with a mark\r\n"),
        ("a.md.gz", "# packed"),
    ]
    assert [(Path(row.source).name, row.reason) for row in rows if row.reason] == [
        ("c.txt", "not UTF-8"),
        ("d.txt", "not text (it holds NUL bytes)"),
        ("e.txt", "'text' is blank"),
    ]


def test_bad_lines_of_json(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "after a byte order mark"}',
        b"",
        b"   ",
        b'{"text": null}',
        b'{"text": 3}',
        b'{"text": ["a"]}',
        b"{}",
        b'{"text": "cut sho',
        b'"a string"',
        b"[1]",
        b'{"text": "\xff"}',
        b'{"text": "nul \0 inside"}',
        b'{"text": "half a \\ud83d pair", "score": NaN}',
        b"[" * 100_000,
        b'{"text": "\\t"}',
        b'{"text": "last, without a newline"}',
    ]
    path = write(tmp_path / "in.jsonl", b"\r\n".join(lines))
    assert texts_of(path) == ["after a byte order mark", "half a \ufffd pair", "last, without a newline"]
    assert reasons_of(path) == [
        (4, "'text' is missing"),
        (5, "'text' is of type int"),
        (6, "'text' is of type list"),
        (7, "'text' is missing"),
        (8, "not JSON"),
        (9, "not a JSON object"),
        (10, "not a JSON object"),
        (11, "not UTF-8"),
        (12, "not JSON"),
        (14, "not JSON"),
        (15, "'text' is blank"),
    ]


def test_a_giant_line_is_a_bad_row_and_its_neighbours_are_not(tmp_path, monkeypatch):
    giant = b'{"text": "' + b"x" * ROW_BYTES + b'"}'
    path = write(tmp_path / "in.jsonl", b'{"text": "before"}\n' + giant + b'\n{"text": "after"}\n')
    assert texts_of(path) == ["before", "after"]
    assert reasons_of(path) == [(2, "longer than 16 MiB")]
    text = write(tmp_path / "in.txt", b"x" * (ROW_BYTES + 1))
    assert reasons_of(text) == [(1, "longer than 16 MiB")]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_lines_do_not_depend_on_how_they_are_read(block, tmp_path, monkeypatch):
    monkeypatch.setattr("bge_integrations.bulk.readers._BLOCK", block)
    data = b"one\n\ntwo two\r\n" + b"y" * 30 + b"\nthree\n" + b"z" * 21
    path = write(tmp_path / "lines", data)
    with path.open("rb") as stream:
        assert list(read_lines(stream, BytesRead(), limit=20)) == [b"one", b"", b"two two\r", None, b"three", None]


def test_bad_rows_of_csv(tmp_path):
    lines = [b"text,key", b'"two\r\nlines",a', b"", b"too,many,cells", b"few", b" ,b", b"caf\xe9,c", b'good,"', b"open"]
    path = write(tmp_path / "in.csv", b"\xef\xbb\xbf" + b"\n".join(lines))
    assert texts_of(path, id="key") == ["two\r\nlines"]
    assert reasons_of(path, id="key") == [
        (5, "3 cells, but the header has 2"),
        (6, "its id in 'key' is missing"),
        (7, "'text' is blank"),
        (8, "not UTF-8"),
        (9, "a quote that opens here is never closed"),
    ]


def test_a_large_csv_field_is_read_and_a_runaway_quote_stopped(tmp_path):
    field = "word " * 100_000
    assert texts_of(write(tmp_path / "large.csv", f'text\n"{field}"\nsmall\n')) == [field, "small"]
    runaway = write(tmp_path / "runaway.csv", 'text\n"' + ("x" * 1_000_000 + "\n") * 18)
    with pytest.raises(ConfigError, match=r"runaway.*field limit"):
        rows_of(runaway)
    assert csv.field_size_limit() >= ROW_BYTES
    with pytest.raises(ConfigError, match="longer than 16 MiB: is it CSV"):
        rows_of(write(tmp_path / "one.csv", b"text\n" + b"x" * (ROW_BYTES + 1)))


def test_empty_files_have_no_rows(tmp_path):
    for name in ("in.jsonl", "in.csv", "in.jsonl.gz"):
        assert rows_of(write(tmp_path / name, gzip.compress(b"") if name.endswith("gz") else b"")) == []
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "in.parquet")
    assert rows_of(tmp_path / "in.parquet") == []


def test_parquet_keeps_types_where_all_files_agree(tmp_path):
    import datetime

    when = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    table = {"text": ["a", None, "c"], "n": [1, 2, 3], "when": [when] * 3, "tags": [["x"], [], None], "key": [7, 8, 9]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=2)
    keep = ("n", "when", "tags")
    assert [str(kind) for kind in kept_kinds([str(tmp_path / "a.parquet")], Columns(keep=keep))] == [
        "int64",
        "timestamp[us]",
        "None",
    ]
    rows = rows_of(tmp_path / "a.parquet", id="key", keep=keep)
    assert [row.id for row in rows] == ["7", "8", "9"]
    assert rows[2].kept == (3, when, None)
    assert rows[0].kept == (1, when, '["x"]')
    assert [(row.line, row.reason) for row in rows if row.reason] == [(2, "'text' is missing")]
    write(tmp_path / "b.jsonl", '{"text": "d", "n": 4, "when": "now", "key": "k"}')
    mixed = rows_of(tmp_path, id="key", keep=("n", "when"))
    assert mixed[0].kept == ("1", '"2026-01-02T03:04:05.000006"')
    assert mixed[-1].kept == ("4", "now")


def test_ids_are_texts_or_whole_numbers(tmp_path):
    values = ["k", 1, 2**62, "", None, 1.5, True, ["x"], 12345678901234567890123]
    path = write(tmp_path / "in.jsonl", "\n".join(json.dumps({"text": "t", "id": value}) for value in values))
    rows = rows_of(path, id="id")
    assert [row.id for row in rows if not row.reason] == ["k", "1", str(2**62)]
    assert [row.reason.partition(" is ")[2] for row in rows if row.reason] == [
        "blank",
        "missing",
        "of type float",
        "of type bool",
        "of type list",
        "of type float",
    ]


def test_names_globs_and_folders_are_found_once_and_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.csv", "notes.pdf"):
        write(tmp_path / name, "")
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / ".errors.jsonl", "")
    given = [str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path)]
    found = find_inputs(given, besides=tmp_path / "out")
    assert [Path(name).name for name in found] == ["b.jsonl", "a.jsonl", "c.csv"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.jsonl", "no input at"),
        ("*.nothing", "no input at"),
        ("", "no input at"),
        ("notes.docx", "unsupported file type"),
    ],
)
def test_what_is_no_input_is_said(name, told, tmp_path):
    write(tmp_path / "notes.docx", "")
    with pytest.raises(ConfigError, match=told):
        find_inputs(str(tmp_path / name) if name else str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("in.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-20], "in.jsonl.gz"),
        ("in.jsonl.gz", b"not packed", "in.jsonl.gz"),
        ("in.jsonl.bz2", b"not packed", "in.jsonl.bz2"),
        ("in.jsonl.xz", b"not packed", "in.jsonl.xz"),
        ("in.jsonl.zst", zstd(b'{"text": "a"}\n' * 1000)[:-5], "in.jsonl.zst"),
        ("in.parquet", b"PAR1 not really", "in.parquet"),
        ("in.csv", b"body,key\na,b\n", "no column 'text'; it has body, key"),
        ("in.json", b'[{"text": "a"},\n{"text": "b"}]', "JSON array"),
        ("in.parquet.gz", b"", "Parquet is compressed inside"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, data, told, tmp_path):
    path = write(tmp_path / name, data)
    with pytest.raises(ConfigError, match=told):
        rows_of(path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_disk_that_fails_is_told_before_anything_is_embedded(tmp_path):
    (tmp_path / "in.jsonl").symlink_to("/proc/self/mem")
    with pytest.raises(ConfigError, match=r"in.jsonl' cannot be read: Input/output error"):
        input_fingerprint([str(tmp_path / "in.jsonl")])
    with pytest.raises(ConfigError, match=r"in.jsonl' cannot be read: .*Input/output error"):
        rows_of(tmp_path / "in.jsonl")


def test_long_rows_of_parquet_come_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("bge_integrations.bulk.readers.ROW_BYTES", 50_000)
    texts = [f"{i} " * 5000 for i in range(40)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "in.parquet", compression="none")
    tally = BytesRead()
    rows = read_rows([str(tmp_path / "in.parquet")], RowParser(Columns()), tally)
    assert [next(rows).text for _ in range(10)] == texts[:10]
    assert 0 < tally.read < (tmp_path / "in.parquet").stat().st_size / 3
    assert [row.text for row in rows] == texts[10:]


def test_shards_end_early_where_texts_are_long(tmp_path):
    path = write(tmp_path / "in.jsonl", "".join(json.dumps({"text": "x" * 60}) + "\n" for _ in range(10)))
    cut = [len(shard.rows) for shard in cut_shards(read_rows([str(path)], RowParser(Columns())), 4, characters=150)]
    assert cut == [3, 3, 3, 1]
    assert [len(shard.rows) for shard in cut_shards(read_rows([str(path)], RowParser(Columns())), 4)] == [4, 4, 2]


def test_a_fingerprint_sees_size_and_ends(tmp_path):
    path = write(tmp_path / "in.jsonl", b"a" * 200_000)
    before = input_fingerprint([str(path)])
    for changed in (b"a" * 199_999, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b"):
        assert input_fingerprint([str(write(path, changed))]) != before
    assert input_fingerprint([str(write(path, b"a" * 200_000))]) == before


@pytest.mark.parametrize("keep", [("id",), ("embedding",), ("a", "a")])
def test_kept_columns_have_names_of_their_own(keep):
    with pytest.raises(ConfigError, match="keep="):
        Columns(keep=keep)


@pytest.mark.parametrize("format", ["jsonl", "numpy"])
def test_kept_values_of_standard_input_are_what_they_were(format):
    assert set(kept_kinds(["-"], Columns(keep=("a", "b")), format)) == {JSON}


def test_kept_values_of_standard_input_that_become_strings_are_warned_of():
    with pytest.warns(BGEWarning, match="use format='jsonl'"):
        assert kept_kinds(["-"], Columns(keep=("a",)), "parquet") == (None,)


def test_the_number_of_rows_is_guessed_well_within_a_block_too(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i:06} " + "word " * 30}) + "\n" for i in range(20_000)), "utf-8")
    tally = BytesRead()
    rows = enumerate(read_rows([str(path)], RowParser(Columns()), tally), 1)
    guesses = [round(count * path.stat().st_size / tally.read) for count, _ in rows if count % 1000 == 0]
    assert len(guesses) == 20
    assert all(19_000 < guess < 21_000 for guess in guesses)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_a_file_whose_name_is_not_utf8_is_embedded(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / os.fsdecode(b"bad\xff.txt")).write_text("a text")
    (tmp_path / "in" / "good.txt").write_text("another text")
    for _ in range(2):
        embed_files(tmp_path / "in", tmp_path / "out", HashEncoder(), update=True)
    names = [name for part in read_shards(tmp_path / "out") for name in part.ids]
    assert [Path(name).name for name in sorted(names)] == ["bad\ufffd.txt", "good.txt"]
