"""Read a model's card from the files in a local folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..errors import ModelLoadError
from .records import ModelCard, RerankerCard

__all__ = [
    "POOLINGS",
    "describe_contents",
    "fingerprint",
    "is_lfs_pointer",
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
        return f"it holds a LoRA adapter of {base!r} alone: merge it with peft's merge_and_unload() and save that model"
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


def is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what git leaves of a large one that git-lfs did not fetch."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


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
    return ModelCard(
        id=name,
        dimensions=size,
        max_tokens=_max_tokens(folder, inner, config),
        query_instruction="",
        pooling=guessed or "mean",
        pooling_stated=guessed is not None,
        instruction_needed="unknown",
        revision=commit or fingerprint(folder),
        folder=str(folder),
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
            f"holds a {kind}, and no file says with which prompt and which words it answers: start a server with it "
            "(vLLM) and pass base_url=, or save it as a CrossEncoder with a LogitScore"
        )
    if not any(name.endswith("SequenceClassification") for name in names):
        return f"holds a {kind}, which gives no scores of pairs; an embedding model belongs to load_encoder(...)"
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, Mapping) else config.get("num_labels", 2)
    return "" if count == 1 else f"sorts into {count} classes: a reranker has one"


def _named(card: ModelCard, folder: Path, commit: str | None, stated: str | None) -> ModelCard:
    if commit is not None:
        return card if card.revision in (None, commit) else replace(card, revision=commit)
    files = _weight_files(folder)
    if not files or all(_is_published(path, folder, card) for path in files):
        return card
    return replace(card, revision=fingerprint(folder), pooling=stated or card.pooling)


def _is_published(path: Path, folder: Path, card: ModelCard) -> bool:
    """Return whether a file of weights is the one that the card's authors published.

    The hub's own download leaves a note with the commit; it counts while the file is not newer than the note, which is
    huggingface_hub's rule too. Otherwise the whole file is compared with the digests that the card knows.
    """
    note = folder / ".cache" / "huggingface" / "download" / f"{path.relative_to(folder).as_posix()}.metadata"
    try:
        status = path.stat()
        if note.is_file():
            commit, _, written = note.read_text("utf-8").split()[:3]
            if commit == card.revision and status.st_mtime <= float(written) + 1:
                return True
    except (OSError, ValueError):
        return False
    return bool(card.weights) and _digest(path, status.st_size, status.st_mtime_ns) in card.weights


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # part of the cache's key alone
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: Path) -> str:
    """Return a digest of the weights that is the same wherever the folder lies: sizes, and samples of every file.

    A copy in another format beside them, such as what ``bge export`` writes, does not change it.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        try:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix().removeprefix('onnx/')}:{size}".encode())
            with path.open("rb") as file:
                for offset in range(0, size, max(65_536, size // 256)):
                    file.seek(offset)
                    digest.update(file.read(65_536))
        except OSError as error:
            raise ModelLoadError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that are loaded: of the folder itself, then of its modules, such as a Dense layer."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern)) + sorted(folder.glob(f"[0-9]*_*/{pattern}"))
        if found:
            return found
    return sorted(path for path in folder.glob("onnx/*") if path.is_file())


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
        raise ModelLoadError(f"{str(folder / path)!r} pools by {mode!r}, which is none of {', '.join(POOLINGS)}")
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
    return min((n for n in (tokenizer, positions) if isinstance(n, int) and 0 < n < 1_000_000), default=512)
