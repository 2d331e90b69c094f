"""The numbers of a model, from its own files, without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelLoadError
from .architecture import read_json

if TYPE_CHECKING:
    from torch import Tensor

_PREFIXES = ("bert.", "roberta.", "0.auto_model.", "auto_model.")
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return a BERT encoder's tensors by name, without prefix, in the precision of the file.

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
            raise ModelLoadError(f"{str(path)!r} cannot be read: {error}") from error
    named = {_plain(name): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(_UNUSED)}


def _listed(folder: Path, files: list[Path]) -> list[Path]:
    """Leave out files that a sharded model's index does not name."""
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        names = set(read_json(index).get("weight_map", {}).values())
        if names and files and files[0].suffix in index.name:
            return [path for path in files if path.name in names]
    return files


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
