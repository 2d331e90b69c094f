"""Attention over packed texts, in runs of equal length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..heads import Run

if TYPE_CHECKING:
    from torch import Tensor

_SCORES = 1 << 21  # elements of a block of scores: 4 MB in bfloat16, 8 MB in float32
_FUSED_FROM = {"float32": 64, "bfloat16": 512}  # tokens above which torch's own attention is faster, on Zen 4


def attend(qkv: Tensor, runs: list[Run], heads: int) -> Tensor:
    """Return what each token gathers from the tokens of its own text; tokens of no text gather nothing.

    Args:
        qkv: queries, keys and values side by side, shape (tokens, 3 × hidden).
        runs: where the texts stand.
        heads: attention heads.
    """
    tokens, width = qkv.shape
    out = qkv.new_empty(tokens, width // 3)
    out[runs[-1].end :] = 0
    size = width // 3 // heads
    for run in runs:
        # (3, texts, heads, tokens, size)
        parts = qkv[run.start : run.end].view(run.count, run.length, 3, heads, size).permute(2, 0, 3, 1, 4)
        into = out[run.start : run.end].view(run.count, run.length, heads, size).transpose(1, 2)
        _gather(parts[0], parts[1], parts[2], into)
    return out


def _gather(query: Tensor, key: Tensor, value: Tensor, into: Tensor) -> None:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    count, heads, length, size = query.shape
    if query.device.type != "cpu" or length > _FUSED_FROM.get(str(query.dtype)[6:], 0):
        into.copy_(scaled_dot_product_attention(query, key, value))
        return
    step = max(1, _SCORES // (heads * length * length))
    query = query * size**-0.5
    for i in range(0, count, step):
        part = slice(i, i + step)
        weights = torch.matmul(query[part], key[part].transpose(-1, -2)).softmax(-1)
        into[part].copy_(torch.matmul(weights, value[part]))


def attend_one(query: Tensor, key_value: Tensor, runs: list[Run], heads: int) -> Tensor:
    """Return what one token of each text gathers.

    Args:
        query: of those tokens, shape (texts, hidden).
        key_value: keys and values side by side, shape (tokens, 2 × hidden).
        runs: where the texts stand.
        heads: attention heads.
    """
    from torch.nn.functional import scaled_dot_product_attention

    size = query.shape[1] // heads
    out = query.new_empty(query.shape)
    for run in runs:
        rows = slice(run.first, run.first + run.count)
        parts = key_value[run.start : run.end].view(run.count, run.length, 2, heads, size).permute(2, 0, 3, 1, 4)
        asked = query[rows].view(run.count, 1, heads, size).transpose(1, 2)
        out[rows].view(run.count, heads, 1, size).copy_(scaled_dot_product_attention(asked, parts[0], parts[1]))
    return out
