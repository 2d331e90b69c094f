"""Cut a call into requests, bounded by texts, bytes and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class RequestPlan:
    """Hands out the indices of the next request; bounds may shrink on the way.

    Attributes:
        sizes: bytes of each text.
        tokens: tokens of each text, or a guess.
        max_bytes: bytes per request.
        max_tokens: tokens per request.
    """

    sizes: Sequence[int]
    tokens: Sequence[int]
    max_bytes: int
    max_tokens: int
    _next: int = 0
    _again: list[list[int]] = field(default_factory=list)

    def take(self, max_inputs: int, *, begun: bool = False) -> list[int] | None:
        """Return the indices of the next request, or None when nothing is left.

        Args:
            max_inputs: texts per request.
            begun: only parts of requests that were split.
        """
        if self._again:
            part = self._again.pop()
            if len(part) > max_inputs:
                self._again.append(part[max_inputs:])
            return part[:max_inputs]
        if begun:
            return None
        begin, size, tokens = self._next, 0, 0
        end = begin
        while end < len(self.sizes) and end - begin < max_inputs:
            size, tokens = size + self.sizes[end], tokens + self.tokens[end]
            if end > begin and (size > self.max_bytes or tokens > self.max_tokens):
                break
            end += 1
        self._next = end
        return list(range(begin, end)) or None

    def split(self, part: list[int]) -> None:
        """Put the halves of a request back, the first half to be taken first."""
        middle = len(part) // 2
        self._again += [part[middle:], part[:middle]]

    def forget(self) -> None:
        """Leave the parts of requests that were split."""
        self._again.clear()
