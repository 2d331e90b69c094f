"""``bge verify`` of a reranker names what is wrong: each cause is served, and no cause is taken for another."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bge_integrations import load_reranker
from bge_integrations.catalog.score_values import published_scores
from bge_integrations.cli import main
from bge_integrations.verify import verify_reranker
from rerank_host import RerankServer, sigmoid


def softmax(logits):
    shares = [math.exp(x - max(logits)) for x in logits]
    return [share / sum(shares) for share in shares]


def bfloat16(x):
    bits = (np.array([x], np.float32).view(np.uint32) + 0x8000) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).item()


CAUSES = {
    "the model itself, logits": (list, True),
    "the model itself, sigmoids": (lambda logits: [sigmoid(x) for x in logits], True),
    "half precision": (lambda logits: [x + 0.02 for x in logits], True),
    "bfloat16 sigmoids": (lambda logits: [bfloat16(sigmoid(x)) for x in logits], True),
    "sigmoid is applied twice": (lambda logits: [sigmoid(sigmoid(x)) for x in logits], False),
    "softmax": (softmax, False),
    "cosines of an embedding model": (lambda logits: [0.5 + x / 40 for x in logits], False),
    "a copy at lower precision": (lambda logits: [x + 0.3 for x in logits], False),
    "wrong passages": (lambda logits: logits[::-1], False),
    "not this model's scores": (lambda logits: [x * 0.3 - 1 for x in logits], False),
}


@pytest.mark.parametrize(
    "model", ["bge-reranker-base", "bge-reranker-large", "bge-reranker-v2-m3", "bge-reranker-v2-gemma"]
)
@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_named(cause, model):
    scale, ok = CAUSES[cause]
    with (
        RerankServer("vllm", model=model, scale=scale) as host,
        load_reranker(model, base_url=host.url, dialect="vllm") as reranker,
    ):
        report = verify_reranker(reranker, behaviour=False)
    said = report.summary()
    assert report.ok is ok
    assert cause in said or cause in ("half precision", "bfloat16 sigmoids")
    others = [other for other in CAUSES if not CAUSES[other][1] and other != cause]
    assert not any(other in said for other in others)
    json.dumps(report.to_dict())


@pytest.mark.parametrize(
    ("model", "count"),
    [("bge-reranker-base", 2), ("bge-reranker-large", 6), ("bge-reranker-v2-m3", 3), ("bge-reranker-v2-gemma", 5)],
)
def test_all_published_scores_are_asked_for(model, count):
    with RerankServer("vllm", model=model) as host, load_reranker(model, base_url=host.url, dialect="vllm") as reranker:
        report = verify_reranker(reranker, behaviour=False)
        assert (report.ok, report.checked) == (True, count)
        query, passages, _ = published_scores(reranker.card)[-1]
        pair = reranker.card.query_template.format(text=query), reranker.card.passage_template.format(text=passages[0])
        # One wrong score among all is seen.
        host.logit = lambda query, passage: (
            0.5 if (query, passage) == pair else RerankServer.logit(host, query, passage)
        )
        assert not verify_reranker(reranker, behaviour=False).ok


@pytest.mark.parametrize(
    ("asked", "served"),
    [(a, b) for a in ("base", "large", "v2-m3") for b in ("base", "large", "v2-m3") if a != b],
)
def test_another_model_is_named(asked, served):
    with (
        RerankServer("infinity", model=f"bge-reranker-{served}") as host,
        load_reranker(f"bge-reranker-{asked}", base_url=host.url, dialect="infinity") as reranker,
    ):
        report = verify_reranker(reranker, behaviour=False)
    assert not report.ok
    assert report.cause == f"these are the scores of BAAI/bge-reranker-{served}"


@pytest.mark.parametrize(("words", "ok"), [(10_000, True), (300, False), (100, False)])
def test_the_length_at_which_passages_are_truncated_is_found(words, ok):
    class Cutting(RerankServer):
        def logit(self, query, passage):
            return super().logit(query, " ".join(passage.split()[:words]))

    with (
        Cutting("tei", model="bge-reranker-base") as host,
        load_reranker("bge-reranker-base", base_url=host.url, dialect="tei") as reranker,
    ):
        report = verify_reranker(reranker)
    length = report.behaviour[0]
    assert length.ok is ok
    assert report.ok is ok
    if not ok:
        assert abs(length.data["words"] - words) <= 12


def test_known_scores_come_from_a_file(tmp_path, capsys):
    file = tmp_path / "golden.json"
    with RerankServer("vllm") as host:
        pairs = [["q", "a"], ["q", "b"], ["r", "a"]]
        entry = {"model": "BAAI/bge-reranker-v2-m3", "scale": "logit", "pairs": pairs}
        right = {**entry, "scores": [host.logit(*pair) for pair in pairs]}
        command = ["verify", "--model", "bge-reranker-v2-m3", "--base-url", host.url, "--no-behaviour"]
        file.write_text(json.dumps({"rerank": [right]}))
        assert main([*command, "--golden", str(file)]) == 0
        assert "verdict" in capsys.readouterr().out
        file.write_text(json.dumps({"rerank": [{**entry, "scores": [1, 2, 3]}]}))
        assert main([*command, "--golden", str(file)]) == 1
        file.write_text("{}")
        assert main([*command, "--golden", str(file)]) == 2
        assert "not a file of known scores" in capsys.readouterr().err


def test_the_command_prints_a_table_and_json(capsys):
    with RerankServer("xinference") as host:
        command = ["verify", "--model", "bge-reranker-v2-m3", "--base-url", host.url]
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "sigmoids" in shown
        assert "length" in shown
        assert main([*command, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["ok"], report["scale"]) == (True, "sigmoid")
        assert main([*command, "--pin", "x"]) == 2
        assert "--golden" in capsys.readouterr().err
