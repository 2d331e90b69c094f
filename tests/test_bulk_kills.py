"""Killed at any moment and started again: the bytes of an undisturbed run; and whatever else befalls a folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from bge_integrations.bulk import embed_files, read_shards
from bge_integrations.errors import ConfigError
from encoders import HashEncoder, WordsEncoder

pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")]

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
SHARD_ROWS = 10


@pytest.fixture
def rows(tmp_path) -> Path:
    """25 rows, two of them bad, so that there are errors to note too."""
    lines = [{"text": f"text {i}", "n": i} if i not in (3, 17) else {"text": " "} for i in range(25)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def undisturbed(rows, tmp_path) -> dict[str, bytes]:
    embed_files(str(rows), tmp_path / "undisturbed", HashEncoder(), shard_rows=SHARD_ROWS)
    return contents(tmp_path / "undisturbed")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Forks a child for each moment: right before the nth time that something is made to last. A process that is killed
# right after an fsync leaves the same files.
MOMENTS = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import orjson, pyarrow.parquet
    pyarrow.array(["imports more"])  # once, for all children
    import encoders
    from bge_integrations.bulk import embed_files
    from killing import die_at

    rows, root, made, *options = sys.argv[1:]
    options = eval(*options)

    for name in ("fsync", "replace", "truncate"):
        for moment in range(1, 40):
            folder = Path(root) / f"{name}-{moment}"
            child = os.fork()
            if not child:
                die_at(os, name, moment, after=False)
                embed_files(rows, folder, getattr(encoders, made)(), shard_rows=10, **options)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
""")


@pytest.mark.parametrize(
    ("made", "options"),
    [(HashEncoder, {}), (WordsEncoder, {"format": "numpy", "outputs": ("dense", "sparse")})],
    ids=["parquet", "sparse-numpy"],
)
def test_killed_around_every_lasting_step(made, options, rows, tmp_path):
    embed_files(str(rows), tmp_path / "undisturbed", made(), shard_rows=SHARD_ROWS, **options)
    undisturbed = contents(tmp_path / "undisturbed")
    root = tmp_path / "killed"
    root.mkdir()
    command = [sys.executable, "-c", MOMENTS, str(rows), str(root), made.__name__, repr(options)]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=100)
    folders = sorted(root.iterdir())
    assert len(folders) > 12 + 3
    for folder in folders:
        before = contents(folder)
        again = made()
        report = embed_files(str(rows), folder, again, shard_rows=SHARD_ROWS, **options)
        assert contents(folder) == undisturbed, folder.name
        whole = {name for name in before if name.endswith((".parquet", ".npy", ".npz"))}
        assert all(before[name] == undisturbed[name] for name in whole), folder.name
        assert len(again.sent) <= 23 - 10 * max(report.resumed - 1, 0)


CHILD = textwrap.dedent("""
    import sys
    from encoders import HashEncoder
    from bge_integrations.bulk import embed_files
    source = "-" if sys.argv[1] == "-" else sys.argv[1]
    embed_files(source, sys.argv[2], HashEncoder(batch=5, delay=float(sys.argv[3])), shard_rows=10)
""")


def child(source, folder: Path, delay: float, **more) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(source), str(folder), str(delay)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, **more)


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_in_the_middle_of_embedding_only_the_rest_is_embedded(rows, undisturbed, tmp_path):
    out = tmp_path / "out"
    with child(rows, out, 0.05) as process:
        wait_for(lambda: (out / "part-000001.parquet").exists(), process)
        process.kill()
    noted = len((out / ".manifest.jsonl").read_text().splitlines()) - 1
    again = HashEncoder()
    report = embed_files(str(rows), out, again, shard_rows=SHARD_ROWS)
    assert report.resumed == noted >= 1
    assert again.sent == [f"text {i}" for i in range(25) if i not in (3, 17) and i >= noted * SHARD_ROWS]
    assert contents(out) == undisturbed


def test_two_processes_at_one_folder_are_refused(rows, undisturbed, tmp_path):
    out = tmp_path / "out"
    with child(rows, out, 5) as process:
        wait_for(lambda: (out / ".manifest.jsonl").exists() and (out / ".manifest.jsonl").stat().st_size, process)
        other = HashEncoder()
        with pytest.raises(ConfigError, match="another process is writing into"):
            embed_files(str(rows), out, other, shard_rows=SHARD_ROWS)
        assert not other.sent
        process.kill()
    embed_files(str(rows), out, HashEncoder(), shard_rows=SHARD_ROWS)
    assert contents(out) == undisturbed


def test_standard_input_is_resumed_by_the_digest_of_its_rows(rows, undisturbed, tmp_path):
    out = tmp_path / "out"
    with child("-", out, 0.05, stdin=subprocess.PIPE) as process:
        process.stdin.write(rows.read_bytes())
        process.stdin.close()
        wait_for(lambda: (out / "part-000001.parquet").exists(), process)  # so that the first is noted
        process.kill()
    changed = rows.read_bytes().replace(b"text 5", b"text five")
    with child("-", out, 0, stdin=subprocess.PIPE) as process:
        _, told = process.communicate(changed, timeout=60)
    assert b"rows of shard 0" in told
    with child("-", out, 0, stdin=subprocess.PIPE) as process:
        _, told = process.communicate(rows.read_bytes(), timeout=60)
    assert process.returncode == 0, told
    shards = {name: data for name, data in contents(out).items() if name.endswith("parquet")}
    assert shards == {name: data for name, data in undisturbed.items() if name.endswith("parquet")}


def test_the_command_with_a_real_model_killed_and_resumed(demo, tmp_path):
    rows, out, undisturbed = tmp_path / "rows.jsonl", tmp_path / "out", tmp_path / "undisturbed"
    rows.write_text("".join(json.dumps({"text": f"text {i} " + "and more " * (i % 7)}) + "\n" for i in range(800)))
    main = "import sys; from bge_integrations.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "embed", str(rows), "--model", "demo", "--shard-rows", "100"]
    with subprocess.Popen([*command, "-o", str(out)], env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        wait_for(lambda: (out / "part-000001.parquet").exists(), process)
        process.kill()
    assert not (out / "part-000007.parquet").exists()
    assert embed_files(str(rows), out, demo, shard_rows=100).resumed >= 1
    embed_files(str(rows), undisturbed, demo, shard_rows=100)
    assert contents(out) == contents(undisturbed)


# The disk


@contextmanager
def largest_file(size: int):
    """The system's own way to refuse to write: files end at so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("room", [100, 1000, 2000])
def test_a_file_that_cannot_grow_ends_the_job_and_loses_nothing(room, rows, undisturbed, tmp_path):
    out = tmp_path / "out"
    with largest_file(room), pytest.raises(ConfigError, match=r"cannot write into .*File too large"):
        embed_files(str(rows), out, HashEncoder(), shard_rows=SHARD_ROWS)
    assert not list(out.glob("*.partial"))
    embed_files(str(rows), out, HashEncoder(), shard_rows=SHARD_ROWS)
    assert contents(out) == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], check=False).returncode
    ):
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_job_and_loses_nothing(rows, undisturbed, small_disk):
    out, ballast = small_disk / "out", small_disk / "ballast"
    ballast.write_bytes(b"x" * 8192)
    with pytest.raises(ConfigError, match=r"cannot write into .*No space left"):
        embed_files(str(rows), out, HashEncoder(), shard_rows=SHARD_ROWS)
    assert not list(out.glob("*.partial"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    again = HashEncoder()
    report = embed_files(str(rows), out, again, shard_rows=SHARD_ROWS)
    assert len(again.sent) == 23 - sum(1 for i in range(25) if i < 10 * report.resumed and i not in (3, 17))
    assert contents(out) == undisturbed


def test_a_folder_that_cannot_be_made_is_said(rows, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write into"):
        embed_files(str(rows), tmp_path / "file" / "out", HashEncoder())


def test_a_shard_that_went_missing_or_was_cut_is_made_again(rows, undisturbed, tmp_path):
    out = tmp_path / "out"
    embed_files(str(rows), out, HashEncoder(), shard_rows=SHARD_ROWS)
    (out / "part-000001.parquet").unlink()
    with pytest.raises(ConfigError, match=r"'part-000001.parquet' is missing"):
        list(read_shards(out))
    os.truncate(out / "part-000002.parquet", 100)
    again = HashEncoder()
    report = embed_files(str(rows), out, again, shard_rows=SHARD_ROWS)
    assert (report.resumed, report.shards, report.rows, report.errors) == (1, 3, 25, 2)
    assert again.sent == [f"text {i}" for i in range(10, 25) if i != 17]
    assert contents(out) == undisturbed
