"""bge-m3 as a second stage: candidates are scored by their token vectors, without a reranker."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import fields, replace
from math import isfinite
from typing import Any

import numpy as np

from ..catalog.records import ModelCard, OutputName, RerankerCard
from ..core.batches import Batch, Placed, Stream
from ..core.encoder import Encoder
from ..core.outputs import Output, Rows, Vectors
from ..core.reranker import Pair, Reranker, Scores
from ..core.token_outputs import max_sim, output_of, sparse_score
from ..errors import BadAnswerError, BGEError, ConfigError, InputError

__all__ = ["MultivectorReranker"]

_PARTS: tuple[OutputName, ...] = ("dense", "sparse", "multivector")


class MultivectorReranker(Reranker):
    """Scores by bge-m3's own vectors: MaxSim, or the weighted mean of dense, sparse and multivector scores.

    Scores are similarities (bge-m3's card prints 0.45 to 0.79 for related and unrelated texts), so that no sigmoid is
    made of them. Each passage is embedded once a call, and its vectors are let go when it is scored.

    Args:
        encoder: of a model that gives what the weights ask for.
        weights: of dense, sparse and multivector score; ``(0.4, 0.2, 0.4)`` are those of the model's card. Only the
            multivector score when None.

    Raises:
        ConfigError: the encoder gives no such output, or the weights are no three numbers of at least 0.
    """

    logits = False

    def __init__(self, encoder: Encoder, *, weights: Sequence[float] | None = None) -> None:
        self.encoder = encoder
        self.weights = _checked((0.0, 0.0, 1.0) if weights is None else weights)
        names = [name for name, weight in zip(_PARTS, self.weights, strict=True) if weight]
        encoder.output_for(names)
        self._vectors = output_of(encoder.card, [*names, "multivector"])  # never dense alone: rows have named fields
        self.card = RerankerCard(**{field.name: getattr(encoder.card, field.name) for field in fields(ModelCard)})
        self.usage, self.blank, self.truncate = encoder.usage, encoder.blank, encoder.truncate
        self.remote, self.base_url, self.price = encoder.remote, encoder.base_url, encoder.price
        self.max_concurrency = encoder.max_concurrency
        shown = "" if weights is None else ":".join(f"{weight:g}" for weight in self.weights)
        self.variant = "/".join(filter(None, [encoder.variant, "multivector", encoder.card.heads, shown]))

    @property
    def key(self) -> str | None:
        """The host's key, or None."""
        return self.encoder.key

    def describe(self) -> dict[str, Any]:
        """Return how the encoder works, and the weights, as plain data without secrets."""
        return {**self.encoder.describe(), "space": self.space, "weights": list(self.weights)}

    def batches(self, pairs: list[Pair], stream: Stream) -> None:
        """Begin to embed the queries, and after them the passages, whose scores go into ``stream``."""
        queries = list(dict.fromkeys(pair.query for pair in pairs))
        places: dict[str, list[int]] = {}
        for position, pair in enumerate(pairs):
            places.setdefault(pair.passage, []).append(position)
        context = copy_context()  # a callback runs on the engine's thread, without the caller's context variables

        def embedded(answer: Future[Rows]) -> None:
            try:
                rows = dict(zip(queries, answer.result(), strict=True))
                asked = [[rows[pairs[position].query] for position in where] for where in places.values()]
                scored = _Scored(self, stream, self._vectors, asked, list(places.values()))
                context.run(self.encoder.batches, list(places), "document", scored)
            except BaseException as error:  # noqa: BLE001 - belongs to the call, which waits
                # The positions of queries are none of the caller's passages.
                stream.fail(error.at([[] for _ in queries]) if isinstance(error, BGEError) else error)

        answer = self.encoder.submit_rows(queries, role="query", output=self._vectors)
        stream.on_cancel(answer.cancel)
        answer.add_done_callback(embedded)

    def score_stored(self, query: str, vectors: Sequence[Vectors]) -> Scores:
        """Score passages whose token vectors are at hand, such as in a store; only the query is embedded.

        Args:
            query: the question.
            vectors: for each passage shape (vectors, dimensions), as this model's ``multivector`` output gave them.

        Returns:
            float32, shape (n,): MaxSim of each, in the order of ``vectors``; weights are not used.

        Raises:
            InputError: the query is blank, or vectors of a passage have another shape.
            HostError: the host failed.
        """
        output = self.encoder.output_for(["multivector"])
        asked = self.encoder.encode_outputs([query], role="query", outputs=["multivector"]).multivector
        assert asked is not None
        try:
            passages = output.check({"multivector": list(vectors)}, len(vectors))["multivector"]
        except BadAnswerError as error:
            raise InputError(error.message, positions=error.positions) from None
        return np.array([max_sim(asked[0], passage) for passage in passages], np.float32)

    def similarity(self, query: Any, passage: Any) -> float:
        """Return the score of two rows."""
        scores = {
            "dense": lambda: float(query["dense"] @ passage["dense"]),
            "sparse": lambda: sparse_score(query["sparse"], passage["sparse"]),
            "multivector": lambda: max_sim(query["multivector"], passage["multivector"]),
        }
        parts = [weight * scores[name]() for name, weight in zip(_PARTS, self.weights, strict=True) if weight]
        return sum(parts) / sum(self.weights)

    def close(self) -> None:
        """Close the encoder."""
        self.encoder.close()

    def __repr__(self) -> str:
        return f"MultivectorReranker({self.encoder!r}, weights={self.weights})"


class _Scored(Placed):
    """Takes vectors of passages and passes on their scores."""

    def __init__(
        self,
        reranker: MultivectorReranker,
        outer: Stream,
        output: Output,
        queries: list[list[Rows]],
        places: list[list[int]],
    ) -> None:
        super().__init__(outer, places)
        self.output = output
        self._reranker, self._queries = reranker, queries

    def put(self, batch: Batch) -> None:
        """Score passages for each of their queries."""
        scores: list[float] = []
        for i, row in zip(batch.positions, batch.rows, strict=True):
            scores += [self._reranker.similarity(query, row) for query in self._queries[i]]
        self.outer.put(replace(batch.at(self._places), rows=np.array(scores, np.float32)))


def _checked(weights: Sequence[float]) -> tuple[float, ...]:
    numbers = isinstance(weights, Sequence) and all(
        isinstance(weight, (int, float)) and not isinstance(weight, bool) and isfinite(weight) and weight >= 0
        for weight in weights
    )
    if not numbers or isinstance(weights, str) or len(weights) != len(_PARTS) or not sum(weights):
        raise ConfigError(
            f"weights must be three numbers of at least 0, for dense, sparse and multivector, not {weights!r}"
        )
    return tuple(map(float, weights))
