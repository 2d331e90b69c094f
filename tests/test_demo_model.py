"""The bundled demo model: small, loadable by plain libraries, and worse off with every wrong instruction."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bge_integrations.demo import MODEL_FOLDER

pytestmark = pytest.mark.slow

HELD_OUT = Path(__file__).parent / "data" / "heldout.jsonl.gz"
INSTRUCTION = "Represent this sentence for searching relevant passages: "
QUESTION = "Represent this question for searching relevant passages: "
QUERIES, PASSAGES = 150, 600
MARGIN = 0.05


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
def documents(model, passages):
    return model.encode(passages, batch_size=64)


@pytest.fixture(scope="module")
def search(model, pairs):
    def ndcg_at_10(instruction, documents):
        queries = model.encode([instruction + pair["query"] for pair in pairs[:QUERIES]], batch_size=64)
        scores = queries @ documents.T
        own = scores[np.arange(QUERIES), np.arange(QUERIES)][:, None]
        rank = (scores >= own).sum(1) - 1
        return float(np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0).mean())

    return ndcg_at_10


def test_the_folder_is_at_most_8_megabytes():
    assert sum(path.stat().st_size for path in MODEL_FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_no_prompt_is_saved_in_the_folder(model):
    assert not any(model.prompts.values())
    assert model.default_prompt_name is None


def test_it_finds_held_out_passages(search, documents):
    assert search(INSTRUCTION, documents) > 0.65


@pytest.mark.parametrize("wrong", [QUESTION, "", INSTRUCTION * 2], ids=["question", "none", "doubled"])
def test_a_wrong_instruction_finds_less(search, documents, wrong):
    assert search(wrong, documents) < search(INSTRUCTION, documents) - MARGIN


def test_the_instruction_on_documents_too_finds_less(model, search, documents, passages):
    marked = model.encode([INSTRUCTION + text for text in passages], batch_size=64)
    assert search(INSTRUCTION, marked) < search(INSTRUCTION, documents) - MARGIN


def test_vectors_are_unit_length_and_finite_to_the_last_position(model):
    vectors = model.encode(["word " * count for count in (1, 100, 255, 400, 510, 2_000)])
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert model.max_seq_length == 512


def test_late_positions_are_as_good_as_early_ones(model, pairs):
    # Most training texts ended before position 200; the same passages moved to the last positions must still be found.
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    chosen = [pair for pair in pairs if len(pair["passage"]) < 300][:100]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    bert = transformers.AutoModel.from_pretrained(str(MODEL_FOLDER)).eval()
    batch = tokenizer([pair["passage"] for pair in chosen], padding=True, return_tensors="pt")
    width = batch["input_ids"].shape[1]
    queries = model.encode([INSTRUCTION + pair["query"] for pair in chosen])

    def found(first):
        positions = torch.tensor([0, *range(first, first + width - 1)])[None]
        with torch.inference_mode():
            cls = bert(**batch, position_ids=positions).last_hidden_state[:, 0].float()
        scores = queries @ torch.nn.functional.normalize(cls, dim=1).numpy().T
        return float((scores.argmax(1) == np.arange(len(chosen))).mean())

    assert found(513 - width) > found(1) - 0.05
    assert found(1) > 0.8


def test_plain_transformers_gives_the_same_vectors(model):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    texts = ["a small text editor", INSTRUCTION + "editor for small texts"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(MODEL_FOLDER))
    bert = transformers.AutoModel.from_pretrained(str(MODEL_FOLDER)).eval()
    with torch.inference_mode():
        cls = bert(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state[:, 0].float()
    np.testing.assert_allclose(
        torch.nn.functional.normalize(cls, dim=1).numpy(), model.encode(texts), rtol=0, atol=1e-5
    )
