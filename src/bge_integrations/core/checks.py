"""Checks of what a caller passes: roles and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ..catalog.records import Role
from ..errors import ConfigError, InputError, InputTypeError, RepairWarning, TooLongError, warn

__all__ = ["Blank", "Truncate", "check_role", "check_texts", "is_encodable", "refuse_truncation"]

Blank = Literal["error", "keep"]
Truncate = Literal["warn", "error"]


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
    checked = list(texts) if type(texts) is list else _listed(texts)
    if not set(map(type, checked)) <= {str}:  # the passes over all texts run in C
        _refuse_others(checked)
    if blank == "error" and not all(map(str.strip, checked)):
        empty = [i for i, text in enumerate(checked) if not text.strip()]
        raise InputError(f"text {empty[0]} is blank{_others(empty)}: remove it, or pass blank='keep'", positions=empty)
    return checked if all(map(str.isascii, checked)) else _without_surrogates(checked)


def _listed(texts: Any) -> list[Any]:
    """Return the texts as a list.

    Raises:
        InputTypeError: they are not in a list, or in what can become one.
    """
    if isinstance(texts, (str, bytes, Mapping, set, frozenset)) or not isinstance(texts, Iterable) or _is_table(texts):
        hint = (
            ": iterating over it gives names, not texts; pass a column, such as df['text']" if _is_table(texts) else ""
        )
        hint = ": pass its values" if isinstance(texts, Mapping) else hint
        hint = (
            ": it has no order, in which the vectors could be returned" if isinstance(texts, (set, frozenset)) else hint
        )
        raise InputTypeError(f"texts must be a list of strings, not {type(texts).__name__}{hint}")
    try:
        return list(texts)
    except TypeError:  # an array of no dimensions
        raise InputTypeError(f"texts must be a list of strings, not {type(texts).__name__} of one value") from None


def _refuse_others(texts: list[Any]) -> None:
    wrong = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    if wrong:
        kind = type(texts[wrong[0]]).__name__
        raise InputTypeError(f"text {wrong[0]} is {kind}, not a string{_others(wrong)}", positions=wrong)


def _is_table(texts: object) -> bool:
    # Iterating over a DataFrame (pandas, polars, Spark), a Table of pyarrow or a Dataset of xarray gives no cell.
    return hasattr(texts, "columns") or hasattr(texts, "column_names") or hasattr(texts, "data_vars")


def _others(positions: Sequence[int]) -> str:
    return f" (and {len(positions) - 1} more)" if len(positions) > 1 else ""


def _without_surrogates(texts: list[str]) -> list[str]:
    broken = [i for i, text in enumerate(texts) if not text.isascii() and not is_encodable(text)]
    for i in broken:
        texts[i] = texts[i].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if broken:
        warn(f"text {broken[0]} holds a lone surrogate{_others(broken)}: replaced with U+FFFD", RepairWarning)
    return texts


def is_encodable(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: it holds no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_truncation(positions: Sequence[int], *, model: str, max_tokens: int) -> None:
    """Refuse texts that are longer than the model reads; for ``truncate="error"``, before anything is computed.

    Raises:
        TooLongError: there are such texts.
    """
    if positions:
        raise TooLongError(
            f"longer than the {max_tokens} tokens that {model!r} reads: split them, or pass truncate='warn'",
            positions=positions,
        )
