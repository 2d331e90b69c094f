"""``bge rerank`` and ``bge export`` of a reranker, as users run them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

import models
from bge_integrations import load_reranker
from bge_integrations.cli import main
from rerank_host import RerankServer

pytestmark = pytest.mark.slow

QUERY = "which fruit is red?"
PASSAGES = ["an apple", "a plum", "a pear"]


@pytest.fixture
def host():
    with RerankServer("tei") as host:
        yield host


def best_first(host):
    return sorted(range(len(PASSAGES)), key=lambda i: -host.logit(QUERY, PASSAGES[i]))


def test_lines_of_json_come_out_ranked(host, tmp_path, capsys):
    file = tmp_path / "passages.jsonl"
    file.write_text("".join(json.dumps({"body": text, "n": f"id{i}"}) + "\n" for i, text in enumerate(PASSAGES)))
    options = ["--base-url", host.url, "--dialect", "tei"]
    assert main(["rerank", QUERY, str(file), "--text", "body", "--id", "n", "--json", *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == [f"id{i}" for i in best_first(host)]
    assert [row["text"] for row in rows] == [PASSAGES[i] for i in best_first(host)]
    assert rows[0]["score"] == max(row["score"] for row in rows)


@pytest.mark.parametrize("inputs", [[], ["-"]])
def test_lines_of_text_come_from_standard_input(host, monkeypatch, capsys, inputs):
    monkeypatch.setattr("sys.stdin", io.StringIO("an apple\n\na plum\n" + json.dumps({"text": "a pear"}) + "\n"))
    assert main(["rerank", QUERY, *inputs, "--top-n", "2", "--base-url", host.url]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == [PASSAGES[i] for i in best_first(host)[:2]]


def test_files_of_text_are_passages(host, tmp_path, capsys):
    for i, text in enumerate(PASSAGES):
        (tmp_path / f"{i}.txt").write_text(text)
    assert main(["rerank", QUERY, str(tmp_path), "--base-url", host.url]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == [PASSAGES[i] for i in best_first(host)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--top-n", "-1"], "top_n"),
        (["--dialect", "teii", "--base-url", "http://localhost:1"], "no dialect"),
        (["--model", "bge-small"], "load_encoder"),
        (["--model", "bge-reranker-v2-gemma"], "vLLM"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n"))
    assert main(["rerank", "q", *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_the_users_cache_is_named_true(host, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["rerank", QUERY, "a.txt", "--base-url", host.url, "--dialect", "tei", "--cache", "True"]
    (tmp_path / "a.txt").write_text("an apple")
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "cache"}
    assert main(["cache", "info"]) == 0
    assert str(tmp_path / "cache") in capsys.readouterr().out


def test_without_passages_nothing_is_asked(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["rerank", "q"]) == 1
    assert "no passages" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [b"caf\xe9", b"\x7fELF\0"])
@pytest.mark.parametrize("command", [["rerank", "q"], ["search", "nowhere"]], ids=lambda words: words[0])
def test_a_line_of_standard_input_that_is_no_text_is_named(command, broken, monkeypatch, capsys):
    raw = io.BytesIO(b"first\n" + broken + b"\nlast\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(raw, encoding="utf-8"))
    assert main(command) == 2
    assert capsys.readouterr().err == "bge: standard input, line 2: not text in UTF-8\n"


def test_what_a_folder_holds_besides_passages_is_skipped_with_a_line(host, tmp_path, capsys):
    for i, text in enumerate(PASSAGES):
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / "4.txt").write_bytes(b"\xff\xfe\x00\x01" * 9)
    (tmp_path / "5.jsonl").write_text('{"body": "another column"}\n')
    for folder in (str(tmp_path), str(tmp_path / "*")):
        assert main(["rerank", QUERY, folder, "--base-url", host.url]) == 0
        said = capsys.readouterr()
        assert [line.split("\t")[2] for line in said.out.splitlines()] == [PASSAGES[i] for i in best_first(host)]
        first, second = said.err.splitlines()[-2:]
        assert "4.txt" in first
        assert "5.jsonl" in second
        assert first.endswith("; skipped")
    assert main(["rerank", QUERY, str(tmp_path / "4.txt"), "--base-url", host.url]) == 2
    assert "4.txt" in capsys.readouterr().err


def test_a_row_without_its_column_is_named(tmp_path, capsys):
    file = tmp_path / "passages.jsonl"
    file.write_text('{"text": "a"}\n{"other": "b"}\n')
    assert main(["rerank", "q", str(file), "--model", str(models.reranker("bert"))]) == 2
    assert "line 2: 'text' is missing" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
def test_an_exported_reranker_gives_what_torch_gives(kind, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    folder = models.reranker(kind, layers=1)
    assert main(["export", str(folder), "-o", str(tmp_path / "exported")]) == 0
    passages = [text for text in models.TEXTS if len(text) < 1000] + [""]
    with load_reranker(tmp_path / "exported", backend="onnx") as reranker:
        found = reranker.score(QUERY, passages, scale="logit")
        assert reranker.describe()["backend"] == "onnx"
    np.testing.assert_allclose(found, models.reference_logits(folder, [(QUERY, p) for p in passages]), atol=1e-4)


def test_rerankers_are_in_the_list_of_models(capsys):
    assert main(["models"]) == 0
    assert "BAAI/bge-reranker-v2-m3" in capsys.readouterr().out
    assert main(["models", "bge-reranker-base"]) == 0
    assert "cloudflare" in capsys.readouterr().out
