"""The server as a process: its first line, SIGTERM, several workers, keys, errors that end it.

Those with workers run under this Python, and under any that ``SERVER_PYTHONS`` names: with the oldest uvicorn, say.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.mmap_dict import MmapedDict

import programs
from bge_integrations import load_encoder
from bge_integrations.errors import ConfigError
from bge_integrations.server import background, serve
from bge_integrations.server.access import Keys
from server_processes import BGE, PATHS, children, http, served, started, wait_for
from serving import CARD, ServedEncoder, vector_of

pytestmark = pytest.mark.slow

PYTHONS = [None, *filter(None, os.environ.get("SERVER_PYTHONS", "").split(os.pathsep))]  # None: this one
every_python = pytest.mark.parametrize(
    "python", PYTHONS, ids=lambda python: Path(python or sys.executable).parent.parent.name
)


def test_it_starts_with_one_clear_line_and_logs_requests_without_texts():
    with served(python=sys.executable) as (process, url, first):
        assert len(first) == 1
        for part in (f"at {url} (page)", f"{url}/embed", f"{url}/v1/embeddings", f"{url}/docs"):
            assert part in first[0]
        http.post(f"{url}/embed", json={"texts": "confidential"})
        process.terminate()
        rest = process.stderr.read()
        line = r"^\d\d:\d\d:\d\d POST /embed 200 \d+ ms, 1 texts, document, 3 tokens \[[0-9a-f]{16}\]$"
        assert re.search(line, rest, re.M)
        assert "confidential" not in rest


def test_bound_wider_without_a_key_it_warns():
    with served("0.0.0.0") as (_, url, first):
        assert "without a key" in first[0]
        assert url.startswith("http://127.0.0.1:")


@every_python
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(workers, python):
    with served(workers=workers, delay=1.0, python=python) as (process, url, _):
        answers = []
        ask = threading.Thread(target=lambda: answers.append(http.post(f"{url}/embed", json={"texts": ["last"]})))
        ask.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        ask.join(60)
        np.testing.assert_array_equal(np.float32(answers[0].json()["embeddings"]), [vector_of("last")])
        process.wait(30)
        assert process.returncode in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            http.get(f"{url}/health")


SHARED = """
import asyncio, httpx
from bge_integrations.server import create_app
from serving import ServedEncoder

async def main():
    transport = httpx.ASGITransport(create_app(ServedEncoder()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.post("/embed", json={"texts": ["a", "b"]})
        print((await client.get("/metrics")).text)

asyncio.run(main())
"""


@pytest.mark.parametrize("shared", [True, False])
def test_workers_of_another_server_are_added_up_where_they_share_a_folder(shared, tmp_path):
    environment = {**os.environ, **PATHS, **({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else {})}
    for count in (2, 4 if shared else 2):
        said = programs.run(SHARED, environment=environment).stdout
        assert f'bge_texts_total{{role="document"}} {count}.0' in said


BACKGROUND = """
import os, resource, sys, threading
from bge_integrations.errors import BGEError
from bge_integrations.server import background
from serving import ServedEncoder

with background(ServedEncoder()) as url:  # imports everything
    pass
if sys.argv[1] == "threads":
    threading.stack_size(1 << 46)  # no memory holds it: pthread_create fails as it does at a limit on threads
else:
    most = 1 + max(map(int, os.listdir("/proc/self/fd")))  # enough for the server's socket, not for an event loop
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
try:
    with background(ServedEncoder()) as url:
        print(url)
except BGEError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files here")
@pytest.mark.parametrize(
    ("limit", "said"),
    [("threads", "cannot start a thread for the server"), ("files", "the server cannot start: OSError")],
)
def test_a_server_in_the_background_that_cannot_start_is_an_error(limit, said):
    done = programs.run(BACKGROUND, limit, environment={**os.environ, **PATHS})
    assert done.stdout.startswith(said)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


ANOTHER_USER = """
import os, sys
from pathlib import Path
from bge_integrations.server.metrics import Metrics

os.chdir(sys.argv[1])
if not os.getuid():
    os.setuid(65534)
Metrics(".").text()
print(*sorted(path.name for path in Path(".").iterdir()))
"""


@pytest.mark.skipif(os.name == "nt", reason="nothing is removed there")
def test_gauges_of_killed_workers_go_and_those_of_another_user_s_stay(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    for pid in (1, ended.pid):  # the first process of all lives, and no user but root may send it a signal
        MmapedDict(str(tmp_path / f"gauge_livesum_{pid}.db")).close()
    for path in (tmp_path, *tmp_path.iterdir()):
        path.chmod(0o777)
    done = programs.run(ANOTHER_USER, str(tmp_path), environment={**os.environ, **PATHS})
    assert (done.stdout, done.stderr) == ("gauge_livesum_1.db\n", "")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_a_signal_to_read_keys_again_that_finds_no_thread_ends_nothing(caplog):
    keys = Keys(lambda: ["k-one"])
    before = signal.signal(signal.SIGHUP, keys.reload_soon)
    size = threading.stack_size(1 << 46)  # no memory holds it
    try:
        signal.raise_signal(signal.SIGHUP)
    finally:
        threading.stack_size(size)
        signal.signal(signal.SIGHUP, before)
    assert "the previous keys stay valid: no thread" in caplog.text
    assert keys.allow([(b"authorization", b"Bearer k-one")])


def test_bge_serve_wants_the_key_that_the_environment_holds():
    pytest.importorskip("tokenizers", reason="the local engine is not installed")
    arguments = ["--model", "demo", "--port", "0", "--api-key-env", "SERVER_KEYS"]
    with started(*arguments, SERVER_KEYS="k-one,k-two") as (_, url, _first):
        body = {"model": "demo", "input": "a"}
        assert http.post(f"{url}/v1/embeddings", json=body).status_code == 401
        headers = {"authorization": "Bearer k-two"}
        answer = http.post(f"{url}/v1/embeddings", json=body, headers=headers)
        assert len(answer.json()["data"][0]["embedding"]) == 256


@every_python
def test_each_worker_serves_the_same_vectors_and_the_metrics_are_those_of_all(python):
    with served(workers=2, python=python) as (process, url, _first):
        # Each request has a connection of its own, so that the workers share them.
        for i in range(20):
            rows = http.post(f"{url}/embed", json={"texts": [f"text {i}"] * 2}).json()["embeddings"]
            np.testing.assert_array_equal(np.float32(rows), [vector_of(f"text {i}")] * 2)
        workers = children(process.pid)
        for _ in range(10):
            text = http.get(f"{url}/metrics").text
            assert 'bge_requests_total{route="/embed",status="200"} 20.0' in text
            assert 'bge_texts_total{role="document"} 40.0' in text
            assert re.search(r"^bge_queue_texts 0\.0$", text, re.M)
        os.kill(workers[0], signal.SIGKILL)
        while workers[0] in children(process.pid) or len(children(process.pid)) < len(workers):
            time.sleep(0.1)
        wait_for(f"{url}/ready")
        assert 'bge_requests_total{route="/embed",status="200"} 20.0' in http.get(f"{url}/metrics").text


linux_only = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@linux_only
@every_python
def test_workers_end_with_their_parent_however_it_ends(python, tmp_path):
    with served(workers=2, python=python) as (process, url, _first):
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
        process.wait(20)
        while any(alive(worker) for worker in workers):
            time.sleep(0.1)
        with pytest.raises(httpx.ConnectError):
            http.get(f"{url}/health")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- the key of the host that the server asks


@pytest.fixture(scope="module")
def host():
    """A host that wants a key."""
    with ServedEncoder() as encoder, background(encoder, api_keys=["host-key"], model_names=["bge-small"]) as url:
        yield f"{url}/v1"


@linux_only
@pytest.mark.parametrize(("way", "workers"), [("plain", 2), ("file", 2), ("variable", 1)])
def test_the_hosts_key_reaches_every_worker_and_no_command_line_of_theirs(host, way, workers, tmp_path):
    file = tmp_path / "key"
    file.write_text("host-key\n")
    options = {
        "plain": ["--api-key", "host-key"],
        "file": ["--provider-key-file", str(file)],
        "variable": ["--provider-key-env", "OUR_KEY"],
    }[way]
    command = ["--model", CARD.id, "--base-url", host, "--port", "0", "--workers", str(workers), "--max-retries", "0"]
    environment = {"BGE_API_KEY": "wrong"} | ({"OUR_KEY": "host-key"} if way == "variable" else {})
    with started(*command, *options, probe="/health", **environment) as (process, url, first):
        assert ("--api-key" in first[0]) == (way == "plain")
        for _ in range(6):
            answer = http.post(f"{url}/embed", json={"texts": "a"})
            # The host's vectors have another size than the model's: this error means that the key was accepted.
            assert "AuthenticationError" not in answer.text
            assert "BadAnswerError" in answer.text
        shown = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(process.pid)]
        assert not any(b"host-key" in part for part in shown)


def test_an_encoder_whose_key_would_be_lost_on_the_way_to_workers_is_refused(host):
    with (
        load_encoder(CARD.id, base_url=host, api_key="host-key") as encoder,
        pytest.raises(ConfigError, match="function that makes the encoder"),
    ):
        serve(encoder, port=0, workers=2)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("keys", ["k-one", [""], ["k", " "]])
def test_wrong_keys_stop_the_server_at_once(workers, keys):
    with pytest.raises(ConfigError, match=r"list of strings|empty key"):
        serve(ServedEncoder(), port=0, workers=workers, api_keys=keys)


def test_a_function_that_cannot_travel_is_refused(host):
    with pytest.raises(ConfigError, match="pickled"):
        serve(lambda: ServedEncoder(), port=0, workers=2)


# --- what a restart would not cure


BARE = "import sys; sys.modules['tokenizers'] = None  # as if it were not installed\n" + BGE


def test_without_the_models_extra_it_ends_with_one_line_and_exit_code_2():
    assert_ends(programs.run(BARE, "serve", "--model", "demo", "--port", "0"), "bge: a local model needs tokenizers: ")


def assert_ends(done, line):
    assert done.returncode == 2, done.stderr
    first, *errors = done.stderr.splitlines()
    assert "serving" in first
    assert len(errors) == 1, errors
    assert errors[0].startswith(line)


@pytest.mark.parametrize("workers", [1, 2])
def test_without_the_hosts_key_it_ends_with_one_line_and_exit_code_2(workers):
    arguments = ["serve", "--model", "bge-m3", "--provider", "deepinfra", "--port", "0", "--workers", str(workers)]
    assert_ends(programs.run(BGE, *arguments), "bge: deepinfra needs a key")


def test_a_folder_that_is_no_model_ends_it(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 64}')
    arguments = ["serve", "--model", str(tmp_path), "--query-instruction", "", "--port", "0"]
    done = programs.run(BGE, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
