"""The bundled demo model: small, loadable by plain libraries, and worse off with every wrong instruction."""

import gzip
import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bge_integrations import load_encoder, load_reranker
from bge_integrations.bulk import SparseRows
from bge_integrations.catalog import find_model
from bge_integrations.catalog.local_folder import read_folder
from bge_integrations.demo import MODEL_FOLDER

pytestmark = pytest.mark.slow

HELD_OUT = Path(__file__).parent / "data" / "heldout.jsonl.gz"
INSTRUCTION = "Represent this sentence for searching relevant passages: "
QUESTION = "Represent this question for searching relevant passages: "
QUERIES, PASSAGES = 150, 600
MARGIN = 0.05
OUTPUTS = ("dense", "sparse")
WEIGHT = 0.5  # of sparse scores beside dense ones, as in bge-m3's card and in ``bge search --hybrid``


@pytest.fixture(scope="module")
def model():
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(MODEL_FOLDER), device="cpu")


@pytest.fixture(scope="module")
def pairs():
    with gzip.open(HELD_OUT, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(PASSAGES), strict=False)]


@pytest.fixture(scope="module")
def passages(pairs):
    return [pair["passage"] for pair in pairs]


@pytest.fixture(scope="module")
def encoder():
    with load_encoder("demo", show_progress=False) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def found(encoder, passages):
    return encoder.encode_outputs(passages, role="document", outputs=OUTPUTS)


@pytest.fixture(scope="module")
def search(encoder, pairs):
    @cache
    def asked(instruction):
        return encoder.encode([instruction + pair["query"] for pair in pairs[:QUERIES]], role="document")

    def ndcg_at_10(instruction, documents):
        scores = asked(instruction) @ documents.T
        own = scores[np.arange(QUERIES), np.arange(QUERIES)][:, None]
        rank = (scores >= own).sum(1) - 1
        return float(np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0).mean())

    return ndcg_at_10


def test_the_folder_is_at_most_8_megabytes():
    assert sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_no_prompt_is_saved_in_the_folder(model):
    assert not any(model.prompts.values())
    assert model.default_prompt_name is None


def test_it_finds_held_out_passages(search, found):
    assert search(INSTRUCTION, found.dense) > 0.65


@pytest.mark.parametrize("wrong", [QUESTION, "", INSTRUCTION * 2], ids=["question", "none", "doubled"])
def test_a_wrong_instruction_finds_less(search, found, wrong):
    assert search(wrong, found.dense) < search(INSTRUCTION, found.dense) - MARGIN


def test_the_instruction_on_documents_too_finds_less(encoder, search, found, passages):
    marked = encoder.encode([INSTRUCTION + text for text in passages], role="document")
    assert search(INSTRUCTION, marked) < search(INSTRUCTION, found.dense) - MARGIN


def test_vectors_are_unit_length_and_finite_to_the_last_position(model):
    vectors = model.encode(["word " * count for count in (1, 100, 255, 400, 510, 2_000)])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert model.max_seq_length == 512


def test_late_positions_are_as_good_as_early_ones(encoder, pairs):
    # Most training texts ended before position 200; the same passages moved to the last positions must still be found.
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    chosen = [pair for pair in pairs if len(pair["passage"]) < 300][:100]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    bert = transformers.AutoModel.from_pretrained(str(MODEL_FOLDER)).eval()
    batch = tokenizer([pair["passage"] for pair in chosen], padding=True, return_tensors="pt")
    width = batch["input_ids"].shape[1]
    queries = encoder.encode([INSTRUCTION + pair["query"] for pair in chosen], role="document")

    def found(first):
        positions = torch.tensor([0, *range(first, first + width - 1)])[None]
        with torch.inference_mode():
            cls = bert(**batch, position_ids=positions).last_hidden_state[:, 0].float()
        scores = queries @ torch.nn.functional.normalize(cls, dim=1).numpy().T
        return float((scores.argmax(1) == np.arange(len(chosen))).mean())

    assert found(513 - width) > found(1) - 0.05
    assert found(1) > 0.8


def test_plain_libraries_give_the_same_vectors(model, found, passages):
    np.testing.assert_allclose(model.encode(passages[:20]), found.dense[:20], rtol=0, atol=1e-5)
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    texts = ["a small text editor", INSTRUCTION + "editor for small texts"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    bert = transformers.AutoModel.from_pretrained(str(MODEL_FOLDER)).eval()
    with torch.inference_mode():
        cls = bert(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state[:, 0].float()
    np.testing.assert_allclose(
        torch.nn.functional.normalize(cls, dim=1).numpy(), model.encode(texts), rtol=0, atol=1e-5
    )


# Heads: sparse and multivector


def test_the_card_says_what_the_heads_give():
    card = find_model("demo")
    assert card.outputs == ("dense", "sparse", "multivector")
    tokenizer = json.loads((MODEL_FOLDER / "tokenizer.json").read_text("utf-8"))
    assert card.vocabulary == len(tokenizer["model"]["vocab"])
    read = read_folder(MODEL_FOLDER, {})
    assert card.heads == read.heads  # trained anew, they are another space
    assert card.revision == read.revision  # of which the dense vectors know nothing


def ndcg(scores):
    own = scores.diagonal()[:, None]
    rank = (scores >= own).sum(1) - 1
    return float(np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0).mean())


@pytest.fixture(scope="module")
def scores(encoder, pairs, found):
    asked = encoder.encode_outputs([pair["query"] for pair in pairs], role="query", outputs=OUTPUTS)
    sparse = SparseRows.of(found.sparse).scores(asked.sparse, encoder.card.vocabulary)
    return asked.dense @ found.dense.T, sparse


def test_hybrid_finds_more_than_either(scores):
    dense, sparse = scores
    hybrid = ndcg(dense + WEIGHT * sparse)
    assert hybrid > ndcg(dense) + 0.02
    assert hybrid > ndcg(sparse) + 0.02


def test_the_instruction_weighs_next_to_nothing(encoder, pairs):
    queries = [pair["query"] for pair in pairs[:QUERIES]]
    tokenize = encoder.tokenizer().library.encode
    own = set(tokenize(INSTRUCTION).ids)
    share = []
    for query, row in zip(queries, encoder.encode_outputs(queries, role="query", outputs=OUTPUTS).sparse, strict=True):
        added = own - set(tokenize(query).ids)
        share.append(sum(weight for token, weight in row.items() if token in added) / sum(row.values()))
    assert np.mean(share) < 0.05


def test_a_rare_word_weighs_more_than_a_common_one(encoder):
    words = dict(encoder.words(encoder.encode_outputs(["the wiki of the game"], role="query").sparse[0]))
    assert min(words["wiki"], words["game"]) > 2 * max(words.get("the", 0), words.get("of", 0))


def test_the_second_stage_brings_the_right_passage_up(scores, pairs, passages):
    dense, _ = scores
    with load_reranker("demo") as reranker:
        first = [np.argsort(-row)[:10] for row in dense[:60]]
        found = [i for i in range(60) if i in first[i]]
        right = 0
        for i in found:
            again = reranker.score(pairs[i]["query"], [passages[j] for j in first[i]])
            right += first[i][again.argmax()] == i
    assert right / len(found) > 0.6  # by chance 0.1


def test_the_demo_answers_its_own_questions(capsys, monkeypatch):
    pytest.importorskip("llama_index.core")
    from bge_integrations.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    assert main(["demo", "-k", "1"]) == 0
    shown = capsys.readouterr().out
    right = ["caps.md", "spaces.md", "scores.md", "instruction.md"]
    for part in re.split(r"^LlamaIndex, |^LangChain, BGEReranker", shown, flags=re.MULTILINE)[1:]:
        lines = [line.split() for line in part.splitlines()]
        answers = [hit[1] for question, hit in pairwise(lines) if question and question[-1].endswith("?")]
        assert answers == right, part
    assert max(map(len, shown.splitlines())) <= 100


def test_the_demo_skips_files_that_are_not_text_and_says_so(tmp_path, capsys):
    pytest.importorskip("llama_index.core")
    from bge_integrations.cli import main

    (tmp_path / "good.txt").write_bytes(b"\xef\xbb\xbfA fox that sleeps under an old oak tree.")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0 with words that nobody should find here")
    (tmp_path / "latin1.md").write_bytes(b"caf\xe9 au lait with words that nobody should find here")
    assert main(["demo", str(tmp_path), "--ask", "where is the fox?"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("1 file, 1 chunk of ")
    assert "nobody" not in shown.out
    assert "\ufeff" not in shown.out
    assert [line for line in shown.err.splitlines() if "skipped" in line] == [
        f"bge: skipped {str(tmp_path / 'binary.txt')!r}: not text (it holds NUL bytes)",
        f"bge: skipped {str(tmp_path / 'latin1.md')!r}: not UTF-8",
    ]
    (tmp_path / "good.txt").unlink()
    assert main(["demo", str(tmp_path)]) == 2
    assert "no text in 2 files: each is empty or was skipped" in capsys.readouterr().err
