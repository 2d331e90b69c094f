"""Any host that answers ``POST {base_url}/embeddings`` as OpenAI's does.

Texts are sent as strings, ``encoding_format`` always (some hosts have other defaults), ``dimensions`` never.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import BadAnswerError
from ..vectors import check_count, describe_shape
from .wire import Answer, Request, WireProtocol

__all__ = ["OPENAI"]


def payload(request: Request) -> dict[str, Any]:
    """Return the JSON of a request."""
    body: dict[str, Any] = {"model": request.model, "input": request.texts}
    return body if request.encoding is None else {**body, "encoding_format": request.encoding}


def parse(answer: Any, count: int) -> Answer:
    """Return the embeddings in the order of the inputs.

    Raises:
        BadAnswerError: no ``data``, a wrong number of rows, or an index that is no permutation.
    """
    data = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(data, list) or not all(isinstance(row, dict) and "embedding" in row for row in data):
        shape = describe_shape(answer)
        raise BadAnswerError(f"the response has no data[].embedding{shape}", retryable=not shape)
    check_count(data, count)
    places = order_of([row.get("index") for row in data])
    rows = [data[i]["embedding"] for i in (range(count) if places is None else places)]
    return Answer(rows, answer.get("model"), _tokens(answer.get("usage")), numbered=places is not None)


def order_of(indices: list[Any]) -> Sequence[int] | None:
    """Return where the row of each input stands, or None where the rows are not numbered.

    A 0 that is missing was dropped by a serializer that leaves out zeros (protobuf's JSON does); rows that all say 0
    are not numbered.

    Raises:
        BadAnswerError: the indices are no permutation.
    """
    count = len(indices)
    if indices == list(range(count)):
        return range(count)
    numbers = [_whole(index) for index in indices]
    if all(index is None for index in indices) or (count > 1 and all(number == 0 for number in numbers)):
        return None
    if numbers.count(0) == 0 and sum(index is None for index in indices) == 1:
        numbers = [0 if index is None else number for index, number in zip(indices, numbers, strict=True)]
    if set(numbers) != set(range(count)):
        raise BadAnswerError(
            # No text in particular leads to wrong numbers, so that none is searched for.
            f"the rows' indices are not 0 to {count - 1} once each",
            retryable=True,
        )
    order = [0] * count
    for place, number in enumerate(numbers):
        order[number] = place
    return order


def _whole(index: Any) -> int:
    """Return an index that may be written as ``1``, ``1.0`` or ``"1"``; -1 for anything else."""
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10:
        return int(index)
    if isinstance(index, bool) or not isinstance(index, (int, float)) or index != index // 1:
        return -1
    return int(index)


def _tokens(usage: Any) -> int:
    found = (usage.get("prompt_tokens"), usage.get("total_tokens")) if isinstance(usage, Mapping) else ()
    return next((tokens for tokens in found if type(tokens) is int and 0 < tokens < 2**53), 0)


OPENAI = WireProtocol("openai", "/embeddings", payload, parse, encodings=True)
