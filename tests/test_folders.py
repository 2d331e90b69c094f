"""Folders of models as people have them: each gives what sentence-transformers gives, or is refused in one line."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models
from bge_integrations import BGEError, load_encoder
from bge_integrations.catalog import find_model
from bge_integrations.errors import ModelLoadError
from bge_integrations.local.engine import LocalEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::bge_integrations.errors.BGEWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TEXTS = models.TEXTS[:6]
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
OLD = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")


def plain(path: Path, *, kind: str = "narrow-bert") -> Path:
    """A folder as transformers saves it: nothing of sentence-transformers."""
    path.mkdir()
    for file in models.folder(kind, layers=1).iterdir():
        if file.is_file() and "sentence" not in file.name and file.name != "modules.json":
            shutil.copy(file, path)
    return path


def saved(path: Path, *, kind: str = "narrow-bert", **options) -> Path:
    """A folder as sentence-transformers saves it."""
    shutil.copytree(models.folder(kind, layers=1, **options), path)
    return path


def pooled(path: Path, pooling: dict, *, place: str = "1_Pooling") -> Path:
    saved(path)
    shutil.rmtree(path / "1_Pooling")
    write(path / place / "config.json", {"word_embedding_dimension": 64, **pooling})
    write(path / "modules.json", [models.MODULES[0], {**models.MODULES[1], "path": place}, models.MODULES[2]])
    return path


def old_layout(path: Path) -> Path:
    """The transformer in a folder of its own, as sentence-transformers saved it before 1.0 and does for some models."""
    saved(path)
    inner = path / "0_Transformer"
    inner.mkdir()
    names = ("config.json", "model.safetensors", "sentence_bert_config.json", "vocab.txt", "special_tokens_map.json")
    for name in (*names, "tokenizer.json", "tokenizer_config.json"):
        shutil.move(path / name, inner / name)
    write(path / "modules.json", [{**models.MODULES[0], "path": "0_Transformer"}, *models.MODULES[1:]])
    return path


def pickled(path: Path) -> Path:
    import torch
    from safetensors.torch import load_file

    plain(path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


def dense(path: Path) -> Path:
    models.add_dense(saved(path), size=48)
    return path


def shortened(path: Path) -> Path:
    saved(path)
    about = json.loads((path / "config_sentence_transformers.json").read_text())
    write(path / "config_sentence_transformers.json", about | {"truncate_dim": 24})
    return path


def without(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).unlink()
    return path


def sharded(path: Path) -> Path:
    from safetensors.numpy import load_file, save_file

    saved(path)
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, some in parts.items():
        save_file({name: tensors[name] for name in some}, path / file, metadata={"format": "pt"})
    write(
        path / "model.safetensors.index.json",
        {"metadata": {}, "weight_map": {name: file for file, some in parts.items() for name in some}},
    )
    (path / "model.safetensors").unlink()
    return path


def cached(path: Path) -> Path:
    """A repository's folder in the hub's cache."""
    repository = path / "models--somebody--finetune"
    saved_at = repository / "snapshots" / ("a" * 40)
    saved_at.parent.mkdir(parents=True)
    saved(saved_at, pooling="mean")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return repository


def lowered(path: Path) -> Path:
    saved(path)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    write(path / "tokenizer.json", tokenizer)
    write(path / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": True})
    return path


def masked(path: Path) -> Path:
    """A checkpoint of pre-training: the language model's head beside the encoder."""
    from safetensors.numpy import load_file, save_file

    plain(path)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    tensors["cls.predictions.bias"] = np.zeros(4000, np.float32)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    change(path / "config.json", architectures=["BertForMaskedLM"])
    return path


def change(file: Path, **values) -> None:
    write(file, json.loads(file.read_text("utf-8")) | values)


def own_model(path: Path) -> Path:
    saved(path)
    (path / "modeling.py").write_text(f"from pathlib import Path\nPath({str(path / 'it ran')!r}).touch()\n")
    change(path / "config.json", auto_map={"AutoModel": "modeling.Own", "AutoConfig": "modeling.Own"})
    return path


EQUAL: dict[str, Callable[[Path], Path]] = {
    "saved by sentence-transformers, CLS": saved,
    "XLM-R, last token": lambda path: saved(path, kind="narrow-m3", pooling="lasttoken"),
    "saved prompts and a default one": lambda path: saved(path, prompts=True),
    "saved by transformers alone": plain,
    "only pytorch_model.bin": pickled,
    "weights in two files": sharded,
    "a dense layer": dense,
    "truncate_dim": shortened,
    "the transformer in 0_Transformer": old_layout,
    "the pooling in 2_Pooling": lambda path: pooled(path, {"pooling_mode_cls_token": True}, place="2_Pooling"),
    "the pooling in another folder": lambda path: pooled(path, {"pooling_mode": "max"}, place="pooling"),
    "two poolings": lambda path: pooled(path, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
    "vocab.txt only": lambda path: without(saved(path), "tokenizer.json"),
    "a folder of the hub's cache": cached,
    "lower-cased by sentence-transformers": lowered,
    "a masked language model": masked,
    "code beside an architecture that transformers has": own_model,
    # As models.py saves a folder: the first case is "pooling_mode_cls_token".
    **{
        f"pooling_mode_{OLD[p]}": lambda path, p=p: pooled(path, {f"pooling_mode_{OLD[p]}": True}) for p in POOLINGS[1:]
    },
    **{f"pooling_mode {p}": lambda path, p=p: pooled(path, {"pooling_mode": p}) for p in POOLINGS},
}


def own_result(path: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    snapshots = [*path.glob("snapshots/*")]
    about = path / "config_sentence_transformers.json"
    size = json.loads(about.read_text()).get("truncate_dim") if about.is_file() else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SentenceTransformer(str(snapshots[0] if snapshots else path), device="cpu", truncate_dim=size)
        rows = model.encode(texts, prompt="", show_progress_bar=False)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("name", EQUAL)
def test_the_vectors_are_those_of_sentence_transformers(tmp_path, name):
    path = EQUAL[name](tmp_path / "finetune")
    found = {}
    for backend in ("auto", "sentence-transformers"):
        with load_encoder(path, backend=backend, device="cpu", show_progress=False) as encoder:
            found[backend] = encoder.encode(TEXTS, role="document")
    assert not (path / "it ran").exists()
    wanted = own_result(path, TEXTS)
    for backend, rows in found.items():
        assert rows.shape == wanted.shape, backend
        assert (rows.astype(np.float64) * wanted).sum(1).min() >= 1 - 1e-5, backend


@pytest.mark.parametrize(
    ("trace", "backend"), [("training_args.bin", "torch"), ("colbert_linear.pt", "sentence-transformers")]
)
def test_what_flagembedding_trained_is_pooled_by_cls(tmp_path, trace, backend):
    path = plain(tmp_path / "finetune")
    (path / trace).write_bytes(b"not read")
    wanted = models.reference(path, TEXTS)
    with load_encoder(path, backend=backend, device="cpu", show_progress=False) as encoder:
        assert (encoder.encode(TEXTS, role="document") * wanted).sum(1).min() >= 1 - 1e-5


# Refused, and with what to do


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 133466304\n")


def adapter(path: Path) -> Path:
    path.mkdir()
    write(path / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "BAAI/bge-base-en-v1.5"})
    (path / "adapter_model.safetensors").write_bytes(b"\0" * 64)
    return path


def lfs(path: Path, name: str) -> Path:
    saved(path)
    pointer(path / name)
    return path


def only(path: Path, name: str) -> Path:
    without(saved(path), "model.safetensors")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_bytes(b"something else")
    return path


def classifier(path: Path, kind: str) -> Path:
    from safetensors.numpy import load_file, save_file

    plain(path)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors | {"classifier.weight": np.zeros((1, 64), np.float32)}, path / "model.safetensors")
    change(path / "config.json", architectures=[kind])
    return path


def gguf(path: Path) -> Path:
    path.mkdir()
    (path / "bge-small-en-v1.5-q8_0.gguf").write_bytes(b"GGUF")
    return path


def own_code(path: Path, module: dict) -> Path:
    """A folder whose modules name code that lies beside them."""
    saved(path)
    code = f"from pathlib import Path\nPath({str(path / 'it ran')!r}).touch()\nclass Own:\n    pass\n"
    for name in ("own.py", "custom_transformer.py"):
        (path / name).write_text(code)
    write(path / "modules.json", [{**models.MODULES[0], **module}, *models.MODULES[1:]])
    return path


def own_activation(path: Path) -> Path:
    dense(path)
    (path / "own.py").write_text(f"from pathlib import Path\nPath({str(path / 'it ran')!r}).touch()\n")
    change(path / "2_Dense" / "config.json", activation_function="own.Own")
    return path


def asked_for_trust(path: Path) -> Path:
    own_model(path)
    change(path / "sentence_bert_config.json", model_args={"trust_remote_code": True})
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a LoRA adapter alone": (adapter, r"LoRA adapter of 'BAAI/bge-base-en-v1\.5'.*merge"),
    "weights that are a git-lfs pointer": (lambda path: lfs(path, "model.safetensors"), "git lfs pull"),
    "a tokenizer that is a git-lfs pointer": (lambda path: lfs(path, "tokenizer.json"), "git lfs pull"),
    "a GGUF file": (gguf, r"llama\.cpp.*base_url="),
    "a GGUF file beside the configuration": (lambda path: only(path, "model-q4.gguf"), r"llama\.cpp"),
    "weights of TensorFlow": (lambda path: only(path, "tf_model.h5"), "TensorFlow"),
    "weights of Flax": (lambda path: only(path, "flax_model.msgpack"), "Flax"),
    "a quantised ONNX file": (lambda path: only(path, "onnx/model_quantized.onnx"), "quantised"),
    "no weights": (lambda path: without(saved(path), "model.safetensors"), "no weights"),
    "an unfinished download": (lambda path: only(path, "model.safetensors.incomplete"), "unfinished"),
    "a reranker": (lambda path: classifier(path, "BertForSequenceClassification"), "load_reranker"),
    "a tagger": (lambda path: classifier(path, "BertForTokenClassification"), "TokenClassification"),
    "modules with code": (lambda path: own_code(path, {"type": "own.Own"}), "trust_remote_code"),
    "a transformer with code": (
        lambda path: own_code(path, {"type": "custom_transformer.Transformer"}),
        "trust_remote_code",
    ),
    "an activation with code": (own_activation, "trust_remote_code"),
    "a configuration that trusts itself": (asked_for_trust, "trust_remote_code"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_that_says_what_to_do(tmp_path, name, monkeypatch):
    make, pattern = REFUSED[name]
    path = make(tmp_path / "finetune")
    monkeypatch.chdir(path)  # where code of the folder could be imported
    for backend in ("auto", "sentence-transformers"):
        with pytest.raises(BGEError, match=pattern) as caught:
            load_encoder(path, backend=backend, show_progress=False).encode(TEXTS, role="document")
        assert "\n" not in str(caught.value)
    assert not (path / "it ran").exists()


# Configurations as they come


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FILES = {
    "config.json": (
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "intermediate_size",
        "max_position_embeddings",
        "layer_norm_eps",
        "pad_token_id",
        "model_type",
        "architectures",
        "hidden_act",
        "auto_map",
    ),
    "modules.json": (),
    "1_Pooling/config.json": ("pooling_mode", "pooling_mode_cls_token", "word_embedding_dimension", "include_prompt"),
    "sentence_bert_config.json": ("max_seq_length", "do_lower_case", "model_args"),
    "tokenizer_config.json": ("truncation_side", "model_max_length", "do_lower_case"),
    "config_sentence_transformers.json": ("truncate_dim", "prompts", "default_prompt_name"),
    "model.safetensors.index.json": ("weight_map",),
}


@st.composite
def malformed(draw) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(FILES)))
    source = models.folder("narrow-bert", layers=1) / name
    kind = draw(st.sampled_from(["key", "key", "key", "value", "bytes", "deep"]))
    if kind == "bytes":
        return name, draw(st.binary(max_size=30))
    if kind == "deep":
        return name, b"[" * 100_000
    if kind == "key" and FILES[name]:
        data = json.loads(source.read_text("utf-8")) if source.is_file() else {}
        data[draw(st.sampled_from(FILES[name]))] = draw(JSON)
        return name, json.dumps(data).encode()
    return name, json.dumps(draw(JSON)).encode()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("malformed") / "finetune")


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(change=malformed())
def test_malformed_configurations_end_in_one_line_or_in_the_right_shape(scratch, change):
    name, data = change
    file = scratch / name
    before = file.read_bytes() if file.is_file() else None
    file.write_bytes(data)
    try:
        with LocalEngine(find_model(scratch), backend="torch", device="cpu") as engine:
            engine.describe()
            rows = engine.encode(["a text", "another"], role="document")
            assert rows.shape == (2, engine.card.dimensions)
            assert np.isfinite(rows).all()
            assert all(count > 0 for count in engine.count_tokens(["a text"]))
    except BGEError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        file.unlink() if before is None else file.write_bytes(before)


def test_a_folder_that_pools_otherwise_than_its_card_says_names_both(tmp_path):
    path = pooled(tmp_path / "bge-small-en-v1.5", {"pooling_mode": "max"}, place="2_Pooling")
    card = find_model(path)
    engine = LocalEngine(replace(card, pooling="cls"), device="cpu")
    with engine, pytest.raises(ModelLoadError, match=r"uses cls pooling, .* states max"):
        engine.encode(["x"], role="document")


@pytest.mark.parametrize("backend", ["torch", "sentence-transformers"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "last token"])
def test_another_pooling_can_be_asked_for_and_changes_the_space(backend, pooling):
    path = models.folder("narrow-bert", layers=1)
    wanted = models.reference(path, TEXTS, pooling=pooling.replace(" ", ""))
    card = find_model(path)
    with LocalEngine(card, backend=backend, device="cpu", pooling=pooling) as engine:
        assert (engine.encode(TEXTS, role="document") * wanted).sum(1).min() >= 1 - 1e-5
        assert (engine.space == card.space()) == (pooling == card.pooling)
