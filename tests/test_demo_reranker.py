"""The bundled demo reranker: small, loadable by plain libraries, and it helps the demo embedder."""

import gzip
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from bge_integrations import errors, load_reranker
from bge_integrations.catalog import find_model
from bge_integrations.catalog.local_folder import fingerprint
from bge_integrations.catalog.rerankers import find_reranker, is_reranker
from bge_integrations.cli import main
from bge_integrations.demo import MODEL_FOLDER, RERANKER_FOLDER

HELD_OUT = Path(__file__).parent / "data" / "heldout.jsonl.gz"
QUERIES, PASSAGES, CANDIDATES = 150, 1500, 20
QUERY = "tool to compress files"
TEXTS = [
    "A lightweight viewer for PDF documents.",
    "gzip compresses files.",
    "xz-utils provides high-ratio compression of files and archives.",
    "word " * 2_000,
    "",
]


@pytest.fixture(scope="module")
def reranker():
    with load_reranker("demo") as loaded:
        yield loaded


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in RERANKER_FOLDER.rglob("*") if path.is_file()) <= 2_500_000


def test_it_reads_the_demo_embedders_word_pieces():
    name = "tokenizer.json"
    ours, theirs = (json.loads((folder / name).read_text("utf-8")) for folder in (RERANKER_FOLDER, MODEL_FOLDER))
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]


@pytest.mark.parametrize("name", ["demo", "Demo", "demo-reranker", RERANKER_FOLDER])
def test_its_names(name):
    card = find_reranker(name)
    assert Path(card.folder) == RERANKER_FOLDER
    assert (card.max_tokens, card.revision) == (512, fingerprint(RERANKER_FOLDER))
    assert (card.id == "demo-reranker") == (name != RERANKER_FOLDER)


def test_demo_is_the_embedding_model_where_both_can_be_meant(capsys):
    assert find_model("demo").dimensions == 256
    assert not is_reranker("demo")
    assert is_reranker("demo-reranker")
    assert main(["models", "demo"]) == 0
    assert "query_instruction" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")
def test_transformers_and_cross_encoder_give_the_same_logits(reranker):
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    ours = reranker.score(QUERY, TEXTS, scale="logit")
    tokenizer = AutoTokenizer.from_pretrained(RERANKER_FOLDER)
    model = AutoModelForSequenceClassification.from_pretrained(RERANKER_FOLDER).eval()
    batch = tokenizer([QUERY] * len(TEXTS), TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        np.testing.assert_allclose(ours, model(**batch).logits[:, 0].numpy(), atol=1e-4)
    theirs = CrossEncoder(str(RERANKER_FOLDER), device="cpu")
    scores = theirs.predict([(QUERY, text) for text in TEXTS], show_progress_bar=False)  # its default is the sigmoid
    np.testing.assert_allclose(reranker.score(QUERY, TEXTS), scores, atol=1e-4)
    assert reranker.describe()["backend"] == "torch"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")
def test_it_lifts_what_the_demo_embedder_finds(demo, reranker):
    with gzip.open(HELD_OUT, "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line, _ in zip(lines, range(PASSAGES), strict=False)]
    queries, passages = [pair["query"] for pair in pairs[:QUERIES]], [pair["passage"] for pair in pairs]
    scores = demo.encode(queries, role="query") @ demo.encode(passages, role="document").T
    first = np.argsort(-scores, axis=1)[:, :CANDIDATES]
    logits = reranker.score_pairs(
        [(queries[i], passages[j]) for i, row in enumerate(first) for j in row], scale="logit"
    )
    after = np.take_along_axis(first, np.argsort(-logits.reshape(first.shape), axis=1), axis=1)
    assert ndcg_at_10(after) > ndcg_at_10(first) + 0.02


def ndcg_at_10(ranking):
    right = ranking[:, :10] == np.arange(len(ranking))[:, None]
    return float((right / np.log2(np.arange(10) + 2.0)).sum(1).mean())


@pytest.mark.slow
def test_a_sigmoid_above_a_half_means_that_it_fits(reranker):
    scores = reranker.score(QUERY, ["This tool compresses files.", TEXTS[0]])
    assert scores[0] > 0.5 > scores[1]


@pytest.mark.slow
def test_it_needs_no_network_in_either_framework(monkeypatch):
    from langchain_core.documents import Document
    from llama_index.core.schema import NodeWithScore, TextNode

    from bge_integrations.langchain import BGEReranker
    from bge_integrations.llama_index import BGEReranker as BGENodeReranker

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    best = BGEReranker("demo", top_n=1).compress_documents([Document(text) for text in TEXTS[:3]], QUERY)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS[:3]]
    best_node = BGENodeReranker("demo", top_n=1).postprocess_nodes(nodes, query_str=QUERY)
    assert best[0].page_content == best_node[0].text
    assert best[0].metadata["relevance_score"] == pytest.approx(best_node[0].score, abs=1e-6)


@pytest.mark.slow
def test_without_a_network_an_error_advises_it(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.ModelLoadError, match=r"model='demo' \(bundled\)"):
        load_reranker("bge-reranker-base").score(QUERY, TEXTS[:1])


@pytest.mark.slow
def test_late_positions_are_as_good_as_early_ones(reranker):
    # Few training pairs were long: an answer behind 300 other words must still be found.
    filler = "this and that " * 100
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.TruncationWarning)
        found, missed = reranker.score(QUERY, [filler + TEXTS[1], filler + TEXTS[0]])
    assert found > missed


@pytest.mark.slow
def test_on_the_command_line(capsys, tmp_path):
    (tmp_path / "passages.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:3]))
    assert main(["rerank", QUERY, str(tmp_path / "passages.jsonl"), "--model", "demo", "--top-n", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, ":memory:"])
def test_blank_passages_before_others_are_told(cache):
    passages = ["the player plays music", "", " \n", "bananas are yellow"]
    options = {"cache": cache} if cache else {}
    said = pytest.warns(errors.BGEWarning, match=r"2 blank .*positions 1, 2")
    with load_reranker("demo", **options) as reranker, said:
        ranks = reranker.rank("how do I cook rice", passages)
    assert {rank.position for rank in ranks[:2]} == {1, 2}  # as the model scores them
    with load_reranker("demo", blank="keep", **options) as reranker, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(reranker.rank("how do I cook rice", passages)) == len(passages)
    with load_reranker("demo", **options) as reranker, warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker.rank("how do I cook rice", ["", " "])  # no other
        reranker.score("how do I cook rice", passages)
