"""``bge verify`` of bge-m3's sparse and multivector output: published values, files of values, and named causes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import models
from bge_integrations import errors, load_encoder
from bge_integrations.catalog.golden import read_golden
from bge_integrations.cli import main
from bge_integrations.core.token_outputs import Outputs, max_sim, sparse_score
from bge_integrations.verify import verify
from m3_host import M3Server, answers_of, status

pytest.importorskip("torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::bge_integrations.errors.RepairWarning")]

TEXTS = ["What is the capital of France?", "a passage about packing"]
PASSAGES = ["Paris is the capital and largest city of France.", "the the the cat"]
QUIET = {"show_progress": False, "query_instruction": "", "api_key": "k", "timeout": 60.0}


@pytest.fixture(scope="module")
def local():
    with load_encoder(models.m3(), show_progress=False, query_instruction="") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def served(local):
    return answers_of(local)


@pytest.fixture(scope="module")
def file(served, tmp_path_factory):
    """Known values of the random model, in the format of the published ones."""
    found = served[0](TEXTS + PASSAGES)
    pairs = [(i, j) for i in (0, 1) for j in (2, 3)]
    rows = {
        str(place): {"first3": vector[:3].tolist(), "last3": vector[-3:].tolist()}
        for place, vector in ((0, found.multivector[0][0]), (-1, found.multivector[0][-1]))
    }
    values = {
        "m3_sparse": [
            {"text": text, "weights": {str(k): v for k, v in row.items()}, "arithmetic": "float32"}
            for text, row in zip(TEXTS, found.sparse, strict=False)
        ],
        "m3_colbert": [{"text": TEXTS[0], "vectors": len(found.multivector[0])}, {"text": TEXTS[0], "rows": rows}],
        "m3_scores": [
            {
                "queries": TEXTS,
                "passages": PASSAGES,
                "order": "all pairs i,j row by row",
                "dense": [float(found.dense[i] @ found.dense[j]) for i, j in pairs],
                "sparse": [sparse_score(found.sparse[i], found.sparse[j]) for i, j in pairs],
                "colbert": [max_sim(found.multivector[i], found.multivector[j]) for i, j in pairs],
            }
        ],
    }
    path = tmp_path_factory.mktemp("golden") / "values.json"
    path.write_text(json.dumps(values), "utf-8")
    return path


def at(host, **options):
    said = {} if host.dialect == "plain" else {"dialect": host.dialect}
    return load_encoder(models.m3(), base_url=host.url, wire_model="BAAI/bge-m3", **said, **{**QUIET, **options})


def report_of(host, file, **options):
    with at(host, **options) as encoder:
        return verify(encoder, golden=file, behaviour=False)


@pytest.mark.parametrize("dialect", ["vllm", "vllm-plugin", "deepinfra", "xinference", "sglang", "tei", "bge"])
def test_a_right_host(served, file, dialect):
    with M3Server(dialect, *served) as host:
        report = report_of(host, file)
    assert report.ok, report.summary()
    assert report.finding("sparse values").ok
    assert report.finding("sparse scores").data["deviation"] < 1e-4
    if dialect in ("vllm", "deepinfra", "bge"):
        assert report.finding("multivector values").ok
        assert report.finding("multivector scores").data["deviation"] < 1e-4
    if dialect == "sglang":
        assert "special tokens are in its rows" in report.finding("sparse values").says


def test_this_machine(local, file):
    report = verify(local, golden=file, behaviour=False)
    assert report.ok
    assert {finding.name for finding in report.behaviour} == {
        "sparse values",
        "multivector values",
        "sparse scores",
        "multivector scores",
    }


def changed(name, change):
    def apply(answer):
        if name in answer:
            answer[name] = [change(row) for row in answer[name]]
        return answer

    return apply


CAUSES = {
    "int8": (
        "sparse values",
        changed("sparse", lambda row: {k: v + 0.01 for k, v in row.items()}),
        "an int8 copy",
    ),
    "another head": (
        "sparse values",
        changed("sparse", lambda row: {k: v + 0.3 for k, v in row.items()}),
        "another head or another model",
    ),
    "words lost": ("sparse values", changed("sparse", lambda row: dict(list(row.items())[1:])), "2 missing, 0 more"),
    "SPLADE": (
        "sparse values",
        changed("sparse", lambda row: {**row, **{str(k): 0.3 for k in range(200, 260)}}),
        "as with SPLADE",
    ),
    "special": (
        "sparse values",
        changed("sparse", lambda row: {**row, "0": 0.3, "2": 0.1}),
        "special tokens are in its rows",
    ),
    "<s> kept": ("multivector values", changed("multivector", lambda rows: [rows[0], *rows]), "<s> has a vector too"),
    "</s> dropped": ("multivector values", changed("multivector", lambda rows: rows[:-1]), "</s> has none"),
    "another multivector head": (
        "multivector values",
        changed("multivector", lambda rows: [row[1:] + row[:1] for row in rows]),
        "another head or another model",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_cause_is_named(served, file, cause):
    finding, change, says = CAUSES[cause]
    with M3Server("bge", *served) as host:
        host.change = change
        report = report_of(host, file)
    assert says in report.finding(finding).says
    assert report.ok is (cause == "special")  # they are dropped, so that the rest is right


def test_without_a_tokenizer_here_the_causes_are_named_too(served, file):
    with M3Server("bge", *served) as host, at(host) as encoder:
        encoder.engine._looked, encoder.engine._cutter = True, None
        host.change = changed("multivector", lambda rows: [rows[0], *rows])
        found = verify(encoder, golden=file, behaviour=False).finding("multivector values")
    assert found.ok is False
    assert found.says.endswith(": <s> has one too")


@pytest.mark.parametrize("kind", ["sum", "mean", "cosine"])
def test_what_vllms_own_score_is(served, file, kind):
    class Scoring(M3Server):
        def shape(self, path, body, texts):
            if path != "/score":
                return super().shape(path, body, texts)
            found = self.outputs([body["text_1"], *body["text_2"]])
            score = max_sim(*found.multivector)
            count = len(found.multivector[0])
            score = {"sum": score * count, "mean": score, "cosine": float(found.dense[0] @ found.dense[1])}[kind]
            return {"data": [{"index": 0, "object": "score", "score": score}]}

    with Scoring("vllm", *served) as host:
        host.paths += ("/score",)
        report = report_of(host, file)
    says = {"sum": "the sum over 18 vectors", "mean": "multivector score", "cosine": "the cosine of the dense vectors"}
    assert says[kind] in report.finding("/score").says
    assert report.ok


def test_a_host_of_dense_vectors_alone_is_no_fault_by_itself(served, file):
    with M3Server("vllm", *served) as host:
        host.refuse = lambda path: status(400, "task token_classify is not supported") if path == "/pooling" else None
        report = report_of(host, file)
    assert report.finding("sparse values").ok is None
    assert "BgeM3EmbeddingModel" in report.finding("sparse values").says
    assert report.verdict == "not checked"


def test_published_values_are_in_the_package():
    values = read_golden().outputs
    assert len(values.sparse) == 4
    assert values.vectors[0].count == 8
    assert values.vectors[1].at[-1, -1] == pytest.approx(0.0438723788)
    assert values.scores[0].multivector == pytest.approx((0.77965, 0.46215, 0.45238, 0.78986), abs=1e-4)


def test_a_published_copy_at_a_host(tmp_path):
    """Sparse rows as published, and passages made up so that the scores come out."""
    values = read_golden().outputs
    rows = {one.text: dict(one.weights) for one in values.sparse}
    first, second = values.scores[0].passages
    what, defination = (rows[query] for query in values.scores[0].queries)
    word, other, code = 11679, 363, 2588
    scores = values.scores[0].sparse
    rows[first] = {word: scores[0] / what[word]}
    rows[second] = {other: scores[1] / what[other], code: scores[3] / defination[code]}

    def outputs(texts):
        return Outputs(np.full((len(texts), 1024), 1 / 32), [rows[text] for text in texts], None)

    with (
        M3Server("sglang", outputs, lambda text: []) as host,
        load_encoder("bge-m3", base_url=host.url, dialect="sglang", **QUIET) as encoder,
    ):
        report = verify(encoder, behaviour=False)
    assert report.ok, report.summary()
    assert report.finding("sparse values").data["deviation"] < 2e-3
    assert report.finding("sparse scores").data["deviation"] < 5e-3


def test_the_command_reads_a_file_and_names_the_fault(served, file, capsys):
    with M3Server("bge", *served) as host:
        command = ["verify", "--model", str(models.m3()), "--base-url", host.url, "--dialect", "bge"]
        command += ["--golden", str(file), "--no-behaviour", "--wire-model", "m", "--api-key", "k"]
        assert main(command) == 0
        assert "sparse values" in capsys.readouterr().out
        host.change = changed("sparse", lambda row: {k: v + 0.3 for k, v in row.items()})
        assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_file_that_holds_nothing_of_use(tmp_path, local):
    path = tmp_path / "values.json"
    path.write_text('{"m3_sparse": [{"text": "a", "weights": {"x": 1}}]}')
    with pytest.raises(errors.ConfigError, match="not a file of golden values"):
        verify(local, golden=path)
    path.write_text('{"m3_sparse": [{"text": "a", "weights": {"7": 0.1}}]}')
    told = pytest.raises(errors.ConfigError, match="none of")
    with load_encoder(models.folder("bge-small"), show_progress=False, query_instruction="") as encoder, told:
        verify(encoder, golden=path)


def test_first_use_is_checked_by_a_dense_value_as_before(served):
    with (
        M3Server("bge", *served) as host,
        load_encoder("bge-m3", base_url=host.url, dialect="bge", verify="first-use", **QUIET) as encoder,
        pytest.raises(errors.SpaceMismatchError, match="None of your texts"),
    ):
        encoder.encode_outputs(["a text"], role="document", outputs=["sparse"])
