"""Many machines give what one gives, each id once, whoever is killed: on a real Ray cluster of two nodes of one CPU."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import bge_integrations
from bge_integrations import load_encoder
from bge_integrations.bulk import embed_files
from bge_integrations.bulk.folder import read_manifest
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, HostUnavailableError, InputError, SpaceMismatchError
from bge_integrations.ray import (
    BGEBatchEncoder,
    RayShards,
    Workers,
    Written,
    embed_dataset,
    make_predict_fn,
    plan_workers,
)
from bge_integrations.ray.files import Folder, Writer, find_finished
from bge_integrations.ray.placement import plan_tasks
from encoders import HashEncoder
from ray_jobs import ROWS, Alone, Deadly, Halting, columns, cores_of_a_worker, dataset, number, texts_in

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("ray.data", reason="Ray is installed without its data part")
parquet = pytest.importorskip("pyarrow.parquet")
cloudpickle = pytest.importorskip("ray.cloudpickle")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(150),
    # Ray leaves sockets and files of its own to the garbage collector, and warns of its own future.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]

STORE = 100_000_000
# Workers and drivers import ray_jobs from here, and the package from where it was imported here.
PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), str(Path(bge_integrations.__file__).parents[1])])


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def workers_in(diary: Path) -> list[int]:
    return [pid for pid in (int(path.name) for path in diary.iterdir()) if alive(pid)]


def files(folder: Path) -> list[Path]:
    return list(folder.glob("part-*.parquet"))


def go(folder: Path) -> None:
    (folder / "go").touch()


def until(reached, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "what the test waits for did not come"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, in processes of their own; whatever is left of them is killed at the end."""
    # Unix sockets lie in it, so its name must be short.
    folder = tempfile.mkdtemp(prefix="bge-ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        patch.setenv("RAY_TMPDIR", folder)  # where the cluster's address is noted, in its folder "ray"
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DEDUP_LOGS", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        about = {"num_cpus": 1, "object_store_memory": STORE}
        # A lost node is noticed after five failed checks; a slow one still has ten seconds for each.
        quick = {"health_check_period_ms": 500}
        head = {**about, "include_dashboard": False, "temp_dir": f"{folder}/ray", "_system_config": quick}
        cluster = Cluster(True, head_node_args=head)
        try:
            cluster.add_node(**about)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield cluster
        finally:
            processes = [
                each.process for node in cluster.list_all_nodes() for all in node.all_processes.values() for each in all
            ]
            with suppress(Exception):
                ray.shutdown()
            with suppress(Exception):
                cluster.shutdown()
            for process in processes:
                if process.poll() is None:
                    process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def write_lines(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": f"k{i}", "text": f"text {i}", "n": i}) + "\n" for i in range(ROWS)))
    return path


@pytest.fixture
def diary(tmp_path) -> Path:
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder


def check(folder: Path, encoder, rows: int = ROWS) -> None:
    """Each id once, and the vectors that one machine makes."""
    table = parquet.read_table(sorted(files(folder)))
    order = sorted(range(table.num_rows), key=lambda i: int(table["id"][i].as_py()[1:]))
    table = table.take(order)
    assert table["id"].to_pylist() == [f"k{i}" for i in range(rows)]
    wanted = encoder.encode([f"text {i}" for i in range(rows)], role="document")
    assert np.sum(np.array(table["embedding"].to_pylist()) * wanted, axis=1).min() >= 0.99999
    assert json.loads(table.schema.metadata[b"bge_stamp"]) == encoder.stamp()
    assert not list(folder.glob("*.partial"))


# Batches


def batch(*texts, **columns) -> dict[str, np.ndarray]:
    return {"text": np.array(texts, object), "n": np.arange(len(texts)), **columns}


def test_a_batch_keeps_its_columns_and_rows_and_gains_vectors(demo):
    out = BGEBatchEncoder("demo", role="document")(batch("one", "two"))
    assert list(out) == ["text", "n", "embedding"]
    assert out["n"].tolist() == [0, 1]
    assert (out["embedding"].dtype, out["embedding"].shape) == (np.float32, (2, 256))
    assert np.allclose(out["embedding"], demo.encode(["one", "two"], role="document"), atol=1e-6)


@pytest.mark.parametrize("errors", [None, "why"])
def test_an_empty_batch_stays_one(errors):
    out = BGEBatchEncoder("demo", role="document", errors=errors)(batch())
    assert (out["embedding"].dtype, out["embedding"].shape) == (np.float32, (0, 256))
    assert all(len(column) == 0 for column in out.values())


def test_a_bad_row_is_an_error_with_its_position():
    with pytest.raises(InputError, match="text 1") as caught:
        BGEBatchEncoder("demo", role="document")(batch("one", None))
    assert caught.value.positions == (1,)


def test_with_an_error_column_bad_rows_say_why_and_the_others_are_embedded(demo):
    out = BGEBatchEncoder("demo", role="document", errors="why")(batch("one", None, "  ", 7, float("nan"), "two"))
    assert out["why"].tolist() == ["", "no text", "blank", "int, not text", "no text", ""]
    assert np.isnan(out["embedding"]).all(axis=1).tolist() == [False, True, True, True, True, False]
    assert np.allclose(out["embedding"][[0, 5]], demo.encode(["one", "two"], role="document"), atol=1e-6)


def test_what_the_encoder_refuses_is_noted_too():
    out = BGEBatchEncoder("demo", role="document", errors="why", truncate="error")(batch("one", "word " * 5000, "two"))
    assert "longer than" in out["why"][1]
    assert np.isnan(out["embedding"]).all(axis=1).tolist() == [False, True, False]


def test_a_failing_host_is_not_a_bad_row():
    encoder = BGEBatchEncoder(
        "bge-small", role="document", base_url="http://127.0.0.1:9", max_retries=0, timeout=60, errors="why"
    )
    with pytest.raises(HostUnavailableError):
        encoder(batch("one", "two"))


def test_mistakes_show_where_it_is_made():
    with pytest.raises(ConfigError, match="no model"):
        BGEBatchEncoder("no-such-model", role="document")
    with pytest.raises(ConfigError, match="keys are not sent"):
        BGEBatchEncoder("demo", role="document", api_key="secret")
    with pytest.raises(ConfigError, match="three columns"):
        BGEBatchEncoder("demo", role="document", text="a", embedding="a")
    with pytest.raises(ConfigError, match="no column 'text'"):
        BGEBatchEncoder("demo", role="document")({"body": np.array(["a"])})
    with pytest.raises(ConfigError, match="already has a column 'n'"):
        BGEBatchEncoder("demo", role="document", embedding="n")(batch("a"))


def test_pickled_without_key_and_model_it_finds_the_workers_key(monkeypatch):
    monkeypatch.setenv("DEEPINFRA_TOKEN", "of the driver")
    encoder = BGEBatchEncoder("bge-base-en-v1.5", role="document", provider="deepinfra")
    local = BGEBatchEncoder("demo", role="document")
    local(batch("one"))
    raw = pickle.dumps([encoder, local])
    assert b"of the driver" not in raw
    assert len(raw) < 10_000
    monkeypatch.setenv("DEEPINFRA_TOKEN", "of the worker")
    assert pickle.loads(raw)[0].encoder.endpoint.key() == "of the worker"


def test_copies_in_one_process_share_the_model():
    first = BGEBatchEncoder("demo", role="document")
    second = pickle.loads(pickle.dumps(first))
    assert second.loaded() is first.loaded()
    assert BGEBatchEncoder("demo", role="document").loaded() is not first.loaded()


# Spark


def test_predict_fn_as_spark_calls_it(demo):
    make = cloudpickle.loads(cloudpickle.dumps(partial(make_predict_fn, "demo", role="document")))
    predict = cloudpickle.loads(cloudpickle.dumps(make()))
    for column in (np.array(["one", "two"], object), np.array(["one", "two"])):
        vectors = predict(column)
        assert (vectors.dtype, vectors.shape) == (np.float32, (2, 256))
        assert np.allclose(vectors, demo.encode(["one", "two"], role="document"), atol=1e-6)
    assert predict(np.array([], object)).shape == (0, 256)
    with pytest.raises(InputError):
        predict(np.array(["one", None], object))


def test_predict_fn_of_queries(demo):
    vectors = make_predict_fn("demo", role="query")(np.array(["one"], object))
    assert np.allclose(vectors, demo.encode(["one"], role="query"), atol=1e-6)


# Placement


@pytest.mark.parametrize(
    ("nodes", "given", "planned"),
    [
        ([{"CPU": 2}], {}, Workers(2, 0, 0)),
        ([{"CPU": 1}, {"CPU": 1}], {}, Workers(2, 0, 0)),
        ([{"CPU": 8}], {}, Workers(7, 1, 0)),
        ([{"CPU": 64}, {"CPU": 64}], {}, Workers(112, 1, 0)),
        ([{"CPU": 64}], {"workers": 4, "num_cpus": 8}, Workers(4, 8, 0)),
        ([{"CPU": 64}], {"num_cpus": 8}, Workers(7, 8, 0)),
        ([{"CPU": 32, "GPU": 4}, {"CPU": 16}], {}, Workers(4, 0, 1)),
        ([{"CPU": 32, "GPU": 4}], {"num_gpus": 0.5}, Workers(8, 0, 0.5)),
        ([{"CPU": 32, "GPU": 4}], {"local": False}, Workers(1, 0, 0)),
    ],
)
def test_workers_leave_room_to_read_and_write(nodes, given, planned):
    assert plan_workers(nodes, **{"local": True, **given}) == planned


@pytest.mark.parametrize("given", [{"workers": 2, "num_cpus": 1}, {"num_gpus": 1}, {"workers": 0}, {"workers": -1}])
def test_what_has_no_room_is_refused(given):
    with pytest.raises(ConfigError):
        plan_workers([{"CPU": 2}], local=True, **given)


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_tasks_than_one_are_refused(workers):
    with pytest.raises(ConfigError, match="at least 1"):
        plan_tasks([{"CPU": 2}], local=True, workers=workers)


def test_tasks_take_the_whole_cluster():
    assert plan_tasks([{"CPU": 2}, {"CPU": 4, "GPU": 1}], local=True, num_gpus=0) == Workers(6, 1, 0)
    assert plan_tasks([{"CPU": 2}, {"CPU": 4, "GPU": 1}], local=True) == Workers(1, 0, 1)
    with pytest.raises(ConfigError, match="no machine"):
        plan_tasks([{"CPU": 2}], local=True, num_cpus=4)


def test_a_cluster_that_is_not_there_is_missed_at_once(rows, tmp_path, capsys):
    arguments = ["embed", str(rows), "-o", str(tmp_path / "out"), "--model", "demo"]
    assert main([*arguments, "--on", "ray", "--address", "127.0.0.1:9"]) == 2
    assert "no Ray cluster at '127.0.0.1:9'" in capsys.readouterr().err
    assert main([*arguments, "--address", "127.0.0.1:9"]) == 2
    assert "--on ray" in capsys.readouterr().err
    assert main([*arguments, "--on", "ray", "--api-key", "secret"]) == 2
    assert "is not sent" in capsys.readouterr().err


# The bundled model, first: workers that have loaded it are used again, and the kills come later


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is one thread anyway")
def test_a_worker_computes_with_the_cores_it_was_granted(cluster):
    assert ray.get(ray.remote(num_cpus=1)(cores_of_a_worker).remote(), timeout=60) == (1, 1)


def test_files_on_the_cluster_are_those_of_one_machine(cluster, rows, tmp_path, demo):
    seen: list[int] = []
    encoder = load_encoder("demo")
    options = {"columns": columns(), "shard_rows": 40, "on_progress": lambda report: seen.append(report.embedded)}
    report = embed_files(str(rows), tmp_path / "ray", encoder, on=RayShards, **options)
    embed_files(str(rows), tmp_path / "one", demo, columns=columns(), shard_rows=40)
    assert (report.rows, report.shards, seen[-1], encoder.usage.texts) == (ROWS, 4, ROWS, ROWS)
    assert encoder.usage.tokens > 0
    manifests = [(tmp_path / name / ".manifest.jsonl").read_bytes() for name in ("ray", "one")]
    assert manifests[0] == manifests[1]
    check(tmp_path / "ray", demo)


def test_long_texts_on_the_cluster_are_one_warning_here(cluster, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ["word " * 5000 if i % 20 == 7 else f"text {i}" for i in range(60)])
    with pytest.warns(UserWarning, match="3 of 60 texts are longer") as caught:
        embed_files(source, tmp_path / "out", load_encoder("demo"), shard_rows=20, on=RayShards)
    assert len(caught) == 1


def test_rows_that_the_encoder_refuses_on_the_cluster_have_the_place_of_the_input(cluster, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", ["word " * 5000 if i == 26 else f"text {i}" for i in range(40)])
    encoder = load_encoder("demo", truncate="error")
    report = embed_files(source, tmp_path / "out", encoder, shard_rows=10, on=RayShards)
    assert (report.rows, report.errors) == (40, 1)
    assert json.loads((tmp_path / "out" / ".errors.jsonl").read_text())["line"] == 27
    with pytest.raises(InputError, match=r"line 27 of .*in.jsonl': longer than"):
        embed_files(source, tmp_path / "stop", encoder, shard_rows=10, on=RayShards, on_error="stop")
    assert len(files(tmp_path / "stop")) == 2


def test_bge_embed_on_ray_is_bge_embed(cluster, rows, tmp_path, demo, capsys):
    arguments = ["embed", str(rows), "--id", "id", "--keep", "n", "--shard-rows", "60", "--model", "demo"]
    assert main([*arguments, "-o", str(tmp_path / "ray"), "--on", "ray", "--address", cluster.address]) == 0
    assert main([*arguments, "-o", str(tmp_path / "one")]) == 0
    there, here = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("ray", "one"))
    assert there == here
    assert (tmp_path / "ray" / ".manifest.jsonl").read_bytes() == (tmp_path / "one" / ".manifest.jsonl").read_bytes()
    check(tmp_path / "ray", demo)


# Datasets


def test_a_dataset_on_two_nodes_is_one_machines(cluster, tmp_path, demo):
    folder = tmp_path / "out"
    assert embed_dataset(dataset(), str(folder), model="demo", block_rows=50) == Written(ROWS, 0, 3)
    check(folder, demo)
    assert parquet.read_schema(files(folder)[0]).names == ["id", "text", "n", "embedding"]
    with pytest.raises(SpaceMismatchError, match="another folder"):
        embed_dataset(dataset(), str(folder), encoder=HashEncoder())


def test_without_a_folder_it_is_a_dataset_with_vectors(cluster):
    items = [{"text": text} for text in ("one", "", "two")]
    made = embed_dataset(ray.data.from_items(items), encoder=HashEncoder(), errors="why").take_all()
    found = {row["text"]: row for row in made}
    assert {text: row["why"] for text, row in found.items()} == {"one": "", "": "blank", "two": ""}
    assert np.allclose(found["two"]["embedding"], HashEncoder().encode(["two"], role="document")[0], atol=1e-6)


def test_a_job_that_was_thought_dead_writes_nothing_any_more(tmp_path):
    first, second = (Folder(str(tmp_path), "id", "embedding", HashEncoder().stamp()) for _ in range(2))
    assert find_finished(first).rows == 0
    assert Writer(first)(vectors(0))["rows"].tolist() == [1]
    assert find_finished(second).rows == 1
    with pytest.raises(ConfigError, match="taken over"):
        Writer(first)(vectors(1))
    Writer(second)(vectors(1))
    assert find_finished(second).rows == 2


def test_what_a_lost_machine_left_half_written_goes_and_whole_files_stay(tmp_path):
    place = Folder(str(tmp_path), "id", "embedding", HashEncoder().stamp())
    place.take()
    Writer(place)(vectors(0))
    (tmp_path / f".bge-{32 * '0'}-of-a-lost-machine.parquet.partial").write_bytes(b"PAR1")
    old = f".part-{24 * 'a'}.parquet.{32 * 'b'}.partial"  # of version 0.1
    (tmp_path / old).write_bytes(b"PAR1")
    assert place.clear() == [str(path) for path in files(tmp_path)]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["film.partial", "part-1.parquet", "data.csv", ".part-of-mine.partial"])
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_was(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match="did not write"):
        find_finished(Folder(str(tmp_path), "id", "embedding", HashEncoder().stamp()))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def vectors(id: int):
    import pyarrow
    from ray.data.extensions import ArrowTensorArray

    return pyarrow.table({"id": [id], "embedding": ArrowTensorArray.from_numpy(np.ones((1, 4), np.float32))})


def in_background(work) -> tuple[threading.Thread, list]:
    outcome: list = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - shown by the assertion on the outcome
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def test_a_dataset_whose_worker_is_killed(cluster, tmp_path, diary):
    folder, encoder = tmp_path / "out", Halting(diary, until=40)
    job, outcome = in_background(lambda: embed_dataset(dataset(), str(folder), encoder=encoder, block_rows=10))
    until(lambda: len(files(folder)) >= 2 and len(texts_in(diary)) > 40)
    os.kill(workers_in(diary)[0], signal.SIGKILL)
    go(tmp_path)
    job.join(100)
    assert outcome == [Written(ROWS, 0, ROWS // 10)]
    check(folder, HashEncoder())


@pytest.fixture
def third_node(cluster):
    cluster.add_node(num_cpus=1, object_store_memory=STORE)


def node_at_work(cluster, diary: Path):
    """Return a node, not the head, of which a process is at work: a descendant of its raylet."""
    families = {pid for worker in workers_in(diary) for pid in ancestors(worker)}
    return next(
        (n for n in cluster.worker_nodes if families & {p.process.pid for p in n.all_processes["raylet"]}), None
    )


def ancestors(pid: int):
    while pid > 1:
        yield pid
        with suppress(OSError):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            continue
        return


def test_a_dataset_whose_node_is_lost(cluster, third_node, tmp_path, diary):
    folder, encoder = tmp_path / "out", Halting(diary, until=50)
    job, outcome = in_background(
        lambda: embed_dataset(dataset(), str(folder), encoder=encoder, block_rows=10, workers=3)
    )
    until(lambda: files(folder) and node_at_work(cluster, diary) and len(texts_in(diary)) > 50)
    cluster.remove_node(node_at_work(cluster, diary), allow_graceful=False)
    go(tmp_path)
    job.join(120)
    assert outcome == [Written(ROWS, 0, ROWS // 10)]
    check(folder, HashEncoder())


DRIVER = """
    import sys
    from pathlib import Path
    import ray
    from ray_jobs import Halting, dataset
    from bge_integrations.ray import embed_dataset

    ray.init(address=sys.argv[1], log_to_driver=False)
    embed_dataset(dataset(), sys.argv[2], encoder=Halting(Path(sys.argv[3]), until=60), block_rows=10)
"""


def start_driver(code: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill_when(driver: subprocess.Popen, reached) -> None:
    try:
        until(lambda: driver.poll() is not None or reached())
        assert driver.poll() is None, driver.stderr.read().decode()
    finally:
        driver.kill()
        driver.wait(10)
        driver.stderr.close()


def test_a_dataset_whose_driver_is_killed_goes_on(cluster, tmp_path, diary):
    folder = tmp_path / "out"
    driver = start_driver(DRIVER, cluster.address, str(folder), str(diary))
    kill_when(driver, lambda: len(files(folder)) >= 3 and len(texts_in(diary)) > 60)
    until(lambda: not workers_in(diary))
    done = {i for path in files(folder) for i in parquet.read_table(path)["id"].to_pylist()}
    (folder / f".bge-{32 * '0'}-of-a-kill.partial").write_bytes(b"PAR1")
    for path in diary.iterdir():
        path.unlink()
    written = embed_dataset(dataset(), str(folder), encoder=Halting(diary), block_rows=10)
    assert 30 <= len(done) <= 65
    assert written[:2] == (ROWS - len(done), len(done))
    assert not {f"k{number(text)}" for text in texts_in(diary)} & done
    check(folder, HashEncoder())


# Files on the cluster


def test_no_more_shards_at_a_time_than_workers_were_asked_for(cluster, rows, tmp_path, diary):
    both, on = Halting(diary, until=5), partial(RayShards, workers=2)
    job, outcome = in_background(lambda: embed_files(str(rows), tmp_path / "two", both, shard_rows=50, on=on))
    until(lambda: len(workers_in(diary)) == 2)  # so that two are ready
    go(tmp_path)
    job.join(60)
    assert [report.rows for report in outcome] == [ROWS]
    alone = HashEncoder(before_batch=Alone(tmp_path / "busy"))
    report = embed_files(str(rows), tmp_path / "one", alone, shard_rows=30, on=partial(RayShards, workers=1))
    assert report.rows == ROWS


def test_a_text_that_ends_its_worker_does_not_do_so_for_ever(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("bge_integrations.ray.cluster._ATTEMPTS", 1)
    source = write_lines(tmp_path / "in.jsonl", ["one", "two", "poison", "three"])
    encoder, on = HashEncoder(before_batch=Deadly()), partial(RayShards, workers=1)
    with pytest.raises(HostUnavailableError, match=r"lines 3 of .* to 4 of"):
        embed_files(source, tmp_path / "out", encoder, shard_rows=2, on=on)
    assert len(files(tmp_path / "out")) == 1


def test_files_whose_worker_is_killed(cluster, rows, tmp_path, diary):
    folder, encoder = tmp_path / "out", Halting(diary, until=70)
    options = {"columns": columns(), "shard_rows": 10, "on": RayShards}
    job, outcome = in_background(lambda: embed_files(str(rows), folder, encoder, **options))
    until(lambda: len(texts_in(diary)) > 70)
    os.kill(workers_in(diary)[0], signal.SIGKILL)
    go(tmp_path)
    job.join(100)
    assert [report.rows for report in outcome] == [ROWS]
    check(folder, HashEncoder())


def test_files_whose_node_is_lost(cluster, third_node, rows, tmp_path, diary):
    folder, encoder = tmp_path / "out", Halting(diary, until=70)
    options = {"columns": columns(), "shard_rows": 10, "on": RayShards}
    job, outcome = in_background(lambda: embed_files(str(rows), folder, encoder, **options))
    until(lambda: len(texts_in(diary)) > 70 and node_at_work(cluster, diary))
    cluster.remove_node(node_at_work(cluster, diary), allow_graceful=False)
    go(tmp_path)
    job.join(100)
    assert [report.rows for report in outcome] == [ROWS]
    check(folder, HashEncoder())


FILES = """
    import sys
    from functools import partial
    from pathlib import Path
    from ray_jobs import Halting, columns
    from bge_integrations.bulk import embed_files
    from bge_integrations.ray import RayShards

    encoder, on = Halting(Path(sys.argv[3]), at=90), partial(RayShards, address=sys.argv[1])
    embed_files(sys.argv[4], sys.argv[2], encoder, columns=columns(), shard_rows=30, on=on)
"""


def test_files_whose_driver_is_killed_go_on_even_without_ray(cluster, rows, tmp_path, diary):
    folder = tmp_path / "out"
    driver = start_driver(FILES, cluster.address, str(folder), str(diary), str(rows))

    def two_are_noted_and_the_rest_is_begun():  # a shard's file is there before its line in the manifest
        record = read_manifest(folder)
        return record and len(record.shards) >= 2 and any(number(text) >= 90 for text in texts_in(diary))

    kill_when(driver, two_are_noted_and_the_rest_is_begun)
    report = embed_files(str(rows), folder, HashEncoder(), columns=columns(), shard_rows=30)
    assert (report.rows, report.shards) == (ROWS, 5)
    assert 2 <= report.resumed <= 3
    check(folder, HashEncoder())
