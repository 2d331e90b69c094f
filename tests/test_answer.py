"""An answer is read the same whether numbers come as arrays from simdjson or one by one from orjson."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.errors import BadAnswerError
from bge_integrations.remote import vectors as answer
from bge_integrations.remote.protocols.openai import parse
from bge_integrations.remote.vectors import read_answer, read_json, vectors_of

DIMENSIONS = 3
needs_simdjson = pytest.mark.skipif(answer._parser is None, reason="simdjson is not installed (the extra 'fast')")


def outcome(read, body: bytes, count: int):
    """Return the vectors, or all that is told of what is wrong with them."""
    try:
        return vectors_of(parse(read(body), count).rows, DIMENSIONS).tolist()
    except BadAnswerError as error:
        return error.message, tuple(error.positions), error.retryable


def body(*rows: str) -> bytes:
    data = ", ".join(f'{{"index": {i}, "embedding": {row}}}' for i, row in enumerate(rows))
    return f'{{"object": "list", "data": [{data}], "model": "m"}}'.encode()


ODD_ROWS = [
    "[0.1, 0.2, 0.3]", "[1, 0, 0]", "[0.1, 1, 0]", "[0.1, true, 0.2]", "[true, 0.1, 0.2]", "[0.1, null, 0.2]",
    '[0.1, "0.2", 0.3]', "[0.1, [0.2], 0.3]", "[0.1, [0.2, 0.3]]", "[[0.1, 0.2, 0.3]]", "[0.1, 0.2]", "[]", "{}",
    "null", "0.5", "[0.1, NaN, 0.2]", "[0.1, Infinity, 0.2]", "[0.1, 1e400, 0.2]", "[0.1, 1e39, 0.2]",
    "[0.0, 0.0, 0.0]",
    "[0.1, -0.0, 1e-320]", "[0.1, 99999999999999999999999, 0.2]", "[0.1, 0.2, 0.3", '"AACAPwAAAAAAAAAA"', '"?"',
]  # fmt: skip


@needs_simdjson
@pytest.mark.parametrize("row", ODD_ROWS)
def test_odd_rows_are_told_the_same(row):
    for rows in ([row], ["[0.5, 0.5, 0.5]", row], [row, row]):
        made = body(*rows)
        assert outcome(read_answer, made, len(rows)) == outcome(read_json, made, len(rows))


NUMBERS = st.floats(-2, 2, width=32) | st.integers(-1, 1)


@pytest.fixture(autouse=True, scope="module")
def short_answers_too():
    """Have answers of any size read by pysimdjson."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "_SMALL", 0)
        yield


ROWS = st.lists(st.lists(NUMBERS, min_size=DIMENSIONS, max_size=DIMENSIONS) | st.lists(NUMBERS | st.booleans()))


@needs_simdjson
@settings(deadline=None)
@given(ROWS)
def test_any_rows_are_read_the_same(rows):
    made = body(*map(json.dumps, rows))
    assert outcome(read_answer, made, len(rows)) == outcome(read_json, made, len(rows))


@needs_simdjson
def test_numbers_come_as_arrays():
    rows = read_answer(body("[0.1, 0.2, 0.3]"))["data"]
    assert isinstance(rows[0]["embedding"], np.ndarray)


@needs_simdjson
def test_what_was_read_stays_when_the_next_answer_is_read():
    rows = np.random.default_rng(0).normal(size=(5, 40, 64))
    bodies = [body(*(json.dumps(row.tolist()) for row in answered)) for answered in rows]
    read = []
    for made in bodies:
        read.append([row["embedding"] for row in read_answer(made)["data"]])
        with pytest.raises(BadAnswerError):
            read_answer(made[:-40])
    np.testing.assert_array_equal(np.array(read), rows)


def test_without_simdjson_it_is_read_too(monkeypatch):
    monkeypatch.setattr(answer, "_parser", None)
    assert read_answer(b'{"a": [0.5, 1.5]}') == {"a": [0.5, 1.5]}


@pytest.mark.parametrize("broken", [b"", b"{", b"[1.0, 2", b"\xff", b'{"a": [0.5, 0.5]', b"[" * 5000])
def test_what_is_no_json_is_told(broken):
    with pytest.raises(BadAnswerError, match="not complete JSON") as caught:
        read_answer(broken)
    assert caught.value.retryable
