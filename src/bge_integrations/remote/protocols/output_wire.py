"""Requests for several outputs of a model and their answers: what a dialect is, and how rows are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...catalog.records import OutputName
from ...errors import BadAnswerError
from ..vectors import check_count
from .openai import order_of

__all__ = [
    "Names",
    "OutputAnswer",
    "OutputPart",
    "OutputProtocol",
    "OutputRequest",
    "data_of",
    "largest_weights",
    "rows_of",
    "sparse_rows",
    "tokens_of",
]

Names = tuple[OutputName, ...]


@dataclass(frozen=True)
class OutputRequest:
    """One request.

    Attributes:
        texts: as they are sent.
        model: what the host calls the model.
        names: the outputs that are wanted of it.
    """

    texts: list[str]
    model: str
    names: Names


@dataclass(frozen=True)
class OutputAnswer:
    """One answer, read.

    Attributes:
        columns: output to one row per text: rows of numbers, maps of token ids to weights, lists of vectors; or, of
            hosts that weigh tokens without naming them, lists of weights.
        model: the model that the host names.
        tokens: tokens that the host counted; 0 where it did not.
    """

    columns: dict[str, list[Any]]
    model: Any = None
    tokens: int = 0


@dataclass(frozen=True)
class OutputPart:
    """One request of a protocol.

    Attributes:
        gives: outputs.
        path: after the server's root; ``{model}`` is what the host calls the model.
        payload: returns the JSON of a request.
        parse: returns the columns of an answer's JSON for a request; raises BadAnswerError.
    """

    gives: Names
    path: str
    payload: Callable[[OutputRequest], dict[str, Any]]
    parse: Callable[[Any, OutputRequest], OutputAnswer]


@dataclass(frozen=True)
class OutputProtocol:
    """How one kind of host is asked for outputs.

    Attributes:
        name: of the dialect.
        outputs: what it gives.
        parts: its requests.
        needs: how the server is started so that it gives them, or what it lacks; for messages.
        weighs_tokens: a sparse row is one weight per token, whose ids are asked for at ``/tokenize``.
        keeps_special: special tokens are in its sparse rows, and dropped here without a word.
        max_inputs: texts per request.
    """

    name: str
    outputs: Names
    parts: tuple[OutputPart, ...]
    needs: str
    weighs_tokens: bool = False
    keeps_special: bool = False
    max_inputs: int | None = None


def sparse_row(row: Any, position: int = 0) -> Any:
    """Return a sparse row as a map of ids to weights, whichever way it is written.

    A map of ids (strings in JSON) to weights, or a list of ``{index, value}`` or ``{token_id, weight}``, where of equal
    ids the largest weight counts. Anything else is returned as it is.

    Raises:
        BadAnswerError: keys that are no ids.
    """
    if isinstance(row, Mapping):
        return largest_weights(((_id(key, position), weight) for key, weight in row.items()), position)
    if isinstance(row, list) and all(isinstance(entry, Mapping) for entry in row):
        pairs = ((_first(entry, "index", "token_id"), _first(entry, "value", "weight")) for entry in row)
        return largest_weights(((_id(key, position), weight) for key, weight in pairs), position)
    return row


def largest_weights(pairs: Iterable[tuple[int, Any]], position: int = 0) -> dict[int, Any]:
    """Return a map of ids to weights; of equal ids the largest weight counts.

    Raises:
        BadAnswerError: a weight that is no number.
    """
    largest: dict[int, Any] = {}
    for token, weight in pairs:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise BadAnswerError(f"sparse vector {position} has a weight that is not a number", positions=[position])
        if token not in largest or not weight <= largest[token]:  # NaN stays, to be refused
            largest[token] = weight
    return largest


def _id(key: Any, position: int) -> int:
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10:
        return int(key)
    raise BadAnswerError(f"sparse vector {position} has keys that are not token ids", positions=[position])


def _first(entry: Mapping[str, Any], *names: str) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def sparse_rows(rows: Sequence[Any]) -> list[Any]:
    """Return sparse rows as maps of ids to weights."""
    return [sparse_row(row, position) for position, row in enumerate(rows)]


def rows_of(answer: Any, name: str, count: int) -> list[Any]:
    """Return the rows of a name, one per text.

    Raises:
        BadAnswerError: there are none, or a wrong number of them.
    """
    rows = answer.get(name) if isinstance(answer, Mapping) else None
    if not isinstance(rows, list):
        raise BadAnswerError(f"the response has no {name}", retryable=isinstance(answer, Mapping))
    check_count(rows, count)
    return rows


def data_of(answer: Any, count: int, name: str) -> list[Any]:
    """Return what each object of ``data`` has of a name, in the order of the texts.

    Raises:
        BadAnswerError: no such objects, a wrong number of them, or an index that does not come exactly once.
    """
    rows = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and name in row for row in rows):
        raise BadAnswerError(f"the response has no data[].{name}", retryable=isinstance(answer, Mapping))
    check_count(rows, count)
    places = order_of([row.get("index") for row in rows])
    return [rows[place][name] for place in (range(count) if places is None else places)]


def tokens_of(answer: Mapping[str, Any]) -> int:
    """Return the tokens that a host counted; 0 where it did not."""
    usage = answer.get("usage")
    found = [usage.get("prompt_tokens"), usage.get("total_tokens")] if isinstance(usage, Mapping) else []
    counts = [*found, answer.get("input_tokens")]
    return next((count for count in counts if type(count) is int and 0 < count < 2**53), 0)
