"""A folder brought up to date: what stays untouched, what is embedded, what goes, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from decimal import Decimal
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.bulk import Columns, embed_files, estimate, read_shards
from bge_integrations.bulk.formats import FORMATS
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, HostUnavailableError, SpaceMismatchError, TruncationWarning
from encoders import HashEncoder, WordsEncoder

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COLUMNS = Columns(id="id", keep=("n",))


def row(name: str, text: str | None = None, n: int = 0) -> dict:
    return {"id": name, "text": f"text of {name}" if text is None else text, "n": n}


FIRST = [row(f"k{i}", n=i) for i in range(25)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


@pytest.fixture
def source(tmp_path) -> Path:
    return write(tmp_path / "rows.jsonl", FIRST)


def embed(source, out: Path, encoder=None, **options):
    options = {"columns": COLUMNS, "shard_rows": 10, **options}
    return embed_files(str(source), out, encoder or HashEncoder(), **options)


def update(source, out: Path, encoder=None, **options):
    return embed(source, out, encoder, update=True, **options)


def state(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return bytes, time and inode of every file."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.iterdir()
        if path.is_file()
    }


def stored(folder: Path) -> dict[str, tuple[str, object]]:
    """Return text and kept value of each id, each of which stands once; every vector is checked against its text."""
    found: dict[str, tuple[str, object]] = {}
    for part in read_shards(folder):
        assert np.allclose(part.vectors, HashEncoder().expected(part.texts, "document"), atol=1e-3)
        if part.sparse is not None:
            words = [{int(i): float(w) for i, w in zip(ids, weights, strict=True)} for ids, weights in part.sparse]
            assert words == [WordsEncoder.sparse(text) for text in part.texts]
        for i, name in enumerate(part.ids):
            assert name not in found
            found[name] = part.texts[i], part.kept["n"][i]
    return found


def expected(rows: list[dict]) -> dict[str, tuple[str, object]]:
    return {each["id"]: (each["text"], each["n"]) for each in rows}


CHANGED = [
    *FIRST[:12],  # the first shard as it was
    row("k12", "another text", 12),
    row("k13", n=-13),  # another kept value
    *FIRST[15:],  # one gone
    row("new", n=99),
]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("format", ["parquet", "numpy", "jsonl"])
@pytest.mark.parametrize("made", [HashEncoder, WordsEncoder])
def test_only_what_is_new_is_embedded_and_shards_without_a_change_are_untouched(made, format, half, source, tmp_path):
    out = tmp_path / "out"
    options = {"format": format, "half": half, "outputs": made().outputs}
    embed(source, out, made(), **options)
    before = state(out)
    write(source, CHANGED)
    encoder = made()
    report = update(source, out, encoder, **options)
    assert encoder.sent == ["another text", "text of new"]
    assert stored(out) == expected(CHANGED)
    after = state(out)
    assert {name for name in before if after.get(name) == before[name]} == {
        name for name in before if name.startswith(("part-000000", "part-000002"))
    }
    assert not any(name.startswith("part-000001") for name in after)
    assert (report.rows, report.kept, report.embedded, report.dropped) == (25, 23, 2, 1)
    assert (report.shards, report.resumed) == (3, 2)
    assert update(source, out, made(), **options).embedded == 0
    assert state(out) == after


def test_grown_shrunk_and_emptied_inputs_step_by_step(source, tmp_path):
    out = tmp_path / "out"
    for rows in (FIRST, FIRST[:3], [*FIRST, row("a"), row("b")], FIRST[10:], FIRST[::-1]):
        report = update(write(source, rows), out)
        assert stored(out) == expected(rows)
        assert report.rows == report.kept + report.embedded == len(rows)
    before = state(out)
    for nothing in ([], [row("k0", " ")]):
        with pytest.raises(ConfigError, match="all 25 rows of"):
            update(write(source, nothing), out)
        assert stored(out) == expected(FIRST)
        assert state(out) == before
    assert update(write(source, FIRST), out).embedded == 0


def test_row_numbers_move_and_nothing_is_embedded_again(source, tmp_path):
    out, encoder = tmp_path / "out", HashEncoder()
    embed(source, out, columns=Columns(keep=("n",)))
    write(source, [row("top"), *FIRST])
    report = update(source, out, encoder, columns=Columns(keep=("n",)))
    assert encoder.sent == ["text of top"]
    assert (report.kept, report.embedded, report.dropped) == (25, 1, 0)
    rows = [each for part in read_shards(out) for each in zip(part.ids, part.texts, strict=True)]
    assert sorted(rows) == [(i, each["text"]) for i, each in enumerate([row("top"), *FIRST])]


def test_a_row_that_stands_twice_stays_twice_and_once_when_it_does(source, tmp_path):
    out, twice = tmp_path / "out", [row("k"), row("k"), row("other")]
    update(write(source, twice), out, shard_rows=2)
    for rows in ([*twice, row("k")], twice[1:], twice):
        encoder = HashEncoder()
        update(write(source, rows), out, encoder, shard_rows=2)
        assert not encoder.sent
        assert sorted(name for part in read_shards(out) for name in part.ids) == sorted(each["id"] for each in rows)


def rows_of(folder: Path) -> list[tuple[str, str, int]]:
    """Return the rows in the order of the folder."""
    parts = read_shards(folder)
    return [each for part in parts for each in zip(part.ids, part.texts, part.kept["n"], strict=True)]


INPUTS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz"), st.integers(0, 1)), min_size=1)


@settings(max_examples=40, deadline=None)
@given(st.lists(INPUTS, min_size=2, max_size=4), st.integers(1, 4))
def test_an_update_comes_to_the_rows_of_a_fresh_run_and_the_same_last_one_of_each_id(tmp_path_factory, inputs, size):
    folder = tmp_path_factory.mktemp("order")
    for found in inputs:
        source = write(folder / "rows.jsonl", [row(*each) for each in found])
        report = update(source, folder / "out", format="jsonl", shard_rows=size)
        rows = rows_of(folder / "out")
        assert sorted(rows) == sorted(found)
        assert {each[0]: each for each in rows} == {each[0]: each for each in found}
        assert report.kept + report.embedded == report.rows == len(found)
        before = state(folder / "out")
        update(source, folder / "out", format="jsonl", shard_rows=size)
        assert state(folder / "out") == before


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), min_size=1), min_size=2, max_size=4))
def test_each_row_before_is_kept_or_dropped_or_has_another_text(tmp_path_factory, inputs):
    folder, before = tmp_path_factory.mktemp("counts"), dict[str, int]()
    for found in inputs:
        source = write(folder / "rows.jsonl", [row(name, f"text {text}") for name, text in found.items()])
        report = update(source, folder / "out", format="jsonl")
        renamed = [text for name, text in found.items() if name not in before]
        gone = [text for name, text in before.items() if name not in found]
        assert report.dropped == sum(max(0, gone.count(text) - renamed.count(text)) for text in set(gone))
        before = found


def test_a_renamed_row_is_kept_and_not_dropped(source, tmp_path):
    embed(source, tmp_path / "out")
    report = update(write(source, [{**FIRST[0], "id": "renamed"}, *FIRST[2:]]), tmp_path / "out")
    assert (report.rows, report.kept, report.embedded, report.dropped) == (24, 24, 0, 1)


def test_many_small_shards_are_merged_when_something_else_is_written(source, tmp_path):
    out, rows, counts = tmp_path / "out", FIRST[:10], []
    for i in range(40):
        write(source, rows)
        encoder = HashEncoder()
        report = update(source, out, encoder)
        assert len(encoder.sent) == (1 if i else 10)
        assert stored(out) == expected(rows)
        counts.append(report.shards)
        before = state(out)
        assert update(source, out).resumed == report.shards
        assert state(out) == before
        rows = [*rows, row(f"new {i}")]
    assert counts[:10] == list(range(1, 11))
    assert max(counts) <= 1 + 8 + 1 + len(rows) // 10
    assert (out / "part-000000.parquet").exists()  # which was full from the start


def test_equal_shards_do_not_take_each_others_place(source, tmp_path):
    out = tmp_path / "out"
    embed(source, out)
    write(source, [*FIRST, *[row("same", "again")] * 20])
    update(source, out)
    assert [name for part in read_shards(out) for name in part.ids].count("same") == 20
    assert update(source, out).embedded == 0


def test_bad_rows_are_listed_anew(source, tmp_path):
    out = tmp_path / "out"
    embed(write(source, [*FIRST[:5], row("bad", " ")]), out)
    report = update(write(source, [row("k0", " "), *FIRST[1:5], row("bad", "good now")]), out)
    assert (report.rows, report.errors, report.kept, report.embedded) == (6, 1, 4, 1)
    assert [json.loads(line)["id"] for line in (out / ".errors.jsonl").read_text().splitlines()] == ["k0"]
    assert stored(out) == expected([*FIRST[1:5], row("bad", "good now")])
    assert update(write(source, FIRST[:5]), out).errors == 0
    assert not (out / ".errors.jsonl").exists()


def test_refused_rows_are_tried_again_each_time(source, tmp_path):
    from bge_integrations.errors import InputError

    def refuse(positions, texts):
        bad = [position for position, text in zip(positions, texts, strict=True) if "poison" in text]
        if bad:
            raise InputError("it is refused", positions=bad)

    out = tmp_path / "out"
    embed(source, out)
    write(source, [*FIRST, row("a", "poison"), row("b", "fine")])
    for _ in range(2):
        encoder = HashEncoder(before_batch=refuse)
        report = update(source, out, encoder)
        assert (report.rows, report.errors) == (27, 1)
        assert "poison" in encoder.sent
    assert stored(out) == expected([*FIRST, row("b", "fine")])
    assert update(source, out).errors == 0


@pytest.mark.parametrize("kept", ["ns", "decimal", "list", "float"])
def test_kept_values_of_every_type_are_known_again(kept, tmp_path):
    import datetime
    from decimal import Decimal

    values = {
        "ns": pyarrow.array([1, 1_700_000_000_123_456_789, None] * 4, pyarrow.timestamp("ns")),
        "decimal": pyarrow.array([Decimal("1.50"), None, Decimal("2.25")] * 4),
        "list": pyarrow.array([[1, 2], None, []] * 4),
        "float": pyarrow.array([0.1, float("nan"), None] * 4, pyarrow.float32()),
    }[kept]
    table = pyarrow.table({"id": [f"k{i}" for i in range(12)], "text": [f"t {i}" for i in range(12)], "n": values})
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    parquet.write_table(table, source)
    embed(source, out, shard_rows=5)
    before = state(out)
    assert update(source, out, shard_rows=5).resumed == 3
    assert state(out) == before
    parquet.write_table(table.slice(1), source)
    encoder = HashEncoder()
    assert update(source, out, encoder, shard_rows=5).resumed == 2
    assert not encoder.sent
    read = parquet.read_table(out).sort_by("id")
    if kept != "list":
        assert read["n"].equals(table.slice(1).sort_by("id")["n"]) or kept == "float"
    assert read.schema.field("n").type == (values.type if kept != "list" else pyarrow.string())
    assert datetime  # the module that nanoseconds do not fit into


def test_a_damaged_shard_is_named(source, tmp_path):
    embed(source, tmp_path / "out")
    (tmp_path / "out" / "part-000000.parquet").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"part-000000\.parquet' cannot be read"):
        update(source, tmp_path / "out")


@pytest.mark.parametrize("value", [None, -5, [99], "x", {}], ids=repr)
def test_a_damaged_line_for_a_shard_is_refused_or_does_no_harm(value, source, tmp_path):
    base, more = tmp_path / "base", [row(f"m{i}") for i in range(20)]
    embed(source, base)
    write(source, [*FIRST, *more])
    with pytest.raises(HostUnavailableError):
        update(source, base, HashEncoder(before_batch=fail_at("text of m11")))
    write(source, [*FIRST, *more[1:]])
    for name in (".manifest.jsonl", ".bge-update/journal.jsonl"):
        *before, line = (base / name).read_text().splitlines()
        before, line = (before, line) if "file" in line else (before[:-1], before[-1])
        for key in json.loads(line):
            out = tmp_path / f"{key}{len(name)}"
            shutil.copytree(base, out)
            spoilt = json.dumps({**json.loads(line), key: value})
            (out / name).write_text("".join(f"{each}\n" for each in (*before, spoilt)))
            with suppress(ConfigError):
                update(source, out)
                assert stored(out) == expected([*FIRST, *more[1:]])


@pytest.mark.parametrize("value", [2.5, Decimal("2.5"), float("nan"), True, "3"])
def test_a_column_of_whole_numbers_takes_nothing_else(value):
    pa = pytest.importorskip("pyarrow")
    with pytest.raises((ValueError, TypeError)):
        FORMATS["parquet"].stored([1, value], pa.int64())
    assert FORMATS["parquet"].stored([1, 2.0, Decimal(3), None], pa.int64()) == [1, 2, 3, None]


def test_repeated_ids_are_counted(source, tmp_path):
    embed(write(source, [row("a", "one"), row("a", "two"), row("b")]), tmp_path / "out")
    assert update(write(source, [row("a", "three"), row("a", "two"), row("b")]), tmp_path / "out").repeated == 1


def test_kept_types_stay_the_folders(source, tmp_path):
    out = tmp_path / "out"
    embed(write(source, [row("a", n=1), row("b", n=2)]), out)
    with pytest.raises(ConfigError, match=r"the column 'n' has type int64 .* does not fit .*embed into another folder"):
        update(write(source, [row("a", n=1), {**row("c"), "n": "many"}]), out)
    with pytest.raises(ConfigError, match=r"2\.5 is not a whole number.*embed into another folder"):
        update(write(source, [{**row("a"), "n": 2.5}, row("b", n=2)]), out)
    assert stored(out) == expected([row("a", n=1), row("b", n=2)])
    update(write(source, [row("a", n=1), {"id": "c", "text": "no n"}, row("d")]), out)
    assert stored(out)["c"] == ("no n", None)

    mixed = tmp_path / "mixed"
    embed(write(source, [row("a", n=1), {**row("b"), "n": "many"}]), mixed)
    update(write(source, [row("a", n=1), row("c", n=2)]), mixed)
    assert {name: kept for name, (_, kept) in stored(mixed).items()} == {"a": "1", "c": "2"}


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"encoder": HashEncoder(variant="int8")}, SpaceMismatchError, "variant: '' there, 'int8' now"),
        ({"encoder": HashEncoder(query_instruction="ask: ")}, SpaceMismatchError, "another query instruction"),
        ({"columns": Columns(id="id")}, ConfigError, "keep: n there, none now"),
        ({"columns": Columns(text="id", keep=("n",))}, ConfigError, "text: 'text' there, 'id' now"),
        ({"format": "jsonl"}, ConfigError, "format: 'parquet' there, 'jsonl' now"),
        ({"half": True}, ConfigError, "half: False there, True now"),
        ({"encoder": WordsEncoder(), "outputs": ("dense", "sparse")}, SpaceMismatchError, "sparse_space"),
    ],
)
def test_another_model_or_other_options_are_refused_in_one_line(changed, error, said, source, tmp_path):
    out = tmp_path / "out"
    embed(source, out)
    before = state(out)
    with pytest.raises(error) as caught:
        update(write(source, FIRST[:3]), out, **changed)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert state(out) == before


def test_without_update_a_changed_input_and_an_updated_folder_are_refused(source, tmp_path):
    out = tmp_path / "out"
    embed(source, out)
    write(source, FIRST[:5])
    with pytest.raises(ConfigError, match=r"have changed .*--update"):
        embed(source, out)
    update(source, out)
    with pytest.raises(ConfigError, match=r"brought up to date by --update"):
        embed(source, out)


def test_a_changed_middle_of_the_same_size_is_seen(tmp_path):
    rows = [row(f"k{i}", f"text {i:05} " + "x" * 200) for i in range(1000)]
    source, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    embed(source, out, shard_rows=100)
    rows[500]["text"] = rows[500]["text"].replace("00500", "99999")
    encoder = HashEncoder()
    report = update(write(source, rows), out, encoder, shard_rows=100)
    assert encoder.sent == [rows[500]["text"]]
    assert report.resumed == 9
    assert stored(out) == expected(rows)


def fail_at(text: str):
    def fail(_, texts):
        if text in texts:
            raise HostUnavailableError("gone")

    return fail


def test_a_job_that_was_ended_before_its_end_is_brought_up_to_date(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(HostUnavailableError):
        embed(source, out, HashEncoder(before_batch=fail_at("text of k12")))
    encoder, rows = HashEncoder(), [row("k0", "changed"), *FIRST[1:]]
    report = update(write(source, rows), out, encoder)
    assert encoder.sent == [each["text"] for each in rows if each["id"] not in {f"k{i}" for i in range(1, 10)}]
    assert report.kept == 9
    assert stored(out) == expected(rows)

    # The same inputs go on as they would without --update, a changed middle that the fingerprint does not see included.
    other = tmp_path / "other"
    with pytest.raises(HostUnavailableError):
        update(source, other, HashEncoder(before_batch=fail_at("text of k12")))
    assert update(source, other).resumed == 1
    assert [part.ids[0] for part in read_shards(other)] == ["k0", "k10", "k20"]


def test_what_an_ended_update_embedded_is_used_for_other_inputs_too(source, tmp_path):
    out = tmp_path / "out"
    embed(source, out)
    more = [row(f"m{i}") for i in range(30)]
    with pytest.raises(HostUnavailableError):
        update(write(source, [*FIRST, *more]), out, HashEncoder(before_batch=fail_at("text of m25")))
    assert stored(out) == expected(FIRST)
    encoder, rows = HashEncoder(), [*FIRST[5:], *more[3:], row("last")]
    assert estimate(str(write(source, rows)), HashEncoder(), columns=COLUMNS, update=out).kept == len(rows) - 11
    report = update(source, out, encoder)
    assert encoder.sent == [f"text of m{i}" for i in range(20, 30)] + ["text of last"]
    assert (report.embedded, report.kept) == (11, len(rows) - 11)
    assert stored(out) == expected(rows)
    assert not (out / ".bge-update").exists()


def test_a_shard_that_is_missing_is_embedded_again(source, tmp_path):
    out, encoder = tmp_path / "out", HashEncoder()
    embed(source, out)
    (out / "part-000001.parquet").unlink()
    update(source, out, encoder)
    assert encoder.sent == [f"text of k{i}" for i in range(10, 20)]
    assert stored(out) == expected(FIRST)


@pytest.mark.parametrize("format", ["parquet", "numpy", "jsonl"])
@pytest.mark.parametrize("rows", [FIRST, FIRST[5:]], ids=["same", "changed"])
def test_where_no_shard_is_left_all_is_embedded_again(rows, format, source, tmp_path):
    out, encoder, rows = tmp_path / "out", HashEncoder(), [*rows, row("k7", "repeated"), row("k8", "too")]
    embed(write(source, [*FIRST, *rows[-2:]]), out, format=format)
    for path in out.glob("part-*"):
        path.unlink()
    update(write(source, rows), out, encoder, format=format)
    assert encoder.sent == [each["text"] for each in rows]
    assert [name for name, _, _ in rows_of(out)] == [each["id"] for each in rows]


def test_somebodys_files_in_the_way_are_not_touched(source, tmp_path):
    out, precious = tmp_path / "out", tmp_path / "precious"
    embed(source, out)
    precious.mkdir()
    (precious / "plan.json").write_text('{"manifest": [], "come": [], "go": ["../rows.jsonl"]}')
    (out / ".bge-update").symlink_to(precious)
    write(source, CHANGED)
    with pytest.raises(ConfigError, match="was not made by bge embed"):
        update(source, out)
    (out / ".bge-update").unlink()
    (out / ".bge-update").mkdir()
    (out / ".bge-update" / "plan.json").write_text('{"manifest": [], "come": [], "go": ["../rows.jsonl"]}')
    with pytest.raises(ConfigError, match="damaged"):
        update(source, out)
    (out / ".bge-update" / "plan.json").unlink()
    (out / ".bge-update" / "notes.md").write_text("mine")
    update(source, out)
    assert (out / ".bge-update" / "notes.md").read_text() == "mine"
    assert (precious / "plan.json").exists()
    assert source.exists()


def test_truncated_texts_are_counted_for_all_shards(source, tmp_path):
    long = "word " * 20
    rows = [row(f"k{i}", long + str(i) if i % 4 == 0 else None) for i in range(20)]
    write(source, rows)
    with pytest.raises(HostUnavailableError):
        embed(source, tmp_path / "out", HashEncoder(max_words=10, before_batch=fail_at("text of k11")))
    with pytest.warns(TruncationWarning, match="5 of 20 texts"):
        assert embed(source, tmp_path / "out", HashEncoder(max_words=10)).cut == 5
    with pytest.warns(TruncationWarning, match="5 of 20 texts"):
        assert embed(source, tmp_path / "out", HashEncoder(max_words=10)).cut == 5
    write(source, [*rows[1:], row("new", long)])
    with pytest.warns(TruncationWarning, match="5 of 20 texts"):
        assert update(source, tmp_path / "out", HashEncoder(max_words=10)).cut == 5


def test_truncated_texts_of_an_ended_update_are_counted_for_other_inputs_too(source, tmp_path):
    out, long = tmp_path / "out", "word " * 20
    more = [row(f"m{i}", long + str(i) if i % 4 == 0 else None) for i in range(20)]
    embed(source, out, HashEncoder(max_words=10))
    write(source, [*FIRST, *more])
    with pytest.raises(HostUnavailableError):
        update(source, out, HashEncoder(max_words=10, before_batch=fail_at("text of m11")))
    write(source, [*FIRST, *more[1:9]])
    encoder = HashEncoder(max_words=10)
    for _ in range(2):  # once more, when all is known from the manifest
        with pytest.warns(TruncationWarning, match="2 of 33 texts"):
            assert update(source, out, encoder).cut == 2
    assert not encoder.sent


def test_standard_input_is_compared_too(tmp_path, monkeypatch):
    def pipe(rows):
        raw = "".join(json.dumps(each) + "\n" for each in rows).encode()
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(raw)))

    for rows in (FIRST, CHANGED, FIRST):
        pipe(rows)
        update("-", tmp_path / "out", format="jsonl")
        assert stored(tmp_path / "out") == expected(rows)


def test_standard_input_keeps_the_types_of_the_folder(source, tmp_path, monkeypatch, recwarn):
    embed(source, tmp_path / "out")
    raw = "".join(json.dumps(each) + "\n" for each in CHANGED).encode()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(raw)))
    encoder = HashEncoder()
    update("-", tmp_path / "out", encoder)
    assert encoder.sent == ["another text", "text of new"]
    assert stored(tmp_path / "out") == expected(CHANGED)
    assert not [each for each in recwarn if "become strings" in str(each.message)]


@pytest.mark.parametrize("ending", ["csv", "parquet", "txt"])
def test_other_kinds_of_input(ending, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "in"
    folder.mkdir()

    def put(rows):
        names, texts = [each["id"] for each in rows], [each["text"] for each in rows]
        if ending == "csv":
            lines = [f"{name},{text}\n" for name, text in zip(names, texts, strict=True)]
            (folder / "rows.csv").write_text("id,text\n" + "".join(lines))
        elif ending == "parquet":
            parquet.write_table(pyarrow.table({"id": names, "text": texts}), folder / "rows.parquet")
        else:
            for path in folder.iterdir():
                path.unlink()
            for name, text in zip(names, texts, strict=True):
                (folder / f"{name}.txt").write_text(text)

    columns = Columns() if ending == "txt" else Columns(id="id")
    put(FIRST)
    update(folder, out, columns=columns)
    put(CHANGED)
    encoder = HashEncoder()
    report = update(folder, out, encoder, columns=columns)
    assert encoder.sent == ["another text", "text of new"]
    assert report.dropped == 1
    found = {
        Path(name).stem: text for part in read_shards(out) for name, text in zip(part.ids, part.texts, strict=True)
    }
    assert found == {each["id"]: each["text"] for each in CHANGED}


def test_a_folder_of_documents_in_chunks_and_the_command(demo, tmp_path, capsys):
    folder, out = tmp_path / "docs", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "c"):
        text = "".join(f"# Part {i}\n\nWhat {name} says of {i}. " + f"word{i} " * 30 + "\n\n" for i in range(4))
        (folder / f"{name}.md").write_text(text)
    command = ["embed", str(folder), "-o", str(out), "--model", "demo", "--chunk", "100", "--update"]
    assert main(command) == 0
    (folder / "a.md").write_text((folder / "a.md").read_text().replace("What a says of 2", "What else"))
    (folder / "b.md").unlink()
    (folder / "d.md").write_text("# New\n\nOne more.\n")
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0].isalpha())
    assert told["kept"] == "7"
    assert main(command) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (told["rows"], told["kept"], told["embedded"], told["dropped"]) == ("9", "7", "2", "4")
    ids = {name for part in read_shards(out) for name in part.ids}
    assert ids == {f"{folder}/{name}.md#{i}" for name, n in (("a", 4), ("c", 4), ("d", 1)) for i in range(1, n + 1)}
    for part in read_shards(out):
        assert np.allclose(part.vectors, demo.encode(part.texts, role="document"), atol=1e-5)
    assert main([*command[:-2], "50", "--update"]) == 2
    assert "chunk: 100 there, 50 now" in capsys.readouterr().err


def test_an_estimate_counts_what_an_update_would_embed_and_refuses_what_it_would(source, tmp_path, demo):
    out = tmp_path / "out"
    assert estimate(str(source), demo, columns=COLUMNS, update=out).kept is None
    embed(source, out, demo)
    write(source, CHANGED)
    plan = estimate(str(source), demo, columns=COLUMNS, update=out, usd_per_million_tokens=1.0)
    assert (plan.rows, plan.kept) == (25, 23)
    assert plan.tokens == sum(demo.count_tokens(["another text", "text of new"]))
    assert plan.usd == pytest.approx(plan.tokens / 1e6)
    with pytest.raises(SpaceMismatchError):
        estimate(str(source), HashEncoder(), columns=COLUMNS, update=out)
    for other in (Columns("n", id="id", keep=("n",)), Columns(id="id"), Columns(keep=("n",))):
        with pytest.raises(ConfigError, match=r"options of the job .* have changed"):
            estimate(str(source), demo, columns=other, update=out)
    write(source, FIRST)
    assert estimate(str(source), demo, columns=COLUMNS, update=out).tokens == 0
