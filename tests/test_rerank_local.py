"""Rerankers on this machine: parity with transformers, one computation per pair, truncation as the servers do it."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from bge_integrations import errors, load_encoder, load_reranker
from bge_integrations.core.pairs import SECOND, PairTokenizer, longest_first
from bge_integrations.core.reranker import Pair

pytestmark = pytest.mark.slow

QUERY = "What is the capital of France?"
PASSAGES = [text for text in models.TEXTS if len(text) < 1200] + ["", "   ", "Paris", "[SEP] </s> in a text"]


@pytest.fixture(scope="module", params=["xlm-roberta", "bert"])
def folder(request):
    return models.reranker(request.param)


@pytest.fixture(scope="module")
def reranker(folder):
    with load_reranker(folder) as loaded:
        yield loaded


def test_logits_are_those_of_transformers(folder, reranker):
    wanted = models.reference_logits(folder, [(QUERY, passage) for passage in PASSAGES])
    assert wanted.std() > 0.05  # random weights, but no constant
    np.testing.assert_allclose(reranker.score(QUERY, PASSAGES, scale="logit"), wanted, atol=1e-4)
    assert reranker.describe()["backend"] == "torch"


def test_sentence_transformers_gives_the_same(folder, reranker):
    with load_reranker(folder, backend="sentence-transformers") as other:
        np.testing.assert_allclose(
            other.score(QUERY, PASSAGES, scale="logit"), reranker.score(QUERY, PASSAGES, scale="logit"), atol=1e-4
        )


# The library cuts what is much too long into all its parts, of which only the first is compared: few such texts.
@pytest.mark.parametrize(("max_tokens", "longest"), [(24, 500), (25, 500), (512, 2000)])
def test_token_ids_and_truncation_are_those_of_the_tokenizers_library(folder, max_tokens, longest):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), PairTokenizer.read(folder, max_tokens)
    texts = [text for text in models.TEXTS if len(text) < longest]
    pairs = [(a, b) for a in texts for b in [*texts, ""]]
    found = ours.tokenize([Pair(*pair) for pair in pairs])
    columns = [list(column) for column in zip(*pairs, strict=True)]  # alone, transformers drops an empty passage
    wanted = theirs(*columns, truncation="longest_first", max_length=max_tokens, return_token_type_ids=True)
    for ids, their_ids, their_types in zip(found.items, wanted["input_ids"], wanted["token_type_ids"], strict=True):
        assert (ids % SECOND).tolist() == their_ids
        assert (ids // SECOND).tolist() == their_types
    whole = map(len, theirs(*columns, truncation=False)["input_ids"])
    assert found.truncated == [i for i, count in enumerate(whole) if count > max_tokens]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 50))
def test_longest_first_fits_and_wastes_nothing(first, second, room):
    a, b = longest_first(first, second, room)
    assert a <= first
    assert b <= second
    assert a + b == min(first + second, room)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(PASSAGES), min_size=1, max_size=8), st.integers(0, 7))
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(reranker, passages, place):
    place %= len(passages)
    together = reranker.score(QUERY, passages, scale="logit")
    alone = reranker.score(QUERY, [passages[place]], scale="logit")
    np.testing.assert_allclose(together[place], alone[0], rtol=1e-5, atol=2e-5)


def test_equal_pairs_are_computed_once(folder):
    with load_reranker(folder) as fresh:
        scores = fresh.score(QUERY, ["a", "b", "a", "a"])
        assert fresh.usage.texts == 2
        assert scores[0] == scores[2] == scores[3] != scores[1]


def test_pairs_of_many_queries(folder, reranker):
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("a", "b")]
    wanted = models.reference_logits(folder, pairs)
    np.testing.assert_allclose(reranker.score_pairs(pairs, scale="logit"), wanted, atol=1e-4)


def test_rank_is_by_logit_and_ties_keep_their_order(reranker):
    passages = ["b", "a", "b", "c", "a"]
    logits = reranker.score(QUERY, passages, scale="logit")
    ranks = reranker.rank(QUERY, passages)
    assert [one.position for one in ranks] == sorted(range(5), key=lambda i: (-logits[i], i))
    assert all(type(one.score) is float for one in ranks)
    json.dumps([one._asdict() for one in ranks])
    assert reranker.rank(QUERY, passages, top_n=2) == ranks[:2]
    assert reranker.rank(QUERY, passages, top_n=0) == []
    assert reranker.rank(QUERY, []) == []
    np.testing.assert_allclose(reranker.score(QUERY, passages), 1 / (1 + np.exp(-logits)), atol=1e-6)


@pytest.mark.parametrize("top_n", [-1, 1.5, "3", True])
def test_a_top_n_that_means_nothing_is_refused(reranker, top_n):
    with pytest.raises(errors.ConfigError, match="top_n"):
        reranker.rank(QUERY, ["a"], top_n=top_n)


@pytest.mark.parametrize(
    ("query", "passages", "said"),
    [
        (None, ["a"], "query must be a string"),
        (b"a", ["a"], "query must be a string"),
        ("a", "b", "must be a list"),
        ("a", ["b", None], "text 1 is NoneType"),
        ("a", ["b", 3], "text 1 is int"),
        ("a", [b"b"], "text 0 is bytes"),
    ],
)
def test_what_is_no_text_is_refused(reranker, query, passages, said):
    with pytest.raises(errors.InputTypeError, match=said):
        reranker.score(query, passages)


def test_a_blank_query_is_refused_and_blank_passages_are_scored(folder, reranker):
    with pytest.raises(errors.InputError, match="query is blank"):
        reranker.score("  ", ["a"])
    with load_reranker(folder, blank="keep") as kept:
        assert kept.score(" ", ["", " "]).shape == (2,)


def test_truncation_is_loud_and_names_positions(reranker):
    long = "a word " * 600
    with pytest.warns(errors.TruncationWarning, match=r"1 passage\(s\).*512 tokens.*positions 1"):
        reranker.score(QUERY, ["short", long])
    assert reranker.usage.truncated >= 1


def test_truncate_error_refuses_before_anything_is_computed(folder):
    with load_reranker(folder, truncate="error") as strict:
        with pytest.raises(errors.TooLongError) as caught:
            strict.score(QUERY, ["short", "a word " * 600])
        assert caught.value.positions == (1,)
        assert strict.usage.texts == 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near(folder, reranker, precision):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.BGEWarning)  # this CPU may emulate it
        with load_reranker(folder, precision=precision, backend="torch") as half:
            scores = half.score(QUERY, PASSAGES, scale="logit")
    full = reranker.score(QUERY, PASSAGES, scale="logit")
    assert np.corrcoef(scores, full)[0, 1] > 0.98


# The vocabulary is learned anew in each process: where the model ranks a blank passage is chance.
@pytest.mark.filterwarnings("ignore:.*blank passage:bge_integrations.errors.BGEWarning")
def test_async_and_threads_give_the_same(reranker):
    wanted = reranker.score(QUERY, PASSAGES)

    async def many():
        return await asyncio.gather(*(reranker.ascore(QUERY, PASSAGES) for _ in range(4)))

    for scores in asyncio.run(many()):
        np.testing.assert_allclose(scores, wanted, atol=1e-5)
    with ThreadPoolExecutor(4) as pool:
        for scores in pool.map(lambda _: reranker.score(QUERY, PASSAGES), range(4)):
            np.testing.assert_allclose(scores, wanted, atol=1e-5)
    ranked, again = asyncio.run(reranker.arank(QUERY, PASSAGES, top_n=3)), reranker.rank(QUERY, PASSAGES, top_n=3)
    assert [one.position for one in ranked] == [one.position for one in again]
    np.testing.assert_allclose([one.score for one in ranked], [one.score for one in again], atol=1e-5)


def test_it_travels(reranker):
    wanted = reranker.score(QUERY, ["a"])
    for other in (pickle.loads(pickle.dumps(reranker)), copy.deepcopy(reranker), copy.copy(reranker)):
        assert not other.describe()["loaded"]
        np.testing.assert_allclose(other.score(QUERY, ["a"]), wanted, atol=1e-6)
        other.close()
        assert reranker.describe()["loaded"]


def test_a_folder_that_is_no_reranker_is_refused():
    with pytest.raises(errors.ModelLoadError, match="does not score pairs"):
        load_reranker(models.folder("bge-small"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("BAAI/bge-reranker-v2-minicpm-layerwise", "use bge-reranker-v2-m3"),
        ("bge-reranker-v2.5-gemma2-lightweight", "scale of their own"),
        ("bge-small-en-v1.5", "load_encoder"),
        ("bge-reranker-v2-m4", "BAAI/bge-reranker-v2-m3"),
    ],
)
def test_other_names_are_refused_with_what_to_take(name, said):
    with pytest.raises(errors.UnknownModelError, match=said):
        load_reranker(name)


def test_a_reranker_is_no_encoder():
    with pytest.raises(errors.UnknownModelError, match=r"load_reranker"):
        load_encoder("BAAI/bge-reranker-base")
    with pytest.raises(errors.ModelLoadError, match=r"load_reranker"):
        load_encoder(models.reranker("bert"), query_instruction="", accept_space="cls").encode(["a"], role="document")


def test_gemma_is_for_hosts():
    with pytest.raises(errors.NotServedError, match="vLLM"):
        load_reranker("bge-reranker-v2-gemma")
