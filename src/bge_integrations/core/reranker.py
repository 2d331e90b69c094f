"""The seam of rerankers: pairs of query and passage become batches of logits, and those become scores and ranks.

Engines and wrappers write one method, ``batches``. Inside there are logits alone; a sigmoid is made at the border, so
that order and ties never depend on where float32's sigmoid reaches 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..catalog.records import RerankerCard
from ..catalog.rerank_hosts import Scale
from ..errors import BGEWarning, ConfigError, InputError, InputTypeError, TruncationWarning, shorten, warn
from .batches import OnTruncated, Placed, Stream
from .checks import Blank, Truncate, check_texts
from .collector import Collector, waited_for
from .outputs import Score
from .score_scale import check_scale, order_by_logit, sigmoid
from .usage import Usage

__all__ = ["Pair", "Placed", "Ranked", "Reranker", "Scale", "Scores", "check_top_n"]

Scores: TypeAlias = NDArray[np.float32]
"""float32, shape (n,), in the order of the passages."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a passage that are read together; its length is that of both texts."""

    query: str
    passage: str

    def __len__(self) -> int:
        return len(self.query) + len(self.passage)


class Ranked(NamedTuple):
    """One passage in its rank.

    Attributes:
        position: in the passages that were passed.
        score: as a Python float, 0 to 1.
    """

    position: int
    score: float


class Reranker(ABC):
    """Scores passages for a query.

    Subclasses set ``card`` and ``usage`` and implement ``batches``.

    Attributes:
        card: the model.
        usage: counters of the work done so far; ``texts`` counts pairs.
        blank: ``"error"`` refuses a blank query; blank passages are always scored.
        truncate: ``"warn"`` truncates over-long pairs and warns, ``"error"`` refuses them.
        variant: what distinguishes the scores from the model's own, such as ``"int8"``.
        remote: whether texts go to a host.
        base_url: the host's address, or None.
        price: USD per million tokens, if the provider states it.
        max_concurrency: requests in flight; 1 on this machine.
        longest: tokens of the longest pair so far, if they were counted.
        logits: whether the model's numbers are logits; otherwise they are similarities, returned as they are.
    """

    card: RerankerCard
    usage: Usage
    blank: Blank = "error"
    truncate: Truncate = "warn"
    variant: str = ""
    remote: bool = False
    base_url: str | None = None
    price: float | None = None
    max_concurrency: int = 1
    longest: int = 0
    logits: bool = True
    output = Score()

    @abstractmethod
    def batches(self, pairs: list[Pair], stream: Stream) -> None:
        """Begin to score checked, distinct pairs (at least one) and return at once; logits go into ``stream``.

        Raises:
            BGEError: nothing was begun; the stream has not been touched.
        """

    @property
    def engine(self) -> Reranker:
        """The reranker that computes locally or calls a host, under all wrappers."""
        return self

    @property
    def key(self) -> str | None:
        """The host's key, or None."""
        return None

    @property
    def space(self) -> str:
        """Name of what its scores depend on besides the pair: model, revision, length, variant."""
        revision = (self.card.revision or "unpinned")[:16]
        return "/".join(filter(None, [f"{self.card.id}@{revision}", "score", str(self.card.max_tokens), self.variant]))

    def describe(self) -> dict[str, Any]:
        """Return how the reranker works (engine, backend, device, host), as plain data without secrets."""
        return {"engine": type(self).__name__, "model": self.card.id, "space": self.space}

    def submit(self, pairs: Sequence[Pair], *, on_truncated: OnTruncated | None = None) -> Future[Scores]:
        """Begin to score checked pairs and return a Future of their logits.

        Args:
            pairs: made by this module's own checks, or of texts that are strings.
            on_truncated: called once with the positions of pairs longer than the model reads, instead of a warning.
        """
        return self.begin(list(pairs), on_truncated or partial(_warn_truncated, self.card)).future

    def begin(self, pairs: list[Pair], on_truncated: OnTruncated | None = None) -> Collector:
        """Begin to score checked pairs, equal ones once; ``submit`` with the call's tokens and truncated positions."""
        call = Collector(self, len(pairs), None, on_truncated)
        # Merged results of several retrievers hold the same passage more than once.
        places: dict[Pair, list[int]] = {}
        for position, pair in enumerate(pairs):
            places.setdefault(pair, []).append(position)
        if not pairs:
            call.finish()
        elif len(places) == len(pairs):
            self.batches(pairs, call)
        else:
            self.batches(list(places), Placed(call, list(places.values())))
        return call

    def score(self, query: str, passages: Sequence[str], *, scale: Scale = "sigmoid") -> Scores:
        """Score passages for a query, and wait for the result.

        Args:
            query: the question, without any instruction.
            passages: the texts; blank ones are scored too.
            scale: ``"sigmoid"`` for scores from 0 to 1, ``"logit"`` for the model's own numbers.

        Returns:
            float32, shape (n,), in the order of ``passages``; a pair's score never depends on the others.

        Raises:
            InputError: a text cannot be scored.
            HostError: the host failed; the error says what was finished.
        """
        check_scale(scale)
        return self.scaled(self._logits(self._pairs(query, passages)), scale)

    def score_pairs(self, pairs: Iterable[tuple[str, str]], *, scale: Scale = "sigmoid") -> Scores:
        """Score (query, passage) pairs of any queries; otherwise as ``score``."""
        check_scale(scale)
        return self.scaled(self._logits(_checked_pairs(pairs, self.blank)), scale)

    def rank(self, query: str, passages: Sequence[str], *, top_n: int | None = None) -> list[Ranked]:
        """Return positions and scores (0 to 1), best first; ties keep the order of ``passages``.

        A blank passage is scored like any other, and its score can be high: if it ranks above others, there is a
        warning, unless ``blank="keep"``.

        Args:
            query: the question.
            passages: the texts.
            top_n: how many; all when None.

        Raises:
            ConfigError: ``top_n`` is not a whole number of at least 0.
            InputError: a text cannot be scored.
            HostError: the host failed; the error says what was finished.
        """
        most = check_top_n(top_n)
        pairs = self._pairs(query, passages) if most != 0 else []
        return self._ranked(pairs, self._logits(pairs), most)

    async def ascore(self, query: str, passages: Sequence[str], *, scale: Scale = "sigmoid") -> Scores:
        """Score without blocking the caller's event loop; otherwise as ``score``."""
        check_scale(scale)
        return self.scaled(await self._alogits(self._pairs(query, passages)), scale)

    async def ascore_pairs(self, pairs: Iterable[tuple[str, str]], *, scale: Scale = "sigmoid") -> Scores:
        """Score pairs without blocking the caller's event loop; otherwise as ``score_pairs``."""
        check_scale(scale)
        return self.scaled(await self._alogits(_checked_pairs(pairs, self.blank)), scale)

    async def arank(self, query: str, passages: Sequence[str], *, top_n: int | None = None) -> list[Ranked]:
        """Rank without blocking the caller's event loop; otherwise as ``rank``."""
        most = check_top_n(top_n)
        pairs = self._pairs(query, passages) if most != 0 else []
        return self._ranked(pairs, await self._alogits(pairs), most)

    def scaled(self, numbers: Scores, scale: Scale) -> Scores:
        """Return the model's numbers on a scale; similarities, which are no logits, as they are."""
        return sigmoid(numbers).astype(np.float32) if self.logits and scale == "sigmoid" else numbers

    def _ranked(self, pairs: list[Pair], numbers: Scores, top_n: int | None) -> list[Ranked]:
        # In the order of the logits: from about 17 on, float32's sigmoid is 1 and passages would tie.
        scores, order = self.scaled(numbers, "sigmoid").tolist(), list(order_by_logit(numbers))
        if self.blank == "error":
            _warn_blank(self.card, [pairs[position].passage for position in order], order, top_n)
        return [Ranked(position, scores[position]) for position in order[:top_n]]

    def _pairs(self, query: str, passages: Sequence[str]) -> list[Pair]:
        query = _check_query(query, self.blank)
        # A blank passage stays: without it, the positions of all that follow would be others.
        return [Pair(query, passage) for passage in check_texts(passages, blank="keep")]

    def _logits(self, pairs: list[Pair]) -> Scores:
        with waited_for(self, partial(self.begin, pairs), "query", pairs, "rerank") as call:
            logits: Scores = call.future.result()
        _warn_truncated(self.card, call.truncated)
        _warn_recommended(self.card, self.engine.longest)
        return logits

    async def _alogits(self, pairs: list[Pair]) -> Scores:
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigError("ascore needs asyncio's event loop: under trio, run score in a thread") from None
        with waited_for(self, partial(self.begin, pairs), "query", pairs, "rerank") as call:
            logits: Scores = await asyncio.wrap_future(call.future)
        _warn_truncated(self.card, call.truncated)
        _warn_recommended(self.card, self.engine.longest)
        return logits

    def close(self) -> None:  # noqa: B027 - having nothing to close is the common case
        """Release threads, connections and models; a later call creates them again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _warn_truncated(card: RerankerCard, positions: Sequence[int]) -> None:
    if positions:
        warn(
            f"{len(positions)} passage(s), together with the query, are longer than the {card.max_tokens} "
            f"tokens that {card.id!r} reads (positions {shorten(sorted(positions))}): the rest was "
            "truncated; split them",
            TruncationWarning,
        )


def _warn_blank(card: RerankerCard, passages: list[str], order: list[int], top_n: int | None) -> None:
    """Warn of blank passages that are returned before others: a model scores them like any text."""
    last = max((i for i, passage in enumerate(passages) if passage.strip()), default=0)
    blank = [order[i] for i, passage in enumerate(passages[:last][:top_n]) if not passage.strip()]
    if blank:
        warn(
            f"{len(blank)} blank passage(s) rank above others (positions {shorten(sorted(blank))}), since "
            f"{card.id!r} scores them like any text: leave them out, or pass blank='keep'",
            BGEWarning,
        )


_RECOMMENDED: set[str] = set()  # models whose recommended length was mentioned in this process


def _warn_recommended(card: RerankerCard, longest: int) -> None:
    most = card.recommended_tokens
    if most is not None and longest > most and card.id not in _RECOMMENDED:
        _RECOMMENDED.add(card.id)
        warn(
            f"{card.id!r} reads {card.max_tokens} tokens, but its authors recommend at most {most} for query and "
            "passage together: shorter passages are scored better and faster",
            BGEWarning,
        )


def _check_query(query: str, blank: Blank) -> str:
    if not isinstance(query, str):
        raise InputTypeError(f"the query must be a string, not {type(query).__name__}")
    if blank == "error" and not query.strip():
        raise InputError("the query is blank: nothing can be relevant to it")
    return check_texts([query], blank="keep")[0]


def _checked_pairs(pairs: Iterable[tuple[str, str]], blank: Blank) -> list[Pair]:
    # A string can be iterated over as well, and two of its letters would pass for a pair.
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
        raise InputTypeError(f"pairs must be a list of (query, passage), not {type(pairs).__name__}")
    listed = list(pairs)
    wrong = [i for i, pair in enumerate(listed) if not isinstance(pair, (tuple, list)) or len(pair) != 2]
    if wrong:
        kind = type(listed[wrong[0]]).__name__
        raise InputTypeError(f"pair {wrong[0]} is {kind}, not (query, passage)", positions=wrong)
    queries = check_texts([query for query, _ in listed], blank=blank)
    passages = check_texts([passage for _, passage in listed], blank="keep")
    return [Pair(query, passage) for query, passage in zip(queries, passages, strict=True)]


def check_top_n(top_n: int | None) -> int | None:
    """Refuse a number of results that means nothing.

    Raises:
        ConfigError: it is no whole number, or negative.
    """
    # bool is a kind of int: top_n=True would return one document.
    if top_n is None or (isinstance(top_n, int) and not isinstance(top_n, bool) and top_n >= 0):
        return top_n
    raise ConfigError(f"top_n must be a whole number of at least 0, or None for all, not {top_n!r}")
