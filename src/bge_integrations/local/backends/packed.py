"""BERT and XLM-R on torch without padding.

The tokens of a batch stand one after another in one (tokens, hidden) matrix. Embeddings, linear layers, GELU and layer
norms never see where a text ends; attention does, in runs of texts of equal length. Where one token of each text is its
row (CLS, last token), the last layer computes keys and values of every token and the rest for that token alone. Exact
against transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...core.outputs import Output
from ...core.token_outputs import Several
from ...core.tokenizer import TextTokenizer, Tokens
from ...errors import ModelLoadError
from ..architecture import Architecture
from ..heads import ONE_TOKEN, find_runs, mean_of_runs
from ..machine import usable_cores
from ..select import Choice
from ..token_heads import TokenHeads, accept
from .advice import PrecisionAdvice
from .attention import PackedBatch, RunAttention, choose_attention
from .base import Backend
from .linear import Linear

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Layer:
    """One transformer layer; computes every token's next state.

    Attributes:
        groups: attention's projections, grouped by those that are computed in one product.
    """

    groups: tuple[tuple[str, ...], ...] = (("query", "key", "value"),)

    def __init__(
        self, weights: dict[str, Tensor], name: str, shape: Architecture, dtype: torch.dtype, attention: RunAttention
    ) -> None:
        self.heads, self.attention = shape.heads, attention
        names = [tuple(f"{name}.attention.self.{each}" for each in group) for group in self.groups]
        self.projections = [_linear(weights, group, dtype) for group in names]
        self.out = _linear(weights, (f"{name}.attention.output.dense",), dtype)
        self.up = _linear(weights, (f"{name}.intermediate.dense",), dtype)
        self.down = _linear(weights, (f"{name}.output.dense",), dtype)
        self.norm = _norm(weights, f"{name}.attention.output.LayerNorm", shape.epsilon, dtype)
        self.last_norm = _norm(weights, f"{name}.output.LayerNorm", shape.epsilon, dtype)

    def every(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """Return every token's next state."""
        import torch

        projected = [project(x) for project in self.projections]
        qkv = projected[0] if len(projected) == 1 else torch.cat(projected, 1)
        return self._rest(x, self.attention.every(qkv, batch, self.heads))

    __call__ = every  # the next states that are wanted: here every token's

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm(self.out.plus(attended, x))
        return self.last_norm(self.down.plus(self.up.gelu(x), x))


class OneTokenLayer(Layer):
    """The last layer where only one token of each text is wanted."""

    groups = (("query",), ("key", "value"))

    def __call__(self, x: Tensor, batch: PackedBatch) -> Tensor:
        """Return the next state of each text's chosen token alone."""
        query, key_value = self.projections
        chosen = x[batch.chosen]
        return self._rest(chosen, self.attention.one(query(chosen), key_value(x), batch, self.heads))


class PackedBackend(Backend):
    """Computes BERT and XLM-R encoders on torch."""

    padded = False

    def __init__(
        self,
        choice: Choice,
        weights: dict[str, Tensor],
        tokenizer: TextTokenizer,
        *,
        pooling: str,
        heads: TokenHeads | None = None,
        advise: bool = False,
    ) -> None:
        import torch

        super().__init__(choice)
        shape = choice.architecture
        assert shape is not None
        dtype: torch.dtype = getattr(torch, choice.precision)
        # Embeddings and their norm stay in float32; a layer converts what it takes.
        weights = {name: tensor.to(device=choice.device, dtype=torch.float32) for name, tensor in weights.items()}
        self.tokenizer, self.heads = tokenizer, heads
        self.pick = ONE_TOKEN.get(pooling)
        self.threads = set_threads()
        self.shape = shape
        self.dtype = dtype
        self.words = _pop(weights, "embeddings.word_embeddings.weight")
        types = _pop(weights, "embeddings.token_type_embeddings.weight")
        # Every token of a lone text is of type 0, so its vector is added once, here.
        self.positions = _pop(weights, "embeddings.position_embeddings.weight") + types[0]
        self.norm = _norm(weights, "embeddings.LayerNorm", shape.epsilon, torch.float32)
        kinds = [Layer] * (shape.layers - 1) + [OneTokenLayer if self.pick else Layer]
        self.attention = choose_attention(choice.device, dtype)
        self.layers = [
            kind(weights, f"encoder.layer.{i}", shape, dtype, self.attention) for i, kind in enumerate(kinds)
        ]
        if weights:  # another architecture: without them, vectors would be wrong in silence
            raise ModelLoadError(
                f"weights that the packed engine does not know ({', '.join(sorted(weights)[:3])}): "
                "backend='sentence-transformers' may support them"
            )
        self.budget = budget(choice.precision, choice.device)
        self.advice = PrecisionAdvice(choice.model, shape, partial(_half_layer, shape)) if advise else None

    def tokenize(self, texts: list[str]) -> Tokens:
        """Return token ids, cut to what the model reads."""
        return self.tokenizer.tokenize(texts)

    def accept(self, output: Output) -> None:
        """Refuse an output whose head the model's folder does not have."""
        accept(output, self.heads)

    def forward(self, items: Sequence[NDArray[np.int32]], output: Output) -> Any:
        """Return the pooled states of texts that stand longest first, and what else was asked for."""
        import torch

        with torch.inference_mode():
            begin = time.perf_counter()
            batch = self._pack(items)
            x = self.norm(self._embed(batch)).to(self.dtype)
            for layer in self.layers[:-1]:
                x = layer(x, batch)
            if self.advice is not None:
                self.advice.computed(time.perf_counter() - begin, batch, self.layers[0].every)
            if self.heads is None or not isinstance(output, Several):
                return _as_array(self._pool(self.layers[-1](x, batch), batch))
            states = self.layers[-1].every(x, batch)
            chosen = states[batch.chosen] if self.pick else states
            return self.heads.columns(output, _as_array(self._pool(chosen, batch)), states.float(), items)

    def _pool(self, states: Tensor, batch: PackedBatch) -> Tensor:
        return states if self.pick else mean_of_runs(states, batch.runs)

    def _embed(self, batch: PackedBatch) -> Tensor:
        from torch.nn.functional import embedding

        return embedding(batch.tokens, self.words) + embedding(batch.positions, self.positions)

    def _pack(self, items: Sequence[NDArray[np.int32]]) -> PackedBatch:
        import torch

        lengths = np.fromiter(map(len, items), np.int64, len(items))
        starts = np.cumsum(lengths) - lengths
        total, device = int(lengths.sum()), self.choice.device
        # Rows after the last text hold token 0; no run and no chosen row names them, so their states are never read.
        tokens, positions = np.zeros((2, rows(total)), np.int64)
        np.concatenate(items, out=tokens[:total])
        positions[:total] = np.arange(total) - np.repeat(starts, lengths) + self.shape.first_position
        chosen = torch.from_numpy(self.pick(starts, lengths) if self.pick else starts).to(device)
        both = torch.from_numpy(tokens).to(device), torch.from_numpy(positions).to(device)
        return PackedBatch(*both, chosen, find_runs(lengths, starts))

    def describe(self) -> dict[str, Any]:
        """Return what was chosen, threads, whether oneDNN's fused operator is used, and how attention is called."""
        return {**super().describe(), "fused": self.layers[0].up.fused, "attention": self.attention.name}


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

    threads = min(torch.get_num_threads(), usable_cores())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return threads


def _as_array(states: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = states.float().cpu().numpy()
    return array


def _linear(weights: dict[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> Linear:
    """Return one linear layer that computes several side by side."""
    import torch

    weight, bias = ([_pop(weights, f"{name}.{part}") for name in names] for part in ("weight", "bias"))
    return Linear(torch.cat(weight), torch.cat(bias), dtype)


def _norm(weights: dict[str, Tensor], name: str, epsilon: float, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    import torch

    weight, bias = (_pop(weights, f"{name}.{part}").to(dtype) for part in ("weight", "bias"))
    return partial(torch.layer_norm, normalized_shape=weight.shape, weight=weight, bias=bias, eps=epsilon)


def _half_layer(shape: Architecture) -> Callable[[Tensor, PackedBatch], Tensor]:
    """Return a layer in bfloat16 whose weights are zero: its speed does not depend on them."""
    import torch

    hidden, inner = shape.hidden, shape.intermediate
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (hidden, hidden))
    sizes |= {"intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    sizes |= {"attention.output.LayerNorm": (hidden,), "output.LayerNorm": (hidden,)}
    weights = {f"x.{name}.weight": torch.zeros(size, dtype=torch.bfloat16) for name, size in sizes.items()}
    weights |= {f"x.{name}.bias": torch.zeros(size[0], dtype=torch.bfloat16) for name, size in sizes.items()}
    return Layer(weights, "x", shape, torch.bfloat16, RunAttention()).every


def _pop(weights: dict[str, Tensor], name: str) -> Tensor:
    try:
        return weights.pop(name)
    except KeyError:
        raise ModelLoadError(f"the weights have no {name!r}: is the file complete?") from None
