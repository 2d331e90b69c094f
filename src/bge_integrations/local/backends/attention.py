"""Attention over packed texts: one call for all lengths where a GPU has it, else a call for each run of equal length.

Both take queries, keys and values as they leave the linear layers, and never see padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..heads import LengthRun

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SCORES = 1 << 21  # elements of a block of scores: 4 MB


@dataclass
class PackedBatch:
    """Where the texts of a batch stand in the packed matrix.

    Attributes:
        tokens: of all texts, then some that fill the matrix up to one of a few sizes and belong to none.
        positions: of each token in its text.
        chosen: row of the token that is each text's row, where the pooling takes one.
        runs: neighbours of equal length, longest first.
    """

    tokens: Tensor
    positions: Tensor
    chosen: Tensor
    runs: list[LengthRun]

    @cached_property
    def edges(self) -> Tensor:
        """First row of each text, and the row after the last one: int32, shape (texts + 1,)."""
        import torch

        lengths = np.repeat([run.length for run in self.runs], [run.count for run in self.runs])
        return torch.from_numpy(np.append(0, np.cumsum(lengths)).astype(np.int32)).to(self.tokens.device)


class RunAttention:
    """A call for each run of texts of equal length."""

    name = "runs of equal length"

    def every(self, qkv: Tensor, batch: PackedBatch, heads: int) -> Tensor:
        """Return what each token gathers from the tokens of its own text; tokens of no text gather nothing.

        Args:
            qkv: queries, keys and values side by side, shape (tokens, 3 × hidden).
            batch: where the texts stand.
            heads: attention heads.
        """
        tokens, width = qkv.shape
        out = qkv.new_empty(tokens, width // 3)
        out[batch.runs[-1].end :] = 0
        size = width // 3 // heads
        for run in batch.runs:
            # (3, texts, heads, tokens, size)
            parts = qkv[run.start : run.end].view(run.count, run.length, 3, heads, size).permute(2, 0, 3, 1, 4)
            into = out[run.start : run.end].view(run.count, run.length, heads, size).transpose(1, 2)
            _gather(parts[0], parts[1], parts[2], into)
        return out

    def one(self, query: Tensor, key_value: Tensor, batch: PackedBatch, heads: int) -> Tensor:
        """Return what one token of each text gathers.

        Args:
            query: of those tokens, shape (texts, hidden).
            key_value: keys and values side by side, shape (tokens, 2 × hidden).
            batch: where the texts stand.
            heads: attention heads.
        """
        from torch.nn.functional import scaled_dot_product_attention

        size = query.shape[1] // heads
        out = query.new_empty(query.shape)
        for run in batch.runs:
            rows = slice(run.first, run.first + run.count)
            parts = key_value[run.start : run.end].view(run.count, run.length, 2, heads, size).permute(2, 0, 3, 1, 4)
            asked = query[rows].view(run.count, 1, heads, size).transpose(1, 2)
            out[rows].view(run.count, heads, 1, size).copy_(scaled_dot_product_attention(asked, parts[0], parts[1]))
        return out


class VariableAttention(RunAttention):
    """One call a layer, whatever the texts' lengths: flash attention on a CUDA device, in half precision."""

    name = "one call for all lengths"

    def every(self, qkv: Tensor, batch: PackedBatch, heads: int) -> Tensor:
        """Return what each token gathers; otherwise as in runs."""
        from torch.nn.attention.varlen import varlen_attn

        tokens, width = qkv.shape
        end, longest = batch.runs[-1].end, batch.runs[0].length
        out = qkv.new_zeros(tokens, width // 3)
        query, key, value = qkv[:end].view(end, 3, heads, -1).unbind(1)
        gathered: Any = varlen_attn(query, key, value, batch.edges, batch.edges, longest, longest)
        out[:end] = gathered.reshape(end, -1)
        return out

    def one(self, query: Tensor, key_value: Tensor, batch: PackedBatch, heads: int) -> Tensor:
        """Return what one token of each text gathers; otherwise as in runs."""
        import torch
        from torch.nn.attention.varlen import varlen_attn

        end, count = batch.runs[-1].end, len(query)
        key, value = key_value[:end].view(end, 2, heads, -1).unbind(1)
        each = torch.arange(count + 1, dtype=torch.int32, device=query.device)
        asked = query.view(count, heads, -1)
        gathered: Any = varlen_attn(asked, key, value, each, batch.edges, 1, batch.runs[0].length)
        return gathered.reshape(count, -1)  # type: ignore[no-any-return]


@lru_cache
def choose_attention(device: str, dtype: torch.dtype) -> RunAttention:
    """Return the attention for a device: one call for all lengths where that is there and right."""
    import torch

    runs, variable = RunAttention(), VariableAttention()
    if torch.device(device).type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return runs
    none = torch.empty(0, device=device)
    batch = PackedBatch(none, none, none, [LengthRun(0, 2, 0, 5), LengthRun(2, 1, 10, 3)])
    qkv = torch.linspace(-1, 1, 16 * 3 * 64, device=device, dtype=dtype).view(16, -1)
    try:
        same = torch.allclose(variable.every(qkv, batch, 2), runs.every(qkv, batch, 2), atol=0.02) and torch.allclose(
            variable.one(qkv[:3, :64], qkv[:, 64:], batch, 2), runs.one(qkv[:3, :64], qkv[:, 64:], batch, 2), atol=0.02
        )
    except (ImportError, RuntimeError, TypeError):  # an older torch, a card without it, another signature
        return runs
    return variable if same else runs


def _gather(query: Tensor, key: Tensor, value: Tensor, into: Tensor) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    count, heads, length, size = query.shape
    # In bfloat16 on a CPU (measured on Zen 4), torch's own attention is up to a seventh slower, except for a few short
    # texts and for long ones.
    blocks = query.dtype == torch.bfloat16 and query.device.type == "cpu" and count * length > 64 and length <= 512
    if not blocks:
        into.copy_(scaled_dot_product_attention(query, key, value))
        return
    step = max(1, _SCORES // (heads * length * length))
    query = query * size**-0.5
    for i in range(0, count, step):
        part = slice(i, i + step)
        weights = torch.matmul(query[part], key[part].transpose(-1, -2)).softmax(-1)
        into[part].copy_(torch.matmul(weights, value[part]))
