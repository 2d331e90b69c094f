"""One model on several devices of one kind: each computes its share of every batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from ...core.outputs import Output
from ...core.tokenizer import Tokens
from .base import Backend

_MOST_DEVICES = 64


class DevicesBackend(Backend):
    """Gives each of several devices every n-th item of a batch, and waits for the slowest.

    Items stand longest first, so that the shares have about as many tokens.

    Args:
        backends: the same model on each device.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        first = backends[0]
        super().__init__(replace(first.choice, device=", ".join(each.choice.device for each in backends)))
        self.backends = tuple(backends)
        self.padded, self.threads = first.padded, first.threads
        self.budget = sum(each.budget for each in backends)

    @property
    def longest(self) -> int:
        """Tokens of the longest pair so far."""
        return self.backends[0].longest

    def tokenize(self, texts: list[Any]) -> Tokens:
        """Return the tokens of each text, as the model on one device does."""
        return self.backends[0].tokenize(texts)

    def accept(self, output: Output) -> None:
        """Refuse an output that the model does not have."""
        self.backends[0].accept(output)

    def forward(self, items: Sequence[Any], output: Output) -> Any:
        """Return what each device computed, in the order of the items."""
        count = len(self.backends)
        shares = [items[first::count] for first in range(min(count, len(items)))]
        others: list[Future[Any]] = []
        try:
            for backend, share in zip(self.backends[1:], shares[1:], strict=False):
                others.append(_threads().submit(backend.forward, share, output))
            own = self.backends[0].forward(shares[0], output)
        finally:
            wait(others)  # no device computes on while the batch is tried again in halves, or a fork goes ahead
        return _in_order([own, *(other.result() for other in others)], len(items))

    def describe(self) -> dict[str, Any]:
        """Return what one of them tells, and all devices."""
        return {**self.backends[0].describe(), "device": self.choice.device}


def _in_order(shares: list[Any], total: int) -> Any:
    """Return what ``forward`` of each share returned as one, columns by name included."""
    if len(shares) == 1:
        return shares[0]
    if isinstance(shares[0], dict):
        return {name: _in_order([share[name] for share in shares], total) for name in shares[0]}
    if isinstance(shares[0], list):
        joined: Any = [None] * total
    else:
        joined = np.empty((total, *shares[0].shape[1:]), shares[0].dtype)
    for first, share in enumerate(shares):
        joined[first :: len(shares)] = share
    return joined


# Shared by all encoders and never shut down, since threads that have used MKL must not end: see scheduler.py.
@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_DEVICES, "bge-device")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # none of its threads is there
