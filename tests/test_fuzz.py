"""Any input file and any command line: the right result, or one line that says what to do. Never a raw exception."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bge_integrations.bulk import Columns, embed_files, read_shards
from bge_integrations.cli import main
from bge_integrations.errors import BGEError
from encoders import HashEncoder

pytest.importorskip("pyarrow")

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["text", "id", "x", "vector", "file", ""])
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=6)
JSON_LINES = ROWS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
TABLES = st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=6).map(
    lambda rows: "\n".join([f"text,id,x{',text' * (len(rows) % 2)}", *map(",".join, rows)]).encode(
        "utf-8", "surrogatepass"
    )
)


@pytest.mark.slow
@given(
    data=JSON_LINES | TABLES | st.binary(max_size=200),
    ending=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".jsonl.gz", ".csv.zst"]),
    format=st.sampled_from(["parquet", "numpy", "jsonl"]),
    keep=st.sampled_from([(), ("x",), ("id",)]),
)
@example(data=b'{"text": "a", "x": 1e999}', ending=".jsonl", format="parquet", keep=("x",))
@example(data=b'\xef\xbb\xbf{"text": "a"}', ending=".jsonl", format="parquet", keep=())
@example(data=b"text,x\na,\x00\n", ending=".csv", format="numpy", keep=("x",))
@SETTINGS
def test_any_file_gives_right_vectors_or_one_line(data, ending, format, keep):
    encoder = HashEncoder()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"in{ending}"
        source.write_bytes(data)
        said = ""
        try:
            embed_files(str(source), Path(folder) / "out", encoder, columns=Columns(keep=keep), format=format)
        except BGEError as error:
            said = str(error)
        assert "\n" not in said
        assert source.read_bytes() == data
        if said or not list(Path(folder).glob("out/part-*")):  # no row is no shard
            return
        for part in read_shards(Path(folder) / "out"):
            assert np.allclose(part.vectors, encoder.encode(part.texts, role="document"), atol=1e-6)
            assert all(len(values) == len(part.texts) for values in part.kept.values())


COMMANDS = "embed search upload load rerank verify models cache export serve demo info prune clear"
FLAGS = (
    "--model --base-url --out -o --into --path --port --workers --provider --cache --truncate --keep --text --headers"
)
MORE = "--top-k -k --golden --against --max-inputs --timeout --precision --device --format --shard-rows --quiet --help"
ARGUMENTS = "no-such-model demo local nowhere http://[::1/v1 -1 0 99999 1e999 nan /nowhere/at/all : a:b jsonl qdrant -"
WORDS = st.sampled_from(" ".join([COMMANDS, FLAGS, MORE, ARGUMENTS]).split())


@given(st.lists(WORDS | st.text(max_size=5).filter(lambda text: "\x00" not in text), max_size=6))
@example(["serve", "--port", "99999"])
@example(["models", "--no-such"])
@SETTINGS
def test_any_command_line_ends_with_an_exit_code(words):
    # Commands that would work are for other tests: here a server would not end, and a demo embeds.
    if words[:1] in (["serve"], ["demo"]) and "99999" not in words:
        words = ["models", *words]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), contextlib.suppress(SystemExit):
        assert main(words) in (0, 1, 2)
    assert "Traceback" not in shown.getvalue()
