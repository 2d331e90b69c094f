"""What the cache lives through: kills, full disks, damaged files, many writers, forks."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bge_integrations.cache import CachedEncoder, SQLiteStore, clear, info, prune
from bge_integrations.core.files import filesystem, network_filesystem
from bge_integrations.errors import CacheError, RepairWarning
from encoders import HashEncoder

TEXTS = [f"text number {i}" for i in range(400)]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.sqlite"


@pytest.fixture(scope="module")
def clean():
    """Processes that are forked from one without threads, with the imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["encoders", "bge_integrations.cache"])
    return context


def check(cached, texts=TEXTS, role="document"):
    """Encode, and return how many of the texts were sent on, having checked the vectors."""
    cached.inner.calls.clear()
    assert np.array_equal(cached.encode(texts, role=role), cached.inner.expected(texts, role))
    return len(cached.inner.sent)


def check_quietly(cached, texts=TEXTS):
    """As ``check``; return the warnings too."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sent = check(cached, texts)
    return sent, said


def check_file(path):
    """Refuse a file that is damaged, or a row in it that is not true."""
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    with CachedEncoder(HashEncoder(), path) as cached:
        count = info(path)["vectors"]
        assert check(cached) == len(TEXTS) - count


def write_on(path, seed, log):
    """Encode slices of the texts in some order, noting each slice whose call returned."""
    warnings.simplefilter("error")
    order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS))
    cached = CachedEncoder(HashEncoder(batch=4, delay=0.002), path)
    with Path(log).open("a") as file:
        for first in range(0, len(order), 20):
            part = [TEXTS[i] for i in order[first : first + 20]]
            assert np.array_equal(cached.encode(part, role="document"), cached.inner.expected(part, "document"))
            file.write("".join(f"{text}\n" for text in part))
            file.flush()
    cached.close()


@pytest.mark.slow
@posix
@pytest.mark.timeout(90)
def test_writers_killed_at_any_moment_lose_nothing_that_was_returned(path, clean, tmp_path):
    rng = random.Random(7)
    killed = 0
    for turn in range(6):
        logs = [tmp_path / f"log-{turn}-{i}" for i in range(2)]
        writers = [clean.Process(target=write_on, args=(path, 10 * turn + i, log)) for i, log in enumerate(logs)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + 20
        while not any(log.exists() and log.stat().st_size for log in logs) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        for writer in writers:
            writer.kill()
            writer.join(20)
            killed += writer.exitcode == -signal.SIGKILL
        returned = sorted({line for log in logs if log.exists() for line in log.read_text().splitlines()})
        with CachedEncoder(HashEncoder(), path) as cached:
            assert check(cached, [text for text in returned if text in TEXTS]) == 0
        assert returned
        if turn == 2:
            path.unlink()  # and again from an empty file, where the tables are made under the knife
    assert killed > 2
    check_file(path)


@posix
@pytest.mark.timeout(90)
@pytest.mark.slow
def test_many_writers_share_one_file(path, clean, tmp_path):
    writers = [clean.Process(target=write_on, args=(path, i, tmp_path / f"log-{i}")) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert info(path)["vectors"] == len(TEXTS)
    check_file(path)


def test_many_threads_and_encoders_share_one_file(path):
    made = [CachedEncoder(HashEncoder(batch=8), path) for _ in range(3)]
    wrong = []

    def work(number):
        texts = random.Random(number).sample(TEXTS, 200)
        cached = made[number % 3]
        if not np.array_equal(cached.encode(texts, role="document"), cached.inner.expected(texts, "document")):
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for cached in made:
        cached.close()
    check_file(path)


def filled(path):
    """Make a file with all texts in it and return its bytes."""
    with CachedEncoder(HashEncoder(), path) as cached:
        cached.encode(TEXTS, role="document")
    return path.read_bytes()


def flip(raw, place, bit):
    bad = bytearray(raw)
    bad[place] ^= 1 << bit
    return bytes(bad)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:100] + random.Random(1).randbytes(4000) + good[4100:],
        lambda good: good[: len(good) // 3],
        lambda good: good[:4096],
    ],
    ids=["a lost schema", "cut short", "one page"],
)
def test_a_damaged_file_is_passed_by_with_one_warning_and_left_as_it_is(path, damage):
    bad = damage(filled(path))
    path.write_bytes(bad)
    with CachedEncoder(HashEncoder(), path) as cached:
        sent, seen = check_quietly(cached)
        assert sent == len(TEXTS)
        assert [warning.category for warning in seen] == [RepairWarning]
        assert "damaged" in str(seen[0].message)
        assert "delete it" in str(seen[0].message)
    for _ in range(2):  # and no second warning in this process, whoever opens it
        with CachedEncoder(HashEncoder(), path) as cached:
            assert check_quietly(cached) == (len(TEXTS), [])
    for command in (info, prune, clear):
        with pytest.raises(CacheError, match="damaged"):
            command(path)
    assert path.read_bytes() == bad
    assert {file.name.removeprefix(path.name) for file in path.parent.iterdir()} <= {"", "-wal", "-shm"}


def test_a_damaged_file_that_is_deleted_makes_room_for_a_new_one(path):
    path.write_bytes(filled(path)[:4096])
    with CachedEncoder(HashEncoder(), path) as cached:
        check_quietly(cached)
        for file in path.parent.iterdir():
            file.unlink()
    with CachedEncoder(HashEncoder(), path) as cached:
        assert check(cached) == len(TEXTS)
        assert check(cached) == 0


@pytest.mark.parametrize(
    "content",
    [b"this is no database at all, but somebody's notes", b"\0" * 8192, random.Random(1).randbytes(8192), b"x"],
    ids=["notes", "zeros", "noise", "one byte"],
)
def test_a_file_of_another_kind_is_refused_untouched(path, content):
    path.write_bytes(content)
    refused(path)
    assert path.read_bytes() == content


def refused(path):
    """Check that each way in refuses a path in one line, and makes no file beside it."""
    before = sorted(path.parent.iterdir())
    for way in (lambda file: CachedEncoder(HashEncoder(), file), info, prune, clear, SQLiteStore):
        with pytest.raises(CacheError, match="pass another path") as caught:
            way(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(path.parent.iterdir()) == before


def test_a_folder_and_a_pipe_are_refused(tmp_path):
    refused(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe")
    with pytest.raises(CacheError, match="another path"):
        CachedEncoder(HashEncoder(), "vectors\0.sqlite")


FOREIGN = (
    "CREATE TABLE notes (x)",
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL)",
    "CREATE TABLE uses (id INTEGER PRIMARY KEY, used INTEGER NOT NULL)",
    "CREATE VIEW seen AS SELECT 1",
    "PRAGMA user_version=1",
    "PRAGMA application_id=7",
)


@settings(max_examples=40, deadline=None)
@given(
    statements=st.lists(st.sampled_from(FOREIGN), min_size=1, unique=True),
    mode=st.sampled_from(["delete", "wal"]),
    in_use=st.booleans(),
)
def test_an_sqlite_file_of_another_program_is_refused_untouched(statements, mode, in_use):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.db"
        other = sqlite3.connect(path, isolation_level=None)
        other.execute(f"PRAGMA journal_mode={mode}").fetchall()
        for statement in statements:
            other.execute(statement)
        if not in_use:
            other.close()
        before = path.read_bytes()
        refused(path)
        assert path.read_bytes() == before
        other.close()


def test_a_cache_of_another_version_is_refused_untouched(path):
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=2")
    db.close()
    refused(path)


def damaged(good, kind, place, noise):
    place %= len(good)
    return {
        "other content": noise,
        "cut short": good[:place],
        "a part overwritten": good[:place] + noise + good[place + len(noise) :],
        "a part lost": good[:place] + good[place + len(noise) :],
        "a flipped bit": flip(good, place, noise[0] % 8),
    }[kind]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["other content", "cut short", "a part overwritten", "a part lost", "a flipped bit"]),
    place=st.integers(0, 200) | st.integers(0, 2**20),
    noise=st.binary(min_size=1, max_size=5000),
)
def test_any_bytes_in_the_place_of_a_cache_give_right_vectors_or_a_typed_error(good, kind, place, noise):
    bad = damaged(good.read_bytes(), kind, place, noise)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        path = Path(folder) / "vectors.sqlite"
        path.write_bytes(bad)
        for command in (info, prune):
            with contextlib.suppress(CacheError):
                command(path)
        for _ in range(2):
            before = path.read_bytes()
            try:
                cached = CachedEncoder(HashEncoder(), path)
            except CacheError:
                assert path.read_bytes() == before
            else:
                with cached:
                    check(cached, TEXTS[:60])
        assert [warning.category for warning in seen] in ([], [RepairWarning])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "vectors.sqlite"
    filled(path)
    return path


def test_a_flipped_byte_anywhere_costs_hits_and_never_a_wrong_vector(path):
    good, rng = filled(path), random.Random(3)
    places = [*range(0, 100, 7), *(rng.randrange(100, 8192) for _ in range(10))]
    places += [rng.randrange(len(good)) for _ in range(25)]
    for place in places:
        for file in path.parent.iterdir():
            file.unlink()
        bad = flip(good, place, rng.randrange(8))
        path.write_bytes(bad)
        try:
            cached = CachedEncoder(HashEncoder(), path)
        except CacheError:
            assert place < 100  # the header no longer says that it is ours
            assert path.read_bytes() == bad
            continue
        with cached:
            _, seen = check_quietly(cached)
            assert [warning.category for warning in seen] in ([], [RepairWarning]), place
            check_quietly(cached, TEXTS[:50])


def test_a_row_with_a_flipped_byte_is_a_miss_and_is_written_again(path):
    filled(path)
    with sqlite3.connect(path) as db:
        row = db.execute("SELECT value FROM vectors WHERE id = 5").fetchone()[0]
        db.execute("UPDATE vectors SET value = ? WHERE id = 5", (row[:20] + bytes([row[20] ^ 1]) + row[21:],))
        db.execute("UPDATE vectors SET value = (SELECT value FROM vectors WHERE id = 8) WHERE id = 7")
        db.execute("UPDATE vectors SET value = 'a text' WHERE id = 9")
    db.close()
    with CachedEncoder(HashEncoder(), path) as cached:
        assert check(cached) == 3
        assert cached.inner.sent == [TEXTS[4], TEXTS[6], TEXTS[8]]
        assert check(cached) == 0


def test_two_encoders_of_one_process_agree_on_a_file_that_is_damaged_under_way(path):
    filled(path)
    made = [CachedEncoder(HashEncoder(), path) for _ in range(2)]
    for cached in made:
        assert check(cached) == 0
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))  # on the same inode
    for cached in made:
        cached.store.store._db.execute("PRAGMA shrink_memory")  # what SQLite still holds of it is good
    seen = [warning for cached in made for warning in check_quietly(cached, TEXTS[:50])[1]]
    assert [warning.category for warning in seen] == [RepairWarning]
    for cached in made:
        cached.close()
    assert [file.name for file in path.parent.iterdir() if "corrupt" in file.name] == []


HOLDER = """
import sys
from bge_integrations.cache import SQLiteStore
store = SQLiteStore(sys.argv[1])
store.put_many([(b"x" * 20, b"a row of the other process")])
print("open", flush=True)
sys.stdin.read()
print(store.get_many([b"x" * 20]))
"""


def test_a_look_from_elsewhere_disturbs_no_process_that_has_the_file_open(path):
    filled(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
        assert info(path)["vectors"] == len(TEXTS) + 1
        with CachedEncoder(HashEncoder(), path) as cached:
            assert check(cached) == 0
        assert {file.name for file in path.parent.iterdir()} == set(before)
        out, _ = holder.communicate("", timeout=60)
    assert out == "[b'a row of the other process']\n"
    check_file_counts(path, len(TEXTS) + 1)


def check_file_counts(path, count):
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert info(path)["vectors"] == count
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before  # info writes nothing


@posix
def test_only_its_owner_can_read_a_new_cache(path):
    before = os.umask(0)
    try:
        with CachedEncoder(HashEncoder(), path) as cached:
            check(cached)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {path.name + ending: 0o600 for ending in ("", "-wal", "-shm")}


class SmallDisk(SQLiteStore):
    def connect(self):
        db = super().connect()
        db.execute("PRAGMA max_page_count=12")
        return db


def test_a_full_disk_costs_hits_with_one_warning(path):
    with CachedEncoder(HashEncoder(), SmallDisk(path)) as cached:
        assert check(cached, TEXTS[:20]) == 20
        sent, said = check_quietly(cached)
        assert sent == len(TEXTS) - 20
        assert [warning.category for warning in said] == [RepairWarning]
        assert "full" in str(said[0].message)
        held = info(path)["vectors"]
        assert 20 <= held < len(TEXTS)
        assert check(cached) == len(TEXTS) - held  # what was stored before is still used, and no second warning
    check_file(path)


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, timeout=20, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, timeout=20, check=True)


@pytest.mark.parametrize("left", [0, 10_000, 100_000], ids=["nothing left", "little left", "some left"])
def test_a_disk_that_is_really_full(tiny_disk, left):
    path = tiny_disk / "vectors.sqlite"
    room = os.statvfs(tiny_disk)
    with (tiny_disk / "ballast").open("wb") as ballast:
        ballast.write(b"x" * (room.f_bavail * room.f_bsize - left))
    with CachedEncoder(HashEncoder(), path) as cached:
        sent, said = check_quietly(cached)
        assert sent == len(TEXTS)
        assert [warning.category for warning in said] == [RepairWarning]
        check(cached)
    (tiny_disk / "ballast").unlink()
    check_file(path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with CachedEncoder(HashEncoder(), tmp_path / "file" / "vectors.sqlite") as cached:
        sent, said = check_quietly(cached)
        assert (sent, [warning.category for warning in said]) == (len(TEXTS), [RepairWarning])
        assert check(cached) == len(TEXTS)


def test_a_file_that_another_program_keeps_locked(path):
    filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with CachedEncoder(HashEncoder(), SQLiteStore(path, busy_timeout=0.05)) as cached:
        sent, said = check_quietly(cached, [*TEXTS, "new"])
        assert (sent, [warning.category for warning in said]) == (1, [RepairWarning])
        other.close()


def test_a_warning_that_is_made_an_error_reaches_the_caller(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        CachedEncoder(HashEncoder(), tmp_path / "file" / "vectors.sqlite") as cached,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        with pytest.raises(RepairWarning):
            cached.encode(TEXTS, role="document")


def child_of_fork(cached, texts, new):
    os._exit(0 if check(cached, texts) == new and check(cached, texts) == 0 else 1)


def forked(cached, texts, new=0):
    """Return the exit status of a child that expects so many misses, killing one that hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads
        pid = os.fork()
    if pid == 0:
        try:
            child_of_fork(cached, texts, new)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


@posix
def test_a_forked_child_opens_the_file_for_itself(path):
    with CachedEncoder(HashEncoder(), path) as cached:
        check(cached)
        assert [forked(cached, TEXTS) for _ in range(3)] == [0, 0, 0]
        assert check(cached) == 0
    check_file(path)


@posix
def test_forks_while_another_thread_writes(path):
    with CachedEncoder(HashEncoder(batch=1), path) as cached, CachedEncoder(HashEncoder(batch=1), path) as writer:
        check(cached, TEXTS[:5])
        going = threading.Event()

        def write():
            for number in range(3000):
                if going.is_set():
                    break
                writer.encode([f"more {number}"], role="document")

        thread = threading.Thread(target=write)
        thread.start()
        codes = [forked(cached, TEXTS[:5]) for _ in range(10)]
        going.set()
        thread.join()
    assert codes == [0] * 10


@posix
def test_forked_children_write_while_threads_of_the_parent_do(path, tmp_path):
    paths = [path, tmp_path / "another.sqlite"]
    made = [CachedEncoder(HashEncoder(batch=1), file) for file in paths for _ in range(2)]
    ended = threading.Event()

    def write(cached, number):
        for count in range(3000):
            if ended.is_set():
                break
            assert check(cached, [f"thread {number}, text {count}", TEXTS[0]]) in (1, 2)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, cached, number) for number, cached in enumerate(made)]
        own = CachedEncoder(HashEncoder(batch=1), path)
        texts = [[f"child {child}, text {i}" for i in range(3)] for child in range(10)]
        codes = [forked(own, part, new=3) for part in texts]
        ended.set()
        for future in writing:
            future.result(60)
    assert codes == [0] * 10
    assert check(own, [text for part in texts for text in part]) == 0
    for cached in (*made, own):
        cached.close()
    for file in paths:
        with sqlite3.connect(file) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        db.close()


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:41 / /home rw,relatime shared:1 - nfs4 server:/home rw,vers=4.2
31 30 8:2 / /home/me/my\\040disk rw,relatime - xfs /dev/sdb1 rw
"""


def test_a_network_disk_is_known_by_its_mount():
    assert filesystem("/home/me/.cache", MOUNTS) == "nfs4"
    assert filesystem("/home/me/my disk/x", MOUNTS) == "xfs"
    assert filesystem("/homework", MOUNTS) == "ext4"
    assert network_filesystem(Path(__file__)) is None or sys.platform == "linux"
