"""``bge embed``: what is typed, what is told, what comes back."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bge_integrations.bulk import Report, read_shards
from bge_integrations.bulk.sources import BytesRead
from bge_integrations.cli import main
from bge_integrations.cli.embed_progress import progress_line, rows_done
from bge_integrations.core.encoder import Usage
from rig import Rig

pytest.importorskip("pyarrow")


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"key": f"k{i}", "body": f"text {i}" if i != 7 else None, "n": i} for i in range(95)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def bge(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_everything_typed_arrives(rows, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--text", "body", "--id", "key", "--keep", "n", "--format", "numpy", "--half", "--shard-rows", "40"]
    assert bge("embed", rows, "-o", out, "--model", "demo", *options) == 0
    told = capsys.readouterr()
    parts = list(read_shards(out))
    assert [len(part.ids) for part in parts] == [39, 40, 15]
    assert parts[0].kept["n"][-1] == 39
    assert sorted(path.name for path in out.glob("part-000000*")) == ["part-000000.npy", "part-000000.rows.jsonl"]
    assert re.search(
        r"rows +95\nbad rows +1 \(see .*/out/.errors.jsonl\)\nshards +3\ntruncated +0\ntokens +\d", told.out
    )
    assert len(told.err.splitlines()) == 3
    assert re.search(r"94 of ~95 rows, [\d,]+ rows/s, [\d,]+ tokens/s", told.err)
    assert bge("embed", rows, "-o", out, "--model", "demo", *options) == 0
    assert "(3 were already there)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_tells_and_writes_nothing(rows, tmp_path, capsys):
    assert bge("embed", rows, "-o", tmp_path / "out", "--model", "demo", "--text", "body", "--dry-run") == 0
    told = capsys.readouterr().out
    assert re.search(
        r"rows +95\nbad rows +1\ncharacters +[\d,]+\ntokens +[\d,]+\ntruncated +0\nseconds +\d+ \(from", told
    )
    assert "unknown (no price is known: pass --usd-per-million-tokens)" in told
    with Rig() as host:
        remote = ["--model", "bge-small", "--base-url", host.url]
        assert bge("embed", rows, "-o", tmp_path / "out", *remote, "--text", "body", "--dry-run") == 0
        assert not host.requests
    told = capsys.readouterr().out
    assert "unknown (the model's tokenizer is not on this machine: pass --tokenizer or --probe)" in told
    assert "unknown (the host's speed is unknown; --probe measures it)" in told
    assert not (tmp_path / "out").exists()


def test_the_exit_code_tells(rows, tmp_path, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text('{"text": ""}\n{"text": 1}\n')
    assert bge("embed", few, "-o", tmp_path / "few", "--model", "demo") == 1
    assert bge("embed", tmp_path / "none", "-o", tmp_path / "none", "--model", "demo") == 2
    assert bge("embed", rows, "-o", tmp_path / "stop", "--model", "demo", "--text", "body", "--on-error", "stop") == 2
    assert "line 8" in capsys.readouterr().err


def test_a_host_is_asked_and_its_retries_told(rows, tmp_path, capsys):
    from rig import status

    with Rig() as host:
        host.script(None, status(503))
        remote = ["--model", "bge-small", "--base-url", host.url, "--max-inputs", "16"]
        assert bge("embed", rows, "-o", tmp_path / "out", *remote, "--text", "body") == 0
    told = capsys.readouterr()
    assert re.search(r"retries +1\n", told.out)
    assert "1 retries" in told.err


@pytest.mark.slow
def test_standard_input_is_read(tmp_path):
    code = "import sys; from bge_integrations.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "embed", "-", "-o", str(tmp_path / "out"), "--model", "demo"]
    raw = b'{"text": "one"}\n{"text": "two"}\n'
    done = subprocess.run(command, input=raw, capture_output=True, timeout=60, check=True)
    assert b"2 rows" in done.stderr
    (part,) = read_shards(tmp_path / "out")
    assert part.texts == ["one", "two"]


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(rows, tmp_path):
    pytest.importorskip("rich")
    code = "import sys; from bge_integrations.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "embed", str(rows), "--text", "body", "-o", str(tmp_path / "out")]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    with subprocess.Popen(
        [*command, "--model", "demo"], stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:  # Linux says so when the other side has closed
            pass
        assert process.wait(60) == 0
    os.close(ours)
    assert "━".encode() in shown
    assert "94 of ~95 rows" in shown.decode()


def test_a_line_of_progress_says_what_is_known():
    report = Report(embedded=1000, read=1500, resumed_rows=500, errors=2, bytes=60_000, tally=BytesRead(40_000, 30_000))
    usage = Usage(tokens=20_000, requests=10, retries=3, usd=0.0002)
    assert rows_done(report) == 1500
    assert progress_line(report, usage, 2.0) == (
        "1,500 of ~3,000 rows, 500 rows/s, 10,000 tokens/s, 0:00:03 left, 3 retries, 2 bad, $0.0002"
    )
    assert progress_line(Report(embedded=5, read=5), Usage(), 1.0) == "5 rows, 5 rows/s"
    assert progress_line(Report(), Usage(), 0.0) == "0 rows, 0 rows/s"
