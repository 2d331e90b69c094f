"""Nothing hangs: threads that cannot start, panics, forks with locks held, closing at any moment, one clock for all."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from bge_integrations import errors
from bge_integrations.catalog import find_model
from bge_integrations.catalog.records import Provider
from bge_integrations.core.event_loop import BackgroundLoop
from bge_integrations.remote import host as host_module
from bge_integrations.remote.engine import Endpoint, HostLimits, RemoteEngine
from bge_integrations.verify import verify
from rig import Rig, latency, timeout

CARD = find_model("bge-small")
TEXTS = [f"text number {i}" for i in range(16)]


def no_key():
    return None


@pytest.fixture
def engine_of():
    made = []

    def make(host, *, tokenizer=None, **limits):
        endpoint = Endpoint(provider=Provider(name="host"), base_url=host.url, wire_model="m", key=no_key)
        limits = HostLimits(**{"timeout": 30.0, "backoff": 0.005, **limits})
        made.append(RemoteEngine(CARD, endpoint, limits=limits, tokenizer=tokenizer))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def right(host, engine, texts=TEXTS) -> bool:
    return bool(np.allclose(engine.encode(texts, role="document"), host.truth(texts), atol=1e-6))


# Threads


def refuse_threads(monkeypatch, *names):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith(names):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("name", ["bge-remote", "asyncio"])
async def test_a_thread_that_cannot_start_is_an_error_and_the_next_call_tries_again(engine_of, monkeypatch, name):
    with Rig() as host:
        engine = engine_of(host)
        with monkeypatch.context() as limited:
            refuse_threads(limited, name)
            for _ in range(2):
                with pytest.raises(errors.BGEError, match="thread"):
                    engine.encode(TEXTS, role="document")
            with pytest.raises(errors.BGEError, match="thread"):
                await engine.aencode(TEXTS, role="document")
        assert right(host, engine)


def test_a_system_without_open_files_left_grants_no_loop(monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    loop = BackgroundLoop("bge-test")

    async def seven():
        return 7

    with monkeypatch.context() as limited:
        limited.setattr("asyncio.new_event_loop", full)
        with pytest.raises(errors.BGEError, match="open files"):
            loop.run(seven())
    assert loop.run(seven()).result(10) == 7
    loop.close()


def test_work_that_is_cancelled_before_its_first_step_is_not_begun():
    loop, holds, go, begun = BackgroundLoop("bge-test"), threading.Event(), threading.Event(), []

    async def hold():
        holds.set()
        go.wait(10)  # blocks the loop, so that what comes next cannot begin

    async def begin():
        begun.append(True)

    held = loop.run(hold())
    assert holds.wait(10)
    loop.run(begin()).cancel()
    go.set()
    held.result(10)
    loop.close()
    assert begun == []


# Tokenizers


class Slow:
    """A tokenizer by letters that takes its time, or panics at a word."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def to_str(self):
        return str(self.seconds)

    @classmethod
    def from_str(cls, text):
        return cls(float(text))

    def no_padding(self): ...

    def no_truncation(self): ...

    def num_special_tokens_to_add(self, is_pair):
        return 2

    def encode_batch_fast(self, texts, **_):
        time.sleep(self.seconds)
        if any("panic" in text for text in texts):
            raise Panic("called `Option::unwrap()` on a `None` value")
        return [type("Encoding", (), {"ids": list(text), "overflowing": []}) for text in texts]


class Panic(BaseException):
    """What pyo3 raises where Rust panics: not an Exception."""


@pytest.mark.parametrize("word", ["panics", "a panic in the middle, 中"])
def test_a_panic_of_the_tokenizer_ends_the_call_and_not_the_engine(engine_of, word):
    texts = [f"{text}, 中" for text in TEXTS]
    with Rig() as host:
        engine = engine_of(host, tokenizer=Slow())
        with pytest.raises(errors.InputError, match="Panic") as caught:
            engine.encode([*texts, f"{word} 中"], role="document")
        assert caught.value.positions == (16,)
        assert word not in str(caught.value)
        assert right(host, engine, texts)
        assert len(host.sent) == 1


def test_the_deadline_covers_tokenising(engine_of):
    texts = [f"text {i}, 中" for i in range(40_000)]
    with Rig() as host:
        engine = engine_of(host, tokenizer=Slow(0.2), timeout=0.5)
        with pytest.raises(errors.DeadlineError, match=r"timeout=0\.5"):
            engine.encode(texts, role="document")
        assert host.sent == []
        engine.close()
        assert right(host, engine_of(host, tokenizer=Slow(0.01)), texts[:100])


# One stuck request


def test_a_stuck_first_request_holds_no_other_call(engine_of, monkeypatch):
    monkeypatch.setattr(host_module, "LEAD_SECONDS", 0.1)
    with Rig().script(timeout(20)) as host:
        engine = engine_of(host, timeout=10.0)
        stuck = engine.submit(["stuck"], role="document")
        while not host.requests:
            time.sleep(0.005)
        assert right(host, engine)
        stuck.cancel()


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("held", ["loop", "usage"])
def test_a_child_of_a_fork_finds_no_lock_held(engine_of, held):
    with Rig() as host:
        engine = engine_of(host)
        assert right(host, engine)
        context = multiprocessing.get_context("fork")
        there, here = context.Pipe()

        def child():
            here.send(engine.encode(TEXTS, role="document").tolist())

        lock = {"loop": engine._loop._lock, "usage": engine.usage._lock}[held]
        with lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = context.Process(target=child)
            process.start()
        assert there.poll(30)
        np.testing.assert_allclose(there.recv(), host.truth(TEXTS), atol=1e-6)
        process.join(10)


# The end


def test_every_call_ends_when_the_engine_is_closed_at_any_moment(engine_of):
    with Rig(default=latency(0.02)) as host:
        engine = engine_of(host)
        futures = []
        for i in range(60):
            futures.append(engine.submit(TEXTS[: 1 + i % 3], role="document"))
            if i % 3 == 0:
                time.sleep(0.001 * (i % 5))
                engine.close()
        engine.close()
        for future in futures:
            error = future.exception(20)
            assert error is None or isinstance(error, errors.HostUnavailableError)
        assert right(host, engine)


def test_closing_from_many_threads_while_others_call(engine_of):
    with Rig() as host:
        engine, ends = engine_of(host), []

        def call():
            for _ in range(15):
                try:
                    engine.encode(TEXTS[:2], role="document")
                except errors.HostUnavailableError as error:
                    ends.append(error)

        threads = [threading.Thread(target=call) for _ in range(6)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            engine.close()
            time.sleep(0.003)
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert right(host, engine)


AT_EXIT = """
import atexit, sys
from bge_integrations import BGEError, load_encoder

encoder = load_encoder("bge-small", base_url=sys.argv[1], show_progress=False, timeout=20)
used = sys.argv[2] == "used"

def ask(when):
    try:
        print(when, encoder.encode(["a"], role="document").shape)
    except BGEError as error:
        print(when, "BGEError")

class AtTheVeryEnd:
    def __del__(self):
        ask("del")

if used:
    ask("run")
atexit.register(ask, "atexit")
sys.modules["kept until the end"] = AtTheVeryEnd()
"""


@pytest.mark.parametrize("used", ["used", "unused"])
def test_calls_while_the_interpreter_ends_do_not_hang(used):
    with Rig() as host:
        command = [sys.executable, "-c", AT_EXIT, host.url, used]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "Error" not in done.stderr
    ends = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert set(ends) == {"atexit", "del"} | ({"run"} if used == "used" else set())
    assert ends["del"] == "BGEError"
    assert ends["atexit"] in ("BGEError", "(1, 384)")


def test_a_host_that_is_down_is_no_finding_of_verify(engine_of):
    with Rig() as host:
        pass
    with pytest.raises(errors.HostUnavailableError, match=str(host.port)):
        verify(engine_of(host, max_retries=0))


def test_the_client_is_imported_off_the_loop(engine_of):
    """Under blockbuster, an import on the thread of a running loop is an error."""
    importers = []

    class Watch:
        def find_spec(self, name, path=None, target=None):
            if name == "openai":
                importers.append(threading.current_thread().name)

    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "openai"}
    watch = Watch()
    sys.meta_path.insert(0, watch)
    try:
        with Rig() as host:
            assert right(host, engine_of(host))
    finally:
        sys.meta_path.remove(watch)
        sys.modules.update(held)
    assert importers
    assert "bge-remote" not in importers
