"""An update that is killed at any moment and run again: the bytes of an undisturbed one, and never a mixture before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bge_integrations.bulk import Columns, embed_files, read_shards
from bge_integrations.errors import ConfigError
from encoders import HashEncoder, WordsEncoder

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")]

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
COLUMNS = Columns(id="id", keep=("n",))
OLD = [{"id": f"k{i}", "text": f"text {i}" if i != 17 else " ", "n": i} for i in range(25)]
NEW = [
    *OLD[:12],
    {"id": "k12", "text": "another", "n": 12},
    {"id": "k13", "text": "text 13", "n": -1},
    {"id": "k16", "text": "text 18", "n": 1},  # repeated, and its last row is one that is there
    *OLD[16:20],
    {"id": "bad", "text": "", "n": 0},
    *({"id": f"new{i}", "text": f"new {i}", "n": i} for i in range(12)),
    {"id": "k1", "text": "text 18", "n": 1},
]

# Forks a child for each moment: right before, or right after, the nth time that something is made to last. A process
# that is killed after fsync leaves the files that one leaves before it.
MOMENTS = textwrap.dedent("""
    import os, shutil, signal, sys
    from pathlib import Path
    import orjson, pyarrow.parquet
    pyarrow.array(["imports more"])  # once, for all children
    import encoders
    from bge_integrations.bulk import Columns, embed_files
    from killing import die_at

    rows, base, root, made, options, steps = sys.argv[1:]
    options = eval(options)

    for name, after in ((step, after) for step in steps.split() for after in {False, step != "fsync"}):
        for moment in range(1, 80):
            folder = Path(root) / f"{name}-{'after' if after else 'before'}-{moment}"
            shutil.copytree(base, folder)
            child = os.fork()
            if not child:
                die_at(os, name, moment, after=after)
                embed_files(rows, folder, getattr(encoders, made)(), shard_rows=10, update=True,
                            columns=Columns(id="id", keep=("n",)), **options)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
""")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def update(source, folder, encoder=None, **options):
    options = {"columns": COLUMNS, "shard_rows": 10, **options}
    return embed_files(str(source), folder, encoder or HashEncoder(), update=True, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def rows_of(folder: Path) -> list[tuple]:
    """Return what the folder's manifest says is there."""
    return sorted(
        (name, text, n)
        for part in read_shards(folder)
        for name, text, n in zip(part.ids, part.texts, part.kept["n"], strict=True)
    )


def rows_in(folder: Path) -> list[tuple] | None:
    """Return what a reader of the folder's data set takes, or None where it fails."""
    try:
        table = parquet.read_table(folder)
    except (pyarrow.ArrowInvalid, OSError):
        return None
    return sorted(zip(*(table[name].to_pylist() for name in ("id", "text", "n")), strict=True))


def expected(rows) -> list[tuple]:
    return sorted((row["id"], row["text"], row["n"]) for row in rows if row["text"].strip())


def killed(source, base, root, made, options, steps="fsync replace unlink rmdir mkdir") -> list[Path]:
    """Return copies of a folder, in each of which an update was killed at another moment."""
    root.mkdir()
    command = [sys.executable, "-c", MOMENTS, *map(str, (source, base, root)), made.__name__, repr(options), steps]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=250)
    return sorted(root.iterdir())


@pytest.mark.parametrize(
    ("made", "options"),
    [(HashEncoder, {}), (WordsEncoder, {"format": "numpy", "outputs": ("dense", "sparse")})],
    ids=["parquet", "sparse-numpy"],
)
@pytest.mark.timeout(300)
def test_killed_around_every_lasting_step(made, options, tmp_path):
    source, base, root = write(tmp_path / "rows.jsonl", OLD), tmp_path / "base", tmp_path / "killed"
    update(source, base, made(), **options)
    write(source, NEW)
    shutil.copytree(base, tmp_path / "undisturbed")
    update(source, tmp_path / "undisturbed", made(), **options)
    undisturbed = contents(tmp_path / "undisturbed")
    folders = killed(source, base, root, made, options)
    assert len(folders) > 50
    seen = set()
    for folder in folders:
        states = {"old": expected(OLD), "new": expected(NEW)}
        found = next((name for name, rows in states.items() if rows_of(folder) == rows), "mixture")
        assert found in states, folder.name
        if not options:
            listed = rows_in(folder)
            assert listed in (None, *states.values()), folder.name
            seen.add((found, listed is None))
        staged = list((folder / ".bge-update").glob("*.[pn]*y*"))
        again = made()
        update(source, folder, again, **options)
        assert contents(folder) == undisturbed, folder.name
        assert not (folder / ".bge-update").exists()
        if found == "new" or len(staged) > 2:
            assert len(again.sent) < 13
    # Who lists the folder fails in the middle of it, whichever state the manifest is in.
    assert options or seen == {("old", False), ("old", True), ("new", True), ("new", False)}


def test_killed_while_it_merges_small_shards(tmp_path):
    source, base, rows = tmp_path / "rows.jsonl", tmp_path / "base", OLD[:10]
    for i in range(10):
        update(write(source, rows), base)
        rows = [*rows, {"id": f"more{i}", "text": f"more {i}", "n": i}]
    write(source, rows)
    shutil.copytree(base, tmp_path / "undisturbed")
    update(source, tmp_path / "undisturbed")
    undisturbed = contents(tmp_path / "undisturbed")
    assert [len(list(folder.glob("*.parquet"))) for folder in (base, tmp_path / "undisturbed")] == [10, 2]
    states, seen = (expected(rows[:-1]), expected(rows)), set()
    for folder in killed(source, base, tmp_path / "killed", HashEncoder, {}, "replace unlink"):
        found, listed = rows_of(folder), rows_in(folder)
        assert found in states, folder.name
        assert listed in (None, *states), folder.name
        seen.add((states.index(found), listed is None))
        again = HashEncoder()
        update(source, folder, again)
        assert contents(folder) == undisturbed, folder.name
        assert len(again.sent) < 2
    assert {(0, True), (1, True)} <= seen  # in the midst of it, on both sides of the manifest


CHILD = textwrap.dedent("""
    import sys
    from encoders import HashEncoder
    from bge_integrations.bulk import Columns, embed_files
    embed_files(sys.argv[1], sys.argv[2], HashEncoder(batch=5, delay=float(sys.argv[3])), shard_rows=10, update=True,
                columns=Columns(id="id", keep=("n",)))
""")


def child(source, folder, delay: float) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(source), str(folder), str(delay)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)


def test_what_was_embedded_before_a_kill_is_not_embedded_again(tmp_path):
    more = [{"id": f"m{i}", "text": f"more {i}", "n": i} for i in range(50)]
    source, out = write(tmp_path / "rows.jsonl", OLD), tmp_path / "out"
    update(source, out)
    shutil.copytree(out, tmp_path / "undisturbed")
    write(source, [*OLD, *more])
    update(source, tmp_path / "undisturbed")
    with child(source, out, 0.1) as process:
        staging = out / ".bge-update"
        while len(list(staging.glob("*.parquet"))) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    again = HashEncoder()
    update(source, out, again)
    assert 0 < len(again.sent) <= 40
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_two_updates_of_one_folder_are_refused_and_the_lock_moves_with_the_manifest(tmp_path):
    source, out = write(tmp_path / "rows.jsonl", OLD), tmp_path / "out"
    update(source, out)
    write(source, NEW)
    with child(source, out, 3) as process:
        while not (out / ".bge-update").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        with pytest.raises(ConfigError, match="another process is writing into"):
            update(source, out)
        process.kill()
    update(source, out)
    assert rows_of(out) == expected(NEW)


def test_readers_meanwhile_see_one_state_or_an_error(tmp_path):
    source, out = write(tmp_path / "rows.jsonl", OLD), tmp_path / "out"
    update(source, out)
    states, stop, found = (expected(OLD), expected(NEW)), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            with suppress(ConfigError, FileNotFoundError):
                found.append(rows_of(out))
            with suppress(FileNotFoundError):
                found.append(rows_in(out) or states[0])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(6):
        update(write(source, OLD if turn % 2 else NEW), out)
    stop.set()
    for reader in readers:
        reader.join()
    assert found
    assert all(rows in states for rows in found)
