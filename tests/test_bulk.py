"""Rows in, shards out: the same bytes however often the job was killed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from encoders import HashEncoder

from bge_integrations.bulk import embed_files, plan_files
from bge_integrations.bulk.sources import Columns
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, HostUnavailableError, InputError, SpaceMismatchError

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"key": f"k{i}", "text": f"text {i}", "n": i}) + "\n" for i in range(95)))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_ids_kept_columns_vectors_and_the_stamp(rows, tmp_path):
    encoder, columns = HashEncoder(), Columns(id="key", keep=("n",))
    report = embed_files(str(rows), tmp_path / "out", encoder, columns=columns, shard_rows=20)
    table = parquet.read_table(sorted((tmp_path / "out").glob("*.parquet")))
    texts = [f"text {i}" for i in range(95)]
    assert (report.rows, report.shards, report.errors) == (95, 5, 0)
    assert table["id"].to_pylist() == [f"k{i}" for i in range(95)]
    assert table["n"].to_pylist() == [str(i) for i in range(95)]
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), encoder.expected(texts, "document"))
    assert json.loads(table.schema.metadata[b"bge_stamp"]) == encoder.stamp()


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet", "jsonl.gz", "txt"])
def test_kinds_of_input(suffix, tmp_path):
    path, texts = tmp_path / f"in.{suffix}", ["one\nline", "zwei, ü"] if suffix != "txt" else ["one\nline"]
    if suffix == "parquet":
        import pyarrow

        parquet.write_table(pyarrow.table({"text": texts}), path)
    else:
        lines = {"csv": 'text\n"one\nline"\n"zwei, ü"\n', "txt": texts[0]}
        raw = lines.get(suffix[:3]) or "".join(json.dumps({"text": text}) + "\n" for text in texts)
        path.write_bytes(gzip.compress(raw.encode()) if suffix.endswith("gz") else raw.encode())
    embed_files(str(tmp_path / "in.*"), tmp_path / "out", HashEncoder())
    assert parquet.read_table(tmp_path / "out" / "part-000000.parquet")["text"].to_pylist() == texts


def test_bad_rows_are_recorded_with_line_and_reason_or_stop(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n{"text": " "}\n{"text": 3}\n{}\nnot json\n{"text": "good too"}\n')
    report = embed_files(str(path), tmp_path / "out", HashEncoder())
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert (report.rows, report.errors) == (6, 4)
    assert [error["line"] for error in errors] == [2, 3, 4, 5]
    assert parquet.read_table(tmp_path / "out" / "part-000000.parquet")["id"].to_pylist() == [0, 5]
    with pytest.raises(InputError, match="line 2"):
        embed_files(str(path), tmp_path / "other", HashEncoder(), on_error="stop")


def test_a_failure_keeps_finished_shards_and_the_same_call_embeds_only_the_rest(rows, tmp_path):
    def fail(indices, texts):
        if "text 50" in texts:
            raise HostUnavailableError("gone")

    with pytest.raises(HostUnavailableError):
        embed_files(str(rows), tmp_path / "out", HashEncoder(before_batch=fail), shard_rows=20)
    again = HashEncoder()
    report = embed_files(str(rows), tmp_path / "out", again, shard_rows=20)
    embed_files(str(rows), tmp_path / "undisturbed", HashEncoder(), shard_rows=20)
    assert (report.resumed, report.shards) == (2, 5)
    assert again.sent == [f"text {i}" for i in range(40, 95)]
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_changed_input_and_another_space_are_refused(rows, tmp_path):
    embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)
    with pytest.raises(SpaceMismatchError, match="stamp"):
        embed_files(str(rows), tmp_path / "out", HashEncoder(variant="int8"), shard_rows=20)
    rows.write_text(rows.read_text().replace("text 3", "other"))
    with pytest.raises(ConfigError, match="inputs"):
        embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)


def test_torn_ends_of_manifest_and_errors_are_cut(rows, tmp_path):
    embed_files(str(rows), tmp_path / "whole", HashEncoder(), shard_rows=20)
    embed_files(str(rows), tmp_path / "torn", HashEncoder(), shard_rows=20)
    manifest = tmp_path / "torn" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-7])
    (tmp_path / "torn" / "errors.jsonl").write_text('{"torn')
    embed_files(str(rows), tmp_path / "torn", HashEncoder(), shard_rows=20)
    (tmp_path / "torn" / "errors.jsonl").unlink()
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


CHILD = textwrap.dedent("""
    import sys
    from encoders import HashEncoder
    from bge_integrations.bulk import embed_files
    embed_files(sys.argv[1], sys.argv[2], HashEncoder(batch=5, delay=0.01), shard_rows=10)
""")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_killed_again_and_again_gives_the_bytes_of_an_undisturbed_run(rows, tmp_path):
    out, tests = tmp_path / "out", str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    for shards in (1, 3, 6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(rows), str(out)], env=environment)
        deadline = time.monotonic() + 30
        while len(list(out.glob("*.parquet"))) < shards and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        assert len(list(out.glob("*.parquet"))) >= shards
    embed_files(str(rows), out, HashEncoder(), shard_rows=10)
    embed_files(str(rows), tmp_path / "undisturbed", HashEncoder(), shard_rows=10)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_the_command(rows, tmp_path, capsys):
    assert main(["embed", str(rows), "-o", str(tmp_path / "out"), "--model", "demo"]) == 0
    assert "rows       95" in capsys.readouterr().out
    assert main(["embed", str(rows), "-o", str(tmp_path / "dry"), "--model", "demo", "--dry-run"]) == 0
    assert "tokens" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
    assert main(["embed", str(tmp_path / "none"), "-o", str(tmp_path / "dry"), "--model", "demo"]) == 2


def test_a_plan_counts_without_sending(rows):
    from bge_integrations import load_encoder

    with load_encoder("demo") as encoder:
        plan = plan_files(str(rows), encoder)
        assert plan.rows == 95
        assert plan.tokens > 95
