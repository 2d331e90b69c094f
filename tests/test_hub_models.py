"""A fine-tune straight from the hub: a hub on loopback that has one repository, and the real client."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

import models

pytestmark = pytest.mark.slow

COMMIT = "c" * 40
NAME = "someone/bge-tuned"


class Hub(BaseHTTPRequestHandler):
    """Answers about one repository at one commit, as the hub does."""

    folder: Path
    asked: list[str]
    seconds = 0.0  # before each answer
    silent = "^$"  # requests that are never answered
    ended: threading.Event

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.asked.append(path)
        time.sleep(self.seconds)
        if re.search(self.silent, f"{self.command} {path}"):
            self.ended.wait(100)
            return
        if f"/api/models/{NAME}" in path:
            self._json(path)
        elif path.startswith(f"/{NAME}/resolve/") and (file := self.folder / path.split("/", 5)[5]).is_file():
            self._file(file)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _json(self, path):
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        if "/tree/" in path:
            about = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in zip(names, files, strict=True)
            ]
        self._send(json.dumps(about).encode(), {})

    def _file(self, file):
        data = file.read_bytes()
        self._send(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send(self, data, headers):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextmanager
def hub(folder: Path, **facts):
    kind = type("Kind", (Hub,), {"folder": folder, "asked": [], "ended": threading.Event(), **facts})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", kind.asked
        finally:
            kind.ended.set()
            server.shutdown()


def ask(code: str, home: Path, url: str, **variables: str) -> str:
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, "no_proxy": "127.0.0.1", **variables}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout


CODE = f"""
import warnings
from bge_integrations import load_encoder
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    encoder = load_encoder("{NAME}", backend="torch", show_progress=False%s)
print(encoder.card.id, encoder.card.dimensions, encoder.card.pooling, encoder.card.folder)
print(encoder.document_space)
print([type(warning.message).__name__ for warning in seen])
%s
"""
ENCODE = "print(encoder.encode(['a text'], role='document')[0, :3].tolist())"


def test_a_fine_tune_is_read_and_fetched_from_the_hub(tmp_path):
    from bge_integrations import load_encoder

    folder = models.folder("bge-small", layers=1)
    with hub(folder) as (url, asked):
        said = ask(CODE % ("", ""), tmp_path, url).splitlines()
        assert said[0] == f"{NAME} 384 cls None"
        assert said[1] == f"{NAME}@{COMMIT[:16]}/cls/384"
        assert said[2] == "['InstructionWarning']"  # pooling is in its files, the instruction is nowhere
        assert not [path for path in asked if "model.safetensors" in path]  # weights come with the first call
        said = ask(CODE % (", query_instruction='Find: '", ENCODE), tmp_path, url).splitlines()
        assert said[2] == "[]"
        assert [path for path in asked if path.endswith("model.safetensors")]
        with load_encoder(folder, query_instruction="Find: ", backend="torch", show_progress=False) as encoder:
            wanted = encoder.encode(["a text"], role="document")[0, :3].tolist()
        assert json.loads(said[3]) == pytest.approx(wanted, abs=1e-6)
    # What is here is not asked for again: nobody answers any more.
    again = ask(CODE % (", query_instruction='Find: '", ENCODE), tmp_path, "http://127.0.0.1:9").splitlines()
    assert again == said


def test_a_revision_is_its_own_space(tmp_path):
    with hub(models.folder("bge-small", layers=1)) as (url, asked):
        said = ask(CODE % (", revision='v2', query_instruction=''", ""), tmp_path, url).splitlines()
        assert said[1] == f"{NAME}@{COMMIT[:16]}/cls/384"
        assert any("/revision/v2" in path or "/resolve/v2/" in path for path in asked)


@pytest.mark.parametrize("adapter", ["langchain.BGEEmbeddings", "llama_index.BGEEmbedding"])
def test_the_adapters_take_it_too(tmp_path, adapter):
    module, name = adapter.split(".")
    code = f"""
from bge_integrations.{module} import {name}
print({name}("{NAME}", query_instruction="", revision="main").space)
"""
    with hub(models.folder("bge-small", layers=1)) as (url, _):
        assert ask(code, tmp_path, url).strip() == f"{NAME}@{COMMIT[:16]}/cls/384/query:none"


REFUSED = """
from bge_integrations import load_encoder, errors
try:
    load_encoder(%r, provider=%r, revision=%r)
except errors.BGEError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("name", "provider", "revision", "said"),
    [
        ("someone/not-there", None, None, "UnknownModelError no model 'someone/not-there'"),
        ("bge-m3", None, "main", "ConfigError revision= is for a model on the hub"),
        (NAME, "deepinfra", None, "UnknownModelError no model"),
        ("nothing-like-it", None, "main", "UnknownModelError no model"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(tmp_path, name, provider, revision, said):
    with hub(models.folder("bge-small", layers=1)) as (url, asked):
        shown = ask(REFUSED % (name, provider, revision), tmp_path, url)
    assert shown.startswith(said)
    assert shown.count("\n") == 1
    assert bool(asked) == (name == "someone/not-there")


def test_without_a_network_the_error_says_what_to_do(tmp_path):
    shown = ask(REFUSED % (NAME, None, None), tmp_path, "http://127.0.0.1:9")
    assert shown.startswith("UnknownModelError")
    assert f"hf download {NAME}" in shown
    assert "no connection to 127.0.0.1:9" in shown
    assert "_NoConnection" not in shown


def test_a_slow_hub_is_waited_for(tmp_path):
    with hub(models.folder("bge-small", layers=1), seconds=1.5) as (url, _):
        said = ask(CODE % (", query_instruction=''", ENCODE), tmp_path, url, HF_HUB_ETAG_TIMEOUT="9").splitlines()
    assert said[0] == f"{NAME} 384 cls None"
    assert said[3].startswith("[")


FIRST_CALL = """
from bge_integrations import load_encoder, errors
try:
    load_encoder("bge-small", show_progress=False).encode(["a"], role="document")
except errors.BGEError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("code", [REFUSED % (NAME, None, None), FIRST_CALL])
def test_a_hub_that_takes_connections_and_answers_nothing_is_given_up(tmp_path, code):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        shown = ask(code, tmp_path, url, HF_HUB_ETAG_TIMEOUT="1")
    assert "no answer in 1 s, HF_HUB_ETAG_TIMEOUT= waits longer" in shown
    assert shown.count("\n") == 1


WHOLE = f"""
import warnings
from bge_integrations import load_encoder, errors
warnings.simplefilter("ignore")
try:
    print(load_encoder("{NAME}", backend="torch", show_progress=False).encode(["a"], role="document").shape)
except errors.BGEError as error:
    print(type(error).__name__, error)
"""


# A HEAD that is not answered is asked again for 6 minutes by huggingface_hub itself, whatever its timeouts are.
@pytest.mark.parametrize("silent", ["/api/models/", "/tree/", "^GET .*/config.json$", "^GET .*/model.safetensors$"])
def test_a_hub_that_falls_silent_at_any_request_is_given_up_and_resumed(tmp_path, silent):
    quick = {"HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    folder = models.folder("bge-small", layers=1)
    with hub(folder, silent=silent) as (url, _):
        shown = ask(WHOLE, tmp_path, url, **quick)
    assert shown.count("\n") == 1
    if silent == "/tree/":  # a listing that has no time limit is not asked for
        assert shown == "(1, 384)\n"
    else:
        assert "no answer in 1 s" in shown
        with hub(folder) as (url, _):
            assert ask(WHOLE, tmp_path, url, **quick) == "(1, 384)\n"


@pytest.mark.parametrize("at", ["1_Pooling/config.json", "modules.json", "config.json"])
def test_what_was_fetched_in_part_is_never_taken_for_a_model_that_pools_otherwise(tmp_path, at):
    folder = tmp_path / "model"
    shutil.copytree(models.folder("bge-small", layers=1), folder)
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with hub(folder, silent=f"^GET .*c{'c' * 39}/{at}$|^GET .*main/{at}$") as (url, _):
        shown = ask(WHOLE, tmp_path / "home", url, HF_HUB_ETAG_TIMEOUT="1", HF_HUB_DOWNLOAD_TIMEOUT="1")
        assert "no answer in" in shown
    shown = ask(WHOLE, tmp_path / "home", "http://127.0.0.1:9")
    assert "no connection to 127.0.0.1:9" in shown  # and no vectors
    with hub(folder) as (url, _):
        assert ask(CODE % ("", ""), tmp_path / "home", url).startswith(f"{NAME} 384 last token None")
