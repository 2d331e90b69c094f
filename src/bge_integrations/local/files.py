"""A model's files on this machine: in a folder, in the hub's cache, or fetched from the hub."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..catalog.records import ModelCard
from ..errors import MissingExtraError, ModelLoadError
from .architecture import read_json

T = TypeVar("T")
Weights = Literal["onnx", "torch"]

ONNX_FILE = "onnx/model.onnx"
_PATIENCE = 4.0  # seconds for the hub's first answer: offline must be clear in under five
_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]


def find_folder(card: ModelCard, kinds: Sequence[Weights]) -> Path | None:
    """Return the folder that holds the model's weights in one of these kinds, or None; asks nobody.

    Raises:
        ModelLoadError: the card's own folder is not there.
        MissingExtraError: huggingface_hub is not installed and the model is not a folder.
    """
    if card.folder is not None:
        folder = Path(card.folder)
        if not folder.is_dir():
            raise ModelLoadError(f"{card.folder!r} is not there (any more)")
        return folder
    hub = _hub()
    try:
        cached = Path(hub.snapshot_download(card.id, revision=card.revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    return cached if any(has_weights(cached, kind) for kind in kinds) else None


def get_folder(card: ModelCard, kinds: Sequence[Weights], *, code: bool = False) -> Path:
    """Return the model's folder; fetch what is missing from the hub, weights in the first kind that it has.

    Args:
        card: the model.
        kinds: what can be used, best first.
        code: whether Python files of the repository are wanted.

    Raises:
        ModelLoadError: the hub cannot be reached, refuses, or has no such weights.
        MissingExtraError: huggingface_hub is not installed.
    """
    found = find_folder(card, kinds)
    if found is not None:
        return found
    hub = _hub()
    try:
        info = _within(_PATIENCE, lambda: hub.HfApi().model_info(card.id, revision=card.revision, timeout=_PATIENCE))
        names = {file.rfilename for file in info.siblings or ()}
        patterns = _patterns(card, names, kinds) + (["*.py"] if code else [])
        return Path(hub.snapshot_download(card.id, revision=card.revision or info.sha, allow_patterns=patterns))
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{card.id!r} is not on this machine and could not be fetched from the hub ({_brief(error)}). Without a "
            "network: use model='demo' (bundled), a local folder as the model, a host with provider=, or fetch it "
            f"beforehand where there is one: hf download {card.id}"
        ) from error


def has_weights(folder: Path, kind: Weights) -> bool:
    """Return whether the folder holds weights of that kind, whole."""
    if kind == "onnx":
        return (folder / ONNX_FILE).is_file()
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
    if index:
        return all((folder / name).is_file() for name in set(index.values()))
    return any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _patterns(card: ModelCard, names: Collection[str], kinds: Sequence[Weights]) -> list[str]:
    safe = any(name.endswith(".safetensors") for name in names)
    torch = ["*.safetensors"] if safe else ["pytorch_model*.bin"] if "pytorch_model.bin" in names else []
    onnx = [ONNX_FILE, f"{ONNX_FILE}_data"] if ONNX_FILE in names else []
    weights = next((found for kind in kinds if (found := onnx if kind == "onnx" else torch)), None)
    if weights is None:
        raise ModelLoadError(f"{card.id!r} has no weights on the hub for {' or '.join(kinds)}")
    return _SMALL + weights


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError(
            'a local model needs huggingface_hub: pip install "bge-integrations[local]" or "bge-integrations[onnx]"'
        ) from error
    return huggingface_hub


def _within(seconds: float, ask: Callable[[], T]) -> T:
    """Return what ``ask`` returns, or give up: a name server that is gone holds a look-up longer than any timeout.

    Raises:
        TimeoutError: no answer in time.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="bge-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return answers[0]


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
