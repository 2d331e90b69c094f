"""Whether the packed engine can compute a model exactly, and its numbers: read from the model's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.local_folder import read_json, read_modules
from ..catalog.records import ModelCard, RerankerCard
from ..errors import ModelLoadError
from .heads import KNOWN

if TYPE_CHECKING:
    from torch import Tensor

_PLAIN_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
# Files and settings by which a folder holds more than the encoder: LoRA weights, a router, code of its own, ...
_EXTRAS = ("adapter_config.json", "router_config.json", "modeling.py")
_DEFAULTS = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
_OFF = ("is_decoder", "add_cross_attention", "is_encoder_decoder", "quantization_config", "auto_map", "pruned_heads")
_COUNTS = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "max_position_embeddings")
_OTHER_TASKS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
# What stands before the same names in files of models with a head, and in sentence-transformers' own.
_PREFIXES = ("bert.", "roberta.", "0.auto_model.", "auto_model.")
# Weights that are saved beside an encoder, and that no embedding is computed from.
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids")


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
        ModelLoadError: a configuration file is not JSON, or its numbers describe no model.
    """
    config = _object(folder / "config.json")
    reason = _reason(folder, card, config)
    if reason:
        return None, reason
    layers, heads, hidden, intermediate, positions = _counts(folder, config)
    padding, epsilon = config.get("pad_token_id"), config.get("layer_norm_eps", 1e-12)
    # RoBERTa's position ids begin after the padding's id: transformers computes them as padding + 1, padding + 2, ...
    first = (padding if isinstance(padding, int) else 1) + 1 if config["model_type"] == "xlm-roberta" else 0
    if hidden % heads or not isinstance(epsilon, (int, float)):
        raise ModelLoadError(
            f"{str(folder / 'config.json')!r} does not describe a model: {hidden} dimensions cannot be "
            f"split among {heads} heads"
        )
    if card.max_tokens + first > positions:
        raise ModelLoadError(
            f"{str(folder)!r} says that it reads {card.max_tokens} tokens, but has positions for {positions - first}: "
            "correct max_seq_length in sentence_bert_config.json"
        )
    return Architecture(layers, heads, hidden, intermediate, float(epsilon), positions, first), ""


def _counts(folder: Path, config: Mapping[str, Any]) -> list[int]:
    for key in _COUNTS:
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10_000_000:
            raise ModelLoadError(f"{str(folder / 'config.json')!r} has {key} {value!r}: is the file complete?")
    return [config[key] for key in _COUNTS]


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
        return f"it is {config.get('hidden_size')} wide, but its vectors have {card.dimensions} dimensions"
    return _scores_reason(folder) if isinstance(card, RerankerCard) else modules_reason(folder, card.pooling)


def _scores_reason(folder: Path) -> str:
    """Return why a reranker's folder is more than a classifier, or nothing; CrossEncoder lists one module since 6.0."""
    modules = read_modules(folder)
    if modules and modules != [("Transformer", "")]:
        return f"its modules are {', '.join(kind for kind, _ in modules)}"
    saved = _object(folder / "config_sentence_transformers.json")
    if saved.get("default_prompt_name"):
        return "it prepends a prompt to its texts"
    return _other_files(folder)


def modules_reason(folder: Path, pooling: str) -> str:
    """Return why the folder is more than a transformer with a pooling that is known here, or nothing.

    Raises:
        ModelLoadError: a configuration file that cannot be read.
    """
    if pooling not in KNOWN:
        return f"its pooling is {pooling}"
    reason = _other_files(folder)
    if reason:
        return reason
    modules = read_modules(folder)
    if not modules:
        return ""
    names = [kind for kind, _ in modules]
    if names not in _PLAIN_MODULES:
        return f"its modules are {', '.join(names)}"
    if modules[0][1]:
        return f"its transformer lies in {modules[0][1]!r}"
    return _pooling_reason(folder / modules[1][1] / "config.json")


def _other_files(folder: Path) -> str:
    code = foreign_code(folder)
    if code:
        return f"it needs its own code ({code})"
    extra = [name for name in _EXTRAS if (folder / name).exists()]
    if extra:
        return f"it has {extra[0]}"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return "it has no tokenizer.json"
    return ""


def _pooling_reason(path: Path) -> str:
    config = _object(path)
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) > 1 or ("+" in str(config.get("pooling_mode", ""))):
        return "it combines several poolings"
    return "" if config.get("include_prompt", True) else "it pools without the prompt"


def foreign_code(folder: Path) -> str:
    """Return a class outside sentence-transformers and torch that a folder's modules name, or nothing.

    sentence-transformers 5.0 to 5.6 runs such code of a local folder although ``trust_remote_code`` is False.

    Raises:
        ModelLoadError: a configuration file that cannot be read.
    """
    listed = read_json(folder / "modules.json")
    modules = listed if isinstance(listed, list) else []
    names = [str(module.get("type")) for module in modules if isinstance(module, dict)]
    paths = ["", *(path for _, path in read_modules(folder))]
    for file in (folder / path / name for path in paths for name in ("config.json", "router_config.json")):
        names += _class_names(_object(file))
    for file in (folder / path / "sentence_bert_config.json" for path in paths):
        settings = [value for value in _object(file).values() if isinstance(value, dict)]
        if any(setting.get("trust_remote_code") for setting in settings):
            return "sentence_bert_config.json sets trust_remote_code"
    return next((name for name in names if not name.startswith(("sentence_transformers.", "torch.nn."))), "")


def _class_names(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the classes that a module's configuration has sentence-transformers import."""
    types = config.get("types")
    if isinstance(types, dict):
        yield from map(str, types.values())
    for key in ("activation_function", "tokenizer_class"):
        # In a transformer's own config.json these are plain names.
        if "." in str(config.get(key) or ""):
            yield str(config[key])


def other_task(folder: Path) -> str:
    """Return the class of a model that was trained to classify or to rerank, not to embed, or nothing."""
    architectures = _object(folder / "config.json").get("architectures")
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    if (folder / "modules.json").is_file():  # sentence-transformers saved it as an embedding model
        return ""
    return next((name for name in names if name.endswith(_OTHER_TASKS)), "")


def read_weights(folder: Path, *, keep: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return a BERT encoder's tensors by name, without prefix, in the precision of the file.

    Args:
        folder: where they lie.
        keep: beginnings of names that an embedding model does not need.

    safetensors where there are any; else ``pytorch_model.bin`` through torch's restricted reader, which runs no code
    (bge-m3's repository has nothing else).

    Raises:
        ModelLoadError: no weights, or they cannot be read.
    """
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    files = _listed(folder, files)
    if not files:
        raise ModelLoadError(f"{str(folder)!r} has neither model.safetensors nor pytorch_model.bin")
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors.update(_read(path))
        except Exception as error:
            raise ModelLoadError(f"{str(path)!r} cannot be read ({brief(error)}): fetch it again") from error
    named = {_plain(name): tensor for name, tensor in tensors.items()}
    unused = tuple(name for name in _UNUSED if name not in keep)
    return {name: tensor for name, tensor in named.items() if not name.startswith(unused)}


def _listed(folder: Path, files: list[Path]) -> list[Path]:
    """Leave out files that a sharded model's index does not name."""
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        names = shards(index)
        if names and files and files[0].suffix in index.name:
            return [path for path in files if path.name in names]
    return files


def shards(index: Path) -> set[str]:
    """Return the files that a sharded model's index names; none where there is no index.

    Raises:
        ModelLoadError: the index cannot be read.
    """
    names = _object(index).get("weight_map")
    return set(map(str, names.values())) if isinstance(names, dict) else set()


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    import torch

    return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _object(path: Path) -> dict[str, Any]:
    data = read_json(path)
    return data if isinstance(data, dict) else {}


def brief(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines[0] else type(error).__name__
