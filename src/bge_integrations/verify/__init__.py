"""Does this host really serve that model, in that vector space?

``verify`` compares answers with known values and with a reference, names what explains a difference, and looks at how
the host behaves; ``pin`` records answers; ``stamp_store`` and ``check_store`` guard what is stored.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..catalog.golden import ACCEPTED, VERDICTS
from ..catalog.records import ModelCard
from ..core.encoder import Encoder, HoldsEncoder, Vectors, held_encoder
from ..errors import BadAnswerError, BGEError, BGEWarning, ConfigError
from ..local.engine import LocalEngine
from ..options import Pooling
from ..remote.engine import RemoteEngine
from ..stamps.stamp import check_store, read_stamp, stamp_store
from .behaviour import look_at
from .causes import other_models, pooled_otherwise
from .diagnosis import Diagnosis, diagnose
from .golden import compare, compare_scores, known_values, looks_like, pin_json, verdict_of
from .outputs import compare_outputs, known_outputs
from .probes import CountTokens, Probe, make_probes
from .report import Cause, Finding, GoldenResult, Outcome, ProbeResult, Report, table
from .reranker import ScoreReport, table_of_scores, verify_reranker
from .steps import BEHAVIOUR, HOST, VALUES, OnStep, Steps
from .store import StoreReport, table_of_store, verify_store
from .wire import Direct, Wire

__all__ = [
    "Cause",
    "Finding",
    "GoldenResult",
    "Probe",
    "ProbeResult",
    "Report",
    "ScoreReport",
    "StoreReport",
    "check_store",
    "make_probes",
    "pin",
    "read_stamp",
    "stamp_store",
    "table",
    "table_of_scores",
    "table_of_store",
    "verify",
    "verify_reranker",
    "verify_store",
]

_ORDER: tuple[Outcome, ...] = ("not checked", *VERDICTS[:2], "same model in another space", VERDICTS[2])


def verify(
    encoder: Encoder | HoldsEncoder,
    reference: Any = None,
    golden: str | os.PathLike[str] | None = None,
    *,
    others: Iterable[Encoder] | None = None,
    behaviour: bool = True,
    on_step: OnStep | None = None,
) -> Report:
    """Find out whether an encoder's vectors are those of its model.

    Caches are bypassed: the host itself is called.

    Args:
        encoder: an encoder, or a LangChain or LlamaIndex adapter that holds one.
        reference: another encoder that is known to be right, preferably local: it also computes wrong vectors on
            purpose, so that the fault can be named.
        golden: a file of known values, published or written by ``pin``; the package's own when None.
        others: encoders that the host might be instead; the catalogue's models of the same dimension on this machine
            when None.
        behaviour: whether to check how the host handles requests (about forty small ones).
        on_step: called with the steps done, their total, and what is done next.

    Returns:
        The report; ``report.ok`` says whether everything is right.

    Raises:
        ConfigError: the golden file cannot be read or holds nothing of this model, or the reference has other
            dimensions.
        HostError: the host failed.
    """
    asked, known = _engine(encoder), None if reference is None else _engine(reference)
    values = known_values(asked, None if golden is None else Path(golden))
    report = Report(asked.card.id, asked.space, _host(asked), "not checked", int8=asked.variant == "int8")
    dense = "dense" in asked.outputs
    behaviour = behaviour and dense
    steps = Steps(on_step, compared=known is not None, behaviour=behaviour)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BGEWarning)
        try:
            steps.begin(VALUES)
            results = compare(asked, values) if dense else []
            if behaviour and not results:
                # A wrong key or a host that is down would be told as faults of the host, one by one.
                asked.encode([make_probes(asked.card.max_tokens)[0].text], role="document")
            report = _with_golden(report, asked, results, alone=known is None)
            if known is not None:
                report = _with_reference(report, asked, known, others, steps)
            scores = [] if golden or not dense else compare_scores(asked, values)
            outputs = compare_outputs(asked, known_outputs(asked, values, published=golden is None))
        except BadAnswerError as error:
            return replace(report, verdict="not this model", notes=(*report.notes, str(error)))
        if behaviour:
            steps.begin(BEHAVIOUR)
        wire = Wire(asked) if isinstance(asked, RemoteEngine) else Direct(asked)
        seen = look_at(wire, _counter(known) or _counter(asked)) if behaviour else ()
        steps.finish()
    return replace(_judged(report, outputs), behaviour=(*scores, *outputs, *seen))


def _judged(report: Report, outputs: Sequence[Finding]) -> Report:
    """Return the report with the verdict of sparse and multivector values, where nothing else was compared."""
    checked = [finding.ok for finding in outputs if finding.ok is not None]
    if report.verdict != "not checked" or not checked:
        return report
    return replace(report, verdict="same space" if all(checked) else "not this model", notes=())


def pin(encoder: Encoder | HoldsEncoder, path: str | os.PathLike[str]) -> int:
    """Record a host's answers of today as golden values; ``verify(..., golden=path)`` tells later what changed.

    Returns:
        The number of texts that were recorded.

    Raises:
        HostError: the host failed; nothing was written.
    """
    asked = _engine(encoder)
    probes = make_probes(asked.card.max_tokens, _counter(asked))
    vectors, _ = _answers(asked, probes)
    day = datetime.now(UTC).date().isoformat()
    Path(path).write_text(pin_json(asked, probes, vectors, host=_host(asked), day=day), "utf-8")
    return len(probes)


def _engine(encoder: Encoder | HoldsEncoder) -> Encoder:
    return held_encoder(encoder).engine


def _host(encoder: Encoder) -> str:
    return encoder.base_url or "this machine"


def _counter(encoder: Encoder | None) -> CountTokens | None:
    """Return what counts tokens as the encoder's model does, or None where its tokenizer is not here."""
    if encoder is None:
        return None
    try:
        encoder.count_tokens(["a"])
    except BGEError:
        return None
    return encoder.count_tokens


def _with_golden(report: Report, encoder: Encoder, results: Sequence[GoldenResult], *, alone: bool) -> Report:
    verdict = verdict_of(results)
    if verdict is None:
        note = f"no values of {report.model} are known for {encoder.card.pooling} pooling: compare it with a reference"
        return replace(report, notes=(note,)) if alone else report
    notes = report.notes
    if verdict == "not this model" and (other := looks_like(encoder)) is not None:
        notes = (*notes, f"these are the published values of {other}")
    cosine = min(result.cosine for result in results)
    if alone and verdict == "same model at lower precision" and cosine < ACCEPTED:
        notes = (*notes, "an int8 copy comes equally close, and another pooling may too: compare with a reference")
    return replace(report, verdict=verdict, cosine=cosine, golden=tuple(results), notes=notes)


def _with_reference(
    report: Report,
    encoder: Encoder,
    reference: Encoder,
    others: Iterable[Encoder] | None,
    steps: Steps,
) -> Report:
    mine, theirs = encoder.card, reference.card
    if mine.dimensions != theirs.dimensions:
        raise ConfigError(
            f"{mine.id!r} has {mine.dimensions} dimensions and the reference, {theirs.id!r}, has {theirs.dimensions}: "
            "use the same model as the reference"
        )
    probes = make_probes(mine.max_tokens, _counter(reference))
    steps.begin(HOST)
    answers, notes = _answers(encoder, probes)
    with _pooled(reference, cast("Pooling", mine.pooling)) as right, closing(_others(mine)) as made:
        found = diagnose(answers, probes, encoder, right, made if others is None else others, begin=steps.begin)
    return _merged(report, found, probes, notes)


def _others(card: ModelCard) -> Generator[Encoder, None, None]:
    """Yield engines of the catalogue's other models on this machine, each of which is closed before the next one."""
    for other in other_models(card):
        with other:
            yield other


@contextmanager
def _pooled(reference: Encoder, pooling: Pooling) -> Iterator[Encoder]:
    """Yield the reference with the pooling that the encoder says it has (``accept_space``)."""
    if not isinstance(reference, LocalEngine) or reference.card.pooling == pooling:
        yield reference
        return
    with pooled_otherwise(reference) as engines:
        yield dict(engines).get(pooling, reference)


def _merged(report: Report, found: Diagnosis, probes: Sequence[Probe], notes: Sequence[str]) -> Report:
    results = [
        ProbeResult(probe.kind, probe.role, probe.text if len(probe.text) < 80 else f"{probe.text[:77]}...", float(c))
        for probe, c in zip(probes, found.cosines, strict=True)
    ]
    said = float(found.cosines.mean())
    return replace(
        report,
        verdict=max(report.verdict, found.verdict, key=_ORDER.index),
        cosine=said if report.cosine is None else min(report.cosine, said),
        cause=found.cause,
        runner_up=found.runner_up,
        causes=found.causes,
        indistinct=found.indistinct,
        probes=tuple(results),
        notes=(*report.notes, *notes, *found.notes),
    )


def _answers(encoder: Encoder, probes: Sequence[Probe]) -> tuple[Vectors, list[str]]:
    """Return the vectors of the probes, one text at a time where the host's batches are broken."""
    vectors = np.empty((len(probes), encoder.card.dimensions), np.float32)
    notes: list[str] = []
    for role in ("document", "query"):
        rows = [i for i, probe in enumerate(probes) if probe.role == role]
        texts = [probes[i].text for i in rows]
        try:
            vectors[rows] = encoder.encode(texts, role=role)
        except BadAnswerError as error:
            notes.append(f"queried one text at a time, because with several: {error}")
            vectors[rows] = [encoder.encode([text], role=role)[0] for text in texts]
    return vectors, notes
