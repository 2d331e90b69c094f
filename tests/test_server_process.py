"""The server as a process: its first line, SIGTERM, several workers."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving import vector_of

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("serving.py")


def served(host="127.0.0.1", workers=1, delay=0.0):
    """Run the server with the tests' own encoder."""
    return started([sys.executable, str(SCRIPT), host, str(workers), str(delay)])


@contextmanager
def started(command, **environment):
    """Run a command and give its process, its URL and the lines up to the one with the URL."""
    environment = {**os.environ, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            first = []
            while not (url := re.search(r"at (http://\S+)", first[-1]) if first else None):
                first.append(process.stderr.readline())
                assert process.poll() is None or first[-1], f"it ended: {first}"
            wait_for(f"{url[1]}/ready")
            yield process, url[1], first
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise TimeoutError(url)


def test_it_starts_with_one_clear_line_and_logs_requests_without_texts():
    with served() as (process, url, first):
        assert len(first) == 1
        for part in (f"at {url} (page)", f"{url}/embed", f"{url}/v1/embeddings", f"{url}/docs"):
            assert part in first[0]
        httpx.post(f"{url}/embed", json={"texts": "confidential"})
        process.terminate()
        rest = process.stderr.read()
        assert re.search(r"^\d\d:\d\d:\d\d POST /embed 200 \d+ ms, 1 texts \(document\), 3 tokens$", rest, re.M)
        assert "confidential" not in rest


def test_bound_wider_without_a_key_it_warns():
    with served("0.0.0.0") as (_, url, first):
        assert "without a key" in first[0]
        assert url.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_finishes_what_is_in_flight_and_refuses_the_rest(workers):
    with served(workers=workers, delay=1.0) as (process, url, _):
        answers = []
        ask = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/embed", json={"texts": ["last"]}, timeout=60))
        )
        ask.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        ask.join(60)
        np.testing.assert_array_equal(np.float32(answers[0].json()["embeddings"]), [vector_of("last")])
        process.wait(30)
        assert process.returncode in (0, -signal.SIGTERM)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_each_worker_serves_the_same_vectors():
    with served(workers=2) as (_, url, _first):
        for i in range(20):
            rows = httpx.post(f"{url}/embed", json={"texts": [f"text {i}"]}, timeout=60).json()["embeddings"]
            np.testing.assert_array_equal(np.float32(rows), [vector_of(f"text {i}")])


def test_bge_serve_wants_the_key_that_the_environment_holds():
    pytest.importorskip("tokenizers", reason="the local engine is not installed")
    arguments = ["serve", "--model", "demo", "--port", "0", "--api-key-env", "SERVER_KEYS"]
    run = "import sys; from bge_integrations.cli import main; sys.exit(main(sys.argv[1:]))"
    with started([sys.executable, "-c", run, *arguments], SERVER_KEYS="k-one,k-two") as (_, url, _first):
        body = {"model": "demo", "input": "a"}
        assert httpx.post(f"{url}/v1/embeddings", json=body).status_code == 401
        headers = {"authorization": "Bearer k-two"}
        answer = httpx.post(f"{url}/v1/embeddings", json=body, headers=headers, timeout=60)
        assert len(answer.json()["data"][0]["embedding"]) == 256
