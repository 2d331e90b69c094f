"""The fixed set of texts that encoders are compared on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..catalog.records import Role

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Probe:
    """A text in a role.

    Attributes:
        kind: what the text is meant to reveal.
    """

    kind: str
    role: Role
    text: str


_DOCUMENTS = (
    ("short", "a"),
    ("short", "hello world"),
    ("short", "Laura is a DJ."),
    ("short", "The mitochondrion is the powerhouse of the cell."),
    ("short", "42"),
    ("short", "2026-03-14T15:09:26Z"),
    ("sentence", "Paris is the capital of France."),
    ("sentence", "The population of China is over 1.4 billion people."),
    ("sentence", "BM25 ranks documents by the query terms that appear in each of them."),
    ("sentence", "She sold the boat, kept the oars, and never once went back to the lake."),
    ("code", "def add(a: int, b: int) -> int:\n    return a + b"),
    ("code", '{"id": 7, "tags": ["x", "y"], "ok": null}'),
    ("code", "https://example.org/a/b?c=d&e=%20f#g"),
    ("cased", "APPLE reported that an apple fell on Apple."),
    ("cased", "iPhone McDonald's NASA eBay"),
    ("unicode", "naïve café, Ångström and Übermut"),
    ("unicode", "为这个句子生成表示以用于检索相关文章"),
    ("unicode", "東京は日本の首都です。"),
    ("unicode", "Москва — столица России"),
    ("unicode", "مرحبا بالعالم"),
    ("unicode", "👩‍🚀 on the 🌕, ½ of ﬁve ²"),
    ("unicode", "e\u0301 composed otherwise, zero\u200bwidth and nbsp\u00a0here"),
    ("blank-ish", "."),
    ("blank-ish", "   leading and trailing   "),
    ("blank-ish", "tabs\tand\n\nblank lines\r\nof two kinds"),
    ("blank-ish", "\n- first\n- second\n"),
    ("blank-ish", "?!"),
)

_QUERIES = (
    ("short", "a"),
    ("short", "hello world"),
    ("sentence", "What is the capital of France?"),
    ("sentence", "What is the population of China?"),
    ("sentence", "how do I reset my password"),
    ("sentence", "Defination of BM25"),
    ("cased", "WHO leads the WHO"),
    ("unicode", "café à Zürich"),
    ("unicode", "中国的首都是哪里"),
    ("blank-ish", "line one\nline two"),
    ("blank-ish", "  spaced query  "),
)

# Words that every vocabulary of the catalogue holds whole, so that their number is near that of their tokens.
_WORDS = ("time", "people", "water", "city", "light", "work", "night", "story", "field", "group", "music", "north")
# A long text costs the square of its length; this shows every limit of the BERT models and the common wrong ones.
LONGEST = 512


def make_probes(max_tokens: int, count: CountTokens | None = None) -> list[Probe]:
    """Return about 40 probes: documents, queries, and texts that fill what the model reads.

    Args:
        max_tokens: what the model reads, special tokens included.
        count: counts tokens as the model does; without it long texts are made by words, to three quarters of the limit.
    """
    limit = min(max_tokens, LONGEST)
    documents = [Probe(kind, "document", text) for kind, text in _DOCUMENTS]
    queries = [Probe(kind, "query", text) for kind, text in _QUERIES]
    long = [Probe("long", "document", long_text(limit - spare, start, count)) for start, spare in ((0, 0), (5, 60))]
    return [*documents, *queries, *long, Probe("long", "query", long_text(limit - 100, 9, count))]


def long_text(tokens: int, start: int = 0, count: CountTokens | None = None) -> str:
    """Return a text of nearly ``tokens`` tokens, special tokens included."""
    words = max(int(tokens * 0.75), 1)
    if count is not None:
        sample = count([_words(words, start)])[0]
        words = max(int(words * tokens / max(sample, 1)) + 2, 1)
        while words > 1 and count([_words(words, start)])[0] > tokens:
            words -= 1
    return _words(words, start)


def _words(number: int, start: int) -> str:
    # The step changes along the text, so that every stretch of it is unlike the others.
    return " ".join(_WORDS[(start + i + i // len(_WORDS) * 5) % len(_WORDS)] for i in range(number))
