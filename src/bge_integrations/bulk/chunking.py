"""Documents in chunks of so many tokens: never over a heading or a page, each with its place in the document."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from ..core.encoder import Encoder
from ..errors import ConfigError
from ..extras import require
from .splitting import ENDS, Count, TextSplitter

__all__ = ["CODE", "PAGE", "Chunk", "Chunker", "chunker_for"]

CODE = {
    **dict.fromkeys((".c", ".h"), "c"),
    **dict.fromkeys((".cc", ".cpp", ".hpp"), "cpp"),
    **dict.fromkeys((".js", ".jsx", ".mjs"), "js"),
    **dict.fromkeys((".ts", ".tsx"), "ts"),
    ".cs": "csharp",
    ".ex": "elixir",
    ".go": "go",
    ".hs": "haskell",
    ".java": "java",
    ".kt": "kotlin",
    ".lua": "lua",
    ".php": "php",
    ".proto": "proto",
    ".py": "python",
    ".rb": "ruby",
    ".rs": "rust",
    ".scala": "scala",
    ".sol": "sol",
    ".swift": "swift",
    ".tex": "latex",
}
"""Endings of code, and what langchain-text-splitters calls the language."""
PAGE = "\f"
"""Stands between two pages, as in the output of pdftotext."""

# Headings of both styles (# and underlined); then what hides a #: fenced code, and a page's YAML at its top.
_MARKDOWN = re.compile(r"(?m)^ {0,3}(#{1,6})[ \t]+(.+?)[ \t#]*$|^(?=\S)(.*)\n(=+|-+)[ \t]*$")
_RST = re.compile(r"(?m)^()()(\S.*)\n(([=\-~^\"'`#*+.:_])\5{2,})[ \t]*$")
_FENCE = re.compile(r"(?ms)^ {0,3}(```+|~~~+).*?(^ {0,3}\1[ \t]*$|\Z)|\A---\n.*?^---[ \t]*$")
# Chinese, Japanese and Korean put no spaces between words: each character is one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]+")


class Chunk(NamedTuple):
    """A part of a document.

    Attributes:
        text: without blank lines around it.
        position: in the document's text, of its first character.
        heading: the headings above it, joined by `` > ``; None where there are none.
        page: number of the page, from 1; None where the document has no pages.
    """

    text: str
    position: int
    heading: str | None = None
    page: int | None = None


class _Section(NamedTuple):
    start: int
    end: int
    heading: str | None


class Chunker:
    """Splits a document at its headings and pages, and what is longer than a chunk as its kind is split.

    Text and Markdown at paragraphs, lines, sentences and words; code first at what langchain-text-splitters splits its
    language at. No character but blank ones is lost.

    Args:
        count: counts tokens, special tokens included.
        size: tokens of a chunk, special tokens and overlap included.
        overlap: tokens that a chunk may repeat of the one before, in whole words.

    Raises:
        ConfigError: the overlap leaves no room.
    """

    def __init__(self, count: Count, size: int, overlap: int = 0) -> None:
        self.count, self.size, self.overlap = count, size, overlap
        self._special = count([""])[0]
        if overlap < 0 or size - overlap <= self._special:
            raise ConfigError(f"chunk={size} with overlap={overlap} has no room for text: overlap must be smaller")

    def __call__(self, text: str, kind: str) -> list[Chunk]:
        """Return the chunks of a document.

        Args:
            text: of the document.
            kind: the ending of its file, such as ``".md"``.
        """
        return [
            Chunk(text[start:end], start, section.heading, text.count(PAGE, 0, start) + 1 if kind == ".pdf" else None)
            for section in _sections(text, kind)
            for start, end in _apart(self._places(text, section, kind))
        ]

    def _places(self, text: str, section: _Section, kind: str) -> Iterator[tuple[int, int]]:
        whole = text[section.start : section.end]
        if self.count([whole])[0] <= self.size:
            parts = [whole]
        else:
            parts = self._joined(TextSplitter(self.count, self.size - self.overlap, _ends(kind))(whole))
        start = section.start
        for part in parts:
            end, blank = start + len(part), re.match(r"(?:[^\S\n]*\n|\f)*", part)
            first = start + (blank.end() if blank else 0)
            last = start + len(part.rstrip())
            if first < last:
                yield self._begin(text, section.start, first, last), last
            start = end

    def _joined(self, parts: list[str]) -> list[str]:
        """Join two neighbours where there is room and one is small, such as a heading or a last line."""
        joined, tokens = list[str](), 0
        for part, more in zip(parts, self.count(parts), strict=True):
            more -= self._special
            room = self.size - self.overlap - self._special - tokens
            if joined and more <= room and min(tokens, more) < self.size // 4:
                joined[-1] += part
                tokens += more
            else:
                joined.append(part)
                tokens = more
        return joined

    def _begin(self, text: str, begin: int, first: int, last: int) -> int:
        """Return where a chunk begins once the words before it that fit into the overlap are added."""
        before = text[max(begin, first - 16 * self.overlap) : first] if self.overlap else ""
        words = [found.span() for found in _WORD.finditer(before)]
        room = self.overlap
        starts = [first]
        counts = self.count([before[start:end] for start, end in words])
        for (start, _), tokens in zip(reversed(words), reversed(counts), strict=True):
            room -= tokens - self._special
            if room < 0:
                break
            starts.append(first - len(before) + start)
        # Words together may have more tokens than alone.
        while len(starts) > 1 and self.count([text[starts[-1] : last]])[0] > self.size:
            starts.pop()
        return starts[-1]


def _apart(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Leave out a chunk that the next one wholly contains, such as a heading that it repeats as its overlap."""
    before: tuple[int, int] | None = None
    for place in places:
        if before and place[0] > before[0]:
            yield before
        before = place
    if before:
        yield before


def chunker_for(encoder: Encoder, size: int | None, overlap: int = 0) -> Chunker | None:
    """Return what splits texts for an encoder, or None where no size is named.

    Raises:
        ConfigError: chunks would be longer than the model reads, or its tokenizer is not on this machine.
    """
    if size is None:
        if overlap:
            raise ConfigError("overlap needs chunks: pass their size, such as --chunk 400 (chunk=400)")
        return None
    if size > encoder.card.max_tokens:
        raise ConfigError(
            f"chunk={size}: {encoder.card.id!r} reads {encoder.card.max_tokens} tokens, the rest would be truncated"
        )
    return Chunker(encoder.count_tokens, size, overlap)


def _sections(text: str, kind: str) -> list[_Section]:
    """Return where a document's sections begin and end; a heading without text belongs to the next section."""
    places = [(0, ""), *_headings(text, kind)]
    sections: list[_Section] = []
    begin: int | None = None
    for (start, heading), (end, _) in pairwise([*places, (len(text), "")]):
        lines = text[start:end].strip().splitlines()
        filled = [line for line in lines if line.strip()]
        bare = bool(heading) and len(filled) == (1 if filled[0].lstrip().startswith("#") else 2)  # or underlined
        begin = start if begin is None else begin
        if bare and end < len(text):
            continue
        if lines:
            sections.append(_Section(begin, end, heading or None))
        begin = None
    return sections


def _headings(text: str, kind: str) -> Iterator[tuple[int, str]]:
    if kind == ".pdf":
        yield from ((found.end(), "") for found in re.finditer(PAGE, text))
    if kind not in (".md", ".rst"):
        return
    fenced = [found.span() for found in _FENCE.finditer(text)] if kind == ".md" else []
    above: list[tuple[int, str]] = []
    marks: dict[str, int] = {}
    for found in (_MARKDOWN if kind == ".md" else _RST).finditer(text):
        if any(start <= found.start() < end for start, end in fenced):
            continue
        if kind == ".rst":
            level = marks.setdefault(found[5], len(marks) + 1)
        else:
            level = len(found[1]) if found[1] else 1 + (found[4][0] == "-")
        above = [(other, name) for other, name in above if other < level]
        above.append((level, re.sub(r"[*`]", "", found[2] or found[3]).strip()))
        yield found.start(), " > ".join(name for _, name in above)


@cache
def _ends(kind: str) -> tuple[re.Pattern[str], ...]:
    if kind not in CODE:
        return ENDS
    splitters = require("langchain_text_splitters", extra="langchain", purpose=f"splitting {kind} files")
    found = splitters.RecursiveCharacterTextSplitter.get_separators_for_language(splitters.Language(CODE[kind]))
    # A part begins with the separator, behind its newline: "\ndef " ends the line before a function.
    own = [re.compile(rf"\n(?={each[1:]})" if each[0] == "\n" else rf"(?={each})") for each in found if each.strip()]
    return (*own, *ENDS)
