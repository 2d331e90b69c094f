"""What the cache lives through: kills, full disks, damaged files, many writers, forks."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from bge_integrations.cache import CachedEncoder, SQLiteStore, info
from bge_integrations.errors import RepairWarning
from bge_integrations.wrappers.cache.place import filesystem, network_filesystem
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


def kept(path):
    return sorted(file for file in path.parent.iterdir() if ".corrupt-" in file.name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"this is no database at all, but somebody's notes",
        lambda good: b"\0" * len(good),
        lambda good: random.Random(1).randbytes(len(good)),
        lambda good: random.Random(1).randbytes(100) + good[100:],
        lambda good: good[:100] + random.Random(1).randbytes(4000) + good[4100:],
        lambda good: good[: len(good) // 3],
    ],
    ids=["a text file", "zeros", "noise", "a lost header", "a lost schema", "cut short"],
)
def test_a_damaged_file_is_set_aside_with_one_warning_and_never_deleted(path, damage):
    bad = damage(filled(path))
    path.write_bytes(bad)
    with CachedEncoder(HashEncoder(), path) as cached:
        sent, said = check_quietly(cached)
        assert sent > 0
        assert [warning.category for warning in said] == [RepairWarning]
        assert "set aside" in str(said[0].message)
        assert check(cached) == 0
    assert [file.read_bytes() for file in kept(path)] == [bad]
    assert info(path)["set_aside"] == [str(file) for file in kept(path)]


def test_flipped_bytes_anywhere_cost_hits_and_never_a_wrong_vector(path):
    good, rng = filled(path), random.Random(3)
    places = [*range(0, 100, 7), *(rng.randrange(100, 8192) for _ in range(10))]
    places += [rng.randrange(len(good)) for _ in range(25)]
    for place in places:
        for file in path.parent.iterdir():
            file.unlink()
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        with CachedEncoder(HashEncoder(), path) as cached:
            _, said = check_quietly(cached)
            assert [warning.category for warning in said] in ([], [RepairWarning]), place
            check_quietly(cached, TEXTS[:50])


def test_a_row_with_a_flipped_byte_is_a_miss_and_is_written_again(path):
    filled(path)
    with sqlite3.connect(path) as db:
        row = db.execute("SELECT value FROM vectors WHERE id = 5").fetchone()[0]
        db.execute("UPDATE vectors SET value = ? WHERE id = 5", (row[:20] + bytes([row[20] ^ 1]) + row[21:],))
        db.execute("UPDATE vectors SET value = (SELECT value FROM vectors WHERE id = 8) WHERE id = 7")
    db.close()
    with CachedEncoder(HashEncoder(), path) as cached:
        assert check(cached) == 2
        assert cached.inner.sent == [TEXTS[4], TEXTS[6]]
        assert check(cached) == 0


def test_two_encoders_of_one_process_agree_on_a_damaged_file(path):
    filled(path)
    made = [CachedEncoder(HashEncoder(), path) for _ in range(2)]
    for cached in made:
        assert check(cached) == 0
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))  # under their hands, on the same inode
    for cached in made:
        cached.store.store._db.execute("PRAGMA shrink_memory")  # what SQLite still holds of it is good
    for cached in made:
        check_quietly(cached, TEXTS[:50])
    assert len(kept(path)) == 1
    for cached in made:
        assert check_quietly(cached, TEXTS[:50])[0] == 0
        cached.close()


HOLDER = """
import sys
from bge_integrations.cache import SQLiteStore
store = SQLiteStore(sys.argv[1])
store.get_many([b"x" * 20])
print("open", flush=True)
sys.stdin.read()
"""


@posix
def test_a_damaged_file_stays_while_another_process_has_it_open(path):
    filled(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        with path.open("r+b") as file:
            file.write(random.Random(1).randbytes(5000))
        with CachedEncoder(HashEncoder(), path) as cached:
            _, said = check_quietly(cached)
        assert [warning.category for warning in said] == [RepairWarning]
        assert kept(path) == []
        holder.stdin.close()
        holder.wait(30)
    with CachedEncoder(HashEncoder(), path) as cached:
        check_quietly(cached)
        assert check(cached) == 0
    assert len(kept(path)) == 1


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
    assert kept(path) == []


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


def child_of_fork(cached, texts):
    os._exit(0 if check(cached, texts) == 0 and len(cached.inner.calls) == 0 else 1)


def forked(cached, texts):
    """Return a child's exit status, killing one that hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads
        pid = os.fork()
    if pid == 0:
        try:
            child_of_fork(cached, texts)
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
