"""One bar, right total, moved by batches; where it is wanted and nowhere else."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
import types
import warnings

import numpy as np
import pytest
from tqdm.auto import tqdm

from bge_integrations.cache import CachedEncoder
from bge_integrations.cli import main
from bge_integrations.errors import HostError, ReadOnlyError
from bge_integrations.wrappers import progress
from bge_integrations.wrappers.progress import ProgressEncoder, in_notebook
from encoders import HashEncoder

TEXTS = [f"text number {i}" for i in range(10)]


@pytest.fixture
def bars(monkeypatch):
    """Real bars that also say what became of them."""
    made = []

    class Watched(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.steps, self.closed = [], 0
            made.append(self)

        def update(self, n=1):
            self.steps.append(n)
            return super().update(n)

        def close(self):
            self.closed += 1
            super().close()

    monkeypatch.setattr("tqdm.auto.tqdm", Watched)
    return made


def encode(encoder, how, texts=TEXTS, **more):
    if how == "sync":
        return encoder.encode(texts, role="document", **more)
    return asyncio.run(encoder.aencode(texts, role="document", **more))


@pytest.mark.parametrize("how", ["sync", "async"])
def test_one_bar_with_the_right_total(bars, how, capsys):
    inner, told = HashEncoder(batch=4), []
    vectors = encode(ProgressEncoder(inner, True), how, on_batch=lambda indices, _: told.extend(indices))
    assert np.array_equal(vectors, inner.expected(TEXTS, "document"))
    assert told == list(range(10))
    (bar,) = bars
    assert (bar.total, bar.n, bar.steps, bar.closed > 0) == (10, 10, [4, 4, 2], True)
    assert "10/10" in capsys.readouterr().err


def test_hits_of_the_cache_and_duplicates_move_it_too(bars, tmp_path):
    with ProgressEncoder(CachedEncoder(HashEncoder(), tmp_path / "v.sqlite"), True) as encoder:
        encoder.encode(TEXTS[:6], role="document")
        encoder.encode([*TEXTS, TEXTS[0], TEXTS[9]], role="document")
    assert [(bar.total, bar.n) for bar in bars] == [(6, 6), (12, 12)]
    assert bars[1].steps == [7, 5]


def test_a_failure_leaves_the_bar_where_it_was(bars):
    def fail(rows, texts):
        if rows[0] == 8:
            raise HostError("down")

    with pytest.raises(HostError):
        ProgressEncoder(HashEncoder(batch=4, before_batch=fail), True).encode(TEXTS, role="document")
    assert (bars[0].n, bars[0].closed > 0) == (8, True)


def test_what_cannot_begin_leaves_no_bar_behind(bars):
    encoder = ProgressEncoder(HashEncoder(max_words=1, truncate="error"), True)
    with pytest.raises(ValueError, match="longer"):
        encoder.encode(TEXTS, role="document")
    assert bars[0].closed


@pytest.mark.parametrize("show", [False, None])
def test_a_library_shows_nothing(bars, show, capsys):
    ProgressEncoder(HashEncoder(), show).encode(TEXTS, role="document")
    assert bars == []
    assert capsys.readouterr() == ("", "")


def test_a_script_that_works_for_long_is_told_lines_with_rate_time_left_and_cost(bars, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    inner = HashEncoder(batch=4, delay=0.01)
    inner.price = 5.0
    ProgressEncoder(inner).encode(TEXTS, role="document")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["Embedding: 4 of 10 texts", "Embedding: 8 of 10 texts"]
    assert re.fullmatch(r"Embedding: 8 of 10 texts, \d+ texts/s, 0:00:00 left, \$0\.0001", lines[1])
    assert bars == []


def test_a_server_is_told_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    encoder = ProgressEncoder(HashEncoder(batch=4))
    encode(encoder, "async")
    worker = threading.Thread(target=encode, args=(encoder, "sync"))
    worker.start()
    worker.join()
    ProgressEncoder(HashEncoder(batch=4), False).encode(TEXTS, role="document")
    assert capsys.readouterr().err == ""


def test_a_lone_query_has_no_bar(bars):
    ProgressEncoder(HashEncoder(), True).encode(TEXTS[:1], role="query")
    assert bars == []


@pytest.fixture
def notebook(monkeypatch):
    class ZMQInteractiveShell:
        pass

    class Shell(ZMQInteractiveShell):
        pass

    shell = Shell()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))


def test_a_kernel_is_known_and_a_terminal_is_not_one(notebook, monkeypatch):
    assert in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_in_a_notebook_short_work_shows_nothing(bars, notebook):
    ProgressEncoder(HashEncoder(batch=2)).encode(TEXTS, role="document")
    assert bars == []


def test_in_a_notebook_long_work_shows_a_bar_that_counts_from_the_start(bars, notebook, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.2)
    moments = [time.time()]
    inner = HashEncoder(batch=2, delay=0.15, before_batch=lambda *_: moments.append(time.time()))
    ProgressEncoder(inner).encode(TEXTS, role="document")
    (bar,) = bars
    assert (bar.total, bar.n) == (10, 10)
    assert sum(bar.steps) < 10
    assert moments[0] <= bar.start_t <= moments[1]


def test_it_is_the_inner_encoder_in_all_else():
    inner = HashEncoder(query_instruction="mine: ", blank="keep", variant="int8")
    encoder = ProgressEncoder(inner, True)
    for name in ("card", "query_instruction", "blank", "variant", "space", "document_space", "usage"):
        assert getattr(encoder, name) == getattr(inner, name)
    assert (encoder.stamp(), encoder.describe()) == (inner.stamp(), inner.describe())


@pytest.fixture
def terminal(monkeypatch):
    """The command line on a terminal; its own way of showing warnings goes with the test."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    return lambda yes: monkeypatch.setattr(sys.stderr, "isatty", lambda: yes, raising=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("mail", "music", "editor"):
        (tmp_path / "texts" / f"{name}.md").write_text(f"A program for {name}, described in a line of text.")
    return str(tmp_path / "texts")


@pytest.mark.slow
def test_the_demo_shows_a_bar_for_each_indexing_and_leaves_none(bars, terminal, folder, capsys):
    terminal(True)
    assert main(["demo", folder, "--ask", "send an email", "-k", "1"]) == 0
    # Two frameworks, then this machine and two protocols against each other; a lone question has no bar.
    assert [(bar.total, bar.n, bar.leave, bar.closed > 0) for bar in bars] == [(3, 3, False, True)] * len(bars)
    assert len(bars) == 6


def test_verify_shows_one_bar_of_its_steps(bars, terminal, demo_url, capsys):
    terminal(True)
    assert main(["verify", "--model", "demo", "--base-url", f"{demo_url}/v1", "--against", "local"]) == 0
    (bar,) = bars
    assert (bar.total, bar.n, bar.leave, bar.closed > 0) == (6, 6, False, True)
    assert "Loading weights" not in capsys.readouterr().err


def test_a_command_whose_output_goes_elsewhere_shows_none(bars, terminal, folder, demo_url, capsys):
    terminal(False)
    assert main(["demo", folder, "--ask", "send an email", "-k", "1"]) == 0
    assert (
        main(["verify", "--model", "demo", "--base-url", f"{demo_url}/v1", "--no-behaviour", "--against", "demo"]) == 0
    )
    assert bars == []


def test_the_faces_show_one_bar_for_all_texts(bars):
    from bge_integrations.langchain import BGEEmbeddings
    from bge_integrations.llama_index import BGEEmbedding

    BGEEmbeddings(encoder=ProgressEncoder(HashEncoder(batch=4), True)).embed_documents(TEXTS)
    BGEEmbedding(encoder=HashEncoder(batch=4)).get_text_embedding_batch(TEXTS, show_progress=True)
    assert [(bar.total, bar.n) for bar in bars] == [(10, 10)] * 2


WITHOUT = """
import sys
sys.modules["tqdm"] = None
from encoders import HashEncoder
from bge_integrations.errors import MissingExtraError
from bge_integrations.wrappers.progress import ProgressEncoder
ProgressEncoder(HashEncoder(), None).encode(["a", "b"], role="document")
try:
    ProgressEncoder(HashEncoder(), True)
except MissingExtraError as error:
    assert isinstance(error, ImportError)
    print("bge-integrations[cli]" in str(error))
"""


def test_without_tqdm_only_an_explicit_wish_is_refused(request):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=request.path.parent,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


@pytest.mark.parametrize("name", ["query_instruction", "truncate", "card"])
def test_what_a_wrapper_forwards_cannot_be_assigned(name):
    with pytest.raises(ReadOnlyError, match=f"{name}.*load_encoder"):
        setattr(ProgressEncoder(HashEncoder(), False), name, None)
