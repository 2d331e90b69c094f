"""The seam between the scheduler and what computes: tokens in, raw vectors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ...core.outputs import Output
from ...core.token_outputs import Several
from ...core.tokenizer import Tokens
from ...errors import BadAnswerError, BGEError, ConfigError, TextError
from ..architecture import brief
from ..select import Choice

_LEAST_BUDGET = 512  # tokens; a text of more is a batch of its own


class Backend(ABC):
    """What computes vectors; used by one thread only.

    Attributes:
        budget: tokens per batch at which it is fastest.
        padded: whether the texts of a batch are padded to the longest.
        choice: what was chosen, and why.
        threads: of a matrix product.
    """

    budget: int
    padded: bool
    threads: int

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    @property
    def longest(self) -> int:
        """Tokens of the longest pair so far; 0 where they are not counted here."""
        return 0

    @abstractmethod
    def tokenize(self, texts: list[Any]) -> Tokens:
        """Return the tokens of each text, or pair of texts, truncated to what the model reads."""

    def accept(self, output: Output) -> None:
        """Refuse an output that is not computed here.

        Raises:
            BGEError: says why, and what to do.
        """
        if isinstance(output, Several):
            raise ConfigError(
                f"{self.choice.model!r} has no {output.names[-1]} output with "
                f"backend={self.choice.backend!r}: 'torch' and 'onnx' compute it"
            )

    @abstractmethod
    def forward(self, items: Sequence[Any], output: Output) -> Any:
        """Return what ``output.check`` takes, vectors of any length, of items that stand longest first."""

    def describe(self) -> dict[str, Any]:
        """Return backend, precision, device, why they were chosen, and threads, as plain data."""
        return {**self.choice.describe(), "threads": self.threads}

    def learn(self, error: BaseException, tokens: int) -> None:
        """Make the batches from now on half as large as one for which the memory did not suffice."""
        if _is_memory(error):
            self.budget = max(_LEAST_BUDGET, min(self.budget, tokens // 2))

    def explain(self, error: BaseException, positions: Sequence[int] = ()) -> BGEError:
        """Return what a failure to compute means to a caller.

        Args:
            error: what was raised.
            positions: the caller's texts that it concerns, where it does not concern all.
        """
        model, precision = self.choice.model, self.choice.precision
        if isinstance(error, BadAnswerError):
            reason = error.message
            if precision in ("float16", "int8"):
                reason += f"; this model's numbers may exceed {precision}: pass precision='bfloat16' or 'float32'"
            return BadAnswerError(f"{model!r} in {precision}: {reason}", provider="local", positions=positions)
        if isinstance(error, BGEError):
            return error
        hint = "use shorter texts, another device= or a smaller model" if _is_memory(error) else "call again"
        message = f"{model!r} cannot be run by {self.choice.backend!r} ({brief(error)}): {hint}"
        return TextError(message, positions=positions) if positions else BGEError(message)


def _is_memory(error: BaseException) -> bool:
    # torch and onnxruntime raise errors of their own, which say it in words.
    return isinstance(error, MemoryError) or "memory" in str(error).lower()
