"""Nothing ends the local engine's worker and nothing hangs: failures, threads, forks, the end of the interpreter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import models
import programs
from bge_integrations.catalog import find_model
from bge_integrations.errors import BadAnswerError, BGEError, ConfigError, ModelLoadError, TextError
from bge_integrations.local.engine import LocalEngine
from test_local import stall

pytestmark = pytest.mark.slow

PREAMBLE = f"""
import sys
from bge_integrations.catalog import find_model
from bge_integrations.errors import BGEError
from bge_integrations.local.engine import LocalEngine
demo = find_model({str(models.demo())!r})
engine = LocalEngine(demo, backend="torch")
"""


def run(code: str) -> str:
    ended = programs.run(PREAMBLE + code, timeout=110)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


class Panic(BaseException):
    """What a panic in Rust looks like to Python: no Exception."""


class Faulty:
    """A real tokenizer or model that fails at some inputs."""

    def __init__(self, inner, fails, error):
        self.inner, self.fails, self.error = inner, fails, error

    def _checked(self, name, batch, *more, **options):
        if any(self.fails(item) for item in batch):
            raise self.error("what the library says")
        return getattr(self.inner, name)(batch, *more, **options)

    def encode_batch_fast(self, texts, **options):
        return self._checked("encode_batch_fast", texts, **options)

    def encode_batch(self, texts, **options):
        return self._checked("encode_batch", texts, **options)

    def __call__(self, items, output):
        return self._checked("forward", items, output)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture
def engine():
    with LocalEngine(find_model(models.demo()), backend="torch", device="cpu") as engine:
        engine.encode(["warm"], role="query")
        yield engine


def backend_of(engine):
    return engine._scheduler.loop.backend


def worker_of(engine):
    return engine._scheduler.loop


@pytest.mark.parametrize(
    ("error", "count"), [(Panic, 1), (Panic, 7), (Panic, 700), (ValueError, 7), (MemoryError, 7), (GeneratorExit, 7)]
)
def test_a_text_at_which_the_tokenizer_fails_is_named_and_the_worker_lives(engine, error, count):
    worker, tokenizer = worker_of(engine), backend_of(engine).tokenizer
    tokenizer._tokenizer = Faulty(tokenizer._tokenizer, lambda text: "poison" in text, error)
    texts = [f"text {i}" for i in range(count)]
    texts[count // 2] = "poison"
    with pytest.raises(TextError, match=rf"{error.__name__}.*\(text {count // 2}\)") as caught:
        engine.encode(texts, role="document")
    assert caught.value.positions == (count // 2,)
    assert "poison" not in str(caught.value)
    assert engine.encode(["fine"], role="query").shape == (1, 256)
    assert worker_of(engine) is worker
    assert not worker.ended.is_set()


def test_a_tokenizer_that_wants_to_end_the_program_ends_no_thread(engine):
    tokenizer = backend_of(engine).tokenizer
    tokenizer._tokenizer = Faulty(tokenizer._tokenizer, lambda text: "poison" in text, SystemExit)
    with pytest.raises(BGEError, match="SystemExit"):
        engine.encode(["poison"], role="document")
    assert engine.encode(["fine"], role="query").shape == (1, 256)


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_a_failing_text_fails_its_own_call_alone(engine, what):
    backend = backend_of(engine)
    if what == "tokenizer":
        backend.tokenizer._tokenizer = Faulty(backend.tokenizer._tokenizer, lambda text: "poison" in text, Panic)
    else:
        poison = tuple(backend.tokenize(["poison"]).items[0].tolist())
        backend.forward = Faulty(type("Model", (), {"forward": staticmethod(backend.forward)}),
                                 lambda item: tuple(item.tolist()) == poison, Panic)  # fmt: skip
    _, go = stall(engine)
    good = [engine.submit([f"good {i}", "x"], role="document") for i in range(5)]
    bad = [engine.submit(["fine", "fine", "poison", "fine"], role="document"), engine.submit(["poison"], role="query")]
    more = engine.submit([f"long job {i}" for i in range(300)], role="document")
    go.set()
    assert [call.result(60).shape for call in good] == [(2, 256)] * 5
    assert more.result(60).shape == (300, 256)
    for call, position in zip(bad, (2, 0), strict=True):
        with pytest.raises(TextError) as caught:
            call.result(60)
        assert caught.value.positions == (position,)
    assert not worker_of(engine).ended.is_set()


def test_a_batch_that_does_not_fit_the_memory_is_computed_in_parts(engine):
    texts = [f"text {i}" for i in range(120)]
    wanted = engine.encode(texts, role="document")
    backend, forward = backend_of(engine), backend_of(engine).forward

    def small(items, output):
        if len(items) > 8:
            raise MemoryError("no room for so many")
        return forward(items, output)

    backend.forward = small
    assert np.abs(engine.encode(texts, role="document") - wanted).max() < 1e-5


def test_the_size_of_batch_that_the_memory_holds_is_remembered(engine):
    texts = [f"the pump of hall {i} stands still" for i in range(600)]
    backend, forward, failures = backend_of(engine), backend_of(engine).forward, []

    def small(items, output):
        if sum(map(len, items)) > 700:
            failures.append(len(items))
            raise RuntimeError("CUDA out of memory")
        return forward(items, output)

    backend.forward = small
    wanted = engine.encode(texts, role="document")
    assert failures
    assert backend.budget == 512
    failures.clear()
    assert np.array_equal(engine.encode(texts, role="document").argmax(1), wanted.argmax(1))
    assert not failures


def test_a_model_that_fails_at_everything_blames_no_text(engine):
    calls = []

    def broken(items, output):
        calls.append(len(items))
        raise RuntimeError("device lost\nand a second line")

    backend_of(engine).forward = broken
    with pytest.raises(BGEError, match="RuntimeError: device lost") as caught:
        engine.encode([f"text {i}" for i in range(200)], role="document")
    assert not isinstance(caught.value, TextError)
    assert "\n" not in str(caught.value)
    assert len(calls) < 40  # it is not asked for each text


@pytest.mark.parametrize("error", [Panic, SystemExit, RuntimeError, KeyboardInterrupt])
def test_a_model_that_cannot_be_loaded_fails_the_calls_and_the_next_one_tries_again(error, monkeypatch):
    import bge_integrations.local.engine as module

    with LocalEngine(find_model(models.demo()), backend="torch") as engine:

        def fail(folder):
            raise error("at first")

        monkeypatch.setattr(module, "read_weights", fail)
        futures = [engine.submit(["x"] * n, role="document") for n in (1, 100)]
        for future in futures:
            with pytest.raises(ModelLoadError, match=f"{error.__name__}: at first"):
                future.result(60)
        monkeypatch.undo()
        assert engine.encode(["x"], role="document").shape == (1, 256)


def test_a_thread_that_cannot_start_is_an_error_and_the_next_call_tries_again():
    # A stack that no memory holds: pthread_create fails as it does at a limit on threads, for every user.
    out = run("""
import threading
threading.stack_size(1 << 46)
for _ in range(2):
    try:
        engine.encode(["text"], role="document")
    except BGEError as error:
        print(error)
assert not engine.describe()["loaded"]
threading.stack_size(0)
print(engine.encode(["text"], role="document").shape)
""")
    first, second, shape = out.splitlines()
    assert first == second
    assert "cannot start the thread that embeds" in first
    assert "ulimit -u" in first
    assert shape == "(1, 256)"


def test_a_thread_that_died_is_replaced(engine):
    engine._scheduler.loop.inbox.put(None)  # as at the end of the program, without the scheduler's knowledge
    assert worker_of(engine).ended.wait(30)
    assert engine.encode(["x"], role="document").shape == (1, 256)


def test_a_call_that_arrives_with_the_end_is_failed(engine):
    _, go = stall(engine)
    loop = engine._scheduler.loop
    loop.inbox.put(None)
    late = engine.submit(["late"], role="document")
    go.set()
    with pytest.raises(BGEError, match="closed"):
        late.result(60)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_children_forked_at_any_moment_compute():
    out = run(
        """
import os, signal, threading
texts = ["text %d" % i for i in range(300)]
stop = threading.Event()
def work():
    mine = LocalEngine(demo, backend="torch")
    while not stop.is_set():
        mine.encode(texts[:40], role="document")
        engine.encode(texts[:3], role="query")
        engine.usage.add(texts=1)
        mine.count_tokens(texts[:5])
        mine.close()
wanted = engine.encode(texts[:4], role="document")
threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
failed = 0
for turn in range(25):
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        same = abs(engine.encode(texts[:4], role="document") - wanted).max() < 1e-5
        other = LocalEngine(demo, backend="torch")
        same &= abs(other.encode(texts[:4], role="document") - wanted).max() < 1e-5
        os._exit(0 if same else 1)
    failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
stop.set()
print(failed, engine.encode(texts, role="document").shape)
os._exit(0)
"""
    )
    assert out.split(maxsplit=1) == ["0", "(300, 256)\n"]


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_fork_that_was_waiting_when_the_module_was_imported_releases_only_what_it_took():
    code = """
import concurrent.futures.thread, logging, os, sys, threading  # the first two have handlers with this fault
waiting, go = threading.Event(), threading.Event()
os.register_at_fork(before=lambda: (waiting.set(), go.wait(60)))
def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    print(os.waitpid(child, 0)[1])
thread = threading.Thread(target=fork)
thread.start()
waiting.wait(60)
import bge_integrations.local.scheduler, bge_integrations.wrappers.cache.sqlite
go.set()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_at_the_end_of_the_interpreter_a_call_answers_or_says_why_it_does_not():
    code = """
import atexit
class Late:
    def __del__(self):
        for waits in (True, False):
            try:
                call = engine.encode if waits else engine.submit
                rows = call(["late"], role="query")
                print("del", (rows if waits else rows.result()).shape)
            except BGEError as error:
                print("del", type(error).__name__)
def at_exit():
    try:
        print("atexit", engine.encode(["late"], role="query").shape)
    except BGEError as error:
        print("atexit", type(error).__name__)
atexit.register(at_exit)
engine.encode(["warm"], role="query")
atexit.register(at_exit)
late = Late()
late.itself = late
import builtins
builtins.kept = late
"""
    arguments = [sys.executable, "-W", "ignore", "-c", PREAMBLE + code]  # a program of its own, which ends as one does
    run = subprocess.run(arguments, check=True, timeout=60, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert [line for line in lines if line.startswith("atexit")] != []
    assert all(line.endswith(("(1, 256)", "BGEError")) for line in lines)


def overflowing(path: Path) -> Path:
    """A model whose numbers float16 cannot hold."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(models.folder("bge-small", layers=1), path)
    tensors = load_file(path / "model.safetensors")
    tensors["encoder.layer.0.intermediate.dense.bias"] += 60_000
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.filterwarnings("ignore:this CPU has no float16:bge_integrations.errors.BGEWarning")
@pytest.mark.parametrize("backend", ["torch", "sentence-transformers"])
def test_numbers_that_a_precision_does_not_hold_name_it_and_the_remedy(tmp_path, backend):
    card = find_model(overflowing(tmp_path / "finetune"))
    with LocalEngine(card, backend=backend, device="cpu", precision="float16") as engine:
        with pytest.raises(BadAnswerError, match=r"'finetune' in float16.*precision='bfloat16' or 'float32'") as caught:
            engine.encode(["a text", "another"], role="document")
        assert caught.value.provider == "local"
    with LocalEngine(card, backend=backend, device="cpu") as engine:
        assert np.isfinite(engine.encode(["a text"], role="document")).all()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "gpu", "cuda:x", "cpu:"])
def test_a_device_that_is_not_there_is_refused_at_construction(device):
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="device"):
        LocalEngine(find_model(models.demo()), device=device)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_torch_that_cannot_list_capabilities_is_no_reason_to_fail(precision, monkeypatch):
    import torch

    from bge_integrations.local.machine import is_native

    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # torch 2.6 to 2.10
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "\nflags" not in flags:
        pytest.skip("no x86 CPU that lists its instructions")
    name = "bf16" if precision == "bfloat16" else "fp16"
    assert is_native(precision) is (f"avx512_{name}" in flags or f"amx_{name}" in flags)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_model_that_reads_no_text_is_refused(tmp_path, tokens):
    path = tmp_path / "finetune"
    shutil.copytree(models.folder("bge-small", layers=1), path)
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": tokens}))
    told = pytest.raises(ModelLoadError, match="too few for a text")
    with LocalEngine(find_model(path), backend="torch") as engine, told:
        engine.encode(["x"], role="document")
