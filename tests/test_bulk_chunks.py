"""Documents in chunks: what is in them, where it was, and what a folder of them becomes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.bulk import Columns, embed_files, read_shards
from bge_integrations.bulk.chunking import Chunker
from bge_integrations.bulk.folder import shard_files
from bge_integrations.cli import main
from bge_integrations.errors import ConfigError
from encoders import HashEncoder

pytest.importorskip("pyarrow")


def count(texts):
    """Words and marks, with two special tokens, as WordPiece counts."""
    return [2 + len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


class CountingEncoder(HashEncoder):
    def count_tokens(self, texts):
        return count(texts)


GUIDE = """---
title: guide
---

# Guide

Intro.

## Install

```sh
# no heading
pip install bge
```

## Use

### First

One two three four five. Six seven eight nine ten. Eleven twelve thirteen fourteen.

Setext heading
--------------

The end.
"""


def rows_of(folder: Path) -> list[dict]:
    return [
        {"id": key, "text": text, **{name: values[i] for name, values in part.kept.items()}}
        for part in read_shards(folder)
        for i, (key, text) in enumerate(zip(part.ids, part.texts, strict=True))
    ]


def test_markdown_is_split_at_headings_and_a_bare_heading_stays_with_what_follows():
    chunks = Chunker(count, 100)(GUIDE, ".md")
    assert [chunk.heading for chunk in chunks] == [
        None,
        "Guide",
        "Guide > Install",
        "Guide > Use > First",
        "Guide > Setext heading",
    ]
    assert chunks[2].text.startswith("## Install\n\n```sh\n# no heading")
    assert chunks[3].text.startswith("## Use\n\n### First\n\nOne two")
    assert all(GUIDE[chunk.position :].startswith(chunk.text) for chunk in chunks)


def test_restructured_text_has_the_levels_in_which_its_marks_appear():
    text = "Top\n===\n\nwords\n\nPart\n~~~~\n\nmore\n\nOther\n=====\n\nlast\n"
    assert [chunk.heading for chunk in Chunker(count, 50)(text, ".rst")] == ["Top", "Top > Part", "Other"]


def test_code_is_split_at_functions():
    pytest.importorskip("langchain_text_splitters")
    text = "import os\n\n\ndef one():\n    return 1 + 2 + 3\n\n\ndef two():\n    return 4 + 5 + 6\n"
    chunks = Chunker(count, 20)(text, ".py")
    assert [chunk.text.split("\n")[0] for chunk in chunks] == ["import os", "def two():"]
    assert Chunker(count, 14)(text, ".py")[-1].text == "def two():\n    return 4 + 5 + 6"


def test_overlap_repeats_whole_words_of_the_same_section_and_never_too_many():
    text = "# A\n\n" + " ".join(f"w{i}" for i in range(60)) + "\n\n# B\n\nafter\n"
    chunks = Chunker(count, 20, 5)(text, ".md")
    assert all(tokens <= 20 for tokens in count([chunk.text for chunk in chunks]))
    assert chunks[0].text.startswith("# A\n\nw0")
    for before, after in pairwise(chunks[:-1]):
        assert after.text.split()[:5] == before.text.split()[-5:]
    assert chunks[-1].text == "# B\n\nafter"
    chinese = "".join(chr(0x4E00 + i) for i in range(80))
    single = lambda texts: [2 + len(text) for text in texts]  # noqa: E731
    first, second, *_ = Chunker(single, 20, 4)(chinese, ".txt")
    assert second.text[:4] == first.text[-4:]


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.sampled_from("ab .\n#-=`\f字。"), max_size=200),
    st.integers(6, 30),
    st.integers(0, 3),
    st.sampled_from([".md", ".txt", ".rst", ".pdf"]),
)
def test_no_character_is_lost_and_every_chunk_is_where_it_says(text, size, overlap, kind):
    chunks = Chunker(count, size, overlap)(text, kind)
    seen = set()
    for chunk in chunks:
        assert text[chunk.position : chunk.position + len(chunk.text)] == chunk.text
        assert chunk.text.strip()
        seen.update(range(chunk.position, chunk.position + len(chunk.text)))
    assert all(i in seen for i, letter in enumerate(text) if not letter.isspace())
    # A word of too many tokens is split, a single character is not.
    assert all(tokens <= size for tokens in count([chunk.text for chunk in chunks]))


@pytest.fixture
def documents(tmp_path) -> Path:
    folder = tmp_path / "documents"
    (folder / "deep").mkdir(parents=True)
    (folder / "guide.md").write_text(GUIDE)
    (folder / "deep" / "notes.txt").write_text("one two three. " * 30)
    (folder / "deep" / "empty.txt").write_text(" \n")
    (folder / "deep" / "ignored.bin").write_bytes(b"\0")
    return folder


def test_a_folder_of_documents_becomes_chunks_with_path_position_and_heading(documents, tmp_path):
    encoder = CountingEncoder()
    report = embed_files(str(documents), tmp_path / "out", encoder, chunk=40, overlap=4)
    rows = rows_of(tmp_path / "out")
    assert (report.errors, report.cut) == (1, 0)
    notes = str(documents / "deep" / "notes.txt")
    ids = [row["id"] for row in rows if row["path"] == notes]
    assert ids == [f"{notes}#{i}" for i in range(1, len(ids) + 1)]
    assert len(ids) > 3
    for row in rows:
        whole = Path(row["path"]).read_text()
        assert whole[row["position"] :].startswith(row["text"])
        assert count([row["text"]])[0] <= 40
    assert {row["heading"] for row in rows if row["path"] != notes} >= {"Guide > Use > First", None}
    assert sorted(encoder.sent) == sorted(row["text"] for row in rows)


def test_rows_of_tables_are_chunked_too_and_kept_values_keep_their_type(tmp_path):
    lines = [{"key": "a", "text": "word " * 100, "year": 1999}, {"key": "b", "text": "short", "year": None}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = Columns(id="key", keep=("year",))
    embed_files(str(tmp_path / "in.jsonl"), tmp_path / "out", CountingEncoder(), columns=columns, chunk=42)
    rows = rows_of(tmp_path / "out")
    assert [(row["id"], row["year"]) for row in rows] == [("a#1", 1999), ("a#2", 1999), ("a#3", 1999), ("b#1", None)]
    assert [row["position"] for row in rows] == [0, 200, 400, 0]
    embed_files(str(tmp_path / "in.jsonl"), tmp_path / "json", CountingEncoder(), chunk=42, format="jsonl")
    assert [row["id"] for row in rows_of(tmp_path / "json")] == ["0#1", "0#2", "0#3", "1#1"]


def test_what_cannot_be_is_refused(documents, tmp_path):
    out = tmp_path / "out"
    for options, said in [
        ({"chunk": 513}, "reads 512 tokens"),
        ({"chunk": 10, "overlap": 10}, "no room for text"),
        ({"overlap": 10}, "--chunk"),
    ]:
        with pytest.raises(ConfigError, match=said):
            embed_files(str(documents), out, CountingEncoder(), **options)
    with pytest.raises(ConfigError, match="no tokenizer"):
        embed_files(str(documents), out, HashEncoder(), chunk=100)
    (tmp_path / "a.html").write_text("<p>x")
    with pytest.raises(ConfigError, match="--chunk 400"):
        embed_files(str(tmp_path / "a.html"), out, CountingEncoder())
    assert not out.exists()
    embed_files(str(documents), out, CountingEncoder(), chunk=40)
    with pytest.raises(ConfigError, match="chunk: 40 there, 41 now"):
        embed_files(str(documents), out, CountingEncoder(), chunk=41)


# HTML and PDF


def test_html_keeps_its_headings_and_loses_its_menu(tmp_path):
    pytest.importorskip("markdownify")
    page = "<meta charset=latin-1><nav>menu</nav><h1>Caf\xe9 <b>one</b></h1><p>First.</p><h2>Sub</h2><script>x</script>"
    (tmp_path / "a.html").write_bytes((page + "<ul><li>item</ul>").encode("latin-1"))
    embed_files(str(tmp_path / "a.html"), tmp_path / "out", CountingEncoder(), chunk=100)
    rows = rows_of(tmp_path / "out")
    assert [row["heading"] for row in rows] == ["Café one", "Café one > Sub"]
    assert rows[1]["text"] == "## Sub\n\n* item"


def make_pdf(pages: list[str]) -> bytes:
    streams = [f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() for text in pages]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, stream in enumerate(streams):
        resources = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 612 792]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {5 + 2 * i} 0 R >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    body, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end


def test_pdf_has_pages_and_one_that_cannot_be_read_is_a_bad_row(tmp_path):
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(make_pdf(["First page.", "Second page."]))
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 not really")
    (tmp_path / "c.pdf").write_bytes(make_pdf([""]))
    report = embed_files(str(tmp_path), tmp_path / "out", CountingEncoder(), chunk=100)
    assert report.errors == 2
    assert [(row["text"], row["page"]) for row in rows_of(tmp_path / "out")] == [
        ("First page.", 1),
        ("Second page.", 2),
    ]
    bad = [json.loads(line) for line in (tmp_path / "out" / ".errors.jsonl").read_text().splitlines()]
    assert "cannot be read as PDF" in bad[0]["reason"]
    assert "OCR" in bad[1]["reason"]


# The command, a kill, and other readers of the folder


@pytest.mark.slow
def test_the_command_chunks_is_killed_and_resumed(documents, tmp_path, capsys):
    command = ["embed", str(documents), "--model", "demo", "--chunk", "30", "--overlap", "5", "--shard-rows", "3"]
    code = (
        "import os, signal, sys\nfrom bge_integrations.bulk import manifest\nreal = manifest.Manifest.finish\n"
        "def finish(self, *args):\n    real(self, *args)\n"
        "    len(self.shards) == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "manifest.Manifest.finish = finish\nfrom bge_integrations.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, *command, "-o", tmp_path / "out"], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "(2 were already there)" in told
    assert re.search(r"truncated +0\n", told)
    assert main([*command, "-o", str(tmp_path / "whole")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def read_by(package: str, folder: Path) -> int:
    module = pytest.importorskip(package)
    if package == "pandas":
        return len(module.read_parquet(folder))
    if package == "pyarrow":
        from pyarrow import dataset, parquet

        assert dataset.dataset(folder).count_rows() == parquet.read_table(folder).num_rows
        return parquet.read_table(folder).num_rows
    if package == "polars":
        return module.read_parquet(folder / "*.parquet").height
    if package == "duckdb":
        return len(module.sql(f"SELECT * FROM '{folder}/*.parquet'").fetchall())
    cache = str(folder.with_name("cache"))
    found = module.load_dataset("parquet", data_dir=str(folder), cache_dir=cache)["train"].num_rows
    assert module.load_dataset(str(folder), cache_dir=cache)["train"].num_rows == found
    return found


@pytest.mark.parametrize("package", ["pandas", "pyarrow", "polars", "duckdb", "datasets"])
def test_other_packages_read_the_folder_as_one_table(package, documents, tmp_path):
    report = embed_files(str(documents), tmp_path / "out", CountingEncoder(), chunk=40, shard_rows=5)
    assert report.shards > 1
    assert read_by(package, tmp_path / "out") == report.rows - report.errors


def test_a_folder_with_side_files_under_their_old_names_is_read_and_resumed(documents, tmp_path):
    out = tmp_path / "out"
    embed_files(str(documents), out, CountingEncoder(), chunk=40, shard_rows=5)
    lines = (out / ".manifest.jsonl").read_bytes().splitlines(keepends=True)
    (out / "manifest.jsonl").write_bytes(b"".join(lines[:2]))
    (out / ".errors.jsonl").rename(out / "errors.jsonl")
    (out / ".manifest.jsonl").unlink()
    assert len(shard_files(out)) == 1
    assert embed_files(str(documents), out, CountingEncoder(), chunk=40, shard_rows=5).resumed == 1
    assert (out / "manifest.jsonl").read_bytes() == b"".join(lines)
    assert not list(out.glob(".*"))
