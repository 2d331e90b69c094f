"""Write the ONNX file of a model that has none, with torch's own exporter."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..catalog.records import ModelCard, RerankerCard
from ..errors import ModelLoadError
from ..extras import require_all
from .architecture import read_architecture
from .files import ONNX_FILE, get_folder

if TYPE_CHECKING:
    from torch import Tensor

_COMPANIONS = ("*.json", "*.txt", "*.model", "1_Pooling/*", "2_Normalize/*")
_INLINE = 1_800_000_000  # bytes of weights; protobuf ends at 2 GB, beyond that they lie beside the graph


def export_onnx(card: ModelCard, output: Path) -> Path:
    """Write ``onnx/model.onnx`` for a BERT or XLM-R encoder or reranker, with tokenizer and configuration beside it.

    Args:
        card: the model.
        output: a folder; the model's own folder does.

    Returns:
        Where the file is.

    Raises:
        MissingExtraError: torch, transformers, onnx, onnxscript or onnxruntime is not installed.
        ModelLoadError: another architecture, or the written graph does not compute what torch computes.
    """
    require_all({"export": ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")}, purpose="an ONNX export")
    folder = get_folder(card, ["torch"])
    shape, reason = read_architecture(folder, card)
    if shape is None:
        raise ModelLoadError(f"{card.id!r} cannot be written as ONNX: {reason}")
    model = _States(folder, head=isinstance(card, RerankerCard))
    target = output / ONNX_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        _write(model, target)
    _check(model, target)
    if output.resolve() != folder.resolve():
        _copy_companions(folder, output)
    return target


class _States:
    """A transformers model that returns its last hidden state alone, or with its head the logits of pairs."""

    def __init__(self, folder: Path, *, head: bool = False) -> None:
        import torch
        from transformers import AutoModel, AutoModelForSequenceClassification

        class States(torch.nn.Module):
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model = model

            def forward(self, *inputs: Tensor) -> Tensor:
                given = dict(zip(names, inputs, strict=True))
                return getattr(self.model(**given), output)  # type: ignore[no-any-return]

        # Eager attention: the graph keeps its mask in plain sight.
        kind = AutoModelForSequenceClassification if head else AutoModel
        output = self.output = "logits" if head else "last_hidden_state"
        inner = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (inner.config.type_vocab_size > 1)
        self.names = names
        self.words = inner.config.vocab_size
        self.bytes = sum(weight.nbytes for weight in inner.parameters())
        self.module = States(inner)

    def inputs(self, lengths: list[int]) -> list[Tensor]:
        """Return token ids of texts of these lengths, padded, with mask and types."""
        import torch

        numbers = torch.Generator().manual_seed(1)
        ids = torch.randint(5, self.words, (len(lengths), max(lengths)), generator=numbers)
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        return [ids, mask, torch.zeros_like(ids)][: len(self.names)]

    def states(self, inputs: list[Tensor]) -> np.ndarray[Any, Any]:
        """Return what torch computes."""
        import torch

        with torch.inference_mode():
            rows: np.ndarray[Any, Any] = self.module(*inputs).numpy()
        return rows


def _write(model: _States, target: Path) -> None:
    import torch

    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model.module,
        tuple(model.inputs([17, 9, 12])),  # torch.export takes a dimension of size 1 for a constant
        target,
        input_names=model.names,
        output_names=[model.output],
        dynamic_shapes=((any_size,) * len(model.names),),
        dynamo=True,
        external_data=model.bytes > _INLINE,
        verbose=False,
    )


def _check(model: _States, target: Path) -> None:
    """Compare with torch on a padded batch: an exporter has silently lost the attention mask before.

    Raises:
        ModelLoadError: the graph computes something else.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    worst = 0.0
    for lengths in ([1], [40, 3, 22]):
        inputs = model.inputs(lengths)
        feed = {name: tensor.numpy() for name, tensor in zip(model.names, inputs, strict=True)}
        states, wanted = session.run(None, feed)[0], model.states(inputs)
        kept = feed["attention_mask"].astype(bool) if states.ndim == 3 else slice(None)
        worst = max(worst, float(np.abs(states - wanted)[kept].max()))
    if not worst < 1e-3:  # "not <" refuses NaN too
        target.unlink()
        raise ModelLoadError(
            f"torch's exporter wrote a graph that differs from the model by {worst:.2g}: it was removed"
        )


def _copy_companions(folder: Path, output: Path) -> None:
    for pattern in _COMPANIONS:
        for path in folder.glob(pattern):
            copy = output / path.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's log and warnings, which are about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
