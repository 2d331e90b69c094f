"""Cut a call into requests, bounded by texts, bytes and tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

log = logging.getLogger("bge_integrations.remote")


@dataclass
class RequestLimits:
    """How much one request may hold; what a host refuses is learned.

    Attributes:
        inputs: texts per request.
        bytes: bytes per request.
        tokens: tokens per request.
    """

    inputs: int
    bytes: int
    tokens: int

    def __post_init__(self) -> None:
        self._configured = self._now

    @property
    def _now(self) -> tuple[int, int]:
        return self.inputs, self.bytes

    def learn(self, texts: int, size: int, *, limit: Literal["texts", "bytes"]) -> None:
        """Remember that a host refused so many texts of so many bytes, and which of the two were too many."""
        if limit == "bytes":
            self.bytes = min(self.bytes, max(size // 2, 1))
        else:
            self.inputs = min(self.inputs, max(texts // 2, 1))
        log.info(
            "the host refused %d texts of %d bytes: from now on a request has at most %d texts and %d bytes",
            texts,
            size,
            *self._now,
        )

    def forget(self) -> None:
        """Unlearn: it was a single text that no host would take, not the number of texts."""
        self.inputs, self.bytes = self._configured


@dataclass
class RequestPlan:
    """Hands out the indices of the next request.

    Attributes:
        sizes: bytes of each text.
        tokens: tokens of each text, or a guess.
        limits: may shrink on the way.
    """

    sizes: Sequence[int]
    tokens: Sequence[int]
    limits: RequestLimits
    _next: int = 0
    _again: list[range] = field(default_factory=list)

    def take(self, *, only_split: bool = False) -> range:
        """Return the indices of the next request; none when nothing is left.

        Args:
            only_split: only parts of requests that were split.
        """
        if self._again:
            waiting = self._again.pop()
            part = waiting[: self._fitting(waiting)]
            if len(part) < len(waiting):
                self._again.append(waiting[len(part) :])
            return part
        if only_split:
            return range(0)
        rest = range(self._next, len(self.sizes))
        part = rest[: self._fitting(rest)]
        self._next += len(part)
        return part

    def _fitting(self, rest: range) -> int:
        """Return how many of these texts one request may hold; at least one, where there is one."""
        size = tokens = 0
        rest = rest[: self.limits.inputs]
        for count, i in enumerate(rest):
            size, tokens = size + self.sizes[i], tokens + self.tokens[i]
            if count and (size > self.limits.bytes or tokens > self.limits.tokens):
                return count
        return len(rest)

    def size(self, part: range) -> int:
        """Return the bytes of the texts of one request."""
        return sum(self.sizes[part.start : part.stop])

    def split(self, part: range, first: int | None = None) -> None:
        """Put a request back as its ``first`` texts, which are taken first, and the others; halves when None."""
        middle = first or len(part) // 2
        self._again += [part[middle:], part[:middle]]
