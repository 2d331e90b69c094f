"""The packed engine equals transformers on every architecture it takes, and leaves the rest alone."""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
import programs
from bge_integrations.catalog import find_model
from bge_integrations.errors import BGEWarning, ConfigError, ModelLoadError
from bge_integrations.local.architecture import read_architecture
from bge_integrations.local.backends.attention import PackedBatch, choose_attention
from bge_integrations.local.backends.packed import rows as matrix_rows
from bge_integrations.local.calls import cut_batches, slice_end
from bge_integrations.local.engine import LocalEngine
from bge_integrations.local.machine import usable_cores

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")]

EXACT, CLOSE = 0.99999, 0.9998


def cosines(path: Path, wanted: np.ndarray, **options) -> np.ndarray:
    with LocalEngine(find_model(str(path)), **options) as engine:
        rows = engine.encode(models.TEXTS, role="document")
    assert rows.dtype == np.float32
    return (rows.astype(np.float64) * wanted).sum(1)


@cache
def wanted_of(path: Path) -> np.ndarray:
    card = find_model(str(path))
    return models.reference(path, models.TEXTS, pooling=card.pooling, max_tokens=card.max_tokens)


# BERT and XLM-R, the narrowest and the widest published, heads of 32 and of 64 numbers: all else is read as a number.
@pytest.mark.parametrize(("name", "pooling"), [("bge-small", "cls"), ("bge-m3", "cls"), ("bge-small", "mean")])
def test_random_weights_give_what_transformers_gives(name, pooling):
    path = models.folder(name, pooling=pooling)
    wanted = models.reference(path, models.TEXTS, pooling=pooling, max_tokens=find_model(str(path)).max_tokens)
    assert np.triu(wanted @ wanted.T, 1).max() < 0.999  # texts can be told apart
    assert cosines(path, wanted, backend="torch").min() >= EXACT


def test_attention_is_called_for_runs_on_a_processor():
    import torch

    assert choose_attention("cpu", torch.bfloat16).name == "runs of equal length"
    with LocalEngine(find_model(models.demo()), backend="torch", device="cpu") as engine:
        engine.encode(["x"], role="document")
        assert engine.describe()["attention"] == "runs of equal length"


def test_one_call_for_all_lengths_gives_what_runs_give():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    chosen = choose_attention("cuda", torch.float16)
    path = models.folder("bge-small")
    wanted = models.reference(path, models.TEXTS, pooling="cls", max_tokens=512)
    assert chosen.name == "one call for all lengths"
    assert cosines(path, wanted, backend="torch", device="cuda", precision="float16").min() >= CLOSE


@pytest.mark.parametrize("backend", ["torch", "sentence-transformers"])
@pytest.mark.parametrize("which", ["minilm", "demo"])
def test_trained_weights_give_what_transformers_gives(which, backend):
    path = getattr(models, which)()
    assert cosines(path, wanted_of(path), backend=backend).min() >= EXACT


@pytest.mark.filterwarnings("ignore:this CPU has no bfloat16:bge_integrations.errors.BGEWarning")
@pytest.mark.parametrize("which", ["minilm", "demo"])
def test_bfloat16_stays_close(which):
    path = getattr(models, which)()
    assert cosines(path, wanted_of(path), backend="torch", precision="bfloat16").min() >= CLOSE


def test_a_decoder_goes_through_sentence_transformers():
    path = models.folder("decoder")
    wanted = models.reference(path, models.TEXTS, pooling="lasttoken")
    assert cosines(path, wanted).min() >= EXACT
    with LocalEngine(find_model(str(path)), backend="torch") as engine:
        told = engine.describe()
    assert told["backend"] == "sentence-transformers"
    assert "mistral" in told["why"]


@pytest.mark.parametrize("backend", ["torch", "sentence-transformers"])
def test_saved_prompts_are_never_added(backend):
    path = models.folder("bge-small", layers=1, prompts=True)
    with LocalEngine(find_model(str(path)), backend=backend) as engine:
        for role in ("query", "document"):
            rows = engine.encode(models.TEXTS, role=role)
            assert (rows * wanted_of(path)).sum(1).min() >= EXACT


def test_a_card_of_the_catalogue_says_how_to_pool_where_the_folder_does_not(tmp_path):
    source = models.folder("bge-small", layers=1)
    path = tmp_path / "bare"
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, path)
    card = replace(find_model(str(source)), folder=str(path))
    wanted = wanted_of(source)
    for backend in ("torch", "sentence-transformers"):
        with LocalEngine(card, backend=backend) as engine:
            assert (engine.encode(models.TEXTS, role="document") * wanted).sum(1).min() >= EXACT


def test_a_folder_that_pools_otherwise_than_its_card_is_refused():
    card = replace(find_model(str(models.folder("bge-small"))), pooling="mean")
    with LocalEngine(card) as engine, pytest.raises(ModelLoadError, match="another vector space"):
        engine.encode(["x"], role="document")


def test_half_precision_and_old_pickle_files_are_read(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    source = models.folder("bge-small", layers=1)
    tensors = load_file(source / "model.safetensors")
    wanted = wanted_of(source)
    for kind in ("half", "pickle"):
        path = tmp_path / kind
        shutil.copytree(source, path)
        if kind == "half":
            save_file({name: tensor.half() for name, tensor in tensors.items()}, path / "model.safetensors")
        else:
            (path / "model.safetensors").unlink()
            torch.save({f"bert.{name}": tensor for name, tensor in tensors.items()}, path / "pytorch_model.bin")
        assert cosines(path, wanted, backend="torch").min() >= (0.9999 if kind == "half" else EXACT)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    import torch

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    path = tmp_path / "evil"
    shutil.copytree(models.folder("bge-small"), path)
    (path / "model.safetensors").unlink()
    torch.save({"x": Evil()}, path / "pytorch_model.bin")
    with LocalEngine(find_model(str(path)), backend="torch") as engine, pytest.raises(ModelLoadError):
        engine.encode(["x"], role="document")
    assert not (tmp_path / "owned").exists()


def test_no_transformers_is_imported():
    code = f"""
import sys
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
LocalEngine(find_model({str(models.demo())!r}), backend="torch").encode(["text"], role="document")
assert "torch" in sys.modules
loaded = {{"transformers", "sentence_transformers", "onnxruntime"}} & set(sys.modules)
assert not loaded, loaded
"""
    ended = programs.run(code, timeout=100)
    assert ended.returncode == 0, ended.stderr


WORDS = st.text("abc xyz é中", min_size=1, max_size=40) | st.integers(1, 300).map(lambda n: "word " * n)


@pytest.fixture(scope="module", params=["float32", "mean"])
def small(request):
    path = models.folder("bge-small", layers=1, pooling="mean" if request.param == "mean" else "cls")
    with LocalEngine(find_model(str(path)), backend="torch", blank="keep") as engine:
        yield engine


@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=st.lists(WORDS, min_size=1, max_size=12), other=st.lists(WORDS, max_size=6))
def test_a_vector_does_not_depend_on_what_else_is_in_the_batch(small, texts, other):
    together = small.encode(texts + other, role="document")[: len(texts)]
    alone = np.concatenate([small.encode([text], role="document") for text in texts])
    assert np.abs(together - alone).max() <= 1e-5


def test_a_text_of_eight_thousand_tokens_is_computed_in_bounded_memory():
    # Narrow, but with bge-m3's heads and positions: 16 times 8,192 × 8,192 scores would be 4.3 GB.
    code = """
import resource, sys
import numpy as np
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
engine = LocalEngine(find_model(sys.argv[1]), backend="torch")
engine.encode(["warm"], role="document")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
long = "a text that goes on " * 4000
assert engine.count_tokens([long])[0] > 8192
rows = engine.encode([long, "short"], role="document")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
assert np.abs(rows[1] - engine.encode(["short"], role="document")[0]).max() < 1e-5
"""
    ended = programs.run(code, str(models.folder("narrow-m3")), timeout=110)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 200_000


def test_many_lengths_come_to_few_sizes_of_matrix():
    sizes = {matrix_rows(tokens) for tokens in range(1, 2049)}
    assert len(sizes) < 60
    assert all(
        tokens <= matrix_rows(tokens) <= max(16 * (tokens // 16 + 1), tokens * 1.125) for tokens in range(1, 5000)
    )


def test_memory_does_not_grow_with_the_lengths_that_were_seen():
    code = """
import sys
from pathlib import Path
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
engine = LocalEngine(find_model(sys.argv[1]), backend="torch")
def kilobytes():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
def embed(words):
    engine.encode(["word " * words] * (1 + 200 // words), role="document")
for words in (1, 200):
    embed(words)
before = kilobytes()
for words in range(1, 200, 2):
    embed(words)
print(kilobytes() - before)
"""
    ended = programs.run(code, str(models.folder("bge-small")), timeout=110)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 150_000  # 380,000 with a matrix as long as its tokens


# The gate


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"model_type": "roberta-prelayernorm"}, "architecture"),
        ({"hidden_size": 512}, "wide"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map"),
    ],
)
def test_other_configurations_are_left_to_sentence_transformers(tmp_path, change, said):
    source = models.folder("bge-small")
    card = find_model(str(source))
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | change))
    shape, reason = read_architecture(tmp_path / "m", card)
    assert shape is None
    assert said in reason


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_config.json", {}, "adapter"),
        ("modules.json", [*models.MODULES[:2], {"type": "x.Dense", "path": "2_Dense"}], "Dense"),
        ("modules.json", [{"type": "x.StaticEmbedding", "path": ""}], "StaticEmbedding"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "several"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "include_prompt": False}, "prompt"),
    ],
)
def test_other_modules_are_left_to_sentence_transformers(tmp_path, name, content, said):
    source = models.folder("bge-small")
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m" / name).write_text(json.dumps(content))
    shape, reason = read_architecture(tmp_path / "m", find_model(str(source)))
    assert shape is None
    assert said in reason


def test_weights_with_something_unknown_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    source = models.folder("bge-small")
    for change in ("more", "less"):
        path = tmp_path / change
        shutil.copytree(source, path)
        tensors = load_file(source / "model.safetensors")
        if change == "more":
            tensors["encoder.layer.0.adapter.weight"] = np.zeros((2, 2), np.float32)
        else:
            del tensors["encoder.layer.1.output.dense.bias"]
        save_file(tensors, path / "model.safetensors")
        with LocalEngine(find_model(str(path)), backend="torch") as engine, pytest.raises(ModelLoadError) as caught:
            engine.encode(["x"], role="document")
        assert "encoder.layer." in str(caught.value)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_that_the_processor_would_emulate_is_refused_unless_a_backend_is_named(precision, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    card = find_model(models.demo())
    refused = pytest.raises(ConfigError, match=f"no {precision} arithmetic.*backend='torch'")
    with LocalEngine(card, precision=precision) as engine, refused:
        engine.encode(["a text"], role="document")
    warned = pytest.warns(BGEWarning, match=f"no {precision} arithmetic")
    with LocalEngine(card, precision=precision, backend="torch") as engine, warned:
        assert len(engine.encode(["a text"], role="document")) == 1


def test_a_precision_that_the_processor_has_is_taken(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    with LocalEngine(find_model(models.demo()), precision="bfloat16") as engine:
        assert len(engine.encode(["a text"], role="document")) == 1


# Plans


@given(st.lists(st.integers(1, 600), max_size=80), st.integers(1, 2000), st.booleans())
def test_batches_hold_every_text_once_longest_first_within_the_budget(lengths, budget, padded):
    sizes = np.array(lengths, np.int64)
    batches = cut_batches(sizes, budget, padded=padded)
    order = np.concatenate(batches) if batches else np.empty(0, np.int64)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(sizes[order]) <= 0).all()
    for batch in batches:
        cost = len(batch) * sizes[batch].max() if padded else sizes[batch].sum()
        assert len(batch) == 1 or cost <= budget


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 10), st.integers(1, 100))
def test_slices_cover_all_texts_and_stay_in_bounds(sizes, room, characters):
    texts = ["x" * size for size in sizes]
    start = 0
    while start < len(texts):
        end = slice_end(texts, start, room, characters)
        assert start < end <= start + room
        assert sum(map(len, texts[start : end - 1])) < characters
        start = end
    assert start == len(texts)


def test_threads_follow_the_affinity_and_the_quota(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5}, raising=False)
    for cpu in range(6):  # three cores of two threads each
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{cpu % 3},{cpu % 3 + 3}\n")
    assert usable_cores(tmp_path, tmp_path) == 3
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path, tmp_path) == 3
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert usable_cores(tmp_path, tmp_path) == 2
    (tmp_path / "cpu.max").write_text("20000 100000\n")
    assert usable_cores(tmp_path, tmp_path) == 1
    assert usable_cores(tmp_path / "none", tmp_path / "none") == 6


@pytest.fixture
def advice(monkeypatch):
    from bge_integrations.local.backends import advice

    monkeypatch.setattr(advice, "_said", set())
    monkeypatch.setattr(advice, "_AFTER_SECONDS", 0.0)
    return advice


def test_a_long_job_in_float32_is_told_once_what_bfloat16_would_give(advice, caplog):
    import torch

    from bge_integrations.local.heads import LengthRun

    def slow(*_):
        time.sleep(0.04)

    def fast(*_):
        time.sleep(0.02)

    none = torch.empty(0)
    batch = PackedBatch(none, none, none, [LengthRun(0, 4, 0, 8)])
    shape, _ = read_architecture(models.folder("bge-small"), find_model(str(models.folder("bge-small"))))
    caplog.set_level("INFO", "bge_integrations")
    for _ in range(2):
        advice.PrecisionAdvice("a model", shape, lambda: fast).computed(10.0, batch, slow)
    (record,) = caplog.records
    assert re.search(r"a model: .* precision='bfloat16' computes .* (1|2|3)\.\d times as fast", record.getMessage())


def test_bfloat16_is_measured_for_a_model_whose_precision_nobody_set(advice):
    from bge_integrations.local.machine import is_native

    card = find_model(str(models.folder("bge-small")))
    with LocalEngine(card, backend="torch", precision="float32") as engine:
        asked = engine.encode(models.TEXTS, role="document")
    assert not advice._said
    with LocalEngine(card, backend="torch") as engine:
        rows = engine.encode(models.TEXTS, role="document")
    assert advice._said == ({"bfloat16"} if is_native("bfloat16") else set())
    assert (asked == rows).all()
