"""Something that happens between two instructions of the code under test: each interleaving of two threads in turn."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any


@contextmanager
def at_step(step: int, codes: set[CodeType], act: Callable[[], object], kind: str = "") -> Iterator[list[int]]:
    """Do something once on this thread, when so many instructions of some functions have been run.

    Args:
        step: before which of their instructions, counted from 1.
        codes: of the functions.
        act: what is done.
        kind: count only instructions whose names begin so.

    Yields:
        A list that holds the step once that has happened.
    """
    seen = 0
    done: list[int] = []

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal seen
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(kind):
            seen += 1
            if seen == step:
                sys.settrace(None)
                done.append(step)
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield done
    finally:
        sys.settrace(before)
