"""Folders as people have them, fine-tuned and saved by others: scores are those of sentence-transformers' class."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import models
from bge_integrations import errors, load_reranker

pytestmark = pytest.mark.slow

QUERY = "What is the capital of France?"
PASSAGES = [text for text in models.TEXTS if len(text) < 800] + ["Paris", "", "a word " * 400]


def their_logits(folder, pairs):
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", max_length=512)
    return model.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)


@pytest.mark.filterwarnings("ignore::bge_integrations.errors.TruncationWarning")
@pytest.mark.parametrize("saved_by", ["transformers", "sentence-transformers"])
@pytest.mark.parametrize(
    ("kind", "backend"),
    [("xlm-roberta", "torch"), ("bert", "torch"), ("modernbert", "sentence-transformers")],
)
def test_a_folder_gives_what_cross_encoder_gives(kind, backend, saved_by, tmp_path):
    folder = models.reranker(kind)
    if saved_by == "sentence-transformers":
        from sentence_transformers import CrossEncoder

        CrossEncoder(str(folder), device="cpu", max_length=512).save_pretrained(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    wanted = their_logits(folder, [(QUERY, passage) for passage in PASSAGES])
    assert wanted.std() > 0.01
    with load_reranker(folder) as ours:
        np.testing.assert_allclose(ours.score(QUERY, PASSAGES, scale="logit"), wanted, atol=1e-4)
        assert ours.describe()["backend"] == backend
        assert ours.card.max_tokens == 512


def test_a_folder_with_code_of_its_own_is_refused(tmp_path):
    shutil.copytree(models.reranker("modernbert"), tmp_path / "coded")
    (tmp_path / "coded" / "own.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'it ran')!r}).touch()\n"
    )
    module = {"idx": 0, "name": "0", "path": "", "type": "own.Own"}
    (tmp_path / "coded" / "modules.json").write_text(json.dumps([module]))
    with load_reranker(tmp_path / "coded") as ours, pytest.raises(errors.ModelLoadError, match="trust_remote_code"):
        ours.score(QUERY, ["a"])
    assert not (tmp_path / "it ran").exists()


def test_a_fine_tuned_folder_is_another_revision(tmp_path):
    with load_reranker(models.reranker("bert")) as first:
        tuned = tmp_path / models.reranker("bert").name
        shutil.copytree(models.reranker("bert", seed=6), tuned)
        with load_reranker(tuned) as second:
            assert first.card.id == second.card.id
            assert first.space != second.space
            assert not np.allclose(first.score(QUERY, PASSAGES[:3]), second.score(QUERY, PASSAGES[:3]))


def test_a_decoder_that_cross_encoder_has_saved(tmp_path):
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(models.decoder_reranker()), device="cpu", max_length=512).save_pretrained(str(tmp_path / "saved"))
    pairs = [(QUERY, passage) for passage in PASSAGES[:5]]
    wanted = their_logits(tmp_path / "saved", pairs)
    assert wanted.std() > 0.01
    with load_reranker(tmp_path / "saved") as ours:
        found = ours.score(QUERY, PASSAGES[:5], scale="logit")
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert ours.describe()["backend"] == "sentence-transformers"


def test_a_decoder_of_which_no_file_says_how_it_answers_is_refused():
    with pytest.raises(errors.ModelLoadError, match=r"MistralForCausalLM.*vLLM.*base_url=.*CrossEncoder") as caught:
        load_reranker(models.decoder_reranker())
    assert "\n" not in str(caught.value)


def test_two_classes_are_refused(tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(models.reranker("bert"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "id2label": {"0": "no", "1": "yes"}}), "utf-8")
    with pytest.raises(errors.ModelLoadError, match="2 classes"):
        load_reranker(folder)


def test_a_saved_prompt_is_left_to_cross_encoder(tmp_path):
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(models.reranker("bert")), device="cpu", max_length=512, prompts={"q": "read this: "})
    model.default_prompt_name = "q"
    model.save_pretrained(str(tmp_path / "saved"))
    pairs = [(QUERY, passage) for passage in PASSAGES[:5]]
    plain, wanted = their_logits(models.reranker("bert"), pairs), their_logits(tmp_path / "saved", pairs)
    with load_reranker(tmp_path / "saved") as ours:
        assert ours.describe()["backend"] == "sentence-transformers"
        np.testing.assert_allclose(ours.score(QUERY, PASSAGES[:5], scale="logit"), wanted, atol=1e-4)
    assert not np.allclose(plain, wanted)
