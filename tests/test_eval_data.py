"""Questions whose answers are known, in every layout that is read; what is wrong in a file is said with its line."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bge_integrations.errors import BGEError, BGEWarning, ConfigError
from bge_integrations.evaluate.data import read_judged
from bge_integrations.evaluate.measures import check_measures, measure

PASSAGES = [
    {"_id": "d1", "title": "Files", "text": "ls lists the files of a folder."},
    {"_id": "d2", "title": "", "text": "rm removes files."},
    {"_id": 3, "text": "cd changes the folder."},
]
QUERIES = [{"_id": "a", "text": "list files"}, {"_id": "b", "text": "remove a file"}, {"_id": "c", "text": "unjudged"}]
BEIR = "query-id\tcorpus-id\tscore\nb\td2\t2\na\td1\t1\na\t3\t0\n"
TREC = "b 0 d2 2\na 0 d1 1\na 0 3 0\n"
TEXTS = ["Files ls lists the files of a folder.", "rm removes files.", "cd changes the folder."]
GRADES = {"a": {"d1": 1, "3": 0}, "b": {"d2": 2}}


def lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    lines(tmp_path / "corpus.jsonl", PASSAGES)
    lines(tmp_path / "queries.jsonl", QUERIES)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(BEIR)
    return tmp_path


def check(judged):
    assert judged.corpus.ids == ["d1", "d2", "3"]
    assert list(judged.corpus.texts()) == TEXTS
    assert judged.queries == {"a": "list files", "b": "remove a file"}
    assert judged.qrels == GRADES
    assert list(judged.qrels) == list(judged.queries)
    assert judged.own == {}


def test_a_folder_in_beir_s_layout(folder):
    check(read_judged(folder))


def test_packed_files_and_judgements_in_json_lines(folder):
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    (folder / "qrels" / "test.tsv").unlink()
    rows = [line.split() for line in BEIR.splitlines()]
    lines(
        folder / "qrels" / "test.jsonl", [dict(zip(rows[0], (*row[:2], int(row[2])), strict=True)) for row in rows[1:]]
    )
    check(read_judged(folder))


@pytest.mark.parametrize("text", [BEIR, TREC, BEIR.partition("\n")[2], TREC.replace(" ", "\t"), BEIR + "\n"])
def test_three_files_with_judgements_of_beir_and_trec(folder, text):
    (folder / "judged.qrels").write_text(text)
    check(read_judged(folder / "corpus.jsonl", folder / "queries.jsonl", folder / "judged.qrels"))


def test_parquet_and_csv(folder):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.Table.from_pylist([{"title": "", **row, "_id": str(row["_id"])} for row in PASSAGES])
    pyarrow.parquet.write_table(table, folder / "corpus.parquet")
    (folder / "queries.csv").write_text("id,text\n" + "".join(f"{row['_id']},{row['text']}\n" for row in QUERIES))
    check(read_judged(folder / "corpus.parquet", folder / "queries.csv", folder / "qrels" / "test.tsv"))


def test_pairs_alone_are_their_own_corpus(tmp_path):
    pairs = [("q one", "first"), ("q two", "second"), ("q one", "third"), ("q three", "first")]
    file = tmp_path / "pairs.csv"
    file.write_text("passage,question\n" + "".join(f"{passage},{question}\n" for question, passage in pairs))
    judged = read_judged(file)
    assert list(judged.corpus.texts()) == ["first", "second", "third"]
    assert list(judged.queries.values()) == ["q one", "q two", "q three"]
    found = [{judged.corpus.ids.index(key) for key in grades} for grades in judged.qrels.values()]
    assert found == [{0, 2}, {1}, {0}]


def test_pairs_name_passages_of_a_corpus_by_id_or_text(folder):
    pairs = lines(
        folder / "mine.jsonl",
        [
            {"question": "how do I list?", "passage": "d1"},
            {"query": "how do I remove?", "passage": " rm  removes\nfiles."},
            {"question": "go elsewhere", "passage": 3},
        ],
    )
    judged = read_judged(folder / "corpus.jsonl", pairs)
    assert judged.corpus.ids == ["d1", "d2", "3"]
    assert list(judged.qrels.values()) == [{"d1": 1}, {"d2": 1}, {"3": 1}]


def test_files_of_text_are_passages_named_by_their_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("About apples.\n")
    (tmp_path / "notes" / "b.txt").write_text("About pears.")
    pairs = lines(tmp_path / "mine.jsonl", [{"question": "pears?", "passage": "notes/b.txt"}])
    judged = read_judged("notes", pairs)
    assert judged.corpus.ids == ["notes/a.md", "notes/b.txt"]
    assert list(judged.corpus.texts()) == ["About apples.", "About pears."]
    assert judged.qrels == {"q1": {"notes/b.txt": 1}}


def test_the_question_itself_is_no_answer_unless_it_is_judged(folder):
    """As in ArguAna and Quora: a query that stands in the corpus under its own id would always come first."""
    lines(
        folder / "corpus.jsonl", [*PASSAGES, {"_id": "a", "text": "list files"}, {"_id": "b", "text": "another text"}]
    )
    assert read_judged(folder).own == {"a": 3}
    (folder / "qrels" / "test.tsv").write_text(BEIR + "a\ta\t1\n")
    assert read_judged(folder).own == {}


def test_blank_passages_and_unknown_ids_are_counted(folder):
    lines(folder / "corpus.jsonl", [{"_id": "d0", "text": " "}, *PASSAGES[:2]])
    (folder / "qrels" / "test.tsv").write_text(BEIR + "z\td1\t1\n")
    with pytest.warns(BGEWarning) as told:
        judged = read_judged(folder)
    assert judged.corpus.ids == ["d1", "d2"]
    assert len(list(judged.corpus.texts())) == 2
    said = " ".join(str(warning.message) for warning in told)
    for part in ("1 passage(s) of", "are blank", "1 of 3 judged passages are not in", "1 question(s) that"):
        assert part in said, said


WRONG = [
    ("corpus.jsonl", '{"_id": "x"}\n', "'corpus.jsonl', line 1: 'text'"),
    ("corpus.jsonl", '{"_id": "x", "text": "a"}\n{"text": "b"}\n', "'corpus.jsonl', line 2: '_id' or 'id' is missing"),
    ("corpus.jsonl", '{"_id": "x", "text": "a"}\n{"_id": "x", "text": "b"}\n', "'corpus.jsonl', line 2: the id 'x'"),
    ("corpus.jsonl", '{"_id": "x", "text": "a"}\nnonsense\n', "'corpus.jsonl', line 2: not JSON"),
    ("corpus.jsonl", '{"_id": "x", "text": 5}\n', "'corpus.jsonl', line 1: 'text'"),
    ("corpus.jsonl", "", "'corpus.jsonl' has no passages"),
    (
        "corpus.jsonl",
        '{"_id": "x", "text": "a"}\n',
        "none of the passages that 'qrels/test.tsv' judges is in 'corpus.jsonl'",
    ),
    ("queries.jsonl", '{"_id": "a", "text": " "}\n', "'queries.jsonl', line 1: 'text'"),
    ("queries.jsonl", '{"_id": "a", "text": "b"}\n' * 2, "'queries.jsonl', line 2: the id 'a'"),
    ("queries.jsonl", '{"_id": "y", "text": "b"}\n', "'qrels/test.tsv' judges none of the questions"),
    ("qrels/test.tsv", BEIR + "a\td1\n", "'qrels/test.tsv', line 5: 2 columns"),
    ("qrels/test.tsv", BEIR + "a\td1\tgood\n", "'qrels/test.tsv', line 5: the score must be a whole number"),
    ("qrels/test.tsv", BEIR + "a\td1\t0.5\n", "'qrels/test.tsv', line 5: the score must be a whole number"),
    *(  # trec_eval makes any number of a grade near 2**31, or ends the process
        ("qrels/test.tsv", BEIR + f"a\td1\t{grade}\n", "line 5: the score must be a whole number of at most 1,000,000")
        for grade in (1_000_001, -(2**31), 2**32, 10**25, "1e400", "nan")
    ),
    ("qrels/test.tsv", "", "'qrels/test.tsv' judges none of the questions"),
]


@pytest.mark.parametrize(("name", "text", "said"), WRONG)
def test_what_is_wrong_is_said_with_file_and_line(folder, monkeypatch, name, text, said):
    monkeypatch.chdir(folder)
    (folder / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_judged(".")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["-"], "standard input"),
        (["corpus.jsonl", "queries.jsonl", "nowhere.tsv"], "'nowhere.tsv' cannot be read"),
        (["qrels"], "no files corpus.*"),
        (["pairs.csv"], "'pairs.csv' has no column 'passage'; it has question, answer"),
        (["pairs.jsonl"], "'pairs.jsonl', line 1: 'question' or 'query' is missing"),
        (
            ["corpus.jsonl", "unknown.jsonl"],
            "'unknown.jsonl', line 1: no passage of 'corpus.jsonl' has this id or text",
        ),
    ],
)
def test_inputs_that_cannot_be_used(folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    (folder / "pairs.csv").write_text("question,answer\na,b\n")
    lines(folder / "pairs.jsonl", [{"passage": "b"}])
    lines(folder / "unknown.jsonl", [{"question": "a", "passage": "d9"}])
    with pytest.raises(ConfigError) as caught:
        read_judged(*arguments)
    assert said in str(caught.value)


def test_judgements_of_nothing_but_zeros_are_refused(folder):
    (folder / "zeros.txt").write_text("a 0 d1 0\nb 0 d2 0\n")
    with pytest.raises(ConfigError, match="no passage is judged relevant"):
        read_judged(folder / "corpus.jsonl", folder / "queries.jsonl", folder / "zeros.txt")


def test_a_damaged_parquet_file_is_named(folder):
    (folder / "pairs.parquet").write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=r"pairs\.parquet' cannot be read"):
        read_judged(folder / "pairs.parquet")


def test_a_corpus_that_changes_meanwhile_is_noticed(folder):
    judged = read_judged(folder)
    lines(folder / "corpus.jsonl", PASSAGES[:2])
    with pytest.raises(ConfigError, match="now has 2"):
        list(judged.corpus.texts())


def test_a_grade_that_no_float_holds(folder):
    (folder / "qrels" / "test.tsv").unlink()
    line = f'{{"query-id": "a", "corpus-id": "d1", "score": {10**400}}}\n'
    (folder / "qrels" / "test.jsonl").write_text(line)
    with pytest.raises(ConfigError, match=r"line 1: (not JSON|the score must be a whole number)"):
        read_judged(str(folder))


def test_a_header_of_several_lines_is_shown_in_one(tmp_path):
    (tmp_path / "pairs.csv").write_text('"question,passage\nx,a\ny",b\n')
    with pytest.raises(ConfigError, match=r"has no column 'passage'; it has .+") as caught:
        read_judged(str(tmp_path / "pairs.csv"))
    assert "\n" not in str(caught.value)


ROWS = {
    "corpus.jsonl": b'{"_id":"p1","text":"a"}\n{"_id":"p2","text":"b","title":"t"}\n',
    "queries.jsonl": b'{"_id":"q1","text":"x"}\n{"_id":"q2","text":"y"}\n',
    "qrels.tsv": b"query-id\tcorpus-id\tscore\nq1\tp1\t1\nq2\tp2\t2\n",
    "pairs.csv": b"question,passage\nx,a\ny,b\n",
}
NOISE = [
    *("1e9", "99999999999999999999", "-3", "inf", "nan", "null", "true", "p1"),
    *("\t", "\n", "\0", '"', "{", ",", "\ufeff", "\r\n", "\\ud800", "\xff"),
    *('"_id":1,', '"text":5,', '"title":null,', '"title":["a"],'),
]


@given(
    name=st.sampled_from(sorted(ROWS)),
    place=st.integers(0, 60),
    gone=st.integers(0, 3),
    noise=st.sampled_from(NOISE) | st.text(max_size=3),
)
@example(name="pairs.csv", place=0, gone=0, noise='"')
@example(name="qrels.tsv", place=32, gone=1, noise="99999999999999999999")
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore::bge_integrations.errors.BGEWarning")
def test_any_input_is_measured_or_refused_in_one_line(name, place, gone, noise):
    with tempfile.TemporaryDirectory() as folder:
        for each, data in ROWS.items():
            at = place % len(data)
            spoilt = data[:at] + noise.encode("utf-8", "surrogatepass") + data[at + gone :]
            Path(folder, each).write_bytes(spoilt if each == name else data)
        names = [str(Path(folder, each)) for each in ROWS]
        try:
            judged = read_judged(names[3]) if name == "pairs.csv" else read_judged(*names[:3])
        except BGEError as error:
            said = str(error)
        else:
            said, found = "", [judged.corpus.ids[:3]] * len(judged.qrels)
            assert len(list(judged.corpus.texts())) == len(judged.corpus.ids)
            for values in measure(check_measures(["nDCG@10", "R@100"], 100), judged.qrels, found).values():
                assert ((values >= 0) & (values <= 1)).all()
        assert "\n" not in said
