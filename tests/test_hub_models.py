"""A fine-tune straight from the hub: a hub on loopback that has one repository, and the real client."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

import models
import programs

pytestmark = pytest.mark.slow

COMMIT, PUSHED = "c" * 40, "d" * 40
NAME = "someone/bge-tuned"


class Hub(BaseHTTPRequestHandler):
    """Answers about one repository at one commit, as the hub does."""

    folder: Path
    pushed: Path | None = None  # the files of the main branch from the first answer on
    asked: list[str]
    slow = "^$"  # requests that are answered after some time
    silent = "^$"  # requests that are never answered
    ended: threading.Event

    def do_GET(self):
        path = unquote(self.path.partition("?")[0])
        self.asked.append(path)
        request = f"{self.command} {path}"
        time.sleep(1.5 if re.search(self.slow, request) else 0)
        if re.search(self.silent, request):
            self.ended.wait(100)
            return
        parts = path.split("/", 5)
        new = self.pushed and (PUSHED in path or (len(self.asked) > 1 and COMMIT not in path))
        folder, commit = (self.pushed, PUSHED) if new else (self.folder, COMMIT)
        if f"/api/models/{NAME}" in path:
            self._json(path, folder, commit)
        elif not path.startswith(f"/{NAME}/resolve/"):
            self._missing({"X-Error-Code": "RepoNotFound"})
        elif (file := folder / parts[5]).is_file():
            self._file(file, commit)
        else:
            self._missing({"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def _json(self, path, folder, commit):
        files = [file for file in folder.rglob("*") if file.is_file()]
        names = [file.relative_to(folder).as_posix() for file in files]
        about = {"id": NAME, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        if "/tree/" in path:
            about = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in zip(names, files, strict=True)
            ]
        self._send(json.dumps(about).encode(), {})

    def _file(self, file, commit):
        data = file.read_bytes()
        self._send(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit})

    def _missing(self, headers):
        self._send(b"", headers, 404)

    def _send(self, data, headers, status=200):
        self.send_response(status)
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
    # huggingface_hub reads the environment when it is imported, so every program is a process of its own.
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, "no_proxy": "127.0.0.1", **variables}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    done = programs.run(code, environment=environment)
    assert done.returncode == 0, done.stderr
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
    assert "_NoAnswer" not in shown


def test_a_slow_hub_is_waited_for(tmp_path):
    some = "/api/models/|/(main|c{40})/config.json$|/model.safetensors$"
    with hub(models.folder("bge-small", layers=1), slow=some) as (url, _):
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
    assert "no answer in 1 s; a larger HF_HUB_ETAG_TIMEOUT= waits longer" in shown
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


LIMITS = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
LOOKING_UP, DOWNLOADING = (
    f"no answer in {seconds} s; a larger {name}= waits longer" for name, seconds in LIMITS.items()
)


SILENT = {
    "/api/models/": LOOKING_UP,
    "^HEAD .*/config.json$": LOOKING_UP,
    "^HEAD .*/model.safetensors$": LOOKING_UP,
    "^GET .*/config.json$": DOWNLOADING,
    "^GET .*/model.safetensors$": DOWNLOADING,
    "/tree/": None,  # a listing that has no time limit is not asked for
}
PARTS = ["1_Pooling/config.json", "2_Dense/config.json", "modules.json", "config.json", "2_Dense/model.safetensors"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Of each request at which a hub falls silent, the home of the program that asked, and what it said.

    Several at once: huggingface_hub tries a download again for ten seconds, in which nothing is computed.
    """
    plain, otherwise = (
        models.folder("bge-small", layers=1),
        pooled_otherwise(tmp_path_factory.mktemp("model") / "model"),
    )

    def meet(name: str) -> tuple[Path, str]:
        home = tmp_path_factory.mktemp("home")
        part = f"^GET .*/(c{{40}}|main)/{name}$"
        folder, silent = (otherwise, part) if name in PARTS else (plain, name)
        with hub(folder, silent=silent) as (url, _):
            return home, ask(WHOLE, home, url, **LIMITS)

    names = [*SILENT, *PARTS]
    with ThreadPoolExecutor(6) as pool:
        return {"otherwise": otherwise, **dict(zip(names, pool.map(meet, names), strict=True))}


@pytest.mark.parametrize(("silent", "said"), SILENT.items())
def test_a_hub_that_falls_silent_at_any_request_is_given_up_and_resumed(interrupted, silent, said):
    home, shown = interrupted[silent]
    assert shown.count("\n") == 1
    assert said in shown if said else shown == "(1, 384)\n"
    with hub(models.folder("bge-small", layers=1)) as (url, _):
        assert ask(WHOLE, home, url) == "(1, 384)\n"


def pooled_otherwise(folder: Path) -> Path:
    """Make a model that pools by the last token, and then by a layer of its own."""
    shutil.copytree(models.folder("bge-small", layers=1), folder)
    models.add_dense(folder, size=128, pickled=False)
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


RIGHT = f"{NAME} 128 last token None"


@pytest.mark.parametrize("at", PARTS)
def test_what_was_fetched_in_part_is_never_taken_for_a_model_that_pools_otherwise(interrupted, at):
    home, shown = interrupted[at]
    assert DOWNLOADING in shown
    assert "no connection to 127.0.0.1:9" in ask(WHOLE, home, "http://127.0.0.1:9")  # and no vectors
    with hub(interrupted["otherwise"]) as (url, _):
        assert ask(CODE % ("", ""), home, url).startswith(RIGHT)
        assert ask(WHOLE, home, url) == "(1, 128)\n"


OTHER = f"""
import huggingface_hub
for file in %r:
    huggingface_hub.hf_hub_download("{NAME}", file)
"""
WORDS = ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize(
    "files",
    [
        ["config.json"],
        ["config.json", "model.safetensors", *WORDS],  # what transformers fetches
        ["config.json", "modules.json", "2_Dense/config.json"],
        ["config.json", "modules.json", "1_Pooling/config.json"],
    ],
)
def test_what_another_program_fetched_in_part_is_completed(tmp_path, files):
    folder = pooled_otherwise(tmp_path / "model")
    with hub(folder) as (url, _):
        ask(OTHER % files, tmp_path / "home", url)
    alone = ask(REFUSED % (NAME, None, None), tmp_path / "home", "http://127.0.0.1:9")
    assert ("no connection to 127.0.0.1:9" in alone) == ("modules.json" in files)
    with hub(folder) as (url, _):
        assert ask(CODE % ("", ""), tmp_path / "home", url).startswith(RIGHT)
        assert ask(WHOLE, tmp_path / "home", url) == "(1, 128)\n"
    assert ask(WHOLE, tmp_path / "home", "http://127.0.0.1:9") == "(1, 128)\n"


SAID = CODE.replace("type(warning.message).__name__", "str(warning.message)") % (", query_instruction=''", "")


def test_what_another_program_left_out_is_said_where_nobody_can_be_asked(tmp_path):
    with hub(pooled_otherwise(tmp_path / "model")) as (url, _):
        ask(OTHER % ["config.json"], tmp_path / "home", url)
    said = ask(SAID, tmp_path / "home", "http://127.0.0.1:9")
    assert "modules.json was never downloaded" in said
    assert "(no connection to 127.0.0.1:9: Connection refused)" in said
    assert f"hf download {NAME}" in said


@pytest.mark.parametrize("before", ["", f"import huggingface_hub; huggingface_hub.snapshot_download('{NAME}')"])
def test_files_that_a_repository_does_not_have_are_asked_for_once(tmp_path, before):
    folder = tmp_path / "model"
    shutil.copytree(models.folder("bge-small", layers=1), folder)
    for name in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    with hub(folder) as (url, asked):
        ask(before, tmp_path / "home", url)
        first = ask(SAID, tmp_path / "home", url)
        assert "its folder does not state its pooling" in first
        assert "never downloaded" not in first
        del asked[:]
        assert ask(SAID, tmp_path / "home", url) == first
        assert not asked


def test_a_push_in_between_mixes_no_two_commits(tmp_path):
    old, new = models.folder("bge-small", layers=1), pooled_otherwise(tmp_path / "model")
    with hub(old, pushed=new) as (url, _):
        said = ask(CODE % ("", ENCODE), tmp_path / "home", url).splitlines()
    assert said[0] == RIGHT
    assert said[1] == f"{NAME}@{PUSHED[:16]}/last token/128"
    snapshots = tmp_path / "home" / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots"
    assert [folder.name for folder in snapshots.iterdir()] == [PUSHED]


@pytest.mark.parametrize("pickled", [True, False])
def test_weights_of_every_module_are_fetched(tmp_path, pickled):
    from bge_integrations import load_encoder

    folder = tmp_path / "model"
    shutil.copytree(models.folder("bge-small", layers=1), folder)
    models.add_dense(folder, pickled=pickled)
    with hub(folder) as (url, _):
        said = ask(CODE % (", query_instruction=''", ENCODE), tmp_path / "home", url).splitlines()
    with load_encoder(folder, query_instruction="", backend="torch", show_progress=False) as encoder:
        wanted = encoder.encode(["a text"], role="document")[0, :3].tolist()
    assert json.loads(said[3]) == pytest.approx(wanted, abs=1e-6)


def test_a_transformer_in_a_folder_of_its_own_is_fetched_once(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models.folder("bge-small", layers=1), folder)
    (folder / "0_Transformer").mkdir()
    for file in [*folder.glob("*.json"), *folder.glob("vocab.txt"), *folder.glob("model.*")]:
        if file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / "0_Transformer" / file.name)
    modules = [{**models.MODULES[0], "path": "0_Transformer"}, *models.MODULES[1:]]
    (folder / "modules.json").write_text(json.dumps(modules))
    with hub(folder) as (url, _):
        assert ask(WHOLE, tmp_path / "home", url) == "(1, 384)\n"
    assert ask(WHOLE, tmp_path / "home", "http://127.0.0.1:9") == "(1, 384)\n"
