"""The ONNX engine: a repository's own file, without torch or transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from bge_integrations.catalog import find_model
from bge_integrations.errors import MissingExtraError, ModelLoadError
from bge_integrations.local.engine import LocalEngine
from bge_integrations.local.export import export_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")]


SOURCES = {"mean": partial(models.folder, "narrow-bert", layers=1, pooling="mean"), "demo": models.demo}


@cache
def exported(which: str) -> Path:
    """The demo model's file beside its weights, the other in a folder of its own."""
    source, target = SOURCES[which](), models.root() / f"exported-{which}"
    if which == "demo":
        source = shutil.copytree(source, target)
    assert export_onnx(find_model(str(source)), target) == target / "onnx" / "model.onnx"
    return target


# That of bge-m3, which has no token types, and its heads: test_m3.py.
@pytest.mark.parametrize("which", SOURCES)
def test_an_exported_file_gives_what_transformers_gives(which):
    path = exported(which)
    card, source = find_model(str(path)), SOURCES[which]()
    wanted = models.reference(source, models.TEXTS, pooling=card.pooling, max_tokens=card.max_tokens)
    with LocalEngine(card, backend="onnx") as engine:
        rows = engine.encode(models.TEXTS, role="document")
        assert engine.describe()["backend"] == "onnx"
    assert (rows * wanted).sum(1).min() >= 0.99999
    assert card.pooling == find_model(str(source)).pooling


WORDS = st.text("abc xyz é中", min_size=1, max_size=40) | st.integers(1, 200).map(lambda n: "word " * n)


@pytest.fixture(scope="module")
def engine():
    with LocalEngine(find_model(str(exported("mean"))), backend="onnx", blank="keep") as engine:
        yield engine


@settings(max_examples=25, deadline=None, derandomize=True)
@given(texts=st.lists(WORDS, min_size=1, max_size=10), other=st.lists(WORDS, max_size=5))
def test_padding_changes_nothing(engine, texts, other):
    together = engine.encode(texts + other, role="document")[: len(texts)]
    alone = np.concatenate([engine.encode([text], role="document") for text in texts])
    assert np.abs(together - alone).max() <= 1e-5


def test_neither_torch_nor_transformers_is_imported():
    code = f"""
import sys
sys.modules.update(torch=None, transformers=None, sentence_transformers=None, onnx=None)
from bge_integrations.catalog import find_model
from bge_integrations.local.engine import LocalEngine
engine = LocalEngine(find_model({str(exported("demo"))!r}))
assert engine.encode(["text", "a longer text"], role="query").shape == (2, 256)
told = engine.describe()
assert told["backend"] == "onnx", told
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_auto_takes_the_file_on_a_processor_and_torch_where_there_is_none():
    with LocalEngine(find_model(str(exported("mean"))), device="cpu") as engine:
        told = engine.describe()
        assert (told["backend"], told["loaded"]) == ("onnx", False)
        engine.encode(["x"], role="document")
        assert engine.describe()["backend"] == "onnx"
    with LocalEngine(find_model(str(models.demo())), device="cpu") as engine:
        assert engine.describe()["backend"] == "torch"


def test_a_file_at_the_top_is_used(tmp_path):
    path = shutil.copytree(exported("mean"), tmp_path / "finetune")
    for file in (path / "onnx").iterdir():
        file.rename(path / file.name)
    (path / "onnx").rmdir()
    with LocalEngine(find_model(str(path)), device="cpu") as engine:
        rows = engine.encode(models.TEXTS, role="document")
        assert engine.describe()["backend"] == "onnx"
    wanted = models.reference(SOURCES["mean"](), models.TEXTS, pooling="mean")
    assert (rows * wanted).sum(1).min() >= 0.99999


def test_a_model_without_a_file_says_how_to_write_one():
    engine = LocalEngine(find_model(str(models.demo())), backend="onnx")
    with engine, pytest.raises(ModelLoadError, match="bge export"):
        engine.encode(["x"], role="document")


def test_int8_is_near_and_named_apart():
    card = find_model(str(exported("demo")))
    texts = [text for text in models.TEXTS if len(text) > 20]
    with LocalEngine(card, backend="onnx") as exact, LocalEngine(card, precision="int8") as small:
        cosine = (exact.encode(texts, role="document") * small.encode(texts, role="document")).sum(1)
        assert small.space != exact.space
        assert small.describe()["precision"] == "int8"
    assert 0.9 < cosine.min() < 0.9999


def test_a_file_beside_the_weights_leaves_the_space_as_it_is(tmp_path):
    bare = shutil.copytree(models.demo(), tmp_path / "model")
    assert find_model(str(exported("demo"))).revision == find_model(str(bare)).revision


def test_a_decoder_cannot_be_exported(tmp_path):
    with pytest.raises(ModelLoadError, match="mistral"):
        export_onnx(find_model(str(models.folder("decoder"))), tmp_path)


def test_modules_after_the_transformer_keep_auto_away_from_the_file(tmp_path):
    shutil.copytree(exported("mean"), tmp_path / "model")
    modules = [*models.MODULES[:2], {"idx": 2, "name": "2", "path": "2_Dense", "type": "x.models.Dense"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with LocalEngine(find_model(str(tmp_path / "model"))) as engine, pytest.raises(ModelLoadError, match="Dense"):
        engine.encode(["x"], role="document")


def test_a_broken_file_is_named(tmp_path):
    shutil.copytree(exported("mean"), tmp_path / "model")
    (tmp_path / "model" / "onnx" / "model.onnx").write_bytes(b"not a graph")
    with (
        LocalEngine(find_model(str(tmp_path / "model"))) as engine,
        pytest.raises(ModelLoadError, match=r"model\.onnx"),
    ):
        engine.encode(["x"], role="document")


def test_what_is_missing_is_named_with_its_extra(monkeypatch):
    import bge_integrations.local.select as choice

    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    for options, extra in (({"backend": "onnx"}, "onnx"), ({"backend": "torch"}, "local"), ({}, "local")):
        engine = LocalEngine(find_model(str(models.demo())), **options)
        with engine, pytest.raises(MissingExtraError, match=rf"bge-integrations\[{extra}\]"):
            engine.encode(["x"], role="document")
