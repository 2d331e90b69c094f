"""What goes in and what comes back is checked before anyone sees it."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations import (
    BadAnswerError,
    BGEError,
    ConfigError,
    InputError,
    InputTypeError,
    RepairWarning,
    TooLongError,
    TruncationWarning,
)
from bge_integrations.core.checks import check_texts, refuse_truncation
from bge_integrations.core.encoder import Encoder, Usage, stream
from bge_integrations.core.outputs import check_vectors
from encoders import CARD, HashEncoder

# ---- texts


@pytest.mark.parametrize(
    "texts", ["a bare string", b"bytes", None, 5, 1.5, len, np.array("a")], ids=lambda texts: type(texts).__name__
)
def test_anything_but_a_list_of_texts_is_a_type_error(texts):
    with pytest.raises(InputTypeError, match="texts must be a list of strings") as caught:
        check_texts(texts)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("wrong", [None, 5, 1.5, b"bytes", ["nested"], True, np.float32(1)], ids=repr)
def test_an_item_that_is_no_text_is_a_type_error_with_its_position(wrong):
    with pytest.raises(InputTypeError, match=r"text 1 is .* \(and 1 more\)") as caught:
        check_texts(["fine", wrong, "fine", wrong])
    assert caught.value.positions == (1, 3)


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u00a0\u2003"], ids=repr)
def test_a_blank_text_is_an_error_with_its_position_or_kept_on_request(blank):
    with pytest.raises(InputError, match="text 2 is blank") as caught:
        check_texts(["a", "b", blank])
    assert caught.value.positions == (2,)
    assert not isinstance(caught.value, TypeError)
    assert check_texts(["a", "b", blank], blank="keep") == ["a", "b", blank]


def test_an_error_never_shows_the_text():
    with pytest.raises(InputTypeError) as caught:
        check_texts(["a", b"a secret of the caller"])
    assert "secret" not in str(caught.value)


def test_a_lone_surrogate_becomes_the_replacement_character_with_one_warning():
    with pytest.warns(RepairWarning, match=r"text 0 holds a lone surrogate \(and 1 more\)") as caught:
        checked = check_texts(["a\ud800b", "fine 😀", "\udfff"])
    assert checked == ["a\ufffdb", "fine 😀", "\ufffd"]
    assert len(caught) == 1


def test_two_halves_of_a_surrogate_pair_are_one_character():
    with pytest.warns(RepairWarning):
        assert check_texts(["\ud83d\ude00 \ud800"]) == ["😀 \ufffd"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)))
@settings(max_examples=50, deadline=None)
def test_any_other_text_reaches_the_model_untouched(texts):
    assert check_texts(texts) == texts


@given(st.lists(st.text(st.characters(), min_size=1).filter(str.strip), max_size=5))
@settings(max_examples=50, deadline=None)
def test_what_comes_out_can_be_encoded(texts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepairWarning)
        for before, after in zip(texts, check_texts(texts), strict=True):
            after.encode()
            assert after == before or not before.isascii()


def test_tuples_arrays_and_generators_are_lists_too_and_stay_unchanged():
    given = ["a", "b"]
    assert check_texts(given) == given
    assert check_texts(given) is not given
    assert (
        check_texts(("a", "b")) == check_texts(text for text in given) == check_texts(np.array(given, object)) == given
    )


def test_no_texts_are_no_vectors_and_nothing_is_begun():
    encoder = HashEncoder()
    for vectors in (encoder.encode([], role="query"), asyncio.run(encoder.aencode((), role="document"))):
        assert (vectors.shape, vectors.dtype) == ((0, 16), np.float32)
    assert encoder.calls == []


@pytest.mark.parametrize("role", ["", "passage", None, "QUERY", 0], ids=repr)
def test_only_the_two_roles_exist(role):
    with pytest.raises(ConfigError, match="'query' or 'document'"):
        HashEncoder().encode(["a"], role=role)


def test_forgetting_the_role_is_a_type_error():
    with pytest.raises(TypeError, match="role"):
        HashEncoder().encode(["a"])
    with pytest.raises(TypeError, match="positional"):
        HashEncoder().encode(["a"], "query")


# ---- vectors


def unit(*rows):
    return check_vectors(list(rows), count=len(rows), dimensions=len(rows[0]))


def test_vectors_become_float32_rows_of_length_1_in_their_order():
    vectors = check_vectors([[3, 4], [0.0, 0.1]], count=2, dimensions=2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1]], rtol=1e-6)


@given(
    st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=3, max_size=3).filter(
        lambda row: max(map(abs, row)) > 1e-15
    )
)
@settings(max_examples=100, deadline=None)
def test_any_finite_row_comes_out_with_length_1_and_its_direction(row):
    vector = unit(row)[0].astype(np.float64)
    assert math.isclose(np.linalg.norm(vector), 1, rel_tol=1e-5)
    assert np.dot(vector, row) > 0


def test_unit_vectors_are_left_as_they_are_within_rounding():
    rows = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(check_vectors(rows, count=50, dimensions=384), rows, atol=2e-7)


@pytest.mark.parametrize("rows", [[], [[1, 0]], [[1, 0]] * 3, np.ones((1, 2))], ids=["none", "few", "many", "array"])
def test_a_wrong_count_is_refused_whole(rows):
    with pytest.raises(BadAnswerError, match=f"{len(rows)} vectors were returned for 2 texts") as caught:
        check_vectors(rows, count=2, dimensions=2)
    assert caught.value.positions == (0, 1)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-20, 1e-10, 1e10, 2e19, 1e30, 1e38])
def test_a_row_of_any_scale_of_float32_becomes_a_unit_vector(scale):
    rows = np.array([[3, 4, 0], [1, 1, 1]], np.float64)
    vectors = check_vectors([(rows[0] / 5 * scale).tolist(), rows[1].tolist()], count=2, dimensions=3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[1] @ (rows[1] / np.sqrt(3)) > 0.999


@pytest.mark.parametrize("size", [1, 3])
def test_a_wrong_dimension_is_refused(size):
    with pytest.raises(BadAnswerError, match=f"{size} dimensions were returned, the model has 2"):
        check_vectors([[1.0] * size] * 2, count=2, dimensions=2)


@pytest.mark.parametrize(
    "bad",
    [[math.nan, 1], [math.inf, 0], [-math.inf, 1], [0, 0], [1e39, 0], [1e300, 1e300]],
    ids=["nan", "inf", "-inf", "zero", "over float32", "over float32 squared"],
)
def test_a_row_that_is_no_vector_is_refused_with_its_position(bad):
    with pytest.raises(BadAnswerError) as caught:
        check_vectors([[1, 0], bad, [0, 1]], count=3, dimensions=2)
    assert caught.value.positions == (1,)


@pytest.mark.parametrize("bad", [[None, 1], ["1.0", 1], [1.0], [1.0, 2.0, 3.0], None, "ab", [[1], [2]]], ids=repr)
def test_a_ragged_or_non_numeric_row_is_refused_with_its_position(bad):
    with pytest.raises(BadAnswerError) as caught:
        check_vectors([[1.0, 0.5], bad, [0.5, 1.0]], count=3, dimensions=2)
    assert caught.value.positions == (1,)


@pytest.mark.parametrize("rows", [None, "text", 5, {"a": 1}, np.ones((2, 2, 2)), np.array([["a", "b"]] * 2)], ids=repr)
def test_an_answer_of_another_kind_is_refused(rows):
    with pytest.raises(BadAnswerError):
        check_vectors(rows, count=2, dimensions=2)


# ---- the rest of the seam


@pytest.mark.parametrize("how", ["encode", "submit", "aencode"])
def test_long_texts_are_reported_once_with_positions_at_the_callers_line(how):
    encoder = HashEncoder(max_words=2, batch=2)
    texts = ["one", "one two three", "one two", "one two three four"]

    async def awaited():
        return await encoder.aencode(texts, role="document")

    calls = {
        "encode": lambda: encoder.encode(texts, role="document"),
        "submit": lambda: encoder.submit(texts, role="document").result(),
        "aencode": lambda: asyncio.run(awaited()),
    }
    with pytest.warns(TruncationWarning, match=r"2 text\(s\) .* 512 tokens .*positions 1, 3") as caught:
        calls[how]()
    assert len(caught) == 1
    assert encoder.usage.truncated == 2
    if how != "submit":
        assert caught[0].filename == __file__


def test_long_texts_are_refused_with_positions():
    encoder = HashEncoder(max_words=2, truncate="error")
    with pytest.raises(TooLongError, match=r"2 text\(s\) .* split them.*positions 1, 2") as refused:
        encoder.encode(["a", "a b c", "a b c d"], role="document")
    assert refused.value.positions == (1, 2)
    assert encoder.sent == ["a", "a b c", "a b c d"]
    refuse_truncation([], model="m", max_tokens=512)


def test_a_listener_gets_the_positions_instead_of_a_warning():
    positions = []
    HashEncoder(max_words=1).submit(["a", "b c"], role="document", on_truncated=positions.extend).result()
    assert positions == [1]


def test_many_positions_are_shortened_in_words_but_not_in_the_error():
    with pytest.raises(InputError, match="…") as refused:
        refuse_truncation(range(100), model="m", max_tokens=512)
    assert len(refused.value.positions) == 100
    assert len(str(refused.value)) < 250


def test_an_encoder_that_loses_a_row_is_caught():
    class Losing(HashEncoder):
        def work(self, texts, role, stream, long):
            super().work(texts[:-1], role, stream, long)

    with pytest.raises(BGEError, match="no vector for text 2"):
        Losing().encode(["a", "b", "c"], role="document")


@pytest.mark.parametrize("nested", ["encode", "aencode"])
def test_waiting_for_the_same_encoder_inside_on_batch_is_an_error_and_not_a_hang(nested):
    encoder = HashEncoder()

    def on_batch(indices, vectors):
        if nested == "encode":
            encoder.encode(["b"], role="document")
        else:
            asyncio.run(encoder.aencode(["b"], role="document"))

    with pytest.raises(BGEError, match="inside on_batch"):
        encoder.encode(["a"], role="document", on_batch=on_batch)
    assert encoder.encode(["c"], role="document").shape == (1, 16)


def test_another_encoder_may_be_called_inside_on_batch():
    inner, seen = HashEncoder(), []
    HashEncoder().encode(["a"], role="document", on_batch=lambda *_: seen.append(inner.encode(["b"], role="query")))
    assert seen[0].shape == (1, 16)


def test_what_on_batch_raises_ends_the_call():
    def on_batch(indices, vectors):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        HashEncoder(batch=1).encode(["a", "b"], role="document", on_batch=on_batch)


def test_vectors_go_with_their_last_holder_without_a_collection():
    gc.disable()
    try:
        for encode in (HashEncoder(batch=2).encode, lambda *a, **k: HashEncoder().submit(*a, **k).result()):
            held = weakref.ref(encode(["a", "b", "c"], role="document"))
            assert held() is None
    finally:
        gc.enable()


def test_a_stream_is_embedded_in_order_in_bounded_memory():
    encoder, taken = HashEncoder(), []

    def texts():
        for i in range(10):
            taken.append(i)
            yield f"text {i}"

    parts = stream(encoder, texts(), role="document", size=4)
    first = next(parts)
    assert (len(first), len(taken)) == (4, 4)
    whole = np.concatenate([first, *parts])
    np.testing.assert_array_equal(whole, encoder.expected([f"text {i}" for i in range(10)], "document"))
    assert [len(call) for call in encoder.calls] == [4, 4, 2]


def test_usage_counts_from_many_threads_and_travels():
    from concurrent.futures import ThreadPoolExecutor

    usage = Usage()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: usage.add(texts=1, usd=0.5), range(1000)))
    assert (usage.texts, usage.usd) == (1000, 500)
    twin = pickle.loads(pickle.dumps(usage))
    twin.add(texts=1)
    assert twin.to_dict() == {**usage.to_dict(), "texts": 1001}


def test_an_encoder_closes_as_a_context():
    with HashEncoder() as encoder:
        assert isinstance(encoder, Encoder)
    assert encoder.closed == 1


def test_the_stamp_says_what_a_store_must_remember():
    stamp = HashEncoder(query_instruction="find: ").stamp()
    assert stamp["query_instruction"] == "find: "
    assert HashEncoder().stamp()["query_instruction"] == CARD.query_instruction
    assert {"space", "model", "revision", "dimensions", "pooling", "package_version"} <= set(stamp)


async def test_cancelling_an_await_does_not_break_the_encoder():
    encoder = HashEncoder(delay=0.05)
    task = asyncio.ensure_future(encoder.aencode(["a"], role="document"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await encoder.aencode(["b"], role="document")).shape == (1, 16)
