"""The clock of one call to a host."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from ..errors import DeadlineError
from .endpoint import HostLimits

__all__ = ["Deadline"]


class Deadline:
    """The clock of one call, over tokenising, waiting and retries alike.

    With ``timeout`` it runs once; without, it starts anew with each finished request.

    Raises:
        DeadlineError: time is up.
    """

    def __init__(self, limits: HostLimits) -> None:
        self._limits, self._clock = limits, asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._clock.__aenter__()
        self._wind(self._limits.timeout or self._limits.patience)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._clock.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._limits.timeout:
                late = f"the call did not finish within timeout={self._limits.timeout:g} s"
            else:
                late = f"no request finished within {self._limits.patience:g} s"
            raise DeadlineError(late) from None

    @property
    def expired(self) -> bool:
        """Whether time is up."""
        return self._clock.expired()

    def progress(self) -> None:
        """Start anew, unless the whole call has a timeout."""
        if not self._limits.timeout:
            self._wind(self._limits.patience)

    def allows(self, seconds: float) -> bool:
        """Tell whether so many seconds of waiting end before time is up."""
        ends = self._clock.when()
        return ends is None or asyncio.get_running_loop().time() + seconds < ends

    def _wind(self, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self._clock.reschedule(None if seconds == float("inf") else now + seconds)
