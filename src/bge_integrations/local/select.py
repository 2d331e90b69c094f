"""Which backend, device and precision a model is computed with, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..catalog.local_folder import describe_contents, pooling_of
from ..catalog.records import ModelCard
from ..catalog.weights import is_lfs_pointer
from ..errors import BGEWarning, ConfigError, MissingExtraError, ModelLoadError, warn
from ..extras import install_line
from .architecture import Architecture, modules_reason, other_task, read_architecture
from .files import Weights, find_onnx, has_weights
from .machine import best_device, check_device, is_native

BACKENDS = ("auto", "torch", "onnx", "sentence-transformers")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        devices: several of one kind instead of one; each computes a share of every batch.
        pooling: instead of the model's own, whatever its files say.
    """

    card: ModelCard
    device: str | None = None
    devices: tuple[str, ...] = ()
    backend: str = "auto"
    precision: str | None = None
    trust_remote_code: bool = False
    pooling: str | None = None

    def __post_init__(self) -> None:
        if self.backend == "openvino":
            raise ConfigError("backend='openvino' is not built in: 'torch' with precision='bfloat16' is as fast")
        if self.backend not in BACKENDS:
            raise ConfigError(f"no backend {self.backend!r}; choose one of {', '.join(BACKENDS)}")
        if self.precision not in (None, *PRECISIONS):
            raise ConfigError(f"no precision {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if self.precision == "int8" and self.backend not in ("auto", "onnx"):
            raise ConfigError("precision='int8' needs backend='onnx'")
        if self.backend == "onnx" and self.precision in ("float16", "bfloat16"):
            raise ConfigError(f"precision={self.precision!r} needs backend='torch'")
        self._check_devices()

    def _check_devices(self) -> None:
        if self.device is not None and self.devices:
            raise ConfigError("pass device= or devices=, not both")
        asked = self.devices or (() if self.device is None else (self.device,))
        if len({device.partition(":")[0] for device in asked}) > 1:
            raise ConfigError(f"devices= must be of one kind, such as ['cuda:0', 'cuda:1'], not {list(asked)}")
        for device in asked:
            if self.backend == "onnx" and device != "cpu":
                raise ConfigError(
                    f"backend='onnx' runs on the CPU only, not on device={device!r}: leave device= out, or "
                    "pass backend='torch'"
                )
            check_device(device)


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        model: id of the card.
        backend: ``torch`` (packed), ``onnx`` or ``sentence-transformers``.
        why: one clause for the log and ``describe``.
        architecture: of the packed engine.
    """

    model: str
    backend: str
    device: str
    precision: str
    why: str
    architecture: Architecture | None = None

    def describe(self) -> dict[str, Any]:
        """Return the choice as plain data."""
        return {name: getattr(self, name) for name in ("backend", "precision", "device", "why")}


def usable_weights(settings: Settings, device: str) -> list[Weights]:
    """Return the kinds of weights that can be used, best first.

    Raises:
        MissingExtraError: what is needed for any of them is not installed.
    """
    onnx = settings.backend == "onnx" or settings.precision == "int8"
    plain = settings.backend == "auto" and device == "cpu" and settings.precision in (None, "float32")
    wanted: list[Weights] = ["onnx"] if onnx else ["onnx", "torch"] if plain else ["torch"]
    needs = {"onnx": "onnxruntime", "torch": "torch"}
    usable = [kind for kind in wanted if find_spec(needs[kind]) is not None]
    if not usable:
        extra = "onnx" if onnx else "local"
        need = needs[wanted[-1]]
        raise MissingExtraError(f"{settings.card.id!r} on this machine needs {need}: {install_line(extra)}")
    return usable


def choose(settings: Settings, device: str, folder: Path, kinds: Sequence[Weights]) -> Choice:
    """Choose for a model whose files are here.

    Raises:
        ModelLoadError: the folder has no weights that can be used, or is no embedding model's.
        MissingExtraError: its weights need a package that is not installed.
    """
    card = settings.card
    held = [kind for kind in kinds if has_weights(folder, kind)]
    if not held:
        raise _no_weights(settings, folder, kinds)
    task = other_task(folder)
    if task:
        raise ModelLoadError(
            f"{str(folder)!r} holds a {task}, which classifies or reranks and has no embeddings: "
            "pass a reranker to load_reranker, or the folder of an embedding model"
        )
    if settings.pooling is None:
        _check_pooling(card, folder)
    if is_lfs_pointer(folder / "tokenizer.json"):
        raise ModelLoadError(f"{str(folder / 'tokenizer.json')!r} is a git-lfs pointer: run `git lfs pull` there")
    if held[0] == "onnx":
        reason = modules_reason(folder, card.pooling)
        if not reason:
            file = find_onnx(folder)
            assert file is not None
            found = f"CPU, onnxruntime is installed, {file.relative_to(folder).as_posix()} is there"
            why = found if "torch" in kinds else "asked for"
            return Choice(card.id, "onnx", "cpu", settings.precision or "float32", why)
        if "torch" not in held:
            raise ModelLoadError(f"{card.id!r} cannot be run by backend='onnx': {reason}")
    return _torch_choice(settings, device, folder)


def _torch_choice(settings: Settings, device: str, folder: Path) -> Choice:
    model, precision = settings.card.id, settings.precision or ("float16" if device.startswith("cuda") else "float32")
    if settings.backend == "sentence-transformers":
        return Choice(model, "sentence-transformers", device, precision, "asked for")
    shape, reason = read_architecture(folder, settings.card)
    if shape is None:
        if settings.precision is None and device.startswith("cuda"):
            precision = "bfloat16"  # some decoders (Gemma) overflow in float16
        return Choice(model, "sentence-transformers", device, precision, f"not for the packed engine: {reason}")
    found = "" if device == "cpu" else f"{device} is there, "
    kind = "XLM-R" if shape.first_position else "BERT"
    why = "asked for" if settings.backend == "torch" else f"{found}a {kind} encoder, packed"
    return Choice(model, "torch", device, precision, why, shape)


def _no_weights(settings: Settings, folder: Path, kinds: Sequence[Weights]) -> ModelLoadError | MissingExtraError:
    if settings.backend == "auto" and find_spec("torch") is None and has_weights(folder, "torch"):
        extra = install_line("local")
        return MissingExtraError(f"{settings.card.id!r} has no ONNX file, and its weights need torch: {extra}")
    return ModelLoadError(f"{str(folder)!r} has no weights for {' or '.join(kinds)}{_advice(folder, kinds)}")


def _advice(folder: Path, kinds: Sequence[Weights]) -> str:
    there = describe_contents(folder)
    if list(kinds) == ["onnx"] and not there:
        return ": write onnx/model.onnx with `bge export`"
    return f": {there}" if there else ": did the download finish?"


def _check_pooling(card: ModelCard, folder: Path) -> None:
    """Refuse a folder that pools otherwise than the card says.

    Raises:
        ModelLoadError: it does.
    """
    stated = pooling_of(folder)
    if stated is not None and stated != card.pooling:
        raise ModelLoadError(
            f"{card.id!r} uses {card.pooling} pooling, but {str(folder)!r} states {stated}, which is "
            "another vector space: correct the config.json of its pooling, or rename the folder if it is "
            "another model"
        )


def find_device(settings: Settings) -> str:
    """Return the (first) device asked for, or the best there is."""
    if settings.device or settings.devices:
        return settings.device or settings.devices[0]
    return best_device()


def refuse_emulated(choice: Choice, *, asked_twice: bool) -> None:
    """Refuse a precision for which the CPU has no instructions, since it would be slower than float32.

    Args:
        choice: what was chosen.
        asked_twice: a backend was named beside the precision; then it is computed all the same, with a warning.

    Raises:
        ConfigError: it was not.
    """
    precision = choice.precision
    if choice.device != "cpu" or precision not in ("bfloat16", "float16") or is_native(precision) is not False:
        return
    slow = f"this CPU has no {precision} arithmetic, and emulating it is slower than float32"
    if not asked_twice:
        raise ConfigError(f"{slow}: leave precision= out, or pass backend='torch' as well to use it all the same")
    warn(f"{slow}: leave precision= out", BGEWarning)
