"""The checks of texts going in and of vectors coming out: pure functions, in one place for every encoder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from contextvars import ContextVar
from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import Role
from ..errors import BadAnswerError, ConfigError, InputError, InputTypeError, RepairWarning, TruncationWarning

__all__ = ["Blank", "Truncate", "Vectors", "check_role", "check_texts", "check_vectors", "on_cut", "report_cut"]

Vectors: TypeAlias = NDArray[np.float32]
"""float32, shape (n, dimensions), rows of length 1, in the order of the texts."""

Blank = Literal["error", "keep"]
Truncate = Literal["warn", "error"]

on_cut: ContextVar[Callable[[Sequence[int]], Sequence[int]] | None] = ContextVar("bge_on_cut", default=None)
"""Set by a wrapper that sends on a part of its texts: takes positions in the part, returns those to report."""


def check_role(role: Role) -> None:
    """Refuse anything but the two roles.

    Raises:
        ConfigError: ``role`` is neither ``"query"`` nor ``"document"``.
    """
    if role not in ("query", "document"):
        raise ConfigError(f"role must be 'query' or 'document', not {role!r}")


def check_texts(texts: Sequence[str], *, blank: Blank = "error") -> list[str]:
    """Return the texts as a list that can be sent, or say which one cannot.

    A lone surrogate, which no encoding can carry, becomes U+FFFD with one warning. Nothing else is changed.

    Raises:
        InputTypeError: a bare string where a list belongs, or an item that is not a string.
        InputError: a blank text where ``blank="error"``.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise InputTypeError(f"texts must be a list of strings, not {type(texts).__name__}")
    checked = list(texts)
    wrong = [i for i, text in enumerate(checked) if not isinstance(text, str)]
    if wrong:
        kind = type(checked[wrong[0]]).__name__
        raise InputTypeError(f"text {wrong[0]} is {kind}, not a string{_others(wrong)}", positions=wrong)
    if blank == "error":
        empty = [i for i, text in enumerate(checked) if not text.strip()]
        if empty:
            raise InputError(
                f"text {empty[0]} is blank{_others(empty)}: leave it out, or pass blank='keep'", positions=empty
            )
    return _without_surrogates(checked)


def _others(positions: Sequence[int]) -> str:
    return f" (and {len(positions) - 1} more)" if len(positions) > 1 else ""


def _without_surrogates(texts: list[str]) -> list[str]:
    broken = [i for i, text in enumerate(texts) if not text.isascii() and not _encodable(text)]
    for i in broken:
        texts[i] = texts[i].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if broken:
        warnings.warn(
            f"text {broken[0]} holds a lone surrogate{_others(broken)}: replaced with U+FFFD",
            RepairWarning,
            stacklevel=4,
        )
    return texts


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_vectors(rows: object, *, count: int, dimensions: int) -> Vectors:
    """Return rows as unit vectors, or say what is wrong with them.

    Raises:
        BadAnswerError: wrong count or dimension, not finite, or zero; ``positions`` are those of the rows concerned,
            or all where the rows cannot be told apart.
    """
    everything = range(count)
    try:
        array = np.asarray(rows)
    except ValueError:
        array = np.empty((0,), object)
    if isinstance(rows, Sized) and len(rows) != count:
        raise BadAnswerError(f"{len(rows)} vectors came back for {count} texts", positions=everything)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        wrong = _odd_rows(rows, dimensions)
        raise BadAnswerError(f"the answer's rows are not {dimensions} numbers each", positions=wrong or everything)
    if array.shape[1] != dimensions:
        raise BadAnswerError(
            f"vectors of {array.shape[1]} dimensions came back, the model has {dimensions}", positions=everything
        )
    with np.errstate(over="ignore"):
        vectors = array.astype(np.float32, copy=False)
        norms = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0)).tolist()
    if bad:
        raise BadAnswerError(f"vector {bad[0]} is not finite or is zero{_others(bad)}", positions=bad)
    return cast("Vectors", vectors / norms[:, None])


def _odd_rows(rows: object, dimensions: int) -> list[int]:
    def odd(row: object) -> bool:
        if not isinstance(row, Sequence) or len(row) != dimensions:
            return True
        return any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in row)

    return [i for i, row in enumerate(rows) if odd(row)] if isinstance(rows, Sequence) else []


def report_cut(positions: Sequence[int], *, model: str, max_tokens: int, truncate: Truncate) -> None:
    """Say once that texts are longer than the model reads.

    Raises:
        InputError: ``truncate="error"``.
    """
    if not positions:
        return
    listener = on_cut.get()
    if listener and truncate == "warn":  # an error is put right by the wrapper as all others are
        positions = listener(positions)
        if not positions:  # it tells of them itself
            return
    shown = ", ".join(map(str, positions[:10])) + (", …" if len(positions) > 10 else "")
    message = (
        f"{len(positions)} text(s) are longer than the {max_tokens} tokens that {model!r} reads (positions {shown})"
    )
    if truncate == "error":
        raise InputError(f"{message}: split them, or pass truncate='warn' to cut them", positions=positions)
    warnings.warn(f"{message}: what is beyond was cut; split them to keep it", TruncationWarning, stacklevel=2)
