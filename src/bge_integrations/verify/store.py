"""Are the vectors of a store those that this model makes of the store's own texts?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..core.encoder import Encoder, HoldsEncoder, Vectors, held_encoder
from ..errors import BGEWarning, ConfigError
from ..local.engine import LocalEngine
from ..stamps.stamp import read_stamp
from .causes import other_models, pooled_otherwise
from .report import Cause
from .stored_rows import Sample, read_sample

__all__ = ["StoreReport", "StoreVerdict", "table_of_store", "verify_store"]

StoreVerdict = Literal["same space", "lower precision", "some rows are of another space", "another space"]
SAME, LOWER = 0.9999, 0.99  # cosines: float32 and float16 stay above the first, int8 above the second


@dataclass(frozen=True)
class StoreReport:
    """What was found out about a store.

    Attributes:
        model: whose vectors they were compared with.
        rows: how many rows the store holds.
        sampled: how many of them were embedded again.
        agreeing: how many of these have the vector that the model makes.
        cosine: mean between stored and new vectors.
        lowest: the smallest of them.
        cause: what explains the stored vectors where they differ, or None.
        stamp: what the store says of itself, or None.
        length: mean length of the stored vectors; stores keep them as they came.
    """

    model: str
    space: str
    rows: int
    sampled: int
    agreeing: int
    verdict: StoreVerdict
    cosine: float
    lowest: float
    cause: Cause | None = None
    stamp: dict[str, Any] | None = None
    length: float = 1.0

    @property
    def ok(self) -> bool:
        """Whether queries of this model find what they should in this store."""
        return self.verdict in ("same space", "lower precision")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """Return the verdict and what to do as a sentence."""
        text = (
            f"{self.agreeing} of {self.sampled} sampled rows are {self.model}'s own vectors ({self.rows} in the store)"
        )
        if self.cause is not None:
            return f"{text}; the others: {self.cause.name} (cosine {self.cause.cosine:.4f}): {self.cause.remedy}"
        if not self.ok:
            return f"{text}; nothing known explains the others: embed their texts again"
        return f"{text}; " + ("it is stamped" if self.stamp else "stamp it: stamp_store(store, encoder)")


def verify_store(store: Any, encoder: Encoder | HoldsEncoder, *, sample: int = 32) -> StoreReport:
    """Re-embed some of a store's texts and compare the results with its vectors.

    Args:
        store: of LangChain or LlamaIndex over Chroma, Qdrant, LanceDB, pgvector or FAISS (LangChain's); a Chroma
            collection, a LanceDB table, the folder of a saved FAISS index (a ``Path``, or that of one index in it),
            ``(QdrantClient, collection)`` or ``(sqlalchemy.Engine, table)``.
        encoder: of the model whose vectors they should be, or an adapter that holds one.
        sample: rows to check, spread over the store.

    Returns:
        The report; ``report.ok`` says whether this model can search the store, ``report.cause`` why not.

    Raises:
        ConfigError: the rows of such a store cannot be read, or it is empty.
        HostError: the encoder's host failed.
    """
    if sample < 1:
        raise ConfigError(f"sample must be at least 1, not {sample}")
    asked = held_encoder(encoder)
    seen = read_sample(store, sample)
    stamp = _stamp_of(store)
    lengths = np.linalg.norm(seen.vectors, axis=1)
    stored = seen.vectors / np.maximum(lengths, 1e-12)[:, None]
    report = StoreReport(
        asked.card.id, asked.space, seen.rows, len(seen.texts), 0, "another space", 0.0, 0.0,
        stamp=stamp, length=float(lengths.mean()),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BGEWarning)
        if stored.shape[1] != asked.card.dimensions:
            return replace(report, cause=_another_size(stored.shape[1], asked))
        cosines = _cosines(asked.encode(seen.texts, role="document"), stored)
        differ = cosines < LOWER
        report = replace(
            report,
            agreeing=int((~differ).sum()),
            verdict=_verdict(cosines),
            cosine=float(cosines.mean()),
            lowest=float(cosines.min()),
        )
        if not differ.any():
            return report
        others = Sample(seen.rows, [seen.texts[i] for i in np.flatnonzero(differ)], stored[differ])
        return replace(report, cause=_explained(asked, others, float(cosines[differ].mean())))


def _cosines(made: Vectors, stored: NDArray[np.float32]) -> NDArray[np.float32]:
    cosines: NDArray[np.float32] = (made * stored).sum(1)
    return cosines


def _verdict(cosines: NDArray[np.float32]) -> StoreVerdict:
    if cosines.min() >= SAME:
        return "same space"
    if cosines.min() >= LOWER:
        return "lower precision"
    return "some rows are of another space" if (cosines >= LOWER).any() else "another space"


def _stamp_of(store: Any) -> dict[str, Any] | None:
    try:
        return read_stamp(store) or None
    except ConfigError:  # a store that keeps no stamp
        return None


def _another_size(size: int, encoder: Encoder) -> Cause:
    remedy = (
        f"they have {size} dimensions, {encoder.card.id!r} has {encoder.card.dimensions}: pass the model that made them"
    )
    return Cause("another model's vectors", remedy, 0.0, 0)


_AGAIN = "embed these texts again"


def _explained(encoder: Encoder, sample: Sample, right: float) -> Cause | None:
    """Return what was done to the texts that explains the stored vectors, or None."""
    best: Cause | None = None
    for name, remedy, make in _candidates(encoder):
        cosine = float(_cosines(make(sample.texts), sample.vectors).mean())
        if cosine > max(right + 1e-4, best.cosine if best else 0.0):
            best = Cause(name, remedy, cosine, len(sample.texts))
    return best if best is not None and best.cosine >= LOWER else None


def _candidates(encoder: Encoder) -> Iterator[tuple[str, str, Callable[[list[str]], Vectors]]]:
    def documents(change: Callable[[str], str], texts: list[str]) -> Vectors:
        return encoder.encode([change(text) or " " for text in texts], role="document")

    yield (
        "the query instruction was put in front of documents",
        f"{_AGAIN} as documents, or search with as_queries() for both",
        partial(encoder.encode, role="query"),
    )
    yield "newlines were replaced by spaces", _AGAIN, partial(documents, lambda text: text.replace("\n", " "))
    yield "texts were stripped and put in lower case", _AGAIN, partial(documents, lambda text: text.strip().lower())
    for count in (64, 128, 256):
        first = partial(_first_words, count)
        yield f"only the first {count} words were read", _AGAIN, partial(documents, first)
    engine = encoder.engine
    if isinstance(engine, LocalEngine):
        with pooled_otherwise(engine) as made:
            for pooling, other in made:
                remedy = f"{_AGAIN}, or pass accept_space={pooling!r} for all"
                yield f"{pooling} pooling", remedy, partial(other.encode, role="document")
    for model in other_models(encoder.card):
        with model:
            yield f"vectors of {model.card.id}", f"pass {model.card.id!r}", partial(model.encode, role="document")


def _first_words(count: int, text: str) -> str:
    return " ".join(text.split()[:count])


def table_of_store(report: StoreReport) -> list[tuple[str, str, str]]:
    """Return the report as rows of (mark, check, observation); the mark is ``"ok"``, ``"!!"`` or ``""``."""
    mark = "ok" if report.ok else "!!"
    rows = [
        (mark, "vectors", f"{report.verdict}: {report.agreeing} of {report.sampled} sampled rows agree"),
        ("", "cosine", f"{report.cosine:.5f} on average, {report.lowest:.5f} at least"),
        ("", "rows", f"{report.rows}, vectors of length {report.length:.3f}"),
        ("", "stamp", f"{report.stamp['space']}" if report.stamp else "none: stamp_store(store, encoder) leaves one"),
    ]
    if report.cause is not None:
        rows.append(("!!", "cause", f"{report.cause.name} (cosine {report.cause.cosine:.4f}): {report.cause.remedy}"))
    return rows
