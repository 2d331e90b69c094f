"""Compare a host's sparse and multivector output with published values, and name what explains a difference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..catalog.golden import GoldenFile
from ..catalog.output_values import OutputValues, PairScores, SparseValues, VectorValues
from ..catalog.records import OutputName
from ..core.encoder import Encoder
from ..core.token_outputs import Outputs, SparseVector, max_sim, sparse_score
from ..errors import BadAnswerError, ConfigError, HostError, SpaceMismatchError
from ..remote.engine import RemoteEngine
from .report import Finding

__all__ = ["compare_outputs", "known_outputs"]

_MODEL = "BAAI/bge-m3"
# The published values are of float16 and float32; an int8 copy (gpahal/bge-m3-onnx-int8) lies within 0.017 of them.
_SAME, _INT8 = 2e-3, 0.02
_SCORE_SAME = 5e-3


def known_outputs(encoder: Encoder, values: GoldenFile, *, published: bool) -> OutputValues:
    """Return what to compare an encoder's outputs with; published values are of the published heads alone."""
    card = encoder.card
    if len(card.outputs) == 1 or (published and (card.id != _MODEL or card.heads)):
        return OutputValues()
    return values.outputs


def compare_outputs(encoder: Encoder, values: OutputValues) -> list[Finding]:
    """Ask for the texts of known values and compare; one request an output.

    Raises:
        HostError: the host could not be reached.
    """
    return list(_findings(encoder, values))


def _findings(encoder: Encoder, values: OutputValues) -> Iterator[Finding]:
    most = _INT8 if encoder.variant == "int8" else _SAME
    if values.sparse and "sparse" in encoder.outputs:
        texts = [one.text for one in values.sparse]
        yield _asked(encoder, "sparse", texts, lambda found: _sparse(found, values.sparse, most))
    if values.vectors and "multivector" in encoder.outputs:
        texts = [one.text for one in values.vectors]
        yield _asked(encoder, "multivector", texts, lambda found: _vectors(found, values.vectors, most))
    for scores in values.scores:
        for name in ("sparse", "multivector"):
            if name in encoder.outputs:
                texts = [*scores.queries, *scores.passages]
                yield _asked(encoder, name, texts, lambda found, n=name, s=scores: _scores(found, n, s))  # type: ignore[misc]
        if isinstance(encoder, RemoteEngine) and encoder.describe().get("dialect") == "vllm":
            yield from _pair_score(encoder, scores)


def _asked(encoder: Encoder, name: OutputName, texts: list[str], judge: Callable[[Outputs], Finding]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = judge(encoder.encode_outputs(texts, role="document", outputs=[name]))
    except (SpaceMismatchError, BadAnswerError) as error:
        return Finding(f"{name} values", False, str(error), {"verdict": getattr(error, "verdict", None)})
    except ConfigError as error:
        return Finding(f"{name} values", None, f"not given: {error}", {})
    except HostError as error:
        if error.status is None:
            raise
        return Finding(f"{name} values", None, f"not given: {error}", {"status": error.status})
    if name == "sparse" and encoder.describe().get("special_tokens"):
        says = f"{found.says}; special tokens are in its rows, by which any two texts share terms: dropped here"
        return Finding(found.name, found.ok, says, {**found.data, "special_tokens": True})
    return found


def _sparse(found: Outputs, known: tuple[SparseValues, ...], most: float) -> Finding:
    rows = found.sparse or []
    pairs = list(zip(known, rows, strict=True))
    missing = sum(len(one.weights.keys() - row.keys()) for one, row in pairs)
    more = sum(len(row.keys() - one.weights.keys()) for one, row in pairs)
    shared = [(row[token], weight) for one, row in pairs for token, weight in one.weights.items() if token in row]
    off = max((abs(a - b) for a, b in shared), default=1.0)
    data = {"deviation": off, "missing": missing, "more": more, "source": known[0].source}
    if missing or more:
        says = f"other token ids than published: {missing} missing, {more} more"
        return Finding("sparse values", False, f"{says}{_expanded(known, rows)}", data)
    return Finding("sparse values", off <= most, _off(off, "weights"), data)


def _expanded(known: tuple[SparseValues, ...], rows: list[SparseVector]) -> str:
    wide = any(len(row) > 2 * len(one.weights) for one, row in zip(known, rows, strict=True))
    return " (words that are not in the texts: SPLADE-shaped)" if wide else ""


def _off(off: float, what: str) -> str:
    if off <= _SAME:
        return f"as published, {what} within {off:.1e}"
    if off <= _INT8:
        return f"{what} off by {off:.1e}: an int8 copy, which is a space of its own"
    return f"{what} off by {off:.2g}: another head or another model"


def _vectors(found: Outputs, known: tuple[VectorValues, ...], most: float) -> Finding:
    rows = found.multivector or []
    off = 0.0
    for one, vectors in zip(known, rows, strict=True):
        if one.count is not None and len(vectors) != one.count:
            kept = {1: ": <s> has one too", -1: ": </s> has none"}.get(len(vectors) - one.count, "")
            says = f"{len(vectors)} vectors of {one.text!r}, published are {one.count}{kept}"
            return Finding("multivector values", False, says, {"vectors": len(vectors)})
        off = max([off, *(abs(float(vectors[place]) - value) for place, value in one.at.items())])
    data = {"deviation": off, "source": known[0].source}
    return Finding("multivector values", off <= most, _off(off, "components"), data)


def _scores(found: Outputs, name: OutputName, known: PairScores) -> Finding:
    rows: list[Any] = (found.sparse if name == "sparse" else found.multivector) or []
    score: Any = sparse_score if name == "sparse" else max_sim
    count = len(known.queries)
    mine = np.array([score(query, passage) for query in rows[:count] for passage in rows[count:]])
    off = float(np.abs(mine - np.array(getattr(known, name))).max())
    says = f"as published, within {off:.1e}" if off <= _SCORE_SAME else f"off by {off:.2g}"
    return Finding(f"{name} scores", off <= 2 * _INT8, says, {"deviation": off, "source": known.source})


def _pair_score(encoder: RemoteEngine, known: PairScores) -> Iterator[Finding]:
    """Say what the server's own /score gives, which is never used here."""
    score = encoder.pair_score(known.queries[0], known.passages[0])
    if score is None:
        return
    mean, cosine = known.multivector[0], known.dense[0]
    vectors = score / mean
    if abs(score - mean) < _SCORE_SAME:
        says = "bge-m3's multivector score"
    elif abs(score - cosine) < _SCORE_SAME:
        says = "the cosine of the dense vectors, not a reranker's score"
    elif vectors > 2 and abs(vectors - round(vectors)) < 0.02 * vectors:
        says = (
            f"the sum over {round(vectors)} vectors of the query, where bge-m3's score is the mean: "
            "load_reranker('bge-m3') computes it here"
        )
    else:
        says = "not one of bge-m3's scores"
    yield Finding("/score", None, f"{score:.4f}: {says}", {"score": score})
