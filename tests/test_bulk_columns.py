"""What rows are made of: kept columns with their types, text files split for the model, and what is refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from bge_integrations.bulk import Columns, embed_files, plan_files, read_shards
from bge_integrations.bulk.splitting import TextSplitter
from bge_integrations.errors import ConfigError
from encoders import HashEncoder

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


class Counting(HashEncoder):
    """Counts words, and two special tokens."""

    def count_tokens(self, texts):
        return [len(text.split()) + 2 for text in texts]


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def kept(tmp_path: Path, source: str, *names: str, **options):
    embed_files(source, tmp_path / "out", HashEncoder(), columns=Columns(keep=names), **options)
    return {name: [v for part in read_shards(tmp_path / "out") for v in part.kept[name]] for name in names}


@pytest.mark.parametrize(
    ("values", "type"),
    [
        ([1, -5, None], "int64"),
        ([True, False, None], "bool"),
        ([1, 2.5, None], "double"),
        ([2**60, 3, None], "int64"),
    ],
)
def test_numbers_of_json_lines_stay_numbers(tmp_path, values, type):
    source = lines(tmp_path / "in.jsonl", [{"text": f"t{i}", "x": value} for i, value in enumerate(values)])
    assert kept(tmp_path, source, "x", shard_rows=2) == {"x": values}
    schemas = {str(parquet.read_schema(path).field("x").type) for path in (tmp_path / "out").glob("*.parquet")}
    assert schemas == {type}


@pytest.mark.parametrize(
    ("values", "strings"),
    [
        ([1, "a"], ["1", "a"]),
        ([True, 2], ["true", "2"]),
        ([[1], {"a": 2}], ["[1]", '{"a":2}']),
        ([2**60, 0.5], [str(2**60), "0.5"]),
        ([None, None], [None, None]),
    ],
)
def test_values_of_several_types_become_strings_in_parquet_and_stay_in_json(tmp_path, values, strings):
    source = lines(tmp_path / "in.jsonl", [{"text": f"t{i}", "x": value} for i, value in enumerate(values)])
    assert kept(tmp_path, source, "x") == {"x": strings}
    embed_files(source, tmp_path / "json", HashEncoder(), columns=Columns(keep=("x",)), format="jsonl")
    assert [value for part in read_shards(tmp_path / "json") for value in part.kept["x"]] == values


def test_a_kept_column_that_no_row_has_is_refused(tmp_path):
    source = lines(tmp_path / "in.jsonl", [{"text": "a", "year": 1}, {"text": "b", "title": "x"}])
    assert kept(tmp_path, source, "title") == {"title": [None, "x"]}
    with pytest.raises(ConfigError, match=r"no row of .* has the column 'yaer' to keep; it has text, year, title"):
        embed_files(source, tmp_path / "other", HashEncoder(), columns=Columns(keep=("yaer",)))
    assert not (tmp_path / "other").exists()


def test_a_column_that_is_there_twice_is_refused_where_it_is_wanted(tmp_path):
    (tmp_path / "in.csv").write_text("text,note,note\na,1,2\n")
    embed_files(str(tmp_path / "in.csv"), tmp_path / "out", HashEncoder())
    with pytest.raises(ConfigError, match="more than one column 'note'"):
        embed_files(str(tmp_path / "in.csv"), tmp_path / "other", HashEncoder(), columns=Columns(keep=("note",)))


@pytest.mark.parametrize(
    ("type", "values"),
    [
        (pa.large_binary(), [b"\xff\x00", None]),
        (pa.binary(2), [b"\xff\x00", None]),
        (pa.large_string(), ["a", None]),
        (pa.timestamp("ns", "UTC"), [1, -1]),
        (pa.timestamp("ns"), [253_402_300_800 * 10**9 // 100, None]),
        (pa.time64("ns"), [5, None]),
        (pa.duration("ns"), [7, None]),
        (pa.date32(), [datetime.date(9999, 12, 31), None]),
        (pa.time32("ms"), [datetime.time(1, 2, 3), None]),
    ],
)
def test_typed_columns_of_parquet_arrive_as_they_are(tmp_path, type, values):
    table = pa.table({"text": ["a", "b"], "x": pa.array(values, type)})
    parquet.write_table(table, tmp_path / "in.parquet")
    columns = Columns(keep=("x",))
    embed_files(str(tmp_path / "in.parquet"), tmp_path / "out", HashEncoder(), columns=columns)
    assert parquet.read_table(tmp_path / "out" / "part-000000.parquet")["x"].equals(table["x"])
    assert len(next(iter(read_shards(tmp_path / "out"))).kept["x"]) == 2


@pytest.mark.parametrize(
    ("type", "values", "format", "message"),
    [
        (pa.list_(pa.binary()), [[b"\xff"]], "parquet", "'x' has type list<.*binary>, which cannot be kept"),
        (pa.large_binary(), [b"\xff"], "jsonl", "'x' has type large_binary, which cannot be kept"),
        (pa.date32(), [10_000_000], "parquet", "in.parquet' cannot be read"),
        (pa.timestamp("us"), [2**62], "parquet", "in.parquet' cannot be read"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(tmp_path, type, values, format, message):
    parquet.write_table(pa.table({"text": ["a"], "x": pa.array(values, type)}), tmp_path / "in.parquet")
    options = {"columns": Columns(keep=("x",)), "format": format}
    with pytest.raises(ConfigError, match=message) as caught:
        embed_files(str(tmp_path / "in.parquet"), tmp_path / "out", HashEncoder(), **options)
    assert "\n" not in str(caught.value)


# Text files


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("# Short\n\nA note.\n")
    (folder / "deep" / "b.txt").write_text(
        "One sentence here. " * 30 + "\n\n" + "词" * 40 + "\n\n\n" + "last words " * 9
    )
    return folder


def test_rows_of_text_files_are_named_by_their_path_and_split_for_the_model(tmp_path):
    folder, encoder = folder_of(tmp_path), Counting()
    encoder.card = encoder.card.__class__(**{**vars(encoder.card), "max_tokens": 20})
    report = embed_files(str(folder), tmp_path / "out", encoder)
    (part,) = read_shards(tmp_path / "out")
    long = str(folder / "deep" / "b.txt")
    assert part.ids == [str(folder / "a.md"), long, *(f"{long}#{i}" for i in range(2, len(part.ids)))]
    assert "".join(part.texts[1:]) == Path(long).read_text()
    assert max(encoder.count_tokens(part.texts)) <= 20
    assert (report.cut, report.repeated) == (0, 0)
    assert plan_files(str(folder), encoder).rows == len(part.ids)
    assert embed_files(str(folder), tmp_path / "out", encoder).resumed == 1
    with pytest.raises(ConfigError, match="split: 20 there, None now"):
        embed_files(str(folder), tmp_path / "out", HashEncoder(encoder.card))


@pytest.mark.parametrize(
    "text",
    ["word " * 500, "x" * 700, "\n\n\n" + "a b c d e f g h i j. " * 20, "一二三。四五六！" * 60, " \n" * 80 + "end"],
)
def test_parts_are_the_text_and_none_is_too_long_or_blank(text):
    def count(texts):
        return [2 + len(text.split()) + len(text) // 20 for text in texts]

    parts = TextSplitter(count, 12)(text)
    assert "".join(parts) == text
    assert all(part.strip() for part in parts)
    assert all(
        tokens <= 12 or len(part) - len(part.strip()) > 100 for part, tokens in zip(parts, count(parts), strict=True)
    )


def test_without_a_tokenizer_a_text_file_is_one_row(tmp_path):
    embed_files(str(folder_of(tmp_path)), tmp_path / "out", HashEncoder())
    (part,) = read_shards(tmp_path / "out")
    assert [Path(name).name for name in part.ids] == ["a.md", "b.txt"]
