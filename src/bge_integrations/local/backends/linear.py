"""A linear layer, fused with what follows it where oneDNN can do that."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_TYPICAL_ROWS = 1024  # for which oneDNN lays a weight out; it multiplies any number of rows


class Linear:
    """x times weight, plus bias; optionally with GELU or a residual, in one pass over memory."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.bias = bias.to(dtype).contiguous()
        self._op = fused_linear(dtype) if weight.device.type == "cpu" else None
        self.weight = _ordered(weight.to(dtype).contiguous(), self._op)

    @property
    def fused(self) -> bool:
        """Whether oneDNN's fused operator is used."""
        return self._op is not None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the product."""
        from torch.nn.functional import linear

        if self._op is not None:
            return self._op(x, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]
        return linear(x, self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU of the product."""
        from torch.nn.functional import gelu, linear

        if self._op is not None:
            # "none": without the approximation by tanh, as transformers' hidden_act "gelu" is.
            return self._op(x, self.weight, self.bias, "gelu", [], "none")  # type: ignore[no-any-return]
        return gelu(linear(x, self.weight, self.bias))

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return the product plus a residual."""
        if self._op is not None:
            return self._op.binary(x, residual, self.weight, self.bias, "add")  # type: ignore[no-any-return]
        return self(x).add_(residual)


def _ordered(weight: Tensor, op: Any) -> Tensor:
    """Return a weight in the operator's own layout, into which it would otherwise bring it in each call."""
    import torch

    return weight if op is None else torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001


@lru_cache
def fused_linear(dtype: torch.dtype) -> Any:
    """Return oneDNN's linear operator where it is there and right, else None.

    It is what torch.compile emits, not public API: so it is tried once against the plain one.
    """
    import torch
    from torch.nn.functional import gelu, linear

    try:
        op = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
            return None
        x, weight, bias = (torch.linspace(-1, 1, n, dtype=dtype) for n in (32, 64, 8))
        x, weight = x.view(4, 8), weight.view(8, 8)
        plain = linear(x, weight, bias)
        weight = _ordered(weight, op)
        same = (
            torch.allclose(op(x, weight, bias, "gelu", [], "none"), gelu(plain), atol=0.02)
            and torch.allclose(op(x, weight, bias, "none", [], ""), plain, atol=0.02)
            and torch.allclose(op.binary(x, plain, weight, bias, "add"), plain + plain, atol=0.02)
        )
    except (AttributeError, RuntimeError):
        return None
    return op if same else None
