"""Whether the packed engine can compute a model exactly, read from the model's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog.records import ModelCard
from ..errors import ModelLoadError

_PLAIN_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_EXTRAS = ("adapter_config.json", "router_config.json", "modeling.py")
_DEFAULTS = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
_OFF = ("is_decoder", "add_cross_attention", "is_encoder_decoder", "quantization_config", "auto_map", "pruned_heads")


@dataclass(frozen=True)
class Architecture:
    """The shape of a BERT or XLM-R encoder.

    Attributes:
        first_position: row of the position table that the first token takes.
    """

    layers: int
    heads: int
    hidden: int
    intermediate: int
    epsilon: float
    positions: int
    first_position: int


def read_architecture(folder: Path, card: ModelCard) -> tuple[Architecture | None, str]:
    """Return the architecture, or None and why the packed engine leaves the model to sentence-transformers.

    Raises:
        ModelLoadError: a configuration file is not JSON.
    """
    config = read_json(folder / "config.json")
    reason = _reason(folder, card, config)
    if reason:
        return None, reason
    first = int(config.get("pad_token_id", 1)) + 1 if config["model_type"] == "xlm-roberta" else 0
    return Architecture(
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        epsilon=config.get("layer_norm_eps", 1e-12),
        positions=config["max_position_embeddings"],
        first_position=first,
    ), ""


def _reason(folder: Path, card: ModelCard, config: Mapping[str, Any]) -> str:
    if config.get("model_type") not in ("bert", "xlm-roberta"):
        return f"its architecture is {config.get('model_type')!r}"
    for key, wanted in _DEFAULTS.items():
        if config.get(key, wanted) != wanted:
            return f"its {key} is {config[key]!r}"
    switched = [key for key in _OFF if config.get(key)]
    if switched:
        return f"its configuration sets {switched[0]}"
    if config.get("hidden_size") != card.dimensions:
        return f"it is {config.get('hidden_size')} wide and gives {card.dimensions} dimensions"
    if card.pooling not in ("cls", "mean"):
        return f"it pools by {card.pooling}"
    return modules_reason(folder)


def modules_reason(folder: Path) -> str:
    """Return why the modules around the transformer are more than pooling and normalising, or nothing."""
    extra = [name for name in _EXTRAS if (folder / name).exists()]
    if extra:
        return f"it has {extra[0]}"
    if not (folder / "modules.json").is_file():
        return ""
    modules = read_json(folder / "modules.json")
    names = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if names not in _PLAIN_MODULES:
        return f"its modules are {', '.join(names)}"
    if modules[0].get("path"):
        return f"its transformer lies in {modules[0]['path']!r}"
    return _pooling_reason(folder / str(modules[1].get("path")) / "config.json")


def _pooling_reason(path: Path) -> str:
    config = read_json(path)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) > 1 or ("+" in str(config.get("pooling_mode", ""))):
        return "it joins several poolings"
    return "" if config.get("include_prompt", True) else "it pools without the prompt"


def pooling_of(folder: Path) -> str | None:
    """Return how the folder's own files say that it pools, or None where they do not."""
    config = read_json(folder / "1_Pooling" / "config.json")
    keys = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last token"}
    named = {"cls": "cls", "mean": "mean", "lasttoken": "last token"}.get(str(config.get("pooling_mode")))
    return named or next((name for key, name in keys.items() if config.get(f"pooling_mode_{key}")), None)


def read_json(path: Path) -> Any:
    """Return a file's JSON, or an empty object where there is no file.

    Raises:
        ModelLoadError: it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{str(path)!r} is not JSON: {error}") from None
