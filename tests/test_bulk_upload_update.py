"""A real store brought to the state of a folder: what is written, what is deleted, and what is not ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from bge_integrations.bulk import Columns, embed_files
from bge_integrations.bulk.upload import upload_files
from bge_integrations.cli import main
from bge_integrations.errors import BGEWarning, ConfigError, HostUnavailableError, SpaceMismatchError
from bge_integrations.langchain import BGEEmbeddings
from encoders import HashEncoder
from test_bulk_load import STORES, close, open_langchain, place_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
OLD = {f"k{i}": f"text {i}" for i in range(25)}
NEW = {**{name: text for name, text in OLD.items() if name not in ("k3", "k14")}, "k12": "another", "it's": "new"}
TAGS = {"k7": "changed"}


@pytest.fixture(params=STORES)
def place(request, tmp_path):
    return place_of(request, request.param, tmp_path)


def embed(folder: Path, texts: dict[str, str], encoder=None, tags: dict[str, str] | None = None) -> Path:
    rows = [{"id": name, "text": text, "tag": (tags or {}).get(name, "none")} for name, text in texts.items()]
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(id="id", keep=("tag",))
    embed_files(str(source), folder, encoder or HashEncoder(), columns=columns, shard_rows=10, update=True)
    return folder


def rows_of(place) -> dict[str, tuple[str, str | None]]:
    """Return text and tag by id of all that LangChain finds in the store."""
    if place.into == "chroma":  # its graph of neighbours loses rows when many were deleted, though it holds them
        return held_by_chroma(place)
    store = open_langchain(place, BGEEmbeddings(encoder=HashEncoder()))
    try:
        found = store.similarity_search("q", k=99)
    finally:
        close(store)
    rows = {each.metadata.get("id", each.page_content): (each.page_content, each.metadata.get("tag")) for each in found}
    assert len(rows) == len(found)
    return rows


def held_by_chroma(place) -> dict[str, tuple[str, str | None]]:
    import chromadb

    found = chromadb.PersistentClient(str(place.where["path"])).get_collection(place.name).get()
    return {
        (about or {}).get("id", key): (text, (about or {}).get("tag"))
        for key, text, about in zip(found["ids"], found["documents"], found["metadatas"], strict=True)
    }


def expected(texts: dict[str, str], tags: dict[str, str] | None = None) -> dict[str, tuple[str, str | None]]:
    return {name: (text, (tags or {}).get(name, "none")) for name, text in texts.items()}


REPEATED = [
    [("a", "one"), ("b", "two"), ("a", "three"), ("c", "four")],
    [("a", "changed"), ("b", "two"), ("a", "three"), ("c", "four")],  # the first of a repeated id
    [("a", "three"), ("b", "five"), ("c", "four"), ("a", "changed"), ("c", "four")],  # in another order
    [("c", "six"), ("a", "changed"), ("a", "three"), ("c", "four")],
]


def test_of_repeated_ids_an_updated_folder_and_a_fresh_one_leave_the_same_row(place, tmp_path):
    columns = Columns(id="id")
    for rows in REPEATED:
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows))
        embed_files(str(source), tmp_path / "out", HashEncoder(), columns=columns, shard_rows=2, update=True)
        upload_files(tmp_path / "out", place.into, **place.where, update=True)
        assert {name: text for name, (text, _) in rows_of(place).items()} == dict(rows)


def test_what_is_new_is_written_what_is_gone_deleted_and_the_rest_left(place, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    assert upload_files(folder, place.into, **place.where).rows == 25
    embed(folder, NEW, tags=TAGS)
    seen: list[int] = []
    done = upload_files(folder, place.into, **place.where, update=True, on_batch=seen.append)
    assert (done.rows, done.deleted, done.unchanged, done.stayed, done.total) == (3, 2, 21, 0, 24)
    assert seen[-1] == 3
    assert rows_of(place) == expected(NEW, TAGS)
    again = upload_files(folder, place.into, **place.where, update=True)
    assert (again.rows, again.deleted, again.unchanged, again.total) == (0, 0, 24, 24)
    embed(folder, OLD)
    upload_files(folder, place.into, **place.where, update=True)
    assert rows_of(place) == expected(OLD)


def test_a_new_store_gets_everything_and_one_that_lost_rows_gets_these(place, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    assert upload_files(folder, place.into, **place.where, update=True).rows == 25
    store = open_langchain(place, BGEEmbeddings(encoder=HashEncoder()))
    gone = "k5" if place.into != "qdrant" else point("k5")
    if place.into == "lancedb":
        store.get_table().delete("id = 'k5'")
    else:
        store.delete([gone])
    if place.into == "faiss":
        store.save_local(str(place.where["path"]), place.name)
    close(store)
    assert "k5" not in rows_of(place)
    done = upload_files(folder, place.into, **place.where, update=True)
    assert (done.rows, done.unchanged) == (1, 24)
    assert rows_of(place) == expected(OLD)


def point(name: str):
    from bge_integrations.bulk.upload.qdrant import point_id

    return point_id(name)


def overwrite(place, name: str, text: str) -> None:
    """Write a row as another program does: through LangChain, or for FAISS into its files."""
    key = point(name) if place.into == "qdrant" else name
    store = open_langchain(place, BGEEmbeddings(encoder=HashEncoder()))
    if place.into == "lancedb":
        store.get_table().update(where=f"id = '{name}'", values={"text": text})
        if not store.get_table().count_rows(f"id = '{name}'"):
            row = store.get_table().search().limit(1).to_arrow().to_pylist()[0]
            row["metadata"]["id"] = name
            store.get_table().add([{**row, "id": name, "text": text}])
    else:
        if place.into == "faiss" and key in store.index_to_docstore_id.values():
            store.delete([key])
        store.add_texts([text], [{"id": name, "tag": "none"}], ids=[key])
    if place.into == "faiss":
        store.save_local(str(place.where["path"]), place.name)
    close(store)


def test_rows_of_other_programs_stay(place, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    upload_files(folder, place.into, **place.where)
    overwrite(place, "theirs", "a row of another program")
    overwrite(place, "k3", "another program took this id")
    overwrite(place, "k5", "this one as well")
    embed(folder, NEW)
    done = upload_files(folder, place.into, **place.where, update=True)
    assert (done.deleted, done.stayed) == (1, 1)
    found = {name: text for name, (text, _) in rows_of(place).items()}
    assert found == {**NEW, "theirs": "a row of another program", "k3": "another program took this id"}
    assert upload_files(folder, place.into, **place.where, update=True).stayed == 0
    assert "k3" in rows_of(place)


def test_a_second_folder_in_the_same_store_keeps_its_rows(place, tmp_path):
    one, two = embed(tmp_path / "one", OLD), embed(tmp_path / "two", {"x": "of two", "y": "of two as well"})
    upload_files(one, place.into, **place.where)
    upload_files(two, place.into, **place.where)
    embed(one, NEW)
    embed(two, {"y": "of two as well"})
    upload_files(one, place.into, **place.where, update=True)
    upload_files(two, place.into, **place.where, update=True)
    assert {name: text for name, (text, _) in rows_of(place).items()} == {**NEW, "y": "of two as well"}


def test_another_space_is_refused_and_nothing_is_deleted(place, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    upload_files(folder, place.into, **place.where)
    other = embed(tmp_path / "other", NEW, HashEncoder(variant="int8"))
    (other / ".uploads").mkdir()
    for record in (folder / ".uploads").iterdir():
        (other / ".uploads" / record.name).write_bytes(record.read_bytes())
    with pytest.raises(SpaceMismatchError):
        upload_files(other, place.into, **place.where, update=True)
    assert rows_of(place) == expected(OLD)


# For each upload that it is told, imports the store's client once and forks a child that is killed at that moment.
KILLER = textwrap.dedent("""
    import json, os, signal, sys
    from importlib import import_module
    import orjson, pyarrow.parquet
    pyarrow.array(["imports more"])
    from bge_integrations.bulk.upload import _MODULES, upload_files
    from bge_integrations.bulk.upload.record import UploadRecord
    from killing import die_at

    LATER = {  # what else the client imports when it opens a store
        "qdrant": "portalocker", "chroma": "chromadb.api.rust", "faiss": "langchain_community.docstore.in_memory"
    }

    for line in sys.stdin:
        (folder, into, module, where), (name, moment, when) = json.loads(line)
        target = import_module("bge_integrations.bulk.upload." + _MODULES[into])._Target
        import_module(module)
        import_module(LATER.get(into, module))
        child = os.fork()
        if not child:
            die_at(target if hasattr(target, name) else UploadRecord, name, moment, after=when == "after")
            upload_files(folder, into, update=True, **where)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")
MOMENTS = [
    ("put", 1, "before"),
    ("put", 1, "after"),
    ("confirm", 1, "after"),
    ("delete", 1, "before"),
    ("delete", 1, "after"),
    ("forget_gone", 1, "before"),
]


@pytest.fixture(scope="module")
def killed_upload():
    """What uploads a folder in a process that is killed at a moment, and returns how that process ended."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", KILLER], env=environment, text=True, **pipes) as process:

        def kill(folder: Path, place, moment: tuple[str, int, str]) -> int:
            where = {name: str(value) for name, value in place.where.items()}
            job = [str(folder), place.into, STORES[place.into], where]
            print(json.dumps([job, moment]), file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield kill


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
@pytest.mark.timeout(300)
def test_killed_at_any_moment_and_run_again_it_ends_the_same(place, killed_upload, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    upload_files(folder, place.into, **place.where)
    states = [(NEW, TAGS), (OLD, {})]
    for turn, moment in enumerate(MOMENTS):
        texts, tags = states[turn % 2]
        embed(folder, texts, tags=tags)
        assert killed_upload(folder, place, moment) == -signal.SIGKILL, moment
        assert set(rows_of(place)) >= NEW.keys() & OLD.keys()  # nothing of both states is missing meanwhile
        upload_files(folder, place.into, **place.where, update=True)
        assert rows_of(place) == expected(texts, tags), moment
        done = upload_files(folder, place.into, **place.where, update=True)
        assert (done.rows, done.deleted) == (0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_what_a_killed_upload_wrote_is_deleted_where_the_shards_have_lost_it_since(place, killed_upload, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    upload_files(folder, place.into, **place.where)
    embed(folder, NEW)
    assert killed_upload(folder, place, ("put", 1, "after")) == -signal.SIGKILL
    embed(folder, OLD)
    upload_files(folder, place.into, **place.where, update=True)
    assert rows_of(place) == expected(OLD)


# Without a store of its own kind: the record


@pytest.fixture
def chroma(tmp_path):
    pytest.importorskip("chromadb")
    return {"into": "chroma", "path": tmp_path / "store", "collection": "loaded"}


def test_a_folder_whose_job_is_not_finished_is_refused(chroma, tmp_path):
    def fail(_, texts):
        if "text 22" in texts:
            raise HostUnavailableError("gone")

    with pytest.raises(HostUnavailableError):
        embed(tmp_path / "out", OLD, HashEncoder(before_batch=fail))
    with pytest.raises(ConfigError, match="is not finished"):
        upload_files(tmp_path / "out", **chroma, update=True)


def test_an_id_that_comes_twice_is_written_once(chroma, tmp_path):
    source, folder = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_text("".join(f'{{"id": "{i % 3}", "text": "text {i}"}}\n' for i in range(9)))
    embed_files(str(source), folder, HashEncoder(), columns=Columns(id="id"), shard_rows=4)
    done = upload_files(folder, **chroma, update=True)
    assert (done.rows, done.total) == (3, 3)
    assert upload_files(folder, **chroma, update=True).rows == 0


def test_a_record_that_cannot_be_kept_is_told_and_an_update_without_one_refused(chroma, tmp_path):
    folder = embed(tmp_path / "out", OLD)
    (folder / ".uploads").write_text("mine")
    with pytest.warns(BGEWarning, match="no record of the upload"):
        assert upload_files(folder, **chroma).total == 25
    with pytest.raises(ConfigError, match="no record of the upload"):
        upload_files(folder, **chroma, update=True)
    assert (folder / ".uploads").read_text() == "mine"


def test_two_uploads_into_one_store_are_refused(chroma, tmp_path):
    folder = embed(tmp_path / "out", OLD)

    def again(_):
        upload_files(folder, **chroma, update=True)

    with pytest.raises(ConfigError, match="another upload of"):
        upload_files(folder, **chroma, on_batch=again)


def test_the_record_is_no_data_and_holds_no_password(chroma, tmp_path):
    import pyarrow.parquet as parquet

    from bge_integrations.bulk.upload.record import _address
    from bge_integrations.bulk.upload.target import Place

    folder = embed(tmp_path / "out", OLD)
    upload_files(folder, **chroma)
    assert parquet.read_table(folder).num_rows == 25
    place = Place("c", 1, folder, url="postgresql://somebody:hunter2@host:5432/base?host=/tmp&password=hunter2")
    assert "hunter2" not in _address(place)
    assert "somebody" not in _address(place)


def test_the_command_tells_what_it_did(chroma, tmp_path, capsys):
    folder = embed(tmp_path / "out", OLD)
    command = ["upload", str(folder), "--into", "chroma", "--path", str(chroma["path"]), "--collection", "loaded"]
    assert main(command) == 0
    embed(folder, NEW)
    capsys.readouterr()
    assert main([*command, "--update"]) == 0
    assert "2 rows written, 2 deleted, 22 unchanged, 24 in 'loaded'" in capsys.readouterr().out
