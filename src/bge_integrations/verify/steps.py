"""How far a verification has come."""

from __future__ import annotations

from collections.abc import Callable

OnStep = Callable[[int, int, str], None]
"""Called with the steps done, their total, and what is done next."""

VALUES, HOST, REFERENCE, ENGINES, MODELS, BEHAVIOUR = (
    "published values",
    "the host's answers",
    "the reference's answers",
    "other poolings and limits",
    "other models",
    "how the host behaves",
)


class Steps:
    """Counts steps and tells of each.

    Args:
        told: called at each step, if anything.
        compared: whether there is a reference.
        behaviour: whether the host's behaviour is looked at.
    """

    def __init__(self, told: OnStep | None, *, compared: bool, behaviour: bool) -> None:
        self._told = told
        self._left = [VALUES, *([HOST, REFERENCE, ENGINES, MODELS] if compared else []), *([BEHAVIOUR] * behaviour)]
        self._total = len(self._left)

    def begin(self, step: str) -> None:
        """Tell that a step begins; those before it are done."""
        if self._told is not None:
            self._told(self._left.index(step), self._total, step)

    def finish(self) -> None:
        """Tell that all is done."""
        if self._told is not None:
            self._told(self._total, self._total, "")
