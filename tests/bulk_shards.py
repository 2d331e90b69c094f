"""Shards of the bundled model over a few texts, for the tests that search and load them."""

from __future__ import annotations

import json
from pathlib import Path

from bge_integrations.bulk import Columns, embed_files

TEXTS = {
    "ls": "ls lists the files in a folder",
    "rm": "rm removes a file for ever",
    "cp": "cp copies a file to another place",
    "grep": "grep finds lines that match a pattern",
    "kill": "kill sends a signal to a process",
    "tar": "tar packs many files into one archive",
    "ssh": "ssh logs in to another machine",
}
QUESTION, ANSWER = "how do I pack many files into one archive?", "tar"


def write_rows(path: Path, texts: dict[str, str] = TEXTS) -> Path:
    """Write a JSONL file of ``key``, ``text``, ``letters`` and ``note``, which is empty in every other row."""
    rows = [
        {"key": key, "text": text, "letters": len(text), "note": f"of {key}" if i % 2 else None}
        for i, (key, text) in enumerate(texts.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_shards(folder: Path, encoder, texts: dict[str, str] = TEXTS, **options) -> Path:
    """Embed the texts into shards of three rows, with ids and kept columns."""
    rows = write_rows(folder.with_suffix(".jsonl"), texts)
    options = {"columns": Columns(id="key", keep=("letters", "note")), "shard_rows": 3, **options}
    embed_files(str(rows), folder, encoder, **options)
    return folder
