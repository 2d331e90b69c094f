"""bge-m3's three outputs: FlagEmbedding's formulas on random weights, one pass, no code of a file."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from bge_integrations import errors, load_encoder, load_reranker, max_sim, sparse_score
from bge_integrations.catalog import find_model
from bge_integrations.load import load_m3
from bge_integrations.wrappers.multivector import MultivectorReranker

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")]

TEXTS = [
    "What is BGE M3?",
    "the the the cat",
    "error E1234 in the pump, and E1234 again",
    "x",
    "   ",
    "a long one " * 40,
    "<s> written out </s> <unk> ☃",
]
QUIET = {"query_instruction": "", "show_progress": False}
WIDTH = 128


def m3_folder() -> Path:
    """bge-m3 but for its width, which no formula depends on; test_packed.py has it."""
    return models.m3(name="narrow-m3")


@cache
def reference(text: str) -> tuple[np.ndarray, dict[int, float], np.ndarray]:
    """Dense, sparse and multivector as FlagEmbedding's m3.py computes them, on transformers."""
    model, heads = _transformers()
    ids = load_encoder(m3_folder(), **QUIET).tokenizer().tokenize([text]).items[0].astype(np.int64)
    with torch.inference_mode():
        states = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0]
        dense = torch.nn.functional.normalize(states[0], dim=-1).numpy()
        weights = torch.relu(torch.nn.functional.linear(states, *heads["sparse_linear"]))[:, 0].tolist()
        vectors = torch.nn.functional.linear(states[1:], *heads["colbert_linear"])
        vectors = torch.nn.functional.normalize(vectors, dim=-1).numpy()
    sparse: dict[int, float] = {}
    for token, weight in zip(ids.tolist(), weights, strict=True):
        if token not in (0, 1, 2, 3) and weight > 0:
            sparse[token] = max(weight, sparse.get(token, 0.0))
    return dense, sparse, vectors


@cache
def _transformers():
    from transformers import AutoModel

    folder = m3_folder()
    loaded = {
        name: torch.load(folder / f"{name}.pt", weights_only=True) for name in ("sparse_linear", "colbert_linear")
    }
    heads = {name: (head["weight"].float(), head["bias"].float()) for name, head in loaded.items()}
    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval(), heads


@pytest.fixture(scope="module")
def m3():
    with load_encoder(m3_folder(), blank="keep", **QUIET) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from bge_integrations.local.export import export_onnx

    folder = tmp_path_factory.mktemp("onnx") / "tuned"
    shutil.copytree(m3_folder(), folder)
    export_onnx(find_model(folder), folder)
    return folder


def check(outputs, texts, *, dense, sparse):
    for i, text in enumerate(texts):
        wanted = reference(text)
        assert np.abs(outputs.dense[i] - wanted[0]).max() <= dense
        assert outputs.sparse[i].keys() == wanted[1].keys()
        assert max((abs(outputs.sparse[i][k] - v) for k, v in wanted[1].items()), default=0) <= sparse
        assert all(type(k) is int and type(v) is float for k, v in outputs.sparse[i].items())
        assert outputs.multivector[i].shape == wanted[2].shape
        assert outputs.multivector[i].dtype == np.float32
        assert np.abs(outputs.multivector[i] - wanted[2]).max() <= dense


def test_all_three_are_flagembeddings(m3):
    check(m3.encode_outputs(TEXTS, role="document"), TEXTS, dense=1e-5, sparse=2e-4)


def test_so_they_are_from_an_onnx_file(onnx_folder):
    with load_encoder(onnx_folder, backend="onnx", blank="keep", **QUIET) as encoder:
        outputs = encoder.encode_outputs(TEXTS, role="document")
        assert encoder.describe()["backend"] == "onnx"
    check(outputs, TEXTS, dense=1e-5, sparse=2e-4)


def test_a_query_takes_no_instruction(m3):
    query, document = (m3.encode_outputs(["what?"], role=role) for role in ("query", "document"))
    np.testing.assert_array_equal(query.dense, document.dense)
    assert query.sparse == document.sparse


def test_one_pass_gives_all(m3):
    m3.encode(["warm"], role="document")
    before = m3.describe()["forward_passes"]
    outputs = m3.encode_outputs(["one", "two words"], role="document")
    assert m3.describe()["forward_passes"] == before + 1
    np.testing.assert_allclose(outputs.dense, m3.encode(["one", "two words"], role="document"), atol=1e-6)


def test_only_what_is_asked_for(m3):
    outputs = m3.encode_outputs(["a text"], role="document", outputs=["sparse"])
    assert outputs.dense is None
    assert outputs.multivector is None
    assert len(outputs.sparse) == 1
    dense = m3.encode_outputs(["a text"], role="document", outputs="dense")
    assert dense.sparse is None
    np.testing.assert_array_equal(dense.dense, m3.encode(["a text"], role="document"))


@pytest.mark.parametrize("outputs", [None, 3, [], [None], "colbert", ["dense", "x"]])
def test_outputs_are_some_of_three_names(m3, outputs):
    with pytest.raises(errors.ConfigError, match="outputs must be some of"):
        m3.encode_outputs(["a text"], role="document", outputs=outputs)


@pytest.mark.parametrize("key", ["17", 10**9, -1, 10**30, None])
def test_what_is_no_token_id_has_no_word(m3, key):
    with pytest.raises(errors.InputError, match="is not a token id"):
        m3.words({key: 0.5})


def test_no_vectors_have_no_score():
    vectors = np.eye(2, 4, dtype=np.float32)
    for query, passage in ((vectors[:0], vectors), (vectors, vectors[:0])):
        with pytest.raises(errors.InputError, match="without vectors"):
            max_sim(query, passage)


def test_no_texts_are_no_rows(m3):
    outputs = m3.encode_outputs([], role="document")
    assert outputs.dense.shape == (0, WIDTH)
    assert outputs.sparse == outputs.multivector == []


def test_async_gives_the_same(m3):
    outputs = asyncio.run(m3.aencode_outputs(["a text", "b"], role="query", outputs=["sparse", "multivector"]))
    wanted = m3.encode_outputs(["a text", "b"], role="query")
    assert outputs.sparse == wanted.sparse
    assert outputs.dense is None


WORDS = st.text("abc xyz é中 the", min_size=1, max_size=60) | st.integers(1, 90).map(lambda n: "word " * n)


@given(st.lists(WORDS, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_text_never_depends_on_its_neighbours(m3, texts):
    together = m3.encode_outputs(texts, role="document")
    for i, text in enumerate(texts):
        alone = m3.encode_outputs([text], role="document")
        np.testing.assert_allclose(together.dense[i], alone.dense[0], atol=1e-5)
        np.testing.assert_allclose(together.multivector[i], alone.multivector[0], atol=1e-5)
        shared = together.sparse[i].keys() & alone.sparse[0].keys()
        assert max((abs(together.sparse[i][k] - alone.sparse[0][k]) for k in shared), default=0) <= 2e-4
        # An id may come and go only where its weight is as good as nothing.
        lone = together.sparse[i].keys() ^ alone.sparse[0].keys()
        assert all(max(together.sparse[i].get(k, 0), alone.sparse[0].get(k, 0)) < 2e-4 for k in lone)


def test_calls_of_several_outputs_and_of_dense_share_the_worker(m3):
    futures = [m3.submit([f"text {i}"], role="document") for i in range(6)]
    outputs = [m3.encode_outputs([f"text {i}"], role="document") for i in range(6)]
    for future, output in zip(futures, outputs, strict=True):
        np.testing.assert_allclose(future.result(60), output.dense, atol=1e-5)


@pytest.mark.filterwarnings("ignore:this CPU has no bfloat16")
def test_bfloat16_keeps_the_heads_in_float32(m3):
    with load_encoder(m3_folder(), precision="bfloat16", backend="torch", **QUIET) as encoder:
        outputs = encoder.encode_outputs(TEXTS[:2], role="document")
    wanted = m3.encode_outputs(TEXTS[:2], role="document")
    assert (outputs.dense * wanted.dense).sum(1).min() > 0.999
    for vectors, exact in zip(outputs.multivector, wanted.multivector, strict=True):
        assert (vectors * exact).sum(1).min() > 0.99


def test_words_are_shown_largest_first(m3):
    sparse = m3.encode_outputs(["the the the cat"], role="document", outputs=["sparse"]).sparse[0]
    words = m3.words(sparse)
    assert [weight for _, weight in words] == sorted(sparse.values(), reverse=True)
    assert {word for word, _ in words} == {m3.tokenizer().token(token) for token in sparse}


# ---- folders


@pytest.mark.parametrize("lost", ["sparse_linear.pt", "colbert_linear.pt"])
def test_a_folder_without_a_head_says_what_is_missing(tmp_path, lost):
    folder = tmp_path / "bge-m3"  # a known model's folder, as wide as that: the card promises all three
    folder.mkdir()
    for file in models.m3(layers=1).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / lost).unlink()
    with load_encoder(folder, show_progress=False) as encoder:
        assert encoder.encode(["a text"], role="document").shape == (1, 1024)
        with pytest.raises(errors.ModelLoadError, match=f"has no {lost}.*download"):
            encoder.encode_outputs(["a text"], role="document")
        rest = "multivector" if lost.startswith("sparse") else "sparse"
        assert getattr(encoder.encode_outputs(["a text"], role="document", outputs=[rest]), rest)


def test_a_model_without_heads_says_who_has_them(demo_without_heads):
    with pytest.raises(errors.ConfigError, match=r"no sparse output here: it has only dense; BAAI/bge-m3"):
        demo_without_heads.encode_outputs(["a"], role="document", outputs=["sparse"])
    with pytest.raises(errors.ConfigError, match="dense, sparse, multivector, not 'colbert'"):
        demo_without_heads.encode_outputs(["a"], role="document", outputs=["colbert"])
    with pytest.raises(errors.ConfigError, match="not 'none'"):
        demo_without_heads.encode_outputs(["a"], role="document", outputs=[])


@pytest.fixture
def demo_without_heads():
    with load_encoder(models.folder("narrow-bert"), **QUIET) as encoder:
        yield encoder


class Payload:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


def test_no_code_of_a_heads_file_is_run(tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(m3_folder(), folder)
    torch.save({"weight": Payload(), "bias": torch.zeros(1)}, folder / "sparse_linear.pt")
    wanted = pytest.raises(errors.ModelLoadError, match=r"sparse_linear\.pt.*cannot be read")
    with load_encoder(folder, **QUIET) as encoder, wanted:
        encoder.encode_outputs(["a"], role="document", outputs=["sparse"])


def test_a_git_lfs_pointer_is_no_head(tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(m3_folder(), folder)
    (folder / "colbert_linear.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert find_model(folder).outputs == ("dense", "sparse")


def test_heads_have_spaces_of_their_own(tmp_path):
    card = find_model(m3_folder())
    spaces = {card.output_space(name) for name in ("dense", "sparse", "multivector")}
    assert len(spaces) == 3
    folder = tmp_path / "other"
    shutil.copytree(m3_folder(), folder)
    head = torch.load(folder / "sparse_linear.pt", weights_only=True)
    torch.save({**head, "bias": head["bias"] + 1}, folder / "sparse_linear.pt")
    other = find_model(folder)
    assert other.revision == card.revision  # the dense vectors are the same
    assert other.output_space("sparse").partition("/")[2] != card.output_space("sparse").partition("/")[2]


def test_safetensors_heads_are_read_without_torch_loading_a_pickle(tmp_path, m3):
    from safetensors.torch import save_file

    folder = tmp_path / "tuned"
    shutil.copytree(m3_folder(), folder)
    for name in ("sparse_linear", "colbert_linear"):
        save_file(torch.load(folder / f"{name}.pt", weights_only=True), folder / f"{name}.safetensors")
        (folder / f"{name}.pt").unlink()
    with load_encoder(folder, **QUIET) as encoder:
        outputs = encoder.encode_outputs(["a text"], role="document")
    assert outputs.sparse == m3.encode_outputs(["a text"], role="document").sparse


def test_the_catalogue_pins_the_published_heads():
    card = find_model("bge-m3")
    assert card.outputs == ("dense", "sparse", "multivector")
    assert card.vocabulary == 250_002
    assert len(card.weights) == 3


# ---- cache


def test_the_cache_keeps_all_outputs_and_mixes_none(tmp_path):
    path = tmp_path / "cache.sqlite"
    with load_encoder(m3_folder(), cache=path, **QUIET) as encoder:
        first = encoder.encode_outputs(TEXTS[:3], role="document")
        passes = encoder.describe()["forward_passes"]
        again = encoder.encode_outputs(TEXTS[:3], role="document")
        assert encoder.describe()["forward_passes"] == passes
        assert encoder.usage.cache_hits == 3
        np.testing.assert_array_equal(first.dense, again.dense)
        for kept, wanted in zip(again.sparse, first.sparse, strict=True):
            assert kept == pytest.approx(wanted, abs=1e-6)
        for kept, wanted in zip(again.multivector, first.multivector, strict=True):
            np.testing.assert_array_equal(kept, wanted)
        encoder.encode(TEXTS[:3], role="document")  # another kind of row
        sparse = encoder.encode_outputs(TEXTS[:3], role="document", outputs=["sparse"]).sparse
        assert sparse == [pytest.approx(wanted, abs=1e-6) for wanted in first.sparse]


# ---- memo


def memo(**options):
    return load_m3(m3_folder(), **{**QUIET, **options})


def test_what_is_asked_for_later_is_computed_now():
    with memo() as encoder:
        encoder.use("dense", "sparse")
        encoder.encode(["warm"], role="document")
        before = encoder.describe()["forward_passes"]
        dense = encoder.encode(["a text", "b", "a text"], role="document")
        sparse = encoder.encode_outputs(["b", "a text"], role="document", outputs=["sparse"]).sparse
        assert encoder.describe()["forward_passes"] == before + 1
        wanted = encoder.inner.encode_outputs(["a text", "b", "a text"], role="document")
        np.testing.assert_allclose(dense, wanted.dense, atol=1e-6)
        assert sparse == [pytest.approx(wanted.sparse[i], abs=1e-5) for i in (1, 0)]


def test_a_list_that_is_kept_in_part_costs_only_the_rest():
    with memo() as encoder:
        encoder.use("dense", "sparse")
        encoder.encode(["kept", "kept too"], role="document")
        texts = encoder.usage.texts
        outputs = encoder.encode_outputs(["new", "kept too", "new", "kept"], role="document", outputs=["sparse"])
        assert encoder.usage.texts == texts + 1
        wanted = encoder.inner.encode_outputs(["new", "kept too", "new", "kept"], role="document").sparse
        assert outputs.sparse == [pytest.approx(row, abs=1e-5) for row in wanted]


def test_a_query_is_not_answered_with_a_document():
    with load_m3(m3_folder(), query_instruction="find: ", show_progress=False) as encoder:
        encoder.use("dense", "sparse")
        encoder.encode(["a text"], role="document")
        query = encoder.encode_outputs(["a text"], role="query", outputs=["sparse"]).sparse
        assert query != encoder.encode_outputs(["a text"], role="document", outputs=["sparse"]).sparse


def test_a_second_stage_computes_nothing_that_it_does_not_use():
    with memo() as encoder:
        encoder.use("dense", "sparse")
        asked = []
        encoder.inner.batches = lambda texts, role, stream: (
            asked.append(stream.output.names),
            type(encoder.inner).batches(encoder.inner, texts, role, stream),
        )
        MultivectorReranker(encoder).score("a query", ["one", "two"])
        assert asked == [("multivector",)] * 2
        assert not encoder._kept


def test_the_memo_is_bounded_by_bytes():
    from bge_integrations.wrappers.memo import MemoEncoder

    with MemoEncoder(load_encoder(m3_folder(), **QUIET), max_bytes=2000) as encoder:
        encoder.use("dense", "sparse")
        texts = [f"some text number {i} of many" for i in range(60)]
        encoder.encode(texts, role="document")
        assert 1000 < sum(len(packed) for packed, _ in encoder._kept.values()) <= 2000
        wanted = encoder.inner.encode_outputs(texts, role="document", outputs=["sparse"]).sparse
        outputs = encoder.encode_outputs(texts, role="document", outputs=["sparse"])
        assert outputs.sparse == [pytest.approx(row, abs=1e-5) for row in wanted]


def test_while_one_output_is_in_use_nothing_is_kept():
    with memo() as encoder:
        encoder.use("dense")
        encoder.encode(["a"], role="document")
        assert not encoder._kept


def test_a_copy_of_a_memo_works_and_starts_empty():
    with memo() as encoder:
        encoder.use("dense", "sparse")
        encoder.encode(["a"], role="document")
        with pickle.loads(pickle.dumps(encoder)) as copy:
            assert not copy._kept
            assert copy.wanted == {"dense", "sparse"}
            np.testing.assert_array_equal(copy.encode(["a"], role="document"), encoder.encode(["a"], role="document"))


@pytest.fixture
def short_m3(tmp_path):
    """The same model, said to read 64 tokens."""
    folder = tmp_path / "short"
    shutil.copytree(m3_folder(), folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    return folder


def test_what_is_too_long_is_told_of_again(short_m3):
    with load_m3(short_m3, **QUIET) as encoder:
        encoder.use("dense", "sparse")
        long = "word " * 90
        with pytest.warns(errors.TruncationWarning):
            encoder.encode([long], role="document")
        with pytest.warns(errors.TruncationWarning):
            encoder.encode_outputs([long], role="document", outputs=["sparse"])


# ---- second stage


def test_scores_are_the_mean_of_the_largest_products(m3):
    query, passages = "What is BGE M3?", [text for text in TEXTS if text.strip()]
    with load_reranker(m3_folder()) as reranker:
        scores = reranker.score(query, passages)
        ranks = reranker.rank(query, passages, top_n=2)
    asked = reference(query)[2]
    wanted = [float((asked @ reference(text)[2].T).max(1).mean()) for text in passages]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert [r.position for r in ranks] == np.argsort(-np.array(wanted), kind="stable").tolist()[:2]
    assert ranks[0].score == pytest.approx(max(wanted), abs=1e-5)  # as it is: no sigmoid


def test_three_part_scores_are_weighted(m3):
    query, passages = "the cat", TEXTS[:3]
    weights = (1.0, 0.3, 1.0)
    with load_reranker(m3_folder(), weights=weights) as reranker:
        scores = reranker.score(query, passages, scale="logit")
        pairs = reranker.score_pairs([(query, passages[2]), ("other", passages[0]), (query, passages[2])])
    q = reference(query)
    parts = [(float(q[0] @ d), sparse_score(q[1], s), max_sim(q[2], v)) for d, s, v in map(reference, passages)]
    wanted = [sum(w * x for w, x in zip(weights, part, strict=True)) / 2.3 for part in parts]
    np.testing.assert_allclose(scores, wanted, atol=2e-4)
    assert pairs[0] == pairs[2] == pytest.approx(wanted[2], abs=2e-4)


def test_published_scores_are_combined_as_the_model_card_combines_them():
    # FlagOpen/FlagEmbedding research/BGE_M3/README.md, float16: the first pair of two sentences.
    dense, sparse, multivector = 0.6259765625, 0.195556640625, 0.7796499729156494
    reranker = MultivectorReranker(load_encoder("bge-m3", provider="local"), weights=(0.4, 0.2, 0.4))
    parts = {"dense": np.array([dense]), "sparse": {1: sparse}, "multivector": np.array([[multivector]])}
    one = {"dense": np.array([1.0]), "sparse": {1: 1.0}, "multivector": np.array([[1.0]])}
    assert reranker.similarity(one, parts) == pytest.approx(0.6013619303703308, abs=1e-3)


def test_a_second_stage_is_remembered_by_its_weights(tmp_path):
    path = tmp_path / "cache.sqlite"
    with load_reranker(m3_folder(), cache=path) as reranker:
        first = reranker.score("q", ["a", "b"])
        assert reranker.usage.cache_hits == 0
        np.testing.assert_array_equal(reranker.score("q", ["b", "a"]), first[::-1])
        assert reranker.usage.cache_hits == 2
    with load_reranker(m3_folder(), cache=path, weights=(1, 0, 1)) as reranker:
        assert not np.allclose(reranker.score("q", ["a", "b"]), first)
        assert reranker.usage.cache_hits == 0


@pytest.mark.parametrize("weights", [(1, 2), (0, 0, 0), (1, -1, 1), (float("nan"), 1, 1), "abc", (True, 1, 1)])
def test_weights_are_three_numbers(weights):
    with pytest.raises(errors.ConfigError, match="weights"):
        load_reranker("bge-m3", weights=weights)


def test_weights_are_bge_m3s_alone():
    with pytest.raises(errors.ConfigError, match="bge-m3's three scores"):
        load_reranker("bge-reranker-base", weights=(1, 1, 1))


def test_a_model_without_heads_is_no_second_stage():
    with pytest.raises(errors.BGEError, match="does not score pairs"):
        load_reranker(models.folder("narrow-bert"))


def test_a_too_long_passage_is_told_by_its_position(short_m3):
    with load_reranker(short_m3, truncate="error") as reranker:
        with pytest.raises(errors.TooLongError) as caught:
            reranker.score("q", ["short", "word " * 90])
        assert caught.value.positions == (1,)


def test_a_damaged_head_leaves_the_dense_vectors_alone(tmp_path, m3):
    folder = tmp_path / "tuned"
    shutil.copytree(m3_folder(), folder)
    (folder / "colbert_linear.pt").write_bytes(b"no head at all")
    with load_encoder(folder, **QUIET) as encoder:
        np.testing.assert_array_equal(encoder.encode(["a"], role="document"), m3.encode(["a"], role="document"))
        with pytest.raises(errors.ModelLoadError, match=r"colbert_linear\.pt.*fetch it again"):
            encoder.encode_outputs(["a"], role="document")


def test_stored_vectors_of_qdrant_are_scored_as_new_ones_are(m3):
    qdrant = pytest.importorskip("qdrant_client")
    texts = [text for text in TEXTS if text.strip()]
    vectors = m3.encode_outputs(texts, role="document", outputs=["multivector"]).multivector
    comparing = qdrant.models.MultiVectorConfig(comparator=qdrant.models.MultiVectorComparator.MAX_SIM)
    column = qdrant.models.VectorParams(
        size=WIDTH, distance=qdrant.models.Distance.COSINE, multivector_config=comparing
    )
    client = qdrant.QdrantClient(":memory:")
    client.create_collection("docs", vectors_config={"tokens": column})
    points = [qdrant.models.PointStruct(id=i, vector={"tokens": rows.tolist()}) for i, rows in enumerate(vectors)]
    client.upsert("docs", points)
    stored = [point.vector["tokens"] for point in client.retrieve("docs", range(len(texts)), with_vectors=True)]
    reranker = MultivectorReranker(m3)
    scores = reranker.score_stored("What is BGE M3?", stored)
    np.testing.assert_allclose(scores, reranker.score("What is BGE M3?", texts), atol=1e-5)
    asked = m3.encode_outputs(["What is BGE M3?"], role="query", outputs=["multivector"]).multivector[0]
    hits = client.query_points("docs", query=asked.tolist(), using="tokens", limit=len(texts)).points
    # The store's own MaxSim is the sum over the query's vectors.
    np.testing.assert_allclose([hit.score for hit in hits], sorted(scores * len(asked))[::-1], rtol=1e-4)
    assert reranker.score_stored("q", []).shape == (0,)
    with pytest.raises(errors.InputError):
        reranker.score_stored("q", [np.zeros((2, 3), np.float32)])
    client.close()


def test_weights_make_a_second_stage_of_the_demo_model_which_is_a_reranker_too():
    with load_reranker("demo", weights=(1, 1, 1)) as reranker:
        assert isinstance(reranker, MultivectorReranker)
    with load_reranker("demo") as reranker:
        assert reranker.card.id == "demo-reranker"
