"""Read a model's card from the files in a local folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..errors import ModelLoadError
from .records import ModelCard, RerankerCard
from .weights import HEAD_FILES, find_head, fingerprint, is_lfs_pointer, is_published, read_heads, weight_files

__all__ = [
    "POOLINGS",
    "describe_contents",
    "is_model_folder",
    "no_reranker",
    "pooling_of",
    "read_folder",
    "read_json",
    "read_modules",
    "read_reranker_folder",
]

POOLINGS: dict[str, str] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
    "lasttoken": "last token",
}
"""What sentence-transformers calls a pooling, and what a card does; in the order in which several are joined."""

_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SIZES = ("hidden_size", "d_model", "dim", "n_embd")
_ENCODERS = ("bert", "roberta", "xlm-roberta")


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder holds a model's configuration, or is a repository's folder in the hub's cache."""
    try:
        return any((_snapshot(folder) / name).is_file() for name in ("config.json", "modules.json"))
    except OSError:
        return False


def describe_contents(folder: Path) -> str:
    """Return what a folder holds instead of a model that can be used here, and what to do; nothing where unknown."""
    try:
        names = {path.relative_to(folder).as_posix() for path in [*folder.glob("*"), *folder.glob("*/*")]}
        pointers = [path.name for path in folder.glob("*") if is_lfs_pointer(path)]
    except OSError:
        return ""
    if pointers:
        return f"{pointers[0]} is a git-lfs pointer, not the file: run `git lfs pull` there, or use `hf download`"
    if "adapter_config.json" in names:
        base = _object(folder / "adapter_config.json").get("base_model_name_or_path")
        return (
            f"it holds a LoRA adapter of {base!r} without the model itself: merge it with peft's "
            "merge_and_unload() and save that model"
        )
    for ending, advice in _OTHER_FORMATS.items():
        found = sorted(name for name in names if name.endswith(ending))
        if found:
            return f"{found[0]} {advice}"
    return ""


_OTHER_FORMATS = {
    ".gguf": "is for llama.cpp: start llama-server with it and pass base_url=, or download the original weights",
    ".onnx": "is an ONNX file of another kind (quantised, or of another name): only onnx/model.onnx and model.onnx are "
    "read, or download the original weights",
    ".h5": "is for TensorFlow: save the model with transformers' save_pretrained",
    ".msgpack": "is for Flax: save the model with transformers' save_pretrained",
    ".xml": "is for OpenVINO: download the original weights",
    ".part": "is an unfinished download: fetch it again",
    ".incomplete": "is an unfinished download: fetch it again",
}


def read_folder(folder: Path, known: Mapping[str, ModelCard]) -> ModelCard:
    """Return the card of the model in ``folder``.

    Args:
        folder: has a ``config.json``, and what sentence-transformers saves beside it.
        known: cards by lower-case name. A folder named like one of them, with its dimensions, takes its card; if its
            weights are not the published ones, with a revision of its own.

    Raises:
        ModelLoadError: the configuration cannot be read, or names no hidden size.
    """
    folder = _snapshot(folder)
    inner = folder / next((path for kind, path in read_modules(folder) if kind == "Transformer"), "")
    config = _object(inner / "config.json") or _object(folder / "0_Transformer" / "config.json")
    dimensions = next((size for key in _SIZES if (size := _count(config.get(key)))), None)
    if dimensions is None:
        raise ModelLoadError(f"{str(folder)!r} has no config.json with a hidden_size: is it a model's folder?")
    name, commit = _hub_name(folder.resolve())
    stated = pooling_of(folder)
    full = _dense_size(folder) or dimensions * len((stated or "").split("+"))
    cut = _object(folder / "config_sentence_transformers.json").get("truncate_dim")
    size = min(full, _count(cut) or full)
    named = known.get(name.lower().replace("___", "."))
    if named is not None and named.dimensions == full:
        return _named(replace(named, dimensions=size, folder=str(folder)), folder, commit, stated)
    guessed = stated or _trained_pooling(folder, config, known)
    outputs, heads = read_heads(folder)
    return ModelCard(
        id=name,
        dimensions=size,
        max_tokens=_max_tokens(folder, inner, config),
        query_instruction="",
        pooling=guessed or "mean",
        pooling_stated=guessed is not None,
        # What has bge-m3's heads was trained from it, and that takes no instruction.
        instruction_needed="unknown" if len(outputs) == 1 else "none",
        revision=commit or fingerprint(folder),
        folder=str(folder),
        outputs=outputs,
        vocabulary=_count(config.get("vocab_size")) or 0 if len(outputs) > 1 else 0,
        heads=heads,
        source="the folder's own configuration files",
    )


def read_reranker_folder(folder: Path, known: Mapping[str, RerankerCard]) -> RerankerCard:
    """Return the card of the reranker in ``folder``.

    Args:
        folder: has a ``config.json`` that names a classifier of one label, or a decoder that CrossEncoder has saved.
        known: cards by lower-case name; a folder of that name and width takes the card, as ``read_folder`` does.

    Raises:
        ModelLoadError: the configuration cannot be read, or is no reranker's.
    """
    folder = _snapshot(folder)
    config = _object(folder / "config.json")
    reason = no_reranker(folder)
    if reason:
        raise ModelLoadError(f"{str(folder)!r} {reason}")
    dimensions = next((size for key in _SIZES if (size := _count(config.get(key)))), None)
    if dimensions is None:
        raise ModelLoadError(f"{str(folder)!r} has no config.json with a hidden_size: is it a model's folder?")
    name, commit = _hub_name(folder.resolve())
    named = known.get(name.lower().replace("___", "."))
    if named is not None and named.dimensions == dimensions:
        return cast("RerankerCard", _named(replace(named, folder=str(folder)), folder, commit, None))
    return RerankerCard(
        id=name,
        dimensions=dimensions,
        max_tokens=_max_tokens(folder, folder, config),
        query_instruction="",
        instruction_needed="none",
        revision=commit or fingerprint(folder),
        folder=str(folder),
        source="the folder's own configuration files",
    )


def no_reranker(folder: Path) -> str:
    """Return why a folder's model is no reranker, or nothing.

    A decoder is one where its modules say with which words it answers (sentence-transformers' ``LogitScore``): without
    them, CrossEncoder takes "yes" and "no" of any model, and no prompt.

    Raises:
        ModelLoadError: a configuration file cannot be read.
    """
    config = _object(folder / "config.json")
    architectures = config.get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    kind = names[0] if names else "model without a head"
    if any(name == "LogitScore" for name, _ in read_modules(folder)):
        return ""
    if kind.endswith("ForCausalLM"):
        return (
            f"holds a {kind}, and no file says which prompt and which answers it was trained with: serve "
            "it (vLLM) and pass base_url=, or save it as a CrossEncoder with a LogitScore"
        )
    if not any(name.endswith("SequenceClassification") for name in names):
        return f"holds a {kind}, which does not score pairs; for an embedding model, use load_encoder(...)"
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else config.get("num_labels", 2)
    return "" if count == 1 else f"is a classifier of {count} classes: a reranker has one"


def _named(card: ModelCard, folder: Path, commit: str | None, stated: str | None) -> ModelCard:
    if commit is not None:
        return card if card.revision in (None, commit) else replace(card, revision=commit)
    own = [find_head(folder, name) for name in HEAD_FILES if name in card.outputs]
    if not all(is_published(path, folder, card) for path in own if path is not None):
        card = replace(card, heads=read_heads(folder)[1])
    files = weight_files(folder)
    if not files or all(is_published(path, folder, card) for path in files):
        return card
    return replace(card, revision=fingerprint(folder), pooling=stated or card.pooling)


def _snapshot(folder: Path) -> Path:
    """Return the newest snapshot of a repository's folder in the hub's cache, or the folder itself."""
    snapshots = folder / "snapshots"
    if not folder.name.startswith("models--") or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    commits = sorted(path.name for path in snapshots.iterdir())
    commit = main.read_text("utf-8").strip() if main.is_file() else commits[-1] if commits else ""
    return snapshots / commit if commit in commits else folder


def _hub_name(folder: Path) -> tuple[str, str | None]:
    """Return a repository's name with its owner, and the commit, for a folder of the hub's cache; else its own name."""
    cached = re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]([^/\\]+)", str(folder))
    return (f"{cached[1]}/{cached[2]}", cached[3]) if cached else (folder.name, None)


def read_json(path: Path) -> Any:
    """Return a file's JSON, or an empty object where there is no file.

    Raises:
        ModelLoadError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{str(path)!r} is not JSON: {error}") from None
    except OSError as error:
        raise ModelLoadError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    return data if isinstance(data, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Return class name and path of each module that modules.json lists; nothing where there is no such file.

    Raises:
        ModelLoadError: it is no list of modules, or a path leads out of the folder.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return []
    data = read_json(path)
    if not isinstance(data, list) or not data or not all(isinstance(module, dict) for module in data):
        raise ModelLoadError(f"{str(path)!r} is not a list of modules")
    modules = [(str(module.get("type", "")).rpartition(".")[2], str(module.get("path") or "")) for module in data]
    for _, inner in modules:
        if ".." in Path(inner).parts or Path(inner).is_absolute():
            raise ModelLoadError(f"{str(path)!r} names a module outside its folder: {inner!r}")
    return modules


def pooling_of(folder: Path) -> str | None:
    """Return how a folder's own files say that it pools, in a card's words; None where they do not.

    Several poolings are joined by ``+``, as their vectors are. A model that pools by no module of that name is
    ``"modules"``.

    Raises:
        ModelLoadError: a configuration that cannot be read, or a pooling that sentence-transformers does not know.
    """
    modules = read_modules(folder)
    path = next((path for kind, path in modules if kind == "Pooling"), None if modules else "1_Pooling")
    if path is None:
        return None if [kind for kind, _ in modules] in (["Transformer"], ["Transformer", "Normalize"]) else "modules"
    config = _object(folder / path / "config.json")
    if not config:
        return None
    mode = config.get("pooling_mode", [name for key, name in _OLD_KEYS.items() if config.get(key)] or "mean")
    names = [mode] if isinstance(mode, str) else mode
    if not isinstance(names, Sequence) or not names or not all(name in list(POOLINGS) for name in names):
        raise ModelLoadError(
            f"{str(folder / path)!r} uses the pooling {mode!r}, which is not one of {', '.join(POOLINGS)}"
        )
    return "+".join(POOLINGS[name] for name in names)


def _trained_pooling(folder: Path, config: Mapping[str, Any], known: Mapping[str, ModelCard]) -> str | None:
    """Return how a folder was trained to pool, where it came from a BGE model or from FlagEmbedding's trainers.

    These write no pooling: https://github.com/FlagOpen/FlagEmbedding pools by CLS where an encoder is trained.
    """
    parts = [part.lower() for part in re.split(r"[/\\]", str(config.get("_name_or_path") or "")) if part]
    base = next((known[part] for part in reversed(parts) if part in known), None)
    if base is not None:
        return base.pooling
    traces = any((folder / name).is_file() for name in ("training_args.bin", "colbert_linear.pt"))
    from_bge = bool(parts) and parts[-1].startswith("bge-")
    return "cls" if (traces or from_bge) and config.get("model_type") in _ENCODERS else None


def _dense_size(folder: Path) -> int | None:
    paths = [path for kind, path in read_modules(folder) if kind == "Dense"]
    files = [folder / path / "config.json" for path in paths] or sorted(folder.glob("*_Dense/config.json"))
    sizes = [_count(_object(path).get("out_features")) for path in files]
    return next(filter(None, reversed(sizes)), None)


def _max_tokens(folder: Path, inner: Path, config: Mapping[str, Any]) -> int:
    stated = _count(_object(inner / "sentence_bert_config.json").get("max_seq_length"))
    if stated is not None:
        return stated
    tokenizer = _object(folder / "tokenizer_config.json").get("model_max_length")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in ("xlm-roberta", "roberta"):
        padding = config.get("pad_token_id")
        positions -= (padding if isinstance(padding, int) else 1) + 1  # the first token stands behind the padding's
    # transformers writes int(1e30) for a tokenizer without a limit.
    return min((n for n in (tokenizer, positions) if isinstance(n, int) and 0 < n < 1_000_000), default=512)
