"""What another precision would give on this machine, said once to a program that computes for long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..architecture import Architecture
from ..heads import LengthRun
from .attention import PackedBatch

if TYPE_CHECKING:
    from torch import Tensor

Pass = Callable[["Tensor", PackedBatch], "Tensor"]
"""Through one layer."""

_AFTER_SECONDS = 10.0
_COST = 0.05  # seconds that measuring may take: half a percent of what was computed
_PASSES = 4  # through each of the two layers; the first compiles kernels
_PLAUSIBLE = (1.0, 4.0)  # a ratio outside says that other programs were in the way, or that there is nothing to gain
_LOG = logging.getLogger("bge_integrations")
_said: set[str] = set()  # what this process was told


class PrecisionAdvice:
    """Logs once in a process, after ten seconds in float32 on a CPU, how much faster bfloat16 computes a layer here.

    Args:
        model: id of the card.
        shape: of the model.
        half: makes a layer of that shape in bfloat16.
    """

    def __init__(self, model: str, shape: Architecture, half: Callable[[], Pass]) -> None:
        self._model, self._shape, self._half = model, shape, half
        self._seconds, self._tokens = 0.0, 0

    def computed(self, seconds: float, batch: PackedBatch, layer: Pass) -> None:
        """Count a batch; measure and log when it is time.

        Args:
            seconds: that the batch took.
            batch: where its texts stand.
            layer: of the model, in float32.
        """
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + batch.runs[-1].end
        if self._seconds < _AFTER_SECONDS or "bfloat16" in _said:
            return
        _said.add("bfloat16")
        try:
            gain = self._gain(batch.runs[len(batch.runs) // 2].length, layer)
        except (RuntimeError, MemoryError):  # no advice is worth a failed call
            return
        least, most = _PLAUSIBLE
        if least < gain < most:
            _LOG.info(
                "%s: this processor has bfloat16 instructions; precision='bfloat16' computes a layer of this model "
                "%.1f times as fast as float32 here, in the same vector space",
                self._model,
                gain,
            )

    def _gain(self, length: int, layer: Pass) -> float:
        import torch

        per_token = self._seconds / self._tokens / self._shape.layers
        count = max(1, int(_COST / (2 * _PASSES) / per_token) // length)
        none = torch.empty(0)
        batch = PackedBatch(none, none, none, [LengthRun(0, count, 0, length)])
        x = torch.ones(count * length, self._shape.hidden)
        ways = (layer, x), (self._half(), x.bfloat16())
        seconds = [(_seconds(*ways[0], batch), _seconds(*ways[1], batch)) for _ in range(_PASSES)]
        return min(slow for slow, _ in seconds[1:]) / min(fast for _, fast in seconds[1:])


def _seconds(layer: Pass, x: Tensor, batch: PackedBatch) -> float:
    begin = time.perf_counter()
    layer(x, batch)
    return time.perf_counter() - begin
