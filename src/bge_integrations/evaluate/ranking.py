"""One run: passages embedded block by block, searched exactly, reranked; its price, and the time of one question."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from zlib import crc32

import numpy as np

from ..bulk.hybrid import Best, Hybrid
from ..bulk.part import Part, SparseRows
from ..bulk.search import nearest
from ..bulk.splitting import find_counter
from ..catalog.records import Role
from ..core.encoder import Encoder, Outputs, Vectors
from ..core.reranker import Pair, Reranker
from ..core.usage import Usage
from .data import Judged
from .runs import Run
from .stages import Stages, encode, score

__all__ = ["OnProgress", "Progress", "Ranking", "rank"]

_BLOCK = 8192  # passages that are embedded and held at a time
_PIECE = 2048  # of these, compared at a time
_PAIRS = 512
_TIMED, _FEWEST, _TIMED_SECONDS = 20, 3, 10.0
_SAMPLE = 1000


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        run: its name.
        stage: what is being done: ``"questions"``, ``"passages"``, ``"pairs"``.
        done: how many are finished.
        total: how many there are.
        usd: price of the tokens so far, if a provider states one.
    """

    run: str
    stage: str
    done: int
    total: int
    usd: float | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Ranking:
    """What a run found, and what it costs.

    Attributes:
        found: for each question ids of passages, best first.
        truncated: passages, or pairs of question and passage, that were longer than a model reads.
        usd_corpus: price of embedding the passages once; None on this machine, or where it is not known.
        usd_per_1000_questions: price of embedding questions and of reranking their candidates; likewise.
        milliseconds: median time of a single question, from this machine: embedding and reranking, without the
            search, which is a store's.
        timed: how many questions were timed.
    """

    found: list[list[str]]
    truncated: int
    usd_corpus: float | None
    usd_per_1000_questions: float | None
    milliseconds: float
    timed: int


def rank(stages: Stages, judged: Judged, top: int, on_progress: OnProgress | None) -> Ranking:
    """Search the passages for all questions.

    Raises:
        BGEError: a model or a host fails; what was embedded is in the cache.
    """
    return _Work(stages, judged, top, on_progress).ranking()


class _Work:
    """A run over a corpus."""

    def __init__(self, stages: Stages, judged: Judged, top: int, on_progress: OnProgress | None) -> None:
        self.stages, self.run, self.judged, self.top = stages, stages.run, judged, top
        self.encoder, self.texts = stages.encoder, list(judged.queries.values())
        self._on_progress, self._truncated = on_progress, 0
        self._sample: list[str] = []

    def ranking(self) -> Ranking:
        asked = self._embed(self.texts, "query", self._teller("questions", len(self.texts)))
        before = _counts(self.encoder.usage)
        found = self._rows(self._search(asked))
        corpus_price = self._price(self.encoder, len(self.judged.corpus.ids), self._tokens_of_passages(before))
        passages = self._rerank(found) if self.stages.reranker else {}
        times, tokens = self._time(found, passages)
        ids = self.judged.corpus.ids
        return Ranking(
            found=[[ids[row] for row in rows] for rows in found],
            truncated=self._truncated,
            usd_corpus=corpus_price,
            usd_per_1000_questions=self._price_of_questions(tokens, found),
            milliseconds=1000 * median(times),
            timed=len(times),
        )

    def _teller(self, stage: str, total: int) -> Callable[[int], None]:
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if self._on_progress:
                self._on_progress(Progress(self.run.name, stage, done, total, self._usd()))

        return tell

    def _usd(self) -> float | None:
        spent = [stage.usage.usd for stage in (self.encoder, self.stages.reranker) if stage and stage.usage.usd]
        return sum(spent) if spent else None

    def _embed(self, texts: Sequence[str], role: Role, tell: Callable[[int], None]) -> Outputs:
        outputs, cut = encode(self.encoder, texts, role, self.stages.outputs, tell)
        self._truncated += cut
        return outputs

    # The search

    def _search(self, asked: Outputs) -> Best:
        k = self.top + bool(self.judged.own)
        if self.run.search == "dense":
            assert asked.dense is not None
            return nearest(self._pieces(), asked.dense, k)
        assert asked.sparse is not None
        how = Hybrid(weights=(0.0, 1.0)) if self.run.search == "sparse" else self.run.hybrid
        dense = _dense(asked, self.run, 0, len(self.texts))
        return how.search(self._pieces(), dense, asked.sparse, self.encoder.card.vocabulary, k)

    def _pieces(self) -> Iterator[Part]:
        corpus = self.judged.corpus
        texts, tell = corpus.texts(), self._teller("passages", len(corpus.ids))
        while block := list(islice(texts, _BLOCK)):
            self._sample = self._sample or block[:_SAMPLE]
            outputs = self._embed(block, "document", tell)
            for first in range(0, len(block), _PIECE):
                yield _part(outputs, self.run, first, min(first + _PIECE, len(block)))

    def _rows(self, best: Best) -> list[list[int]]:
        """Return rows of each question's passages, without its own; in sparse search only those with a common word.

        Equal scores, which rank fusion gives often, are ordered by a checksum of the id: by their place in the file,
        right passages that stand first would win.
        """
        ids, words = self.judged.corpus.ids, self.run.search == "sparse"
        found = []
        for key, scores, rows in zip(self.judged.queries, *(each.tolist() for each in best), strict=True):
            own = self.judged.own.get(key)
            taken = [each for each in zip(scores, rows, strict=True) if each[1] != own and (each[0] > 0 or not words)]
            taken.sort(key=lambda each: (-each[0], crc32(ids[each[1]].encode("utf-8", "surrogatepass"))))
            found.append([row for _, row in taken[: self.top]])
        return found

    # The second stage

    def _rerank(self, found: list[list[int]]) -> dict[int, str]:
        """Order the first passages of each question anew, and return their texts."""
        reranker = self.stages.reranker
        assert reranker is not None
        most = self.run.candidates
        passages = self.judged.corpus.selected({row for rows in found for row in rows[:most]})
        pairs = [Pair(text, passages[row]) for text, rows in zip(self.texts, found, strict=True) for row in rows[:most]]
        tell, scores = self._teller("pairs", len(pairs)), [np.empty(0, np.float32)]
        for first in range(0, len(pairs), _PAIRS):
            part, cut = score(reranker, pairs[first : first + _PAIRS])
            scores.append(part)
            self._truncated += cut
            tell(len(part))
        every, place = np.concatenate(scores), 0
        for rows in found:
            count = len(rows[:most])
            order = np.argsort(-every[place : place + count], kind="stable").tolist()
            rows[:count] = [rows[i] for i in order]
            place += count
        return passages

    # Time and price

    def _time(self, found: list[list[int]], passages: dict[int, str]) -> tuple[list[float], dict[int, float | None]]:
        """Return seconds of single questions, past the cache, and tokens of a question (0) and of a pair (1)."""
        engine, reranker = self.encoder.engine, self.stages.reranker
        chosen = np.unique(np.linspace(0, len(self.texts) - 1, _TIMED).astype(int)).tolist()
        before, times = _counts(engine.usage), list[float]()
        scored = _counts(reranker.usage) if reranker else (0, 0)
        for number, i in enumerate([chosen[0], *chosen]):
            began = time.perf_counter()
            encode(engine, [self.texts[i]], "query", self.run.outputs)
            if reranker is not None and found[i]:
                rows = found[i][: self.run.candidates]
                score(reranker.engine, [Pair(self.texts[i], passages[row]) for row in rows])
            if number:  # the first one warms up
                times.append(time.perf_counter() - began)
            if len(times) >= _FEWEST and sum(times) > _TIMED_SECONDS:
                break
        tokens = {0: _mean(before, engine.usage), 1: _mean(scored, reranker.usage) if reranker else None}
        return times, tokens

    def _tokens_of_passages(self, before: tuple[int, int]) -> float | None:
        """Return tokens of one passage: as counted while embedding, or, where all came from the cache, of a sample."""
        counted = _mean(before, self.encoder.usage)
        if counted is not None or self.encoder.price is None:
            return counted
        count, most = find_counter(self.encoder), self.encoder.card.max_tokens
        return float(np.mean([min(each, most) for each in count(self._sample)])) if count else None

    def _price(self, stage: Encoder | Reranker, texts: float, tokens: float | None) -> float | None:
        return None if stage.price is None or tokens is None else stage.price * tokens * texts / 1e6

    def _price_of_questions(self, tokens: dict[int, float | None], found: list[list[int]]) -> float | None:
        """Return what 1,000 questions cost at hosts; None where no stage is at one, or a price is not known."""
        pairs = 1000 * float(np.mean([len(rows[: self.run.candidates]) for rows in found]))
        reranker = self.stages.reranker
        parts = [self._price(self.encoder, 1000, tokens[0])] if self.encoder.remote else []
        parts += [self._price(reranker, pairs, tokens[1])] if reranker is not None and reranker.remote else []
        known = [part for part in parts if part is not None]
        return sum(known) if parts and len(known) == len(parts) else None


def _dense(outputs: Outputs, run: Run, first: int, last: int) -> Vectors:
    """Return dense vectors; of no dimensions where a run searches by sparse vectors alone."""
    if run.search == "sparse" or outputs.dense is None:
        return np.zeros((last - first, 0), np.float32)
    return outputs.dense[first:last]


def _part(outputs: Outputs, run: Run, first: int, last: int) -> Part:
    wanted = run.search != "dense" and outputs.sparse is not None
    sparse = SparseRows.of(outputs.sparse[first:last]) if wanted and outputs.sparse is not None else None
    return Part([], [], _dense(outputs, run, first, last), {}, sparse)


def _counts(usage: Usage) -> tuple[int, int]:
    return usage.texts, usage.tokens


def _mean(before: tuple[int, int], usage: Usage) -> float | None:
    """Return tokens per text since ``before``; None where none was embedded, or nobody counted."""
    texts, tokens = usage.texts - before[0], usage.tokens - before[1]
    return tokens / texts if texts and tokens else None
