"""Read a host's answer: bytes in, one row per text out, in order, or what is wrong with them."""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from ..encoder import Vectors, check_vectors
from ..errors import BadAnswerError, RepairWarning


def read_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity are let through, so that the row that holds them can be named.

    Raises:
        BadAnswerError: it is not JSON; ``broken`` is set, since a cut body is worth another try.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except ValueError:
        shown = body[:200].decode("utf-8", "replace")
        raise BadAnswerError(f"the answer is not whole JSON: {shown!r}", broken=True) from None


def embeddings_of(answer: Any, count: int) -> list[Any]:
    """Return the embeddings of an OpenAI-style answer in the order of the inputs.

    Raises:
        BadAnswerError: an error object, no ``data``, a wrong number of rows, or an index that is no permutation.
    """
    if isinstance(answer, Mapping) and answer.get("error") and not answer.get("data"):
        raise BadAnswerError(f"the answer is an error: {str(answer['error'])[:200]}", positions=range(count))
    data = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(data, list) or not all(isinstance(row, Mapping) and "embedding" in row for row in data):
        raise BadAnswerError("the answer has no data[].embedding", positions=range(count), broken=True)
    if len(data) != count:
        raise BadAnswerError(f"{len(data)} vectors came back for {count} texts", positions=range(count), broken=True)
    return [data[i]["embedding"] for i in _order(data)]


def _order(data: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    indices = [row.get("index") for row in data]
    count = len(data)
    if all(index is None for index in indices):
        if count > 1:
            warnings.warn(
                "the rows of the answer have no index: taken in the order they came", RepairWarning, stacklevel=2
            )
        return range(count)
    if any(type(index) is not int for index in indices) or set(indices) != set(range(count)):
        raise BadAnswerError(
            f"the rows' indices are not 0 to {count - 1} once each", positions=range(count), broken=True
        )
    order = [0] * count
    for place, index in enumerate(indices):
        order[index] = place  # type: ignore[index]
    return order


def vectors_of(embeddings: list[Any], dimensions: int, *, body: bytes = b"") -> Vectors:
    """Return unit vectors from rows of floats or of base64 (little-endian float32).

    Args:
        embeddings: one row per text.
        dimensions: numbers per row.
        body: what the rows were read from; only where it holds a JSON truth value are rows searched for one.

    Raises:
        BadAnswerError: as ``check_vectors``, and for base64 that cannot be read.
    """
    rows: Any = embeddings
    if b"true" in body or b"false" in body:
        rows = embeddings = [None if isinstance(row, list) and _holds_truth(row) else row for row in embeddings]
    if any(isinstance(row, str) for row in embeddings):
        rows = [_decode(row) if isinstance(row, str) else row for row in embeddings]
    try:
        return check_vectors(rows, count=len(embeddings), dimensions=dimensions)
    except BadAnswerError as error:
        error.broken = True  # type: ignore[attr-defined]
        raise


def _holds_truth(row: list[Any]) -> bool:
    return any(isinstance(number, bool) for number in row)


def _decode(text: str) -> np.ndarray[Any, Any] | None:
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (binascii.Error, ValueError):
        return None
