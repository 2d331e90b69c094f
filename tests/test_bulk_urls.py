"""Inputs by URL: file systems of fsspec and real HTTP servers, and what is said where one cannot be read."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bge_integrations.bulk import Columns, embed_files, read_shards
from bge_integrations.bulk.columns import kept_kinds
from bge_integrations.bulk.readers import read_rows
from bge_integrations.bulk.rows import Columns as RowColumns
from bge_integrations.bulk.rows import RowParser
from bge_integrations.bulk.sources import BytesRead, find_inputs, input_fingerprint
from bge_integrations.bulk.urls import RemoteFile, open_url
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError, InsecureHostError, MissingExtraError
from encoders import HashEncoder

fsspec = pytest.importorskip("fsspec")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

TEXTS = [f"text {i}" for i in range(3000)]
LINES = "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(TEXTS)).encode()


def as_parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"text": TEXTS, "n": range(len(TEXTS))}), sink, row_group_size=500)
    return sink.getvalue().to_pybytes()


def texts_of(*names: str, **columns) -> list[str]:
    chosen, files = RowColumns(**columns), find_inputs(names)
    return [row.text for row in read_rows(files, RowParser(chosen, kept_kinds(files, chosen))) if not row.reason]


def read_all(file: RemoteFile) -> bytes:
    with open_url(file, lambda _: None, seekable=file.url.endswith("parquet")) as (stream, _):
        return stream.read()


@pytest.fixture
def memory(tmp_path):
    """A folder in memory, of this test alone."""
    system = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}"
    yield system, f"memory://{root}"
    system.rm(root, recursive=True)


def put(memory, name: str, data: bytes) -> str:
    system, root = memory
    system.pipe_file(f"{root.removeprefix('memory://')}/{name}", data)
    return f"{root}/{name}"


class Files(BaseHTTPRequestHandler):
    """Serves ``server.files``; ranges too, unless ``server.ranges`` says no."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path, _, query = self.path.partition("?")
        data = self.server.files.get(path)
        if isinstance(data, str):
            self.send_response(302)
            self.send_header("Location", data)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if data is None or query != self.server.query:
            self.send_error(404 if data is None else 403)
            return
        wanted = self.headers.get("Range") if self.server.ranges else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
            data = data[begin : end + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data[: self.server.most])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes], *, ranges: bool = True, query: str = "", most: int | None = None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.files, server.ranges, server.query, server.most = files, ranges, query, most
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.csv"])
def test_files_in_any_file_system_come_out_as_those_on_the_disk(name, memory, tmp_path):
    import gzip

    csv = ("text,n\n" + "".join(f"{text},1\n" for text in TEXTS)).encode()
    data = {"rows.jsonl.gz": gzip.compress(LINES), "rows.parquet": as_parquet(), "rows.csv": csv}.get(name, LINES)
    url = put(memory, name, data)
    (tmp_path / name).write_bytes(data)
    assert texts_of(url, keep=("n",)) == TEXTS
    assert texts_of(f"file://{tmp_path / name}") == TEXTS
    there, here = (input_fingerprint(find_inputs(each)) for each in (url, str(tmp_path / name)))
    assert {**there, "first": ""} == {**here, "first": ""}
    tally = BytesRead()
    list(read_rows(find_inputs(url), RowParser(RowColumns()), tally))
    assert tally.read == pytest.approx(len(data), abs=10)


def test_folders_and_globs(memory):
    for name in ("b.jsonl", "a.jsonl", "deep/c.txt", "deep/.hidden.txt", "deep/image.png"):
        put(memory, name, b"hello" if name.endswith("txt") else b'{"text": "%s"}' % name.encode())
    root = memory[1]
    assert find_inputs(root) == [f"{root}/a.jsonl", f"{root}/b.jsonl", f"{root}/deep/c.txt"]
    assert find_inputs(f"{root}/*.jsonl") == [f"{root}/a.jsonl", f"{root}/b.jsonl"]
    assert texts_of(root) == ["a.jsonl", "b.jsonl", "hello"]
    for nothing in (f"{root}/*.csv", f"{root}/empty*"):
        with pytest.raises(ConfigError, match="no input at"):
            find_inputs(nothing)
    with pytest.raises(ConfigError, match=r"missing.jsonl' cannot be read: no such file"):
        input_fingerprint(find_inputs(f"{root}/missing.jsonl"))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["/rows.jsonl", "/rows.parquet"])
def test_http_with_and_without_ranges(name, ranges, tmp_path):
    data = LINES if name.endswith("jsonl") else as_parquet()
    with serving({name: data}, ranges=ranges) as url:
        options = {"columns": Columns(keep=("n",)), "shard_rows": 1000}
        report = embed_files(url + name, tmp_path / "out", HashEncoder(), **options)
        assert (report.rows, report.bytes) == (3000, len(data))
        assert [n for part in read_shards(tmp_path / "out") for n in part.kept["n"]] == list(range(3000))
        assert embed_files(url + name, tmp_path / "out", HashEncoder(), **options).resumed == 3


def test_an_input_by_url_that_has_changed_is_seen_and_brought_up_to_date(memory, tmp_path):
    url = put(memory, "rows.jsonl", LINES)
    embed_files(url, tmp_path / "out", HashEncoder())
    put(memory, "rows.jsonl", LINES + b'{"text": "one more"}\n')
    with pytest.raises(ConfigError, match="have changed"):
        embed_files(url, tmp_path / "out", HashEncoder())
    encoder = HashEncoder()
    embed_files(url, tmp_path / "out", encoder, update=True)
    assert encoder.sent == ["one more"]


def test_what_is_secret_in_a_url_is_sent_and_shown_nowhere(tmp_path, capsys):
    secret = "X-Signature=hunter2"
    with serving({"/a.txt": b"hello", "/bad.jsonl": b"[1]\n{"}, query=secret) as url:
        address = url.replace("http://", "http://somebody:hunter2@")
        embed_files(f"{address}/a.txt?{secret}", tmp_path / "out", HashEncoder())
        for wrong in (f"{address}/a.txt?{secret}x", f"{address}/none.txt?{secret}", f"{address}/bad.jsonl?{secret}"):
            assert main(["embed", wrong, "-o", str(tmp_path / "x"), "--model", "demo"]) == 2
            told = capsys.readouterr()
            assert "cannot be read" in told.err or "JSON array" in told.err
            assert "hunter2" not in told.err + told.out
            assert len(told.err.splitlines()) == 1
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"hunter2" not in written
    (part,) = read_shards(tmp_path / "out")
    assert part.ids == [f"{url}/a.txt"]


def test_two_urls_that_differ_in_their_query_are_two_files():
    files = find_inputs(["https://host.example/rows.jsonl?part=1", "https://host.example/rows.jsonl?part=2"])
    assert [file.url for file in files] == [f"https://host.example/rows.jsonl?part={i}" for i in (1, 2)]


def test_a_name_travels_with_what_opens_it():
    import pickle

    name = pickle.loads(pickle.dumps(RemoteFile("https://u:p@host.example/a.txt?key=1")))
    assert (name, name.url) == ("https://host.example/a.txt", "https://u:p@host.example/a.txt?key=1")


def test_an_answer_that_breaks_off_is_an_error(tmp_path):
    with (
        serving({"/rows.jsonl": LINES}, ranges=False, most=1000) as url,
        pytest.raises(ConfigError, match="cannot be read"),
    ):
        embed_files(f"{url}/rows.jsonl", tmp_path / "out", HashEncoder())
    with pytest.raises(ConfigError, match="cannot be read: ClientConnector"):  # the server has gone
        embed_files(f"{url}/rows.jsonl", tmp_path / "out", HashEncoder())


def test_plain_http_to_another_machine_needs_the_users_word(monkeypatch):
    monkeypatch.delenv("BGE_ALLOW_HTTP", raising=False)
    with pytest.raises(InsecureHostError, match="BGE_ALLOW_HTTP=1"):
        find_inputs("http://example.com/rows.jsonl")
    monkeypatch.setenv("BGE_ALLOW_HTTP", "1")
    assert find_inputs("http://example.com/rows.jsonl") == ["http://example.com/rows.jsonl"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("code", ["http://192.0.2.7/x", "HTTP://host.example/rows?key=s3cret", "//192.0.2.7/x"])
def test_a_redirect_to_plain_http_elsewhere_is_refused(name, code, monkeypatch):
    monkeypatch.delenv("BGE_ALLOW_HTTP", raising=False)
    with serving({f"/{name}": code, "/second": f"/{name}"}) as url:
        for first in (f"{url}/{name}", f"{url}/second?x=.jsonl"):
            with pytest.raises(InsecureHostError, match=r"'127.0.0.1' redirects to plain http to") as caught:
                read_all(RemoteFile(first))
            assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_redirect_on_this_machine_is_followed(ranges):
    with serving({"/rows.jsonl": LINES}, ranges=ranges) as there, serving({"/a.jsonl": f"{there}/rows.jsonl"}) as here:
        assert texts_of(f"{here}/a.jsonl") == TEXTS


def test_a_package_is_named_as_it_is_installed(monkeypatch):
    import sys

    for scheme, module, package in [
        ("gs", "gcsfs", "gcsfs"),
        ("smb", "smbclient", "smbprotocol"),
        ("sftp", "paramiko", "paramiko"),
        ("libarchive", "libarchive", "libarchive-c"),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=f"^{scheme}:// needs {package}: pip install {package}$"):
            find_inputs(f"{scheme}://bucket/rows.jsonl")


def test_what_is_missing_is_named_with_its_install_line(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtraError, match=r"s3:// needs s3fs: pip install s3fs"):
        find_inputs("s3://bucket/rows.jsonl")
    with pytest.raises(ConfigError, match="Protocol not known"):
        find_inputs("nosuch://bucket/rows.jsonl")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r'memory:// needs fsspec: pip install "bge-integrations\[urls\]"'):
        find_inputs("memory://rows.jsonl")


def test_a_url_of_no_known_kind_is_refused():
    with pytest.raises(ConfigError, match="unsupported file type"):
        find_inputs("https://host.example/picture.png?x=.jsonl")
