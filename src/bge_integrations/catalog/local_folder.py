"""Read a model's card from the configuration files in a local folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from ..errors import ModelLoadError
from ..options import Pooling
from .records import ModelCard

_POOLING_KEYS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last token",
}
_POOLING_NAMES: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last token"}


def read_folder(folder: Path, known: Mapping[str, ModelCard]) -> ModelCard:
    """Return the card of the model in ``folder``.

    Args:
        folder: has a ``config.json``, and what sentence-transformers saves beside it.
        known: cards by lower-case name; a folder named like one of them, with its dimensions, takes it.

    Raises:
        ModelLoadError: the configuration cannot be read, or names no hidden size.
    """
    config = _json(folder / "config.json") or _json(folder / "0_Transformer" / "config.json")
    dimensions = config.get("hidden_size")
    if not isinstance(dimensions, int):
        raise ModelLoadError(f"{str(folder)!r} has no config.json with a hidden_size: is it a model's folder?")
    named = known.get(_hub_name(folder.resolve()).lower())
    if named is not None and named.dimensions == dimensions:
        return replace(named, folder=str(folder))
    return ModelCard(
        id=folder.resolve().name,
        dimensions=_dense_size(folder) or dimensions,
        max_tokens=_max_tokens(folder, config),
        query_instruction="",
        pooling=_pooling(folder),
        instruction_needed="unknown",
        revision=fingerprint(folder),
        folder=str(folder),
        source="the folder's own configuration files",
    )


def fingerprint(folder: Path) -> str:
    """Return a digest of the weights that is the same wherever the folder lies: sizes, and samples of every file.

    A copy in another format beside them, such as what ``bge export`` writes, does not change it.
    """
    digest = hashlib.sha256()
    kinds = (sorted(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin", "onnx/*"))
    for path in next(filter(None, kinds), []):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for offset in range(0, size, max(65_536, size // 256)):
                file.seek(offset)
                digest.update(file.read(65_536))
    return digest.hexdigest()[:16]


def _hub_name(folder: Path) -> str:
    cached = re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]", f"{folder}/")
    return cached[2] if cached else folder.name


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{str(path)!r} is not JSON: {error}") from None
    return data if isinstance(data, dict) else {}


def _pooling(folder: Path) -> Pooling:
    # Without a pooling file, sentence-transformers takes the mean; a folder loads here as it does there.
    config = _json(folder / "1_Pooling" / "config.json")
    named = _POOLING_NAMES.get(str(config.get("pooling_mode", "")))
    if named is not None and named in get_args(Pooling):
        return named
    return next((pooling for key, pooling in _POOLING_KEYS.items() if config.get(key)), "mean")


def _dense_size(folder: Path) -> int | None:
    sizes = [_json(path).get("out_features") for path in sorted(folder.glob("*_Dense/config.json"))]
    return next((size for size in reversed(sizes) if isinstance(size, int)), None)


def _max_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    stated = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    tokenizer = _json(folder / "tokenizer_config.json").get("model_max_length")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and config.get("model_type") in ("xlm-roberta", "roberta"):
        positions -= 2
    limits = [n for n in (stated, tokenizer, positions) if isinstance(n, int) and 0 < n < 1_000_000]
    return stated if isinstance(stated, int) else min(limits, default=512)
