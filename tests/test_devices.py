"""One encoder on several devices: shares of a batch, their order, failures and forks. Here each device is the CPU."""

from __future__ import annotations

import os
import random
import sys
import threading

import numpy as np
import pytest

from bge_integrations import BGEError, load_encoder, load_reranker
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, TextError
from bge_integrations.langchain import BGEEmbeddings

pytest.importorskip("torch")

import models
from bge_integrations.local.backends.devices import DevicesBackend

pytestmark = pytest.mark.slow
TWO = ["cpu", "cpu"]
THREE = ["cpu", "cpu", "cpu"]


def texts_of(count: int) -> list[str]:
    numbers = random.Random(4)
    return [f"text {i} " + "and more words of it " * int(40 * numbers.random() ** 3) for i in range(count)]


@pytest.mark.parametrize("devices", [TWO, THREE], ids=len)
def test_vectors_are_those_of_one_device_and_stand_in_order(devices, demo):
    texts = texts_of(400)
    wanted = demo.encode(texts, role="document")
    with load_encoder("demo", backend="torch", devices=devices, show_progress=False) as encoder:
        for count in (1, 2, 3, 100, len(texts)):
            rows = encoder.encode(texts[:count], role="document")
            np.testing.assert_allclose(rows, wanted[:count], atol=2e-6)
        assert encoder.describe()["device"] == ", ".join(devices)
        assert encoder.describe()["forward_passes"] > 5  # the longest call was of several batches


def test_all_outputs_of_m3_stand_in_order():
    texts = texts_of(23)
    with (
        load_encoder(models.m3(name="narrow-m3"), query_instruction="", show_progress=False) as one,
        load_encoder(models.m3(name="narrow-m3"), query_instruction="", devices=TWO, show_progress=False) as several,
    ):
        outputs = ["dense", "sparse", "multivector"]
        wanted = one.encode_outputs(texts, role="document", outputs=outputs)
        found = several.encode_outputs(texts, role="document", outputs=outputs)
    np.testing.assert_allclose(found.dense, wanted.dense, atol=2e-6)
    for mine, theirs in zip(found.sparse, wanted.sparse, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    for mine, theirs in zip(found.multivector, wanted.multivector, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "sentence-transformers"])
def test_scores_are_those_of_one_device(backend):
    passages = texts_of(31)
    folder = models.reranker("xlm-roberta")
    with (
        load_reranker(folder, backend=backend) as one,
        load_reranker(folder, backend=backend, devices=TWO) as several,
    ):
        wanted = one.score("which text?", passages, scale="logit")
        np.testing.assert_allclose(several.score("which text?", passages, scale="logit"), wanted, atol=1e-4)
        assert several.longest == one.longest


def test_many_calls_at_once_get_their_own_rows(demo):
    found: dict[int, np.ndarray] = {}
    with load_encoder("demo", backend="torch", devices=TWO, show_progress=False) as encoder:

        def ask(i: int) -> None:
            found[i] = encoder.encode([f"call {i}", "another"], role="query")

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, rows in found.items():
        np.testing.assert_allclose(rows, demo.encode([f"call {i}", "another"], role="query"), atol=2e-6)


def test_a_device_that_fails_fails_the_texts_of_its_share_and_the_others_have_ended(monkeypatch):
    working: list[str] = []
    with load_encoder("demo", backend="torch", devices=TWO, show_progress=False) as encoder:
        encoder.encode(["load it"], role="document")
        backend = encoder._scheduler.loop.backend
        assert isinstance(backend, DevicesBackend)
        first, second = (each.forward for each in backend.backends)

        def fail(items, output):
            working.append("second")
            second(items, output)
            working.remove("second")
            raise RuntimeError("CUDA error: device lost")

        def slow(items, output):
            assert not working or items  # both may compute at once
            return first(items, output)

        monkeypatch.setattr(backend.backends[1], "forward", fail)
        monkeypatch.setattr(backend.backends[0], "forward", slow)
        # One text alone is the first device's, so each half in turn succeeds: nothing is lost.
        rows = encoder.encode(["one", "two"], role="document")
        assert rows.shape == (2, 256)
        monkeypatch.setattr(backend.backends[0], "forward", fail)
        with pytest.raises((TextError, BGEError), match="device lost"):
            encoder.encode(["one", "two"], role="document")
        assert not working


def test_a_memory_that_does_not_suffice_halves_the_batches(monkeypatch):
    texts = texts_of(100)
    with load_encoder("demo", backend="torch", devices=TWO, show_progress=False) as encoder:
        wanted = encoder.encode(texts, role="document")
        backend = encoder._scheduler.loop.backend
        before, second = backend.budget, backend.backends[1].forward

        def small(items, output):
            if sum(map(len, items)) > 600:
                raise RuntimeError("CUDA out of memory")
            return second(items, output)

        monkeypatch.setattr(backend.backends[1], "forward", small)
        np.testing.assert_allclose(encoder.encode(texts, role="document"), wanted, atol=2e-6)
        assert backend.budget < before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_on_all_devices():
    with load_encoder("demo", backend="torch", devices=TWO, show_progress=False) as encoder:
        wanted = encoder.encode(["a", "b", "c"], role="document")
        child = os.fork()
        if child == 0:
            try:
                rows = encoder.encode(["a", "b", "c"], role="document")
                os._exit(0 if np.allclose(rows, wanted, atol=2e-6) else 3)
            finally:
                os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"devices": []}, "a list of strings"),
        ({"devices": "cpu"}, "a list of strings"),
        ({"devices": ["cpu", 1]}, "a list of strings"),
        ({"devices": ["cpu", " "]}, "a list of strings"),
        ({"devices": ["cpu", "mps"]}, "of one kind"),
        ({"devices": ["cuda:0", "cuda:1"], "device": "cpu"}, "not both"),
        ({"devices": ["tpu", "tpu"]}, "no device 'tpu'"),
        ({"devices": ["cuda:0", "cuda:1"], "backend": "onnx"}, "runs on the CPU only"),
    ],
)
@pytest.mark.parametrize("load", [load_encoder, load_reranker, BGEEmbeddings], ids=lambda load: load.__name__)
def test_what_makes_no_sense_is_refused_at_once(load, options, said):
    with pytest.raises(ConfigError, match=said):
        load("demo", **options)


def test_the_command_takes_them_with_commas(tmp_path, capsys):
    source = tmp_path / "texts.txt"
    source.write_text("one\ntwo\nthree\n")
    command = ["embed", str(source), "-o", str(tmp_path / "out"), "--model", "demo", "--devices"]
    assert main([*command, "cpu,cpu"]) == 0
    capsys.readouterr()
    assert main([*command, "cpu,mps"]) == 2
    assert "of one kind" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no CUDA is looked for here")
def test_the_choice_is_described_before_anything_is_loaded():
    with load_encoder("demo", devices=TWO, show_progress=False) as encoder:
        assert encoder.describe()["device"] == "cpu, cpu"
        assert not encoder.describe()["loaded"]
