"""Where a cache lies and what administration does: in memory, files of earlier versions, the command, linear work."""

from __future__ import annotations

import copy
import pickle
import shutil
import sqlite3

import numpy as np
import pytest

from bge_integrations import load_encoder
from bge_integrations.cache import CachedEncoder, SQLiteStore, clear, info, prune
from bge_integrations.cli import main
from bge_integrations.errors import CacheError
from bge_integrations.langchain import BGEEmbeddings
from bge_integrations.wrappers.cache.database import shrink
from encoders import HashEncoder

TEXTS = [f"text number {i}" for i in range(50)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.sqlite"


def encode(cached, texts=TEXTS):
    """Encode, and return how many of the texts were sent on."""
    cached.inner.calls.clear()
    assert np.array_equal(cached.encode(texts, role="document"), cached.inner.expected(texts, "document"))
    return len(cached.inner.sent)


def test_memory_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with CachedEncoder(HashEncoder(), ":memory:") as cached:
        assert (encode(cached), encode(cached)) == (50, 0)
        with CachedEncoder(HashEncoder(), ":memory:") as other:  # each has its own
            assert encode(other) == 50
        for travelled in (pickle.loads(pickle.dumps(cached)), copy.deepcopy(cached)):
            with travelled:
                assert (encode(travelled), encode(travelled)) == (50, 0)
        assert encode(cached) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["keyword", "variable"])
def test_memory_is_no_file_through_load_encoder_either(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    if how == "variable":
        monkeypatch.setenv("BGE_CACHE", ":memory:")
    for cache in (":memory:",) if how == "keyword" else (None, True):
        with load_encoder("bge-small", cache=cache) as encoder:
            assert "MemoryStore" in encoder.describe()["cache"]
    for command in (info, prune, clear, SQLiteStore):
        with pytest.raises(CacheError, match="names no file"):
            command(":memory:")
    assert list(tmp_path.iterdir()) == []


def test_memory_with_a_bound_keeps_what_was_used_last():
    with CachedEncoder(HashEncoder(batch=1), ":memory:", max_bytes=10 * (4 * 16 + 16)) as cached:
        encode(cached, TEXTS[:10])
        assert encode(cached, TEXTS[:5]) == 0
        encode(cached, TEXTS[10:15])
        assert encode(cached, [*TEXTS[:5], *TEXTS[10:15]]) == 0
        assert encode(cached, TEXTS[5:10]) == 5


def as_released(path, rows):
    """Make a file in the order of earlier versions: WAL first, so that only the -wal file says whose it is."""
    db = sqlite3.connect(path, isolation_level=None)
    for statement in (
        "PRAGMA auto_vacuum=INCREMENTAL",
        "PRAGMA journal_mode=WAL",
        "BEGIN IMMEDIATE",
        "CREATE TABLE vectors (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
        "CREATE TABLE uses (id INTEGER PRIMARY KEY, used INTEGER NOT NULL)",
        "PRAGMA application_id=1111967043",
        "PRAGMA user_version=1",
        "COMMIT",
    ):
        db.execute(statement).fetchall()
    db.executemany("INSERT INTO vectors (key, value) VALUES (?, ?)", rows)
    db.execute("INSERT INTO uses SELECT id, 1700000000 FROM vectors")
    return db


@pytest.mark.parametrize("state", ["open", "closed", "copied"])
def test_a_file_of_an_earlier_version_is_read(path, tmp_path, state):
    with CachedEncoder(HashEncoder(), path) as cached:
        encode(cached)
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT key, value FROM vectors").fetchall()
    db.close()
    old = tmp_path / "old.sqlite"
    db = as_released(old, rows)
    if state == "closed":
        db.close()
    elif state == "copied":  # as a killed process leaves it, without its -shm file
        for ending in ("", "-wal"):
            shutil.copy(f"{old}{ending}", tmp_path / f"copy.sqlite{ending}")
        old = tmp_path / "copy.sqlite"
    assert info(old)["vectors"] == 50
    with CachedEncoder(HashEncoder(), old) as cached:
        assert encode(cached) == 0
        assert encode(cached, ["a new one"]) == 1
    assert info(old)["vectors"] == 51
    db.close()


def steps(path, rows, work):
    """Return how many thousand steps SQLite's machine takes for some work on a file of so many rows."""
    store = SQLiteStore(path.with_name(f"{rows}.sqlite"))
    store.put_many([(b"%020d" % i, b"x" * 200) for i in range(rows)])
    taken = []
    with store.using() as db:
        db.set_progress_handler(lambda: taken.append(1), 1000)
        work(db)
        db.set_progress_handler(None, 0)
    store.close()
    return len(taken)


def test_deleting_is_linear_in_rows(path):
    few, many = (steps(path, rows, lambda db: shrink(db, 0)) for rows in (10_000, 40_000))
    assert 0 < many < 6 * few


def test_clearing_does_not_touch_each_row(path):
    with CachedEncoder(HashEncoder(), path) as cached:
        encode(cached)
    for _ in range(2):
        cleared = clear(path)
        assert cleared["bytes_after"] < 40_000
    assert info(path)["vectors"] == 0
    with CachedEncoder(HashEncoder(), path) as cached:
        assert (encode(cached), encode(cached)) == (50, 0)
        assert clear(path)["removed"] == 50  # while another encoder has it open
        assert (encode(cached), encode(cached)) == (50, 0)


def run(capsys, *arguments):
    """Return the exit code, and the lines on stdout and stderr."""
    code = main(["cache", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


@pytest.mark.parametrize("action", ["info", "prune", "clear"])
@pytest.mark.parametrize("kind", ["folder", "notes", "foreign", "damaged"])
def test_the_command_refuses_in_one_line_what_is_no_cache(path, tmp_path, capsys, action, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "notes":
        path.write_text("my thesis\n" * 1000)
    elif kind == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE mine (x)")
        db.close()
    else:
        with CachedEncoder(HashEncoder(), path) as cached:
            encode(cached)
        path.write_bytes(path.read_bytes()[:4096])
    before = None if kind == "folder" else path.read_bytes()
    code, out, err = run(capsys, action, "--path", path)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("bge: ")
    assert str(path) in err[0]
    assert before is None or path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_says_what_a_cache_holds_and_where_there_is_none(path, tmp_path, capsys, monkeypatch):
    code, out, err = run(capsys, "info", "--path", path)
    assert (code, out) == (2, [])
    assert "no cache at" in err[0]
    assert list(tmp_path.iterdir()) == []
    with CachedEncoder(HashEncoder(), path) as cached:
        encode(cached)
    monkeypatch.setenv("BGE_CACHE", str(path))
    before = path.read_bytes()
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, [])
    assert ["vectors", "50"] in [line.split() for line in out]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert run(capsys, "clear")[0] == 0
    path.write_bytes(b"")
    assert run(capsys, "info")[0] == 0  # an empty file is a cache to be


def test_a_folder_that_cannot_be_written_can_still_be_looked_at(path, tmp_path):
    with CachedEncoder(HashEncoder(), path) as cached:
        encode(cached)
    path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert info(path)["vectors"] == 50
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["a b", "100%41", "a?mode=ro", "a#b", "\u00e9\u4e2d", "\udce9", "-", "a:b", "'\";--"])
def test_any_name_of_a_file_is_that_file(tmp_path, name):
    path = tmp_path / name
    with CachedEncoder(HashEncoder(), path) as cached:
        assert (encode(cached), encode(cached)) == (50, 0)
    assert list(tmp_path.iterdir()) == [path]
    assert info(path)["vectors"] == 50


@pytest.mark.parametrize("dangling", [True, False])
def test_a_link_leads_to_the_file_and_stays(path, tmp_path, dangling):
    target = tmp_path / "elsewhere" / "real.sqlite"
    target.parent.mkdir()
    if not dangling:
        target.touch()
    path.symlink_to(target)
    with CachedEncoder(HashEncoder(), path) as cached:
        assert (encode(cached), encode(cached)) == (50, 0)
    assert path.is_symlink()
    assert info(target)["vectors"] == 50


@pytest.mark.parametrize("how", ["keyword", "variable", "langchain"])
def test_a_slip_in_the_path_is_an_error_before_anything_is_embedded(tmp_path, monkeypatch, how):
    thesis = tmp_path / "thesis.md"
    thesis.write_text("four years of work\n" * 100)
    ways = {
        "keyword": lambda: load_encoder("bge-small", cache=str(thesis)),
        "variable": lambda: load_encoder("bge-small"),
        "langchain": lambda: BGEEmbeddings("bge-small", cache=thesis).embed_query("a"),
    }
    if how == "variable":
        monkeypatch.setenv("BGE_CACHE", str(thesis))
    with pytest.raises(CacheError, match="move it away"):
        ways[how]()
    assert thesis.read_text() == "four years of work\n" * 100
    assert list(tmp_path.iterdir()) == [thesis]
