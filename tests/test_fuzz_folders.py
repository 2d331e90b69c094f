"""A folder of shards in which any file of ours is damaged: right rows, or one line. Nobody's file is touched."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_integrations.bulk import (
    Columns,
    embed_files,
    near_duplicates,
    quantise_files,
    read_shards,
    search_files,
    upload_files,
)
from bge_integrations.bulk.json_shards import ROWS
from bge_integrations.errors import BGEError
from encoders import HashEncoder

pytest.importorskip("pyarrow")
pytest.importorskip("faiss")

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
TEXTS = {f"k{i}": f"text number {i}" for i in range(7)}
CHANGED = {**TEXTS, "k1": "another text", "k9": "a new one"}
DAMAGES = ["cut", "empty", "foreign", "folder", "link", "gone", "flip", "json", "twice"]
FORMATS = ["parquet", "numpy", "jsonl"]
STEPS = ["embed", "update", "upload", "upload --update", "search", "quantise", "duplicates", "read"]


def write_rows(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items()))
    return path


def embed(root: Path, texts, *, update: bool, format: str) -> None:
    rows = write_rows(root / "in.jsonl", texts)
    embed_files(str(rows), root / "out", HashEncoder(), columns=Columns(id="id"), shard_rows=3, format=format,
                update=update)  # fmt: skip


def do(step: str, root: Path, format: str) -> None:
    out, store = root / "out", root / "store"
    if step in ("embed", "update"):
        embed(root, CHANGED if step == "update" else TEXTS, update=step == "update", format=format)
    elif step.startswith("upload"):
        upload_files(out, "faiss", path=store, collection="notes", update=step != "upload")
    elif step == "search":
        found = search_files(out, ["text number 3"], HashEncoder(), k=1)
        assert found
    elif step == "quantise":
        quantise_files(out, root / "small", "int8")
        search_files(root / "small", ["text number 3"], HashEncoder(), k=1)
    elif step == "duplicates":
        near_duplicates(out)
    else:
        list(read_shards(out))


@pytest.fixture(scope="module", params=FORMATS)
def made(request, tmp_path_factory):
    """A finished folder that is uploaded."""
    root = tmp_path_factory.mktemp(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embed(root, TEXTS, update=False, format=request.param)
        do("upload", root, request.param)
    return root, request.param


def spoil(path: Path, damage: str, place: int, noise: bytes, mine: Path) -> None:
    data = path.read_bytes()
    at = place % max(len(data), 1)
    if damage in ("folder", "link", "gone"):
        path.unlink()
        if damage == "folder":
            path.mkdir()
            (path / "mine.txt").write_text("in a folder")
        elif damage == "link":
            path.symlink_to(mine)
        return
    lines = [noise.hex(), None, {"file": 3, "digest": [], "job": "x", "rows": -1}]
    spoilt = {
        "cut": data[:at],
        "empty": b"",
        "foreign": noise,
        "flip": data[:at] + bytes([(data[at] if data else 0) ^ (1 + place % 255)]) + data[at + 1 :],
        "json": json.dumps(lines).encode(),
        "twice": data + data,
    }
    path.write_bytes(spoilt[damage])


@given(
    which=st.integers(0, 20),
    damage=st.sampled_from(DAMAGES),
    place=st.integers(0, 1 << 20),
    noise=st.binary(max_size=600) | st.sampled_from([b"{}\n", b"[]", b"null\n", b'{"job": 1}\n', b"SQLite format 3\0"]),
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=3),
)
@SETTINGS
def test_whatever_is_damaged_in_a_folder_of_ours(made, which, damage, place, noise, steps):
    source, format = made
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(folder) / "root"
        shutil.copytree(source, root)
        mine = Path(folder) / "mine.txt"
        mine.write_text("mine alone")
        files = sorted(path for part in ("out", "store") for path in (root / part).rglob("*") if path.is_file())
        spoilt = files[which % len(files)]
        spoil(spoilt, damage, place, noise, mine)
        shard = spoilt.parent.name == "out" and spoilt.name.startswith("part-")
        beside = shard and spoilt.name.endswith(ROWS)
        for step in steps:
            said = done(step, root, format)
            assert "\n" not in said
            if said:
                continue
            # A finished job looks at nothing but the size of a shard's vectors, an update reads all else.
            unseen = shard and damage == "flip" and not (beside and step == "update")
            if step in ("embed", "update") and not unseen:
                check(root / "out", CHANGED if step == "update" else TEXTS, may_refuse=beside and step == "embed")
        assert mine.read_text() == "mine alone"
        if damage == "folder" and spoilt.is_dir():
            assert (spoilt / "mine.txt").read_text() == "in a folder"


def done(step: str, root: Path, format: str) -> str:
    """Return what was said of what could not be done."""
    try:
        do(step, root, format)
    except BGEError as error:
        return str(error)
    return ""


def check(out: Path, texts, *, may_refuse: bool) -> None:
    try:
        parts = list(read_shards(out))
    except BGEError:
        if not may_refuse:
            raise
        return
    found = {}
    for part in parts:
        assert np.allclose(part.vectors, HashEncoder().encode(part.texts, role="document"), atol=1e-6)
        found |= dict(zip(part.ids, part.texts, strict=True))
    assert found == texts
