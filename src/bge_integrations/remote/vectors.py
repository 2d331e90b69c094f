"""Read a host's answer: bytes in, one row per text out, in order, or what is wrong with them."""

from __future__ import annotations

import json
import threading
from binascii import a2b_base64
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson

from ..core.outputs import Vectors, check_vectors
from ..errors import BadAnswerError


def _base64_reader() -> Callable[[str], bytes]:
    try:  # eight times as fast, which saves a sixth of all the time that an answer takes
        from pybase64 import b64decode
    except ImportError:
        return partial(a2b_base64, strict_mode=True)
    return partial(b64decode, validate=True)


def _simdjson() -> Any:
    try:  # numbers become an array at once; a Python object for each costs more than all the rest of an answer
        import simdjson
    except ImportError:
        return None
    return simdjson


_SMALL = 32_000  # bytes of an answer that orjson reads as fast: a query's

_LARGE = 16_000_000  # bytes of an answer whose parser is not kept, since it keeps several times as much

_read_base64 = _base64_reader()
_parser = _simdjson()
_threads = threading.local()


def read_answer(body: bytes) -> Any:
    """Parse JSON full of numbers as ``read_json`` does, but lists of numbers may come as arrays of float64.

    Raises:
        BadAnswerError: it is not JSON.
    """
    if _parser is not None and len(body) > _SMALL:
        try:
            converter = _Converter()
            answer = converter.convert(_parser_for(body).parse(body))
        except (ValueError, TypeError, RuntimeError, MemoryError):
            _threads.__dict__.clear()  # a traceback may hold views of its memory
            return read_json(body)  # says what exactly is wrong, and whether it is
        # as_buffer flattens lists within a list of numbers.
        if converter.lists == body.count(b"["):
            return answer
    return read_json(body)


def _parser_for(body: bytes) -> Any:
    """Return this thread's parser: memory allocated anew for each answer is a fifth of the work of reading it."""
    if len(body) > _LARGE:
        return _parser.Parser()
    if not hasattr(_threads, "parser"):
        _threads.parser = _parser.Parser()
    return _threads.parser


class _Converter:
    """Converts pysimdjson's proxies to Python objects; lists of floats become arrays."""

    def __init__(self) -> None:
        self.lists = 0

    def convert(self, value: Any) -> Any:
        if isinstance(value, _parser.Array):
            self.lists += 1
            if len(value) and type(value[0]) is float:  # whole numbers among them become floats too
                return np.frombuffer(value.as_buffer(of_type="d"))
            return [self.convert(item) for item in value]
        if isinstance(value, _parser.Object):
            keys = list(value)
            if len(set(keys)) < len(keys):  # value[key] is the first of two equal keys, orjson takes the last
                raise ValueError("two equal keys")
            return {key: self.convert(value[key]) for key in keys}
        return value


def read_json(body: bytes) -> Any:
    """Parse JSON; NaN and Infinity are let through, so that the row that holds them can be named.

    Raises:
        BadAnswerError: it is not JSON; ``retryable``, since a cut body is worth another try.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswerError("the response is not complete JSON", retryable=True) from None


def describe_shape(answer: Any) -> str:
    """Say what an answer without the expected rows looks like, and what to change; ``""`` for nothing known."""
    if isinstance(answer, list) and answer:
        first = answer[0]
        if isinstance(first, Mapping) and "embedding" in first:
            return ": it looks like llama.cpp's own /embeddings: base_url= needs /v1"
        if isinstance(first, (list, np.ndarray)) and len(first):
            return ": it looks like TEI's own /embed: base_url= needs /v1"
    if not isinstance(answer, Mapping):
        return ""
    shapes = {
        "embedding": "Ollama's own /api/embeddings: base_url= must end in /v1",
        "embeddings": "Ollama's own /api/embed (base_url= must end in /v1) or a Space's (provider='space')",
        "result": "Cloudflare's own API: base_url= must end in /ai/v1",
        "choices": "a chat completion: is base_url= that of an embedding model?",
        "data": "rows of another kind",
    }
    return next((f": it looks like {shapes[name]}" for name in shapes if is_filled(answer.get(name))), "")


def is_filled(value: Any) -> bool:
    """Tell whether a part of an answer is a list or an object with something in it."""
    return isinstance(value, (list, Mapping, np.ndarray)) and len(value) > 0


def check_count(rows: Sequence[Any], count: int) -> None:
    """Refuse another number of rows than of texts.

    Raises:
        BadAnswerError: there is not one row for each text.
    """
    if len(rows) != count:
        wrong = f"{len(rows)} vectors were returned for {count} texts"
        error = BadAnswerError(wrong, positions=range(count), retryable=True)
        error.rows = len(rows)
        raise error


def vectors_of(embeddings: list[Any], dimensions: int) -> Vectors:
    """Return unit vectors from rows of floats or of base64 (little-endian float32).

    Raises:
        BadAnswerError: as ``check_vectors``, and for base64 that cannot be read. ``retryable`` unless all rows are
            as long as another model's.
    """
    if all(isinstance(row, str) for row in embeddings):
        rows: Any = _decoded(embeddings, dimensions)
    else:
        embeddings = _unwrapped(embeddings)
        rows = _numbers(embeddings)
    try:
        return check_vectors(rows, count=len(embeddings), dimensions=dimensions)
    except BadAnswerError as error:
        error.retryable = not _of_another_model(embeddings, dimensions)
        if len(error.positions) == len(embeddings) > 1:
            error.positions = ()  # every row is wrong: it is the host's way of writing, and no text to be searched for
        raise


def _unwrapped(rows: list[Any]) -> list[Any]:
    """Return ``[[…]]``, one row in a list of its own, as the row (llama.cpp without pooling by token)."""
    if not all(isinstance(row, list) and row and isinstance(row[0], (list, np.ndarray)) for row in rows):
        return rows
    if any(len(row) != 1 for row in rows):
        raise BadAnswerError(
            "each embedding is a list of vectors, one for each token: the server must pool (llama.cpp: --pooling cls)"
        )
    return [row[0] for row in rows]


def _numbers(rows: list[Any]) -> Any:
    """Return rows as one array, or as lists where they do not make one."""
    try:
        array = np.asarray(rows)
    except ValueError:
        return _lists(rows)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        return _lists(rows)
    # np.asarray turns booleans into 0 and 1, so only rows that hold one of these are searched for booleans.
    suspects = np.flatnonzero(((array == 0) | (array == 1)).any(axis=1)).tolist()
    if any(_holds_boolean(rows[i]) for i in suspects):
        return [None if _holds_boolean(row) else row for row in _lists(rows)]
    return array


def _lists(rows: list[Any]) -> list[Any]:
    return [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]


def _holds_boolean(row: Any) -> bool:
    return isinstance(row, list) and any(isinstance(number, bool) for number in row)


def _of_another_model(rows: list[Any], dimensions: int) -> bool:
    """Tell whether all rows have one length that is not the model's: sending again would not change that."""
    lengths = {len(row) if isinstance(row, (list, np.ndarray)) else -1 for row in rows}
    return len(lengths) == 1 and not lengths & {dimensions, -1, 0}


def _decoded(rows: Sequence[str], dimensions: int) -> Vectors:
    vectors = np.empty((len(rows), dimensions), "<f4")
    for i, row in enumerate(rows):
        try:
            raw = _read_base64(row)
        except ValueError:
            raw = b""
        if len(raw) != 4 * dimensions:
            wrong = f"vector {i} is not {dimensions} numbers in base64"
            raise BadAnswerError(wrong, positions=[i], retryable=True)
        vectors[i] = np.frombuffer(raw, "<f4")
    return vectors
