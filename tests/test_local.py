"""The local engine: one worker for every caller, whatever computes behind it."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import models
import programs
from bge_integrations.catalog import find_model
from bge_integrations.errors import ConfigError, InputError, ModelLoadError, TruncationWarning
from bge_integrations.local.engine import LocalEngine

pytestmark = pytest.mark.slow

TEXTS = ["one", "two words", "three little words", "four " * 40, "five " * 90]


@pytest.fixture(scope="module")
def engine():
    engine = LocalEngine(find_model(str(models.demo())), backend="torch")
    yield engine
    engine.close()


def passes(engine) -> int:
    return engine.describe()["forward_passes"]


def stall(engine) -> tuple[threading.Event, threading.Event]:
    """Hold the worker inside an on_batch callback; returns (it is held, let it go)."""
    held, go = threading.Event(), threading.Event()

    def wait(indices, vectors):
        held.set()
        assert go.wait(60)

    engine.submit(["something to hold the worker"], role="document", on_batch=wait)
    assert held.wait(60)
    return held, go


def test_rows_stand_in_the_order_of_the_texts(engine):
    alone = np.concatenate([engine.encode([text], role="document") for text in TEXTS])
    together = engine.encode(TEXTS, role="document")
    assert together.dtype == np.float32
    assert together.shape == (len(TEXTS), engine.card.dimensions)
    assert np.abs(together - alone).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert np.abs(np.triu(together @ together.T, 1)).max() < 0.999  # the rows can be told apart


def test_every_batch_reaches_on_batch_once(engine):
    texts = [f"{word} {i}" for i in range(300) for word in ("short", "rather longer " * (i % 50))]
    seen = np.full((len(texts), engine.card.dimensions), np.nan, np.float32)
    calls = []

    def keep(indices, vectors):
        assert np.isnan(seen[indices]).all()
        seen[indices] = vectors
        calls.append(len(indices))

    vectors = engine.encode(texts, role="document", on_batch=keep)
    assert len(calls) > 1
    assert np.array_equal(seen, vectors)


def test_concurrent_queries_become_few_forward_passes(engine):
    engine.encode(["warm"], role="query")
    _, go = stall(engine)
    before = passes(engine)

    async def ask():
        calls = [asyncio.ensure_future(engine.aencode([f"question {i}"], role="query")) for i in range(64)]
        await asyncio.sleep(0.05)
        go.set()
        return await asyncio.gather(*calls)

    rows = np.concatenate(asyncio.run(ask()))
    assert passes(engine) - before <= 3
    assert np.abs(rows - engine.encode([f"question {i}" for i in range(64)], role="query")).max() < 1e-5


def test_sixteen_threads_share_one_worker(engine):
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda i: engine.encode([f"text {i}", "x"], role="document"), range(48)))
    wanted = engine.encode([f"text {i}" for i in range(48)], role="document")
    assert np.abs(np.stack([row[0] for row in rows]) - wanted).max() < 1e-5
    assert sum(thread.name == "bge-local" and thread.is_alive() for thread in threading.enumerate()) >= 1


def test_a_query_passes_a_long_job_between_batches(engine):
    engine.encode(["warm"], role="query")
    texts = [f"passage {i} " + "with some words " * 20 for i in range(400)]
    order = []
    first = threading.Event()

    def note(indices, vectors):
        order.append("batch")
        first.set()

    job = engine.submit(texts, role="document", on_batch=note)
    assert first.wait(60)
    query = engine.submit(["a question"], role="query", on_batch=lambda *_: order.append("query"))
    query.result(60)
    assert not job.done()
    job.result(120)
    after = len(order) - order.index("query") - 1
    assert after > 5  # most of the job came after the query that was asked after its first batch


def test_a_query_passes_calls_of_a_batch_each(engine):
    engine.encode(["warm"], role="query")
    _, go = stall(engine)
    order = []
    passage = "with some words " * 20
    calls = [
        engine.submit([f"{i} {j} {passage}" for j in range(32)], role="document", on_batch=lambda *_: order.append(0))
        for i in range(6)
    ]
    query = engine.submit(["a question"], role="query", on_batch=lambda *_: order.append("query"))
    go.set()
    for call in [*calls, query]:
        call.result(60)
    assert order.index("query") <= 1


def test_a_cancelled_call_is_not_computed(engine):
    _, go = stall(engine)
    before = passes(engine)
    future = engine.submit(["nobody waits for this"] * 200, role="document")
    assert future.cancel()
    go.set()
    engine.encode(["a"], role="query")
    assert passes(engine) - before <= 2
    with pytest.raises(CancelledError):
        future.result()


def test_a_cancelled_job_stops_between_batches(engine):
    first = threading.Event()
    texts = [f"{i} " + "word " * 60 for i in range(600)]
    seen = []
    future = engine.submit(texts, role="document", on_batch=lambda i, v: (seen.append(len(i)), first.set()))
    assert first.wait(60)
    assert future.cancel()
    engine.encode(["a"], role="query")
    assert sum(seen) < len(texts)


def test_what_on_batch_raises_belongs_to_its_own_call(engine):
    def explode(indices, vectors):
        raise RuntimeError("the caller's own fault")

    _, go = stall(engine)
    bad = engine.submit(["bad"], role="document", on_batch=explode)
    good = engine.submit(["good"], role="document")
    go.set()
    with pytest.raises(RuntimeError, match="own fault"):
        bad.result(60)
    assert good.result(60).shape == (1, engine.card.dimensions)


def test_close_lets_the_model_go_and_a_later_call_loads_it_again():
    engine = LocalEngine(find_model(str(models.demo())), backend="torch")
    first = engine.encode(["text"], role="document")
    assert engine.describe()["loaded"]
    engine.close()
    engine.close()
    assert not engine.describe()["loaded"]
    assert np.array_equal(engine.encode(["text"], role="document"), first)
    engine.close()


def test_close_fails_what_waits():
    engine = LocalEngine(find_model(str(models.demo())), backend="torch")
    _, go = stall(engine)
    waiting = engine.submit(["late"], role="document")
    threading.Timer(0.05, go.set).start()
    engine.close()
    with pytest.raises(Exception, match="closed"):
        waiting.result(60)


def test_an_engine_that_nobody_holds_lets_its_model_go_and_its_thread_serves_the_next():
    engine = LocalEngine(find_model(str(models.demo())), backend="torch")
    engine.encode(["text"], role="document")
    ended, model = engine._scheduler.loop.ended, weakref.ref(engine._scheduler.loop.backend)
    del engine
    gc.collect()
    assert ended.wait(30)
    gc.collect()
    assert model() is None
    threads = {thread for thread in threading.enumerate() if thread.name == "bge-local"}
    again = LocalEngine(find_model(str(models.demo())), backend="torch")
    again.encode(["text"], role="document")
    assert {thread for thread in threading.enumerate() if thread.name == "bge-local"} == threads


def test_an_engine_dropped_while_it_works_still_answers():
    future = LocalEngine(find_model(str(models.demo())), backend="torch").submit(["text"] * 100, role="document")
    gc.collect()
    assert future.result(60).shape == (100, 256)


def test_copies_carry_settings_and_no_model(engine):
    wanted = engine.encode(["text"], role="query")
    for other in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine), copy.copy(engine)):
        assert not other.describe()["loaded"]
        assert other.space == engine.space
        assert np.array_equal(other.encode(["text"], role="query"), wanted)
        other.close()
        assert engine.describe()["loaded"]
    assert len(pickle.dumps(engine)) < 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes_on_its_own():
    code = """
import os, sys
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
engine = LocalEngine(find_model(sys.argv[1]), backend="torch")
texts = ["text %d" % i for i in range(200)]
wanted = engine.encode(texts, role="document")
child = os.fork()
if child == 0:
    same = abs(engine.encode(texts, role="document") - wanted).max() < 1e-6
    os._exit(0 if same else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert abs(engine.encode(texts, role="document") - wanted).max() < 1e-6
sys.exit(status)
"""
    ended = programs.run(code, str(models.demo()), timeout=100)
    assert ended.returncode == 0, ended.stderr


def test_the_process_ends_although_a_job_is_running():
    code = """
import sys
sys.path.insert(0, {tests!r})
import models
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
engine = LocalEngine(find_model(str(models.demo())), backend="torch")
engine.encode(["warm"], role="query")
engine.submit(["a long text " * 30] * 50_000, role="document")
"""
    path = str(Path(models.__file__).parent)
    subprocess.run([sys.executable, "-c", code.format(tests=path)], check=True, timeout=60)


def test_a_query_gets_the_instruction_once_and_a_document_none():
    card = replace(find_model(str(models.demo())), query_instruction="Represent this: ")
    with (
        LocalEngine(card, backend="torch") as engine,
        LocalEngine(card, backend="torch", query_instruction="") as plain,
    ):
        asked = engine.encode(["cats"], role="query")
        assert np.allclose(asked, plain.encode(["Represent this: cats"], role="document"), atol=1e-6)
        assert np.allclose(engine.encode(["cats"], role="document"), plain.encode(["cats"], role="query"), atol=1e-6)
        assert (asked * engine.encode(["cats"], role="document")).sum() < 0.999


def test_a_card_without_a_default_instruction_is_refused_at_once():
    card = replace(find_model(str(models.demo())), query_instruction=None)
    with LocalEngine(card) as engine:
        with pytest.raises(ConfigError, match="query_instruction"):
            engine.encode(["x"], role="query")
        assert not engine.describe()["loaded"]


# Long texts


def limited(**options) -> LocalEngine:
    return LocalEngine(replace(find_model(str(models.demo())), max_tokens=16), backend="torch", **options)


def test_long_texts_are_cut_with_one_warning_that_names_them():
    texts = ["short", "long " * 40, "short too", "long " * 17]
    with limited() as engine, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = engine.encode(texts, role="document")
        assert np.allclose(rows[1], engine.encode(["long " * 14], role="document")[0], atol=1e-6)
    warned = [w for w in caught if w.category is TruncationWarning]
    assert len(warned) == 1
    assert "positions 1, 3" in str(warned[0].message)


def test_long_texts_are_refused_before_anything_is_computed():
    with limited(truncate="error") as engine:
        engine.encode(["fits"], role="document")
        before = passes(engine)
        texts = ["fits"] * 5000 + ["long " * 40] + ["fits"] * 3
        with pytest.raises(InputError) as caught:
            engine.encode(texts, role="document")
        assert caught.value.positions == (5000,)
        assert passes(engine) == before
        assert engine.encode(["still", "works"], role="document").shape == (2, 256)


def test_a_refused_call_does_not_harm_its_neighbours():
    with limited(truncate="error") as engine:
        _, go = stall(engine)
        bad = engine.submit(["long " * 40], role="document")
        good = engine.submit(["fits"], role="document")
        go.set()
        with pytest.raises(InputError):
            bad.result(60)
        assert good.result(60).shape == (1, 256)


def test_the_instruction_counts_towards_the_limit():
    with limited(query_instruction="one two three four five six ") as engine:
        engine.encode(["a b c d e f"], role="document")
        with pytest.warns(TruncationWarning):
            engine.encode(["a b c d e f g h i j k"], role="query")


def test_tokens_are_counted_uncut_and_without_loading_the_model():
    with limited() as engine:
        assert engine.count_tokens(["one", "long " * 40]) == [3, 42]
        assert not engine.describe()["loaded"]


def test_usage_counts_texts_and_tokens():
    with LocalEngine(find_model(str(models.demo())), backend="torch") as engine:
        engine.encode(["one", "two three"], role="document")
        assert (engine.usage.texts, engine.usage.tokens) == (2, sum(engine.count_tokens(["one", "two three"])))


# What cannot work


HUB = """
import sys
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
from bge_integrations.errors import BGEError
engine = LocalEngine(find_model("bge-small-en-v1.5"), backend="torch")
try:
    print(engine.encode(["text"], role="document").shape)
except BGEError as error:
    print(type(error).__name__, error)
"""


def ask_hub(environment: dict[str, str]) -> str:
    environment = {**os.environ, "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    ended = programs.run(HUB, environment=environment, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("why", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_offline_a_hub_model_says_what_to_do(tmp_path, why):
    said = ask_hub({**why, "HF_HOME": str(tmp_path)})
    assert said.startswith("ModelLoadError")
    assert "model='demo'" in said
    assert "BAAI/bge-small-en-v1.5" in said


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        said = ask_hub({"HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_HUB_ETAG_TIMEOUT": "1"})
    assert "no answer in 1 s; a larger HF_HUB_ETAG_TIMEOUT= waits longer" in said


class Hub(BaseHTTPRequestHandler):
    """A hub that has one model, or refuses."""

    seconds, status = 0.0, 200

    def do_GET(self):
        time.sleep(self.seconds)
        files = [{"rfilename": name, "type": "file", "path": name, "size": 9, "oid": "0" * 40}
                 for name in ("config.json", "model.safetensors", "tokenizer.json")]  # fmt: skip
        about = files if "/tree/" in self.path else {"id": "BAAI/bge-small-en-v1.5", "sha": "a" * 40, "siblings": files}
        data = json.dumps(about).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("seconds", "status", "reason"),
    [
        (0, 401, "401: the hub requires a token.*HF_TOKEN"),
        (0, 403, "403: the hub requires a token"),
        (0, 404, "it answered 404"),
        (6, 401, "401"),  # late, but before HF_HUB_ETAG_TIMEOUT: waited for
    ],
)
def test_what_the_hub_answers_is_said(tmp_path, seconds, status, reason):
    kind = type("Kind", (Hub,), {"seconds": seconds, "status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        said = ask_hub({"HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_HUB_ETAG_TIMEOUT": "30"})
        server.shutdown()
    assert re.search(rf"^ModelLoadError .*{reason}", said)


@pytest.mark.parametrize("home", ["/dev/null/home", "/proc/home"])
def test_a_cache_that_cannot_be_written_is_said(home):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = ask_hub({"HF_HOME": home, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"})
        server.shutdown()
    assert re.search(r"^ModelLoadError .*set HF_HOME to another folder", said)


def snapshot(cache: Path, revision: str) -> Path:
    """Put a random model into a cache as the hub's client would."""
    folder = cache / "models--BAAI--bge-small-en-v1.5" / "snapshots" / revision
    shutil.copytree(models.folder("bge-small", layers=1), folder)
    return folder


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "SENTENCE_TRANSFORMERS_HOME"])
def test_a_cached_model_is_found_without_asking_anybody(tmp_path, variable):
    snapshot(tmp_path / "cache", find_model("bge-small-en-v1.5").revision)
    nowhere = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert ask_hub({**nowhere, variable: str(tmp_path / "cache")}) == "(1, 384)\n"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "SENTENCE_TRANSFORMERS_HOME"])
def test_another_revision_is_named_and_not_used(tmp_path, variable):
    folder = snapshot(tmp_path / "cache", "b" * 40)
    nowhere = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", variable: str(tmp_path / "cache")}
    said = ask_hub(nowhere)
    assert said.startswith("ModelLoadError")
    assert f"another revision of it is here, and its folder can be the model: {str(folder)!r}" in said


def test_a_folder_that_went_away_is_named(tmp_path):
    card = replace(find_model(str(models.demo())), folder=str(tmp_path / "gone"))
    with LocalEngine(card) as engine, pytest.raises(ModelLoadError, match="gone"):
        engine.encode(["x"], role="document")


def test_every_waiting_call_hears_that_the_model_cannot_be_loaded(tmp_path):
    card = replace(find_model(str(models.demo())), folder=str(tmp_path))
    with LocalEngine(card) as engine:
        futures = [engine.submit(["x"] * n, role="document") for n in (1, 100)]
        for future in futures:
            with pytest.raises(ModelLoadError):
                future.result(60)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "tensorflow"}, "tensorflow"),
        ({"backend": "openvino"}, "openvino"),
        ({"precision": "float8"}, "float8"),
        ({"precision": "int8", "backend": "torch"}, "onnx"),
        ({"precision": "bfloat16", "backend": "onnx"}, "torch"),
        ({"truncate": "never"}, "never"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options, said):
    with pytest.raises(ConfigError, match=said):
        LocalEngine(find_model(str(models.demo())), **options)


def test_int8_is_a_space_of_its_own_and_bfloat16_is_not():
    card = find_model(str(models.demo()))
    plain = LocalEngine(card)
    assert LocalEngine(card, precision="bfloat16").space == plain.space
    assert LocalEngine(card, precision="int8").space != plain.space


def test_describe_says_what_was_chosen_and_why(engine):
    engine.encode(["x"], role="document")
    told = engine.describe()
    assert told["backend"] == "torch"
    assert told["precision"] == "float32"
    assert told["threads"] >= 1
    assert told["why"] == "asked for"


def test_a_warm_query_takes_few_calls_beside_the_model():
    """Calls of the package's own functions, on all threads: what a lone query costs, on a busy machine too."""
    calls, counting = Counter(), threading.Event()

    def note(frame, event, _):
        if counting.is_set() and event == "call" and "bge_integrations" in frame.f_code.co_filename:
            calls[frame.f_code.co_qualname] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        with LocalEngine(find_model(str(models.demo()))) as engine:
            engine.encode(["warm"], role="query")
            counting.set()
            engine.encode(["one query"], role="query")
            counting.clear()
    finally:
        threading.setprofile(None)
        sys.setprofile(None)
    assert 10 < calls.total() <= 150, calls.most_common()
