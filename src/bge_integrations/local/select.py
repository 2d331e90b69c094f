"""Which backend, device and precision a model is computed with, and why."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..catalog.records import ModelCard
from ..errors import BGEWarning, ConfigError, MissingExtraError, ModelLoadError
from .architecture import Architecture, modules_reason, pooling_of, read_architecture
from .files import ONNX_FILE, Weights, has_weights

Precision = Literal["float32", "float16", "bfloat16", "int8"]
BACKENDS = ("auto", "torch", "onnx", "sentence-transformers")
PRECISIONS = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Settings:
    """What the user asked for."""

    card: ModelCard
    device: str | None = None
    backend: str = "auto"
    precision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.backend == "openvino":
            raise ConfigError("backend='openvino' is not built in: 'torch' with precision='bfloat16' is as fast")
        if self.backend not in BACKENDS:
            raise ConfigError(f"no backend {self.backend!r}: {', '.join(BACKENDS)}")
        if self.precision not in (None, *PRECISIONS):
            raise ConfigError(f"no precision {self.precision!r}: {', '.join(PRECISIONS)}")
        if self.precision == "int8" and self.backend not in ("auto", "onnx"):
            raise ConfigError("precision='int8' needs backend='onnx'")
        if self.backend == "onnx" and self.precision in ("float16", "bfloat16"):
            raise ConfigError(f"precision={self.precision!r} needs backend='torch'")
        if self.backend == "onnx" and self.device not in (None, "cpu"):
            raise ConfigError("backend='onnx' computes on the CPU: leave device= out")


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        backend: ``torch`` (packed), ``onnx`` or ``sentence-transformers``.
        why: one clause for the log and ``describe``.
        architecture: of the packed engine.
    """

    backend: str
    device: str
    precision: str
    why: str
    architecture: Architecture | None = None


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
        raise MissingExtraError(
            f'{settings.card.id!r} on this machine needs {needs[wanted[-1]]}: pip install "bge-integrations[{extra}]"'
        )
    return usable


def choose(settings: Settings, device: str, folder: Path, kinds: Sequence[Weights]) -> Choice:
    """Choose for a model whose files are here.

    Raises:
        ModelLoadError: the folder has no weights that can be used.
    """
    card = settings.card
    held = [kind for kind in kinds if has_weights(folder, kind)]
    if not held:
        raise ModelLoadError(f"{str(folder)!r} has no weights for {' or '.join(kinds)}{_hint(kinds)}")
    _check_pooling(card, folder)
    if held[0] == "onnx":
        reason = modules_reason(folder) or ("" if card.pooling in ("cls", "mean") else f"it pools by {card.pooling}")
        if not reason:
            why = "asked for" if "torch" not in kinds else f"CPU, onnxruntime is installed, {ONNX_FILE} is there"
            return Choice("onnx", "cpu", settings.precision or "float32", why)
        if "torch" not in held:
            raise ModelLoadError(f"{card.id!r} cannot be computed by backend='onnx': {reason}")
    return _torch_choice(settings, device, folder)


def _torch_choice(settings: Settings, device: str, folder: Path) -> Choice:
    precision = settings.precision or ("float16" if device.startswith("cuda") else "float32")
    if settings.backend == "sentence-transformers":
        return Choice("sentence-transformers", device, precision, "asked for")
    shape, reason = read_architecture(folder, settings.card)
    if shape is None:
        if settings.precision is None and device.startswith("cuda"):
            precision = "bfloat16"  # some decoders (Gemma) overflow in float16
        return Choice("sentence-transformers", device, precision, f"not for the packed engine: {reason}")
    why = "asked for" if settings.backend == "torch" else f"{_where(device)}a {_kind(shape)} encoder, packed"
    return Choice("torch", device, precision, why, shape)


def _kind(shape: Architecture) -> str:
    return "XLM-R" if shape.first_position else "BERT"


def _where(device: str) -> str:
    return "" if device == "cpu" else f"{device} is there, "


def _hint(kinds: Sequence[Weights]) -> str:
    return f": write {ONNX_FILE} with `bge export`" if list(kinds) == ["onnx"] else ""


def _check_pooling(card: ModelCard, folder: Path) -> None:
    """Refuse a folder that pools otherwise than the card says.

    Raises:
        ModelLoadError: it does.
    """
    said = pooling_of(folder)
    if said is not None and said != card.pooling:
        raise ModelLoadError(
            f"{card.id!r} pools by {card.pooling}, {str(folder)!r} by {said}: another vector space. "
            "Correct 1_Pooling/config.json, or rename the folder if it is another model"
        )


def find_device(asked: str | None) -> str:
    """Return the device asked for, or the best one there is, without importing torch where there is only a CPU."""
    if asked is not None:
        return asked
    if not (_has_cuda_driver() or sys.platform == "darwin") or find_spec("torch") is None:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def warn_if_emulated(precision: str, device: str) -> None:
    """Warn where the CPU has no instructions for a precision and would be slower with it."""
    if device != "cpu" or precision not in ("bfloat16", "float16"):
        return
    import torch

    features = torch.cpu.get_capabilities()
    native = ("avx512_bf16", "amx_bf16", "bf16") if precision == "bfloat16" else ("avx512_fp16", "amx_fp16")
    if not any(features.get(name) for name in native):
        warnings.warn(
            f"this CPU has no {precision} arithmetic: it is emulated and slow; precision='float32' is faster here",
            BGEWarning,
            stacklevel=2,
        )
