"""Ask for known texts and compare the answers with known values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..catalog import find_model
from ..catalog.golden import (
    VERDICTS,
    Golden,
    GoldenFile,
    Similarity,
    Verdict,
    judge,
    read_golden,
    to_golden_json,
    worst,
)
from ..catalog.records import Role
from ..core.encoder import Encoder, Vectors
from ..errors import BGEError, ConfigError
from .probes import Probe
from .report import Finding, GoldenResult

# The published scores come from float16 arithmetic and four digits.
_SCORE_SAME, _SCORE_LOWER = 0.002, 0.01


def known_values(encoder: Encoder, path: Path | None) -> GoldenFile:
    """Return the values to compare with: the user's file, or the published ones where they are of the same pooling.

    Raises:
        ConfigError: the user's file cannot be read, or holds nothing of this model.
    """
    card = encoder.card
    if path is not None:
        values = read_golden(path)
        if not values.of(card) and not (values.outputs and len(card.outputs) > 1):
            held = ", ".join(sorted({golden.model for golden in values.vectors})) or "nothing"
            raise ConfigError(f"{str(path)!r} holds values of {held}, none of {card.id!r}")
        return values
    try:
        catalogued = find_model(card.id)
    except BGEError:
        return GoldenFile()
    return read_golden() if catalogued.pooling == card.pooling else GoldenFile()


def compare(encoder: Encoder, values: GoldenFile) -> list[GoldenResult]:
    """Embed the texts of all known values of the model and judge the answers; one request per role.

    Raises:
        HostError: the host failed.
    """
    known = values.of(encoder.card)
    results: list[GoldenResult] = []
    for role in ("document", "query"):
        mine = [golden for golden in known if golden.role == role]
        if mine:
            vectors = encoder.encode([golden.text for golden in mine], role=role)
            results += [_result(golden, vector) for golden, vector in zip(mine, vectors, strict=True)]
    return results


def _result(golden: Golden, vector: Vectors) -> GoldenResult:
    found = judge(golden, vector)
    components = len(golden.at)
    return GoldenResult(
        golden.text, golden.role, found.verdict, found.cosine, found.deviation, components, golden.source
    )


def verdict_of(results: Sequence[GoldenResult]) -> Verdict | None:
    """Return what the results say together, or None where there are none."""
    return worst([result.verdict for result in results]) if results else None


def looks_like(encoder: Encoder) -> str | None:
    """Name another model of the catalogue whose published vector the host gives, or None.

    Raises:
        HostError: the host failed.
    """
    card = encoder.card
    others = [golden for golden in read_golden().vectors if golden.model != card.id and golden.role == "document"]
    others = [golden for golden in others if find_model(golden.model).dimensions == card.dimensions]
    if not others:
        return None
    texts = list(dict.fromkeys(golden.text for golden in others))
    rows = dict(zip(texts, encoder.encode(texts, role="document"), strict=True))
    return next((golden.model for golden in others if judge(golden, rows[golden.text]).verdict != VERDICTS[2]), None)


def compare_scores(encoder: Encoder, values: GoldenFile) -> list[Finding]:
    """Compare scores of queries against passages with published ones; they show whether the instruction is right.

    Only for models of which no full vector is known, and encoders that use the model's own instruction.

    Raises:
        HostError: the host failed.
    """
    card = encoder.card
    full = any(len(golden.at) == card.dimensions for golden in values.of(card))
    if full or encoder.query_instruction not in (None, card.query_instruction):
        return []
    return [_scores(encoder, item) for item in values.similarities if item.model == card.id]


def _scores(encoder: Encoder, item: Similarity) -> Finding:
    role: Role = "query" if item.query_instruction else "document"
    queries = encoder.encode(item.queries, role=role)
    passages = encoder.encode(item.passages, role="document")
    deviation = float(np.abs(queries @ passages.T - np.array(item.scores)).max())
    if deviation <= _SCORE_SAME:
        says = f"as published, within {deviation:.4f}"
    elif deviation <= _SCORE_LOWER:
        says = f"off by {deviation:.4f}: lower precision"
    else:
        says = f"off by {deviation:.4f}: the query instruction reaches the model wrongly, or the model is another"
    return Finding("published scores", deviation <= _SCORE_LOWER, says, {"deviation": deviation, "source": item.source})


def pin_json(encoder: Encoder, probes: Sequence[Probe], vectors: Vectors, *, host: str, day: str) -> str:
    """Write an encoder's answers down as golden values, for a later comparison."""
    source = f"{host}, {day}"
    goldens = [
        Golden(encoder.card.id, probe.text, dict(enumerate(vector.tolist())), probe.role, source=source)
        for probe, vector in zip(probes, vectors, strict=True)
    ]
    return to_golden_json(goldens, f"Answers of {host} for {encoder.card.id}, pinned on {day}; space {encoder.space}")
