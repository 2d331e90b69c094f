"""Rows in, shards out: what is in them, what is set aside, and what a second call does."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bge_integrations import load_encoder
from bge_integrations.bulk import (
    Columns,
    embed_files,
    estimate,
    plan_files,
    quantise_files,
    read_shards,
    stamp_of,
    upload_files,
)
from bge_integrations.catalog import who_serves
from bge_integrations.errors import (
    BGEError,
    ConfigError,
    HostError,
    HostUnavailableError,
    InputError,
    SpaceMismatchError,
    TruncationWarning,
)
from encoders import HashEncoder
from rig import Rig, ok, refuse_marked, spoilt, status, timeout

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [f"text {i}" for i in range(95)])


def write_rows(path: Path, texts) -> Path:
    lines = [{"key": f"k{i}", "text": text, "n": i} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def errors_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / ".errors.jsonl").read_text().splitlines()]


# What is in a shard


def test_shards_hold_ids_kept_columns_vectors_and_the_stamp(rows, tmp_path):
    encoder, columns = HashEncoder(), Columns(id="key", keep=("n",))
    report = embed_files(str(rows), tmp_path / "out", encoder, columns=columns, shard_rows=20)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    table = parquet.read_table(files)
    assert (report.rows, report.shards, report.errors, report.embedded) == (95, 5, 0, 95)
    assert [parquet.read_metadata(file).num_rows for file in files] == [20, 20, 20, 20, 15]
    assert table["id"].to_pylist() == [f"k{i}" for i in range(95)]
    assert table["n"].to_pylist() == list(range(95))
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert np.array_equal(vectors, encoder.expected([f"text {i}" for i in range(95)], "document"))
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float not null>[16]"
    assert json.loads(table.schema.metadata[b"bge_stamp"]) == encoder.stamp() == stamp_of(tmp_path / "out")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("format", ["parquet", "numpy", "jsonl"])
def test_every_format_is_read_back(format, half, rows, tmp_path):
    encoder, columns = HashEncoder(), Columns(id="key", keep=("n",))
    embed_files(str(rows), tmp_path / "out", encoder, columns=columns, shard_rows=40, format=format, half=half)
    parts = list(read_shards(tmp_path / "out"))
    expected = encoder.expected([f"text {i}" for i in range(95)], "document")
    assert [len(part.ids) for part in parts] == [40, 40, 15]
    assert [name for part in parts for name in part.ids] == [f"k{i}" for i in range(95)]
    assert [text for part in parts for text in part.texts] == [f"text {i}" for i in range(95)]
    assert [n for part in parts for n in part.kept["n"]] == list(range(95))
    vectors = np.concatenate([part.vectors for part in parts])
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected.astype(np.float16).astype(np.float32) if half else expected)
    assert stamp_of(tmp_path / "out") == encoder.stamp()
    if format == "numpy":
        assert np.load(tmp_path / "out" / "part-000001.npy").dtype == (np.float16 if half else np.float32)


def test_parquet_columns_keep_their_types(tmp_path):
    table = pyarrow.table(
        {"text": ["a", " ", "c"], "n": pyarrow.array([1, 2, 3], pyarrow.int16()), "x": [1.5, None, 2]}
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    embed_files(str(tmp_path / "in.parquet"), tmp_path / "out", HashEncoder(), columns=Columns(keep=("n", "x")))
    read = parquet.read_table(tmp_path / "out" / "part-000000.parquet")
    assert read.select(["n", "x"]).equals(table.select(["n", "x"]).take([0, 2]))
    assert read["id"].to_pylist() == [0, 2]


def test_rows_that_stand_twice_stay_twice(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "same", "id": "k"}\n' * 3)
    report = embed_files(str(path), tmp_path / "out", HashEncoder(), columns=Columns(id="id"))
    (part,) = read_shards(tmp_path / "out")
    assert part.ids == ["k", "k", "k"]
    assert report.repeated == 2


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_folder_is_not_the_working_directory(blank, rows, tmp_path, monkeypatch):
    embed_files(str(rows), tmp_path / "shards", HashEncoder())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for write in (
        lambda: embed_files(str(rows), blank, HashEncoder()),
        lambda: quantise_files(tmp_path / "shards", blank, "int8"),
        lambda: upload_files(tmp_path / "shards", "faiss", path=blank),
    ):
        with pytest.raises(
            ConfigError, match=r"names no file or folder: is a variable not set|needs one of path, not none"
        ):
            write()
    assert not [*Path.cwd().iterdir()]


def test_an_empty_input_gives_no_shards(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n")
    report = embed_files(str(tmp_path / "in.jsonl"), tmp_path / "out", HashEncoder())
    assert (report.rows, report.shards) == (0, 0)
    with pytest.raises(ConfigError, match="no shards"):
        list(read_shards(tmp_path / "out"))


# Rows that cannot be embedded


def test_bad_rows_are_recorded_with_line_and_reason_or_stop(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "good"}\n{"text": " "}\n{"text": 3}\n{}\nnot json\n{"text": "good too"}\n')
    report = embed_files(str(path), tmp_path / "out", HashEncoder())
    assert (report.rows, report.errors) == (6, 4)
    assert [(error["line"], error["id"]) for error in errors_of(tmp_path / "out")] == [(2, 1), (3, 2), (4, 3), (5, 4)]
    assert {error["source"] for error in errors_of(tmp_path / "out")} == {str(path)}
    assert next(read_shards(tmp_path / "out")).ids == [0, 5]
    with pytest.raises(InputError, match="line 2"):
        embed_files(str(path), tmp_path / "other", HashEncoder(), on_error="stop")


def test_shards_before_a_row_that_stops_the_job_are_kept(rows, tmp_path):
    rows.write_text(rows.read_text().replace('"text 70"', "7"))
    with pytest.raises(InputError, match=r"line 71 .*of type int"):
        embed_files(str(rows), tmp_path / "out", HashEncoder(), on_error="stop", shard_rows=20)
    report = embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)
    assert (report.resumed, report.shards, report.errors) == (3, 5, 1)


def test_a_column_that_no_row_has_is_told_at_once(rows, tmp_path):
    encoder = HashEncoder()
    rows.write_text(rows.read_text() * 2)
    with pytest.raises(InputError, match=r"none of the first 190 rows .*'body' is missing"):
        embed_files(str(rows), tmp_path / "out", encoder, columns=Columns("body"))
    assert not encoder.sent


def test_texts_that_the_encoder_refuses_are_recorded_and_the_rest_goes_on(tmp_path):
    texts = [("word " * (50 if i in (3, 4, 30) else 2)) + str(i) for i in range(40)]
    path, encoder = write_rows(tmp_path / "in.jsonl", texts), HashEncoder(truncate="error", max_words=10)
    report = embed_files(str(path), tmp_path / "out", encoder, shard_rows=20)
    assert (report.rows, report.errors, report.shards) == (40, 3, 2)
    assert [(error["line"], error["reason"]) for error in errors_of(tmp_path / "out")] == [
        (i + 1, "longer than the 10 tokens that 'test/hash' reads: split them, or pass truncate='warn'")
        for i in (3, 4, 30)
    ]
    good = [text for i, text in enumerate(texts) if i not in (3, 4, 30)]
    assert [text for part in read_shards(tmp_path / "out") for text in part.texts] == good
    vectors = np.concatenate([part.vectors for part in read_shards(tmp_path / "out")])
    assert np.array_equal(vectors, encoder.expected(good, "document"))
    with pytest.raises(InputError, match=r"line 4 .*longer than the 10"):
        embed_files(str(path), tmp_path / "other", encoder, shard_rows=20, on_error="stop")


def test_cut_texts_are_counted_and_told_once(tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [("word " * (50 if i % 10 == 3 else 2)) for i in range(40)])
    with pytest.warns(TruncationWarning, match="4 of 40 texts are longer than the 512 tokens") as told:
        report = embed_files(str(path), tmp_path / "out", HashEncoder(max_words=10), shard_rows=10)
    assert report.cut == 4
    assert len(told) == 1


@pytest.fixture
def host():
    with Rig(16) as rig:
        yield rig


def at(host: Rig, **options):
    return load_encoder("bge-small", base_url=host.url, show_progress=False, max_inputs=8, **options)


@pytest.fixture
def small_card(monkeypatch):
    """The catalogue's model, with as few dimensions as the rig's."""
    from dataclasses import replace

    import bge_integrations.load.encoder as load

    monkeypatch.setattr(load, "find_model", lambda name: replace(find_model(name), dimensions=16))
    from bge_integrations.catalog import find_model


@pytest.mark.parametrize(
    "fault",
    [refuse_marked("poison", 413, "too large"), spoilt(lambda row: ["@NaN@", *row[1:]], "poison")],
    ids=["too large", "a broken vector"],
)
def test_texts_that_a_host_refuses_are_recorded_and_nothing_is_sent_twice(fault, host, small_card, tmp_path):
    host.default = fault
    texts = [f"poison {i}" if i in (5, 6, 31) else f"text {i}" for i in range(48)]
    path = write_rows(tmp_path / "in.jsonl", texts)
    with at(host, max_retries=0) as encoder:
        report = embed_files(str(path), tmp_path / "out", encoder, shard_rows=24)
    good = [text for text in texts if "poison" not in text]
    assert (report.rows, report.errors) == (48, 3)
    assert [error["line"] for error in errors_of(tmp_path / "out")] == [6, 7, 32]
    assert [text for part in read_shards(tmp_path / "out") for text in part.texts] == good
    vectors = np.concatenate([part.vectors for part in read_shards(tmp_path / "out")])
    np.testing.assert_allclose(vectors, host.truth(good), atol=1e-6)
    answered = [text for sent in host.sent if not any("poison" in text for text in sent) for text in sent]
    assert sorted(answered) == sorted(good)


def test_a_host_that_refuses_everything_ends_the_job(host, small_card, rows, tmp_path):
    host.default = spoilt(lambda row: ["@NaN@", *row[1:]])
    with at(host, max_retries=0) as encoder, pytest.raises(HostError):
        embed_files(str(rows), tmp_path / "out", encoder, shard_rows=20)
    host.default = status(413, "too large")
    with at(host, max_retries=0) as encoder, pytest.raises(HostError, match=r"too large \(line \d+ of"):
        embed_files(str(rows), tmp_path / "out", encoder, shard_rows=20)
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_wrong_key_is_no_fault_of_a_row(host, small_card, tmp_path):
    host.default = status(401, "wrong key")
    path = write_rows(tmp_path / "in.jsonl", ["one"])
    with at(host) as encoder, pytest.raises(HostError, match="401"):
        embed_files(str(path), tmp_path / "out", encoder)
    assert len(host.sent) == 1


# Again


def test_a_failure_keeps_finished_shards_and_the_same_call_embeds_only_the_rest(rows, tmp_path):
    def fail(indices, texts):
        if "text 50" in texts:
            raise HostUnavailableError("gone")

    with pytest.raises(HostUnavailableError):
        embed_files(str(rows), tmp_path / "out", HashEncoder(before_batch=fail), shard_rows=20)
    again = HashEncoder()
    report = embed_files(str(rows), tmp_path / "out", again, shard_rows=20)
    embed_files(str(rows), tmp_path / "undisturbed", HashEncoder(), shard_rows=20)
    assert (report.resumed, report.resumed_rows, report.shards) == (2, 40, 5)
    assert again.sent == [f"text {i}" for i in range(40, 95)]
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_finished_job_does_nothing_again(rows, tmp_path):
    embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)
    before, again = contents(tmp_path / "out"), HashEncoder()
    report = embed_files(str(rows), tmp_path / "out", again, shard_rows=20)
    assert (report.rows, report.resumed, again.sent) == (95, 5, [])
    assert contents(tmp_path / "out") == before


def test_another_job_is_refused_and_the_folder_left_as_it_was(rows, tmp_path):
    out = tmp_path / "out"
    embed_files(str(rows), out, HashEncoder(), shard_rows=20)
    before = contents(out)
    with pytest.raises(SpaceMismatchError, match="'int8' now"):
        embed_files(str(rows), out, HashEncoder(variant="int8"), shard_rows=20)
    for options in ({"shard_rows": 21}, {"half": True}, {"format": "numpy"}, {"columns": Columns(id="key")}):
        with pytest.raises(ConfigError, match="options of the job"):
            embed_files(str(rows), out, HashEncoder(), **{"shard_rows": 20, **options})
    assert contents(out) == before
    # A question has an instruction, a document has none.
    embed_files(str(rows), out, HashEncoder(query_instruction="Ask: "), shard_rows=20)
    assert contents(out) == before


@pytest.mark.parametrize("change", ["end", "middle", "fewer", "gone"])
def test_changed_input_is_refused(change, rows, tmp_path, monkeypatch):
    embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)
    before = contents(tmp_path / "out")
    if change == "middle":
        monkeypatch.setattr("bge_integrations.bulk.sources._END", 64)  # which cannot see it
        embed_files(str(rows), tmp_path / "again", HashEncoder(), shard_rows=20)
        before = contents(tmp_path / "again")
        (tmp_path / "out").rename(tmp_path / "old")
        (tmp_path / "again").rename(tmp_path / "out")
    text = rows.read_text()
    changed = {
        "end": text + '{"text": "more"}\n',
        "middle": text.replace("text 47", "test 47"),
        "fewer": "".join(text.splitlines(True)[:30]),
        "gone": None,
    }[change]
    rows.unlink() if changed is None else rows.write_text(changed)
    with pytest.raises(ConfigError, match=r"inputs of the job|rows of shard 2|no input at"):
        embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)
    assert contents(tmp_path / "out") == before


def test_input_that_changes_while_it_is_read_is_told(rows, tmp_path):
    def change(indices, texts):
        if "text 50" in texts:
            rows.write_text(rows.read_text().replace("k1", "K1"))

    with pytest.raises(ConfigError, match=r"changed while they were being read: --update .*keeps what is embedded"):
        embed_files(str(rows), tmp_path / "out", HashEncoder(before_batch=change), shard_rows=20)
    again = HashEncoder()
    assert embed_files(str(rows), tmp_path / "out", again, shard_rows=20, update=True).kept == 95
    assert not again.sent


def test_the_input_may_be_copied_or_touched(rows, tmp_path):
    embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=20)
    (tmp_path / "copy").mkdir()
    copy = rows.rename(tmp_path / "copy" / "rows.jsonl")
    assert embed_files(str(copy), tmp_path / "out", HashEncoder(), shard_rows=20).resumed == 5


def test_torn_ends_of_manifest_and_errors_are_cut(rows, tmp_path):
    embed_files(str(rows), tmp_path / "whole", HashEncoder(), shard_rows=20)
    embed_files(str(rows), tmp_path / "torn", HashEncoder(), shard_rows=20)
    manifest = tmp_path / "torn" / ".manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    (tmp_path / "torn" / ".errors.jsonl").write_text('{"torn')
    embed_files(str(rows), tmp_path / "torn", HashEncoder(), shard_rows=20)
    (tmp_path / "torn" / ".errors.jsonl").unlink()
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", [b"not json\n", b"[1]\n", b'{"other": 1}\n'])
def test_a_damaged_manifest_and_strange_shards_are_refused(damage, rows, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".manifest.jsonl").write_bytes(damage)
    with pytest.raises(ConfigError, match="manifest"):
        embed_files(str(rows), tmp_path / "out", HashEncoder())
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "part-000000.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="without a manifest"):
        embed_files(str(rows), tmp_path / "strange", HashEncoder())


def test_with_a_cache_another_folder_costs_nothing(rows, tmp_path):
    from bge_integrations.cache import CachedEncoder

    inner = HashEncoder(max_words=1)
    with CachedEncoder(inner, tmp_path / "cache.sqlite") as encoder:
        with pytest.warns(TruncationWarning, match="95 of 95 texts"):
            embed_files(str(rows), tmp_path / "out", encoder, shard_rows=20)
        sent = len(inner.sent)
        with pytest.warns(TruncationWarning, match="95 of 95 texts"):
            embed_files(str(rows), tmp_path / "again", encoder, shard_rows=20)
    assert (sent, len(inner.sent)) == (95, 95)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


# Order, overlap, an end at any time


def test_one_shard_at_a_time_goes_into_an_engine_of_this_machine(rows, tmp_path):
    at_work, most = 0, 0
    lock = threading.Lock()

    def counted(indices, texts):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.01)
        with lock:
            at_work -= 1

    embed_files(str(rows), tmp_path / "out", HashEncoder(before_batch=counted), shard_rows=10)
    assert most == 1


def test_the_next_shard_is_under_way_while_one_is_written(rows, tmp_path):
    encoder = HashEncoder()
    begun = []
    embed_files(str(rows), tmp_path / "out", encoder, shard_rows=10, on_shard=lambda _: begun.append(wait(encoder)))
    assert begun[0] >= 2

    again = HashEncoder()
    assert embed_files(str(rows), tmp_path / "out", again, shard_rows=10).resumed == 10


def wait(encoder: HashEncoder) -> int:
    while len(encoder.calls) < 2:  # or the test's own time ends
        time.sleep(0.001)
    return len(encoder.calls)


def test_an_error_of_the_caller_ends_the_call_under_way(rows, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    encoder = HashEncoder()
    with pytest.raises(KeyboardInterrupt):
        embed_files(str(rows), tmp_path / "out", encoder, shard_rows=10, on_shard=interrupt)
    assert len(encoder.calls) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bge-bulk")]
    assert embed_files(str(rows), tmp_path / "out", HashEncoder(), shard_rows=10).resumed == 1


def test_a_call_that_hangs_at_a_host_ends_with_the_job(host, small_card, rows, tmp_path):
    hang, first = timeout(), {f"text {i}" for i in range(16)}
    host.default = lambda x: ok(x) if first.issuperset(x.texts) else hang(x)

    def interrupt(_):
        raise KeyboardInterrupt

    with at(host) as encoder:
        encoder.encode(["text 0"], role="document")  # the first request to a host goes alone
        with pytest.raises(KeyboardInterrupt):
            embed_files(str(rows), tmp_path / "out", encoder, shard_rows=16, on_shard=interrupt)


@pytest.mark.parametrize("options", [{"shard_rows": 0}, {"format": "csv"}, {"on_error": "skip"}])
def test_options_are_checked_before_anything_is_made(options, rows, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(options))):
        embed_files(str(rows), tmp_path / "out", HashEncoder(), **options)
    assert not (tmp_path / "out").exists()


def test_the_report_can_be_watched(rows, tmp_path):
    seen = []
    embed_files(
        str(rows),
        tmp_path / "out",
        HashEncoder(),
        shard_rows=20,
        on_progress=lambda r: seen.append((r.embedded, r.total)),
    )
    assert [embedded for embedded, _ in seen] == [20, 40, 60, 80, 95]
    assert {total for _, total in seen} <= {None, 95}
    assert seen[-1] == (95, 95)


# Before


def test_a_plan_for_a_model_on_this_machine(tmp_path, demo):
    texts = ["short", "word " * 600, " "] + [f"text {i}" for i in range(50)]
    plan = plan_files(str(write_rows(tmp_path / "in.jsonl", texts)), demo)
    assert (plan.rows, plan.errors, plan.cut) == (53, 1, 1)
    assert plan.tokens == sum(min(n, demo.card.max_tokens) for n in demo.count_tokens([t for t in texts if t.strip()]))
    assert plan.seconds > 0
    assert "this machine" in plan.how
    assert plan.usd is None


def test_a_plan_for_a_host_sends_nothing(host, tmp_path):
    path = write_rows(tmp_path / "in.jsonl", [f"text {i}" for i in range(130)])
    with at(host) as encoder:
        plan = plan_files(str(path), encoder)
        assert (plan.rows, plan.tokens, plan.cut, plan.seconds, plan.usd) == (130, None, None, None, None)
    demo = Path(__file__).parent.parent / "src/bge_integrations/demo/model/tokenizer.json"
    known = load_encoder("bge-m3", provider="deepinfra", api_key="k", tokenizer=str(demo), requests_per_minute=6)
    plan = plan_files(str(path), known)
    assert plan.tokens > 130
    assert plan.usd == pytest.approx(plan.tokens * 0.01 / 1e6)
    assert plan.seconds == pytest.approx(-(-130 // 64) * 10)
    assert not host.sent


@pytest.mark.usefixtures("small_card")
def test_a_sample_states_its_error_and_a_probe_sends_few_texts(host, demo, tmp_path):
    texts = [f"{i} " + "word and more, " * (i % 40) for i in range(2000)]
    path = str(write_rows(tmp_path / "in.jsonl", texts))
    exact = estimate(path, demo)
    about = estimate(path, demo, sample=200, usd_per_million_tokens=3.0)
    assert exact.tokens_error == 0
    assert 0 < about.tokens_error < exact.tokens / 10
    assert abs(about.tokens - exact.tokens) < 3 * about.tokens_error
    assert about.usd == pytest.approx(3 * about.tokens / 1e6)
    assert estimate(path, demo, chunk=20).rows > 2000
    assert estimate(path, demo, sample=5000).tokens_error == 0
    with at(host) as encoder:
        probed = estimate(path, encoder, probe=True)
    assert len({text for request in host.sent for text in request}) == 64
    assert probed.seconds > 0
    assert "64 texts" in probed.how
    assert probed.tokens is not None
    with pytest.raises(ConfigError, match="at least 2"):
        estimate(path, demo, sample=1)


def test_what_it_would_cost_where_is_told():
    demo = Path(__file__).parent.parent / "src/bge_integrations/demo/model/tokenizer.json"
    encoder = load_encoder("bge-m3", provider="deepinfra", api_key="k", tokenizer=str(demo))
    plan = estimate(str(Path(__file__)), encoder, chunk=200)
    assert plan.rows > 10
    assert plan.usd == plan.usd_by_provider["deepinfra"] == pytest.approx(0.01 * plan.tokens / 1e6)
    assert set(plan.usd_by_provider) == set(who_serves(encoder.card.id))
    assert None in plan.usd_by_provider.values()


def test_errors_are_the_packages_own(rows, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(BGEError, match="cannot write into"):
        embed_files(str(rows), tmp_path / "out", HashEncoder())


def test_a_thread_that_cannot_start_is_an_error_and_the_same_call_goes_on(rows, tmp_path, monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("bge-bulk"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BGEError, match="cannot start a thread for shards"):
            embed_files(rows, tmp_path / "out", HashEncoder())
    report = embed_files(rows, tmp_path / "out", HashEncoder())
    assert report.rows == len(rows.read_text("utf-8").splitlines())
