"""``evaluate`` and ``bge eval``: measures that are known, runs as users write them, hosts, and what is resumed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rig as hosts
from bge_integrations import load_encoder, load_reranker
from bge_integrations.bulk import Hybrid
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, MissingExtraError
from bge_integrations.evaluate import evaluate
from bge_integrations.evaluate.measures import check_measures, holm, interval, measure, p_value
from bge_integrations.evaluate.runs import parse_run
from bge_integrations.evaluate.stages import open_stages

pytest.importorskip("ir_measures")

HELD_OUT = Path(__file__).parent / "data" / "heldout.jsonl.gz"
INSTRUCTION = "Represent this sentence for searching relevant passages: "
PAIRS = [(f"question {i}", f"passage {i % 30}") for i in range(40)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture
def host():
    with hosts.Rig() as host:
        yield host


@pytest.fixture
def pairs(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": q, "passage": p}) + "\n" for q, p in PAIRS))
    return file


# Measures


def test_measures_are_those_that_a_hand_computes():
    qrels = {"1": {"a": 1}, "2": {"b": 1, "c": 1}, "3": {"d": 2, "e": 1}, "4": {"f": 1}}
    found = [["x", "a"], ["b", "x", "c"], ["e", "d"], ["x", "y"]]
    names = check_measures(["nDCG@10", "R@2", "RR@10", "P@1"])
    values = measure(names, qrels, found)
    second = np.log2(3)
    assert values["nDCG@10"] == pytest.approx(
        [1 / second, 1.5 / (1 + 1 / second), (1 + 2 / second) / (2 + 1 / second), 0], abs=1e-9
    )
    assert values["R@2"].tolist() == [1, 0.5, 1, 0]
    assert values["RR@10"].tolist() == [0.5, 1, 1, 0]
    assert values["P@1"].tolist() == [0, 1, 1, 0]


def test_the_order_of_the_search_is_kept_whatever_the_ids_are():
    """trec_eval would order equal scores by id."""
    for first, second in (("a", "z"), ("z", "a")):
        values = measure(["RR@10"], {"1": {first: 1}}, [[first, second]])
        assert values["RR@10"].tolist() == [1]


def test_intervals_and_p_values_are_seeded_and_say_what_they_should():
    random = np.random.default_rng(3)
    worse, noise = random.random(200), random.normal(0, 0.02, 200)
    low, high = interval(worse, 0)
    spread = 1.96 * worse.std() / np.sqrt(200)
    assert (worse.mean() - low, high - worse.mean()) == pytest.approx((spread, spread), rel=0.15)
    assert interval(worse, 0) == (low, high) != interval(worse, 1)
    assert p_value(worse, worse, 0) == 1
    assert p_value(worse + noise, worse, 0) > 0.05
    assert p_value(worse + noise + 0.02, worse, 0) < 0.001
    assert interval(worse[:1], 0) is p_value(worse[:1], worse[1:2], 0) is None
    # Of six differences of one sign, all 64 ways of signs are counted: two are as far off.
    assert p_value(np.ones(6), np.zeros(6), 0) == pytest.approx(2 / 64)


@pytest.mark.slow  # SciPy looks for torch
@pytest.mark.parametrize("count", [2, 9, 13, 14, 60])
def test_intervals_and_p_values_are_scipy_s(count):
    from scipy import stats

    random = np.random.default_rng(count)
    values, baseline = random.random(count), random.random(count) / 2
    theirs = stats.permutation_test(
        (values - baseline,), np.sum, permutation_type="samples", n_resamples=9999, rng=1, vectorized=False
    )
    assert p_value(values, baseline, 0) == pytest.approx(theirs.pvalue, abs=0 if count < 14 else 0.015)
    low, high = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert interval(values, 0) == pytest.approx((low, high), abs=0.03 * (high - low))


def test_holm_is_as_in_the_paper():
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert holm([]) == []


@pytest.mark.parametrize("names", [["nDGC@10"], ["R@x"], ["nDCG@10", "foo"], ["("]])
def test_a_measure_that_is_not_known_is_refused(names):
    with pytest.raises(ConfigError, match="ir-measures does not know the measure"):
        check_measures(names)


@pytest.mark.parametrize("name", ["SetP(rel=x)", "INST", "Compat(p=2)", "BPM"])
def test_a_measure_that_cannot_be_computed_is_refused_before_anything_is_sent(name, host, pairs):
    with pytest.raises(ConfigError, match="ir-measures"):
        evaluate(pairs, runs=f"base_url={host.url}", measures=[name])
    assert host.sent == []


def test_a_missing_extra_is_named_before_anything_is_sent(monkeypatch, host, pairs):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r'pip install "bge-integrations\[eval\]"'):
        evaluate(pairs, runs=f"base_url={host.url}")
    assert host.sent == []


# Runs


def test_a_run_is_a_model_words_and_keys():
    run = parse_run("bge-m3,hybrid,provider=deepinfra,precision=float16,max-inputs=8,reranker=demo,candidates=20")
    assert (run.model, run.search, run.hybrid, run.outputs) == ("bge-m3", "hybrid", Hybrid(), ("dense", "sparse"))
    assert run.options == {"provider": "deepinfra", "precision": "float16", "max_inputs": 8}
    assert (run.reranker, run.candidates) == ("demo", 20)
    assert run.name == "bge-m3 hybrid provider=deepinfra precision=float16 reranker=demo candidates=20"
    assert parse_run(" model = demo , name = mine ").name == "mine"
    assert parse_run({"model": "demo", "sparse": True, "max_inputs": 3}).outputs == ("sparse",)
    assert parse_run("demo,sparse=off,allow_http").options == {"allow_http": True}
    assert parse_run("demo,reranker,reranker_weights=1:0:2").reranker_options == {"weights": (1, 0, 2)}
    assert parse_run("").model == "bge-small-en-v1.5"


def test_the_instruction_is_the_model_s_none_or_a_text():
    assert parse_run("demo,instruction=on").options == parse_run("demo").options == {}
    assert parse_run("demo,instruction=off").options == {"query_instruction": ""}
    assert parse_run("demo,instruction=find: ,sparse").options == {"query_instruction": "find:"}
    json_run = parse_run('{"model": "demo", "instruction": "find, or look: "}')
    assert json_run.options == {"query_instruction": "find, or look: "}


def test_how_scores_are_fused():
    assert parse_run("demo,hybrid=rrf").hybrid == Hybrid("rrf")
    assert parse_run("demo,hybrid=1:0.15").hybrid == Hybrid("sum", (1, 0.15))
    assert parse_run("demo,hybrid=rrf:2:1").hybrid == Hybrid("rrf", (2, 1))
    assert parse_run({"model": "demo", "hybrid": Hybrid("rrf")}).hybrid == Hybrid("rrf")


def test_a_label_holds_no_secret():
    run = parse_run('{"model": "demo", "api_key": "s3cret", "headers": {"x": "s3cret"}, "reranker": "demo", '
                    '"reranker_api_key": "s3cret", "base_url": "http://localhost:1"}')  # fmt: skip
    assert run.name == "demo reranker=demo base_url=http://localhost:1"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("demo,hybird", "did you mean 'hybrid'?"),
        ("model=demo,precison=float16", "did you mean 'precision'?"),
        ("demo,reranker_modle=x", "a run has no setting 'reranker_modle'"),
        ("demo,cache=/tmp", "a run has no setting 'cache'"),
        ("demo,sparse,hybrid", "not by sparse and hybrid"),
        ("demo,candidates=5", "candidates needs reranker="),
        ("demo,reranker_precision=int8", "reranker_precision needs reranker="),
        ("demo,reranker=demo,candidates=0", "candidates must be a whole number of at least 1, not '0'"),
        ("demo,max_inputs=many", "max_inputs must be a whole number of at least 1, not 'many'"),
        ("demo,allow_http=perhaps", "allow_http must be True or False"),
        ("demo,hybrid=1", "weights of dense and sparse as 0.4:0.2"),
        ("demo,hybrid=summ", "hybrid= takes rrf"),
        ("demo,precision", "precision must be a string that is not empty (precision=...)"),
        ("demo,sparse,sparse", "has 'sparse' twice"),
        ("demo,instruction=off,query_instruction=x", "pass one of the two"),
        ("{", "is not JSON"),
    ],
)
def test_a_run_that_means_nothing_is_said(spec, said):
    with pytest.raises(ConfigError) as caught:
        parse_run(spec)
    assert said in str(caught.value)


def test_who_computes_keeps_a_cache_of_its_own(tmp_path):
    """The ordinary cache lets hosts and precisions of one space share vectors: here their difference is measured."""

    def place(spec):
        stages = open_stages(parse_run(spec), tmp_path)
        stages.close()
        return stages.place

    assert place("demo") == place("demo,hybrid,instruction=off,max_inputs=3")
    specs = ["demo", "demo,precision=bfloat16", "demo,base_url=http://localhost:1", "demo,base_url=http://localhost:2"]
    assert len({place(spec) for spec in specs}) == 4


# A host, without any model here


def expected(host, top=100):
    """nDCG@10, recall and RR@10 of each question, from all cosines at once."""
    passages = list(dict.fromkeys(passage for _, passage in PAIRS))
    scores = host.truth(INSTRUCTION + question for question, _ in PAIRS) @ host.truth(passages).T
    ranks = np.array(
        [
            np.argsort(-row, kind="stable").tolist().index(passages.index(p))
            for row, (_, p) in zip(scores, PAIRS, strict=True)
        ]
    )
    return [
        np.where(ranks < 10, 1 / np.log2(ranks + 2), 0),
        np.where(ranks < top, 1.0, 0.0),
        np.where(ranks < 10, 1 / (ranks + 1), 0),
    ]


def test_a_host_is_measured_with_price_and_time(host, pairs):
    run = f"bge-small-en-v1.5,provider=gigarouter,base_url={host.url},api_key=k,name=host"
    found = evaluate(pairs, runs=run, top=20)
    assert found.measures == ["nDCG@10", "R@20", "RR@10"]
    (result,) = found.results
    for name, values in zip(found.measures, expected(host, 20), strict=True):
        assert result.values[name] == pytest.approx(values, abs=1e-9)
        assert result.estimates[name].mean == pytest.approx(values.mean())
        assert result.estimates[name].p is None
    assert all(len(rows) == 20 for rows in result.ranking.found)
    # The rig counts words: two of a passage, two of a question and seven of the instruction; $0.008 per million.
    assert result.ranking.usd_corpus == pytest.approx(0.008 * 2 * 30 / 1e6)
    assert result.ranking.usd_per_1000_questions == pytest.approx(0.008 * 9 * 1000 / 1e6)
    assert result.ranking.timed == 20
    assert result.ranking.milliseconds > 0
    table = found.table()
    assert table[0] == ("", "nDCG@10", "R@20", "RR@10", "ms", "$ passages", "$ 1000 questions")
    assert table[1][0] == "host"
    assert "40 questions, 30 passages" in str(found)
    assert "k" not in json.dumps(found.to_dict()["runs"][0]["how"]["encoder"].get("api_key", ""))


def test_vectors_are_kept_and_what_was_sent_is_not_sent_again(host, pairs):
    run = {"model": "bge-small-en-v1.5", "base_url": host.url}
    first = evaluate(pairs, runs=run)
    host.forget()
    again = evaluate(pairs, runs=[run, {**run, "instruction": "off"}])
    sent = [text for texts in host.sent for text in texts]
    assert not [text for text in sent if text.startswith("passage")]
    assert len([text for text in sent if text.startswith(INSTRUCTION)]) == 1 + 21  # checked, and timed past the cache
    assert len([text for text in sent if text.startswith("question")]) == 1 + 40 + 21
    for name in first.measures:
        assert (again.results[0].values[name] == first.results[0].values[name]).all()
    host.forget()
    evaluate(pairs, runs=run, cache=False)
    assert len({text for texts in host.sent for text in texts if text.startswith("passage")}) == 30


def test_all_runs_are_checked_before_the_first_is_begun(host, pairs):
    runs = [f"bge-small-en-v1.5,base_url={host.url}", "bge-m3,provider=deepinfra"]
    with pytest.raises(ConfigError, match=r"DEEPINFRA_TOKEN.*\(run 'bge-m3 provider=deepinfra'\)"):
        evaluate(pairs, runs=runs)
    assert len(host.sent) <= 1


def test_the_corpus_is_embedded_block_by_block(host, pairs, monkeypatch):
    from bge_integrations.evaluate import ranking

    monkeypatch.setattr(ranking, "_BLOCK", 7)
    monkeypatch.setattr(ranking, "_PIECE", 3)
    told = []
    found = evaluate(pairs, runs=f"base_url={host.url}", on_progress=told.append)
    for name, values in zip(found.measures, expected(host), strict=True):
        assert found.results[0].values[name] == pytest.approx(values, abs=1e-9)
    assert max(len(texts) for texts in host.sent if texts[0].startswith("passage")) <= 7
    stages = [(each.stage, each.done, each.total) for each in told]
    assert ("questions", 40, 40) in stages
    assert stages[-1] == ("passages", 30, 30)


def test_a_question_that_stands_in_the_corpus_is_left_out(host, tmp_path):
    texts = [f"argument {i}" for i in range(6)]
    (tmp_path / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{i}", "text": t}) + "\n" for i, t in enumerate(texts))
    )
    (tmp_path / "queries.jsonl").write_text('{"_id": "d2", "text": "argument 2"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("d2\td5\t1\n")
    found = evaluate(tmp_path, runs=f"base_url={host.url},instruction=off", top=5)
    assert sorted(found.results[0].ranking.found[0]) == ["d0", "d1", "d3", "d4", "d5"]
    assert found.results[0].estimates["nDCG@5"].interval is None


def test_equal_scores_do_not_favour_what_stands_first_in_the_file(host, tmp_path):
    rows = [
        json.dumps({"id": f"{kind}{i}", "text": f"text {i}"}) + "\n" for kind in ("right", "other") for i in range(40)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"question": f"text {i}", "passage": f"right{i}"}) + "\n" for i in range(40)))
    run = f"base_url={host.url},instruction=off"
    values = []
    for name, lines in (("first.jsonl", rows), ("last.jsonl", rows[::-1])):
        (tmp_path / name).write_text("".join(lines))
        values.append(evaluate(tmp_path / name, file, runs=run).results[0].values["RR@10"])
    assert (values[0] == values[1]).all()
    assert 0.6 < values[0].mean() < 0.9  # of a text and its double, each is first in about half of the cases


CHILD = """
import sqlite3
import sys
from bge_integrations.evaluate import evaluate
evaluate(sys.argv[1], runs=f"bge-small-en-v1.5,base_url={sys.argv[2]},max_inputs=2,max_concurrency=1")
"""


def kept_in(folder: Path) -> int:
    """Return how many vectors the caches in a folder hold, those of a running evaluation too."""
    count = 0
    for file in folder.rglob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(file)) as database, contextlib.suppress(sqlite3.OperationalError):
            count += database.execute("SELECT count(*) FROM vectors").fetchone()[0]
    return count


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.slow
def test_a_killed_evaluation_is_resumed(host, pairs, tmp_path):
    host.default = hosts.latency(0.1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(pairs), host.url], env=environment)
    passages = lambda: [text for texts in host.sent for text in texts if text.startswith("passage")]  # noqa: E731
    deadline = time.monotonic() + 60
    while kept_in(tmp_path / "user") < 50 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = kept_in(tmp_path / "user")
    assert 50 <= kept < 70  # all forty questions, and some of thirty passages
    host.default = None
    host.forget()
    run = {"model": "bge-small-en-v1.5", "base_url": host.url}
    found = evaluate(pairs, runs=run)
    assert len(passages()) == 70 - kept
    for name, values in zip(found.measures, expected(host), strict=True):
        assert found.results[0].values[name] == pytest.approx(values, abs=1e-9)


# The command


def test_the_command_prints_a_table_and_writes_results(host, pairs, tmp_path, capsys):
    out = tmp_path / "results.json"
    run = f"bge-small-en-v1.5,base_url={host.url},name=one"
    arguments = ["eval", str(pairs), "--run", run, "--run", run, "--top", "5", "--measures", "nDCG@5", "P@1"]
    assert main([*arguments, "--output", str(out), "--cache", str(tmp_path / "kept")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["nDCG@5", "P@1", "p", "ms"]
    mean = expected(host, 5)[0]
    mean = np.where(mean >= 1 / np.log2(6.5), mean, 0).mean()  # of the first five alone
    assert printed[1].startswith(f"one      {mean:.3f} [")
    assert printed[2].startswith(f"one (2)  {mean:.3f} [")
    assert printed[2].split()[-2] == "1.000"
    written = json.loads(out.read_text())
    assert [each["name"] for each in written["runs"]] == ["one", "one (2)"]
    assert written["runs"][0]["measures"]["nDCG@5"]["mean"] == pytest.approx(mean)
    assert len(written["questions"]) == 40
    question = written["questions"][3]
    assert question["text"] == "question 3"
    assert len(question["runs"][0]["first"]) == 5
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".sqlite"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measures"] == ["nDCG@5", "P@1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "demo,hybird"], "did you mean 'hybrid'"),
        (["--measures", "nDGC@10"], "does not know the measure 'nDGC@10'"),
        (["--top", "0"], "top must be a whole number"),
        (["--top", "9", "--measures", "nDCG@10"], "nDCG@10 needs more passages than the 9 that are kept"),
        (["--cache", "x", "--no-cache"], "not both"),
        (["--output", "nowhere/x.json"], "the folder of 'nowhere/x.json' does not exist"),
        (["a", "b", "c"], "at most three inputs"),
        (["no-qrels"], "no file 'no-qrels'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments, said, pairs, capsys):
    assert main(["eval", str(pairs), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("place", ["mine.txt", "mine.txt/deeper", "/dev/null/x", "x\0y"])
@pytest.mark.parametrize("run", [[], ["--run", "demo,reranker=demo"]])
def test_a_cache_that_cannot_be_used_ends_the_command_before_the_work(place, run, pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("my thesis")
    assert main(["eval", str(pairs), *run, "--cache", place]) == 2
    told = capsys.readouterr().err
    assert "is not a writable folder" in told
    assert told.count("\n") == 1
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir() if path.suffix == ".txt"] == [
        ("mine.txt", "my thesis")
    ]


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_cache_is_not_the_working_directory(blank, pairs, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="names no file or folder"):
        evaluate(pairs, cache=blank)
    assert not [*Path.cwd().iterdir()]


# The bundled model


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_published_figures_of_the_held_out_set_come_out(capsys, tmp_path):
    """Those of the demo model's README: dense 0.831, sparse 0.784, dense + 0.5 · sparse 0.873."""
    runs = ["demo,hybrid", "demo,sparse", "demo"]  # the first embeds for the others too
    arguments = [part for run in runs for part in ("--run", run)]
    assert main(["eval", str(HELD_OUT), *arguments, "--measures", "nDCG@10", "--json"]) == 0
    found = [run["measures"]["nDCG@10"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert [each["mean"] for each in found] == pytest.approx([0.873, 0.784, 0.831], abs=0.0015)
    for each in found:
        assert each["interval"][0] < each["mean"] < each["interval"][1]
        assert each["interval"][1] - each["interval"][0] < 0.04
    assert found[0]["p"] is None
    assert found[1]["p"] < 0.01
    assert found[2]["p"] < 0.01
    assert len(list((tmp_path / "user" / "bge-integrations" / "eval").iterdir())) == 1


@pytest.mark.slow
def test_a_real_server_and_this_machine_give_the_same(demo_url, tmp_path):
    file = tmp_path / "few.jsonl"
    file.write_bytes(b"".join(gzip.decompress(HELD_OUT.read_bytes()).splitlines(keepends=True)[:120]))
    two_stages = ["demo,reranker=demo,candidates=5", "demo,reranker=demo,reranker_weights=0:0:1,candidates=5"]
    found = evaluate(file, runs=["demo", f"demo,base_url={demo_url}/v1", *two_stages])
    here, there, *again = found.results
    assert there.estimates["nDCG@10"].p == 1
    assert there.ranking.found == here.ranking.found
    assert here.ranking.usd_per_1000_questions is None
    passages = [json.loads(line)["passage"] for line in file.read_text("utf-8").splitlines()]
    for result, weights in zip(again, (None, (0, 0, 1)), strict=True):
        assert result.ranking.found != here.ranking.found
        with load_reranker("demo", weights=weights) as reranker:
            for i, question in enumerate([*found.queries.values()][:10]):
                first = here.ranking.found[i][:5]
                ranked = reranker.rank(question, [passages[int(key[1:]) - 1] for key in first])
                assert result.ranking.found[i][:5] == [first[position] for position, _ in ranked]
                assert result.ranking.found[i][5:] == here.ranking.found[i][5:]


@pytest.mark.slow
def test_texts_that_are_too_long_are_counted(tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("question,passage\nred fruit,{}\ngreen fruit,a pear\n".format("an apple " * 600))
    found = evaluate(file, runs="demo")
    assert found.results[0].ranking.truncated == 1
    assert "longer than a model reads: demo 1" in str(found)


@pytest.mark.slow
def test_rows_are_those_of_the_encoder_itself(demo, pairs):
    questions, passages = [q for q, _ in PAIRS], list(dict.fromkeys(p for _, p in PAIRS))
    scores = demo.encode(questions, role="query") @ demo.encode(passages, role="document").T
    best = [f"p{row + 1}" for row in scores.argmax(1)]
    found = evaluate(pairs, runs="demo").results[0].ranking.found
    assert [rows[0] for rows in found] == best
    assert load_encoder("demo").space == demo.space
