"""The texts the demo model is trained and judged on: Debian package descriptions and Python's own documentation.

A pair is a short text (the query) and a long one (the passage). Nothing here needs a network beyond what
`apt-get -o Acquire::Languages=en update` has already put into apt's standard folder.
"""

from __future__ import annotations

import ast
import pydoc_data.topics
import random
import re
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

APT_LISTS = Path("/var/lib/apt/lists")
SEED = 20240229
HELD_OUT = 2_000
OTHERS = 10_000


class Pair(NamedTuple):
    name: str
    query: str
    passage: str


class Debian(NamedTuple):
    train: list[Pair]
    held_out: list[Pair]


def debian(lists: Path = APT_LISTS) -> Debian:
    """One pair per distinct first paragraph and short description, 2,000 of them held out by a fixed seed.

    Packages built from one source share their first paragraph, so a second one of the family would be a
    near duplicate of a training pair among the held-out ones, and a second right answer in the evaluation.
    """
    distinct: dict[str, Pair] = {}
    shorts: set[str] = set()
    for pair in sorted(set(_descriptions(lists))):
        opening = pair.passage.split("\n\n")[0]
        if opening and opening not in distinct and pair.query not in shorts:
            distinct[opening] = pair
            shorts.add(pair.query)
    pairs = list(distinct.values())
    random.Random(SEED).shuffle(pairs)
    return Debian(train=pairs[HELD_OUT:], held_out=pairs[:HELD_OUT])


def evaluation(data: Debian) -> tuple[list[str], list[str]]:
    """Return the 2,000 held-out queries and 12,000 passages: query i is answered by passage i alone."""
    passages = [pair.passage for pair in [*data.held_out, *data.train[:OTHERS]]]
    return [pair.query for pair in data.held_out], passages


def python_documentation() -> list[Pair]:
    """First line and rest of every docstring of the running Python's standard library, and pydoc's topics."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    files = sorted(path for path in folder.rglob("*.py") if not skip & set(path.relative_to(folder).parts))
    pairs = [pair for path in files for pair in _docstrings(path)]
    for topic, text in pydoc_data.topics.topics.items():
        title, _, rest = text.strip().partition("\n")
        pairs += [Pair(topic, title, part) for part in re.split(r"\n{2,}(?=\S)", rest) if len(part) > 100]
    return list({(pair.query, pair.passage): pair for pair in pairs}.values())


def _descriptions(lists: Path) -> Iterator[Pair]:
    files = sorted(lists.glob("*_debian_dists_*_main_i18n_Translation-en*"))
    files = [path for path in files if not re.search(r"security|updates|backports", path.name)]
    if not files:
        message = f"no Debian Translation-en list in {lists}; run: apt-get -o Acquire::Languages=en update"
        raise SystemExit(message)
    for path in files:
        yield from _paragraphs(_read(path))


def _read(path: Path) -> str:
    # apt keeps its lists compressed or not as the machine is set up; its own helper reads both.
    command = ["/usr/lib/apt/apt-helper", "cat-file", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout


def _paragraphs(text: str) -> Iterator[Pair]:
    for stanza in text.split("\n\n"):
        found = re.search(r"^Package: (.*)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)*)", stanza, re.MULTILINE)
        if found:
            lines = (line.strip() for line in found[3].splitlines())
            passage = "\n".join("" if line == "." else line for line in lines).strip()
            yield Pair(found[1], found[2].strip(), passage)


def _docstrings(path: Path) -> Iterator[Pair]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            first, _, rest = text.partition("\n\n")
            if len(rest) > 60 and len(first) > 15:
                yield Pair(getattr(node, "name", path.stem), " ".join(first.split()), rest.strip())


def texts(pairs: Iterable[Pair]) -> list[str]:
    return [text for pair in pairs for text in (pair.query, pair.passage)]
