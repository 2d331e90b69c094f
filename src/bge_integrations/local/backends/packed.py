"""BERT and XLM-R on torch without padding.

The tokens of a batch stand one after another in one (tokens, hidden) matrix. Embeddings, linear layers, GELU and layer
norms never see where a text ends; attention does, in runs of texts of equal length. With CLS pooling the last layer
computes keys and values of every token and the rest for the first token of each text alone. Exact against
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.tokenizer import TextTokenizer, Tokens
from ...errors import ModelLoadError
from ..architecture import Architecture
from .attention import Run, attend, attend_first
from .linear import Linear

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Norm:
    """A layer norm."""

    def __init__(self, weights: dict[str, Tensor], name: str, epsilon: float, dtype: torch.dtype) -> None:
        self.weight = _pop(weights, f"{name}.weight").to(dtype)
        self.bias = _pop(weights, f"{name}.bias").to(dtype)
        self.epsilon = epsilon

    def __call__(self, x: Tensor) -> Tensor:
        """Return x normalised over its last axis."""
        from torch.nn.functional import layer_norm

        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass
class Batch:
    """Where the texts of a batch stand in the packed matrix.

    Attributes:
        tokens: of all texts, then some that fill the matrix up to one of a few sizes and belong to none.
        positions: of each token in its text.
        starts: row of each text's first token.
        runs: neighbours of equal length.
    """

    tokens: Tensor
    positions: Tensor
    starts: Tensor
    runs: list[Run]


class Layer:
    """One transformer layer; computes every token's next state."""

    def __init__(self, weights: dict[str, Tensor], name: str, shape: Architecture, dtype: torch.dtype) -> None:
        self.heads = shape.heads
        self._read_attention(weights, f"{name}.attention.self", dtype)
        self.out = _linear(weights, (f"{name}.attention.output.dense",), dtype)
        self.up = _linear(weights, (f"{name}.intermediate.dense",), dtype)
        self.down = _linear(weights, (f"{name}.output.dense",), dtype)
        self.norm = Norm(weights, f"{name}.attention.output.LayerNorm", shape.epsilon, dtype)
        self.last_norm = Norm(weights, f"{name}.output.LayerNorm", shape.epsilon, dtype)

    def _read_attention(self, weights: dict[str, Tensor], name: str, dtype: torch.dtype) -> None:
        self.qkv = _linear(weights, (f"{name}.query", f"{name}.key", f"{name}.value"), dtype)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """Return every token's next state."""
        return self._rest(x, attend(self.qkv(x), batch.runs, self.heads))

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm(self.out.plus(attended, x))
        return self.last_norm(self.down.plus(self.up.gelu(x), x))


class FirstTokenLayer(Layer):
    """The last layer where only the first token of each text is wanted."""

    def _read_attention(self, weights: dict[str, Tensor], name: str, dtype: torch.dtype) -> None:
        self.query = _linear(weights, (f"{name}.query",), dtype)
        self.key_value = _linear(weights, (f"{name}.key", f"{name}.value"), dtype)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """Return the next state of each text's first token alone."""
        first = x[batch.starts]
        attended = attend_first(self.query(first), self.key_value(x), batch.runs, self.heads)
        return self._rest(first, attended)


class PackedBackend:
    """Computes BERT and XLM-R encoders on torch."""

    padded = False

    def __init__(
        self,
        shape: Architecture,
        weights: dict[str, Tensor],
        tokenizer: TextTokenizer,
        *,
        pooling: str,
        precision: str,
        device: str,
    ) -> None:
        import torch

        dtype: torch.dtype = getattr(torch, precision)
        weights = {name: tensor.to(device=device, dtype=torch.float32) for name, tensor in weights.items()}
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.precision = precision
        self.device = device
        self.threads = set_threads()
        self.shape = shape
        self.dtype = dtype
        self.words = _pop(weights, "embeddings.word_embeddings.weight")
        types = _pop(weights, "embeddings.token_type_embeddings.weight")
        self.positions = _pop(weights, "embeddings.position_embeddings.weight") + types[0]
        self.norm = Norm(weights, "embeddings.LayerNorm", shape.epsilon, torch.float32)
        kinds = [Layer] * (shape.layers - 1) + [FirstTokenLayer if pooling == "cls" else Layer]
        self.layers = [kind(weights, f"encoder.layer.{i}", shape, dtype) for i, kind in enumerate(kinds)]
        if weights:
            raise ModelLoadError(f"weights that this engine does not know: {', '.join(sorted(weights)[:3])}")
        self.budget = budget(precision, device)

    def tokenize(self, texts: list[str]) -> Tokens:
        """Return token ids, cut to what the model reads."""
        return self.tokenizer.tokenize(texts)

    def forward(self, items: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        """Return the pooled states of texts that stand longest first."""
        import torch

        with torch.inference_mode():
            batch = self._pack(items)
            x = self.norm(self._embed(batch)).to(self.dtype)
            for layer in self.layers:
                x = layer(x, batch)
            pooled = x if self.pooling == "cls" else _mean(x, batch.runs)
            vectors: NDArray[np.float32] = pooled.float().cpu().numpy()
        return vectors

    def _embed(self, batch: Batch) -> Tensor:
        from torch.nn.functional import embedding

        return embedding(batch.tokens, self.words) + embedding(batch.positions, self.positions)

    def _pack(self, items: Sequence[NDArray[np.int32]]) -> Batch:
        import torch

        lengths = np.fromiter(map(len, items), np.int64, len(items))
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(lengths.sum()) - np.repeat(starts, lengths) + self.shape.first_position
        fill = (0, rows(int(lengths.sum())) - len(positions))
        arrays = np.pad(np.concatenate(items).astype(np.int64), fill), np.pad(positions, fill), starts
        flat, places, first = (torch.from_numpy(array).to(self.device) for array in arrays)
        return Batch(flat, places, first, _runs(lengths, starts))

    def describe(self) -> dict[str, Any]:
        """Return precision, device and threads."""
        return {
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
            "fused": self.layers[0].up.fused,
        }


def budget(precision: str, device: str) -> int:
    """Return the tokens per batch at which it is fastest: activations stay in the caches of a CPU."""
    if device != "cpu":
        return 65_536
    return 1024 if precision == "float32" else 2048


def rows(tokens: int) -> int:
    """Return the rows of the packed matrix for so many tokens: a few sizes instead of any.

    oneDNN compiles each size of matrix anew and keeps a thousand of them: about 1 GB, and 1 ms for each new one.
    """
    step = 16 if tokens <= 256 else 32 if tokens <= 1024 else 64
    return -(-tokens // step) * step


def set_threads() -> int:
    """Give torch the cores that this process may use, never more than the user left it, and return how many."""
    import torch

    from ..cores import usable_cores

    threads = min(torch.get_num_threads(), usable_cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def _runs(lengths: NDArray[np.int64], starts: NDArray[np.int64]) -> list[Run]:
    edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    return [Run(first, last - first, int(starts[first]), int(lengths[first])) for first, last in pairwise(edges)]


def _mean(x: Tensor, runs: list[Run]) -> Tensor:
    import torch

    means = [x[run.start : run.end].view(run.count, run.length, -1).float().mean(1) for run in runs]
    return torch.cat(means)


def _linear(weights: dict[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> Linear:
    """Return one linear layer that computes several side by side."""
    import torch

    weight, bias = ([_pop(weights, f"{name}.{part}") for name in names] for part in ("weight", "bias"))
    return Linear(torch.cat(weight), torch.cat(bias), dtype)


def _pop(weights: dict[str, Tensor], name: str) -> Tensor:
    try:
        return weights.pop(name)
    except KeyError:
        raise ModelLoadError(f"the weights have no {name!r}: is the file whole?") from None
