"""Compare a host's vectors with those of a reference, and name what explains the difference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..catalog.golden import LOWER, SAME
from ..core.encoder import Encoder, Vectors
from ..errors import BGEError, BGEWarning
from ..local.engine import LocalEngine
from .causes import TEXT_FAULTS, Candidate, Wording, lower_limits, pooled_otherwise, sibling
from .probes import LONGEST, Probe
from .report import Cause, Outcome
from .steps import ENGINES, MODELS, REFERENCE

_Cosines = NDArray[np.float64]
# Below this the vectors of two candidates differ for a probe; float32 noise between batch sizes stays above.
_ALIKE = 0.99999


@dataclass(frozen=True)
class Diagnosis:
    """What a reference tells about a host's vectors.

    Attributes:
        cosines: of each probe to the right vector.
        causes: all explanations, the best one first.
        indistinct: names of faults that this model does not show.
        notes: what could not be looked at.
    """

    verdict: Outcome
    cosines: _Cosines
    cause: Cause | None
    runner_up: Cause | None
    causes: tuple[Cause, ...]
    indistinct: tuple[str, ...]
    notes: tuple[str, ...] = ()


def diagnose(
    answers: Vectors,
    probes: Sequence[Probe],
    encoder: Encoder,
    reference: Encoder,
    others: Iterable[Encoder] = (),
    *,
    begin: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Name what explains the answers.

    Args:
        answers: the host's vectors of the probes.
        probes: what was asked.
        encoder: the encoder of the host; says how queries are worded.
        reference: computes the right vectors, and the wrong ones on purpose.
        others: further encoders that the host might be instead.
        begin: called with the name of each step.

    Raises:
        BGEError: the reference failed.
    """
    wording = Wording(_instruction(encoder), lambda text: encoder.format([text], "query")[0])
    embed = _Embed(reference)
    begin(REFERENCE)
    right, *rewritten = _by_text(probes, wording, embed)
    notes: list[str] = []
    candidates = [*rewritten, *_by_order(answers, right.vectors)]
    begin(ENGINES)
    candidates += _tried(lambda: _by_engine(reference, probes, wording, right.vectors), notes)
    begin(MODELS)
    candidates += _tried(lambda: _by_model(others, probes, notes), notes)
    diagnosis = rank_causes(answers, right, candidates)
    return replace(diagnosis, notes=tuple(notes))


def _instruction(encoder: Encoder) -> str:
    return encoder.card.instruction(encoder.query_instruction)


def _tried(make: Callable[[], Iterator[Candidate]], notes: list[str]) -> list[Candidate]:
    found: list[Candidate] = []
    try:
        found.extend(make())
    except (BGEError, OSError, ImportError) as error:
        notes.append(f"some explanations could not be computed: {error}")
    return found


class _Embed:
    """Embeds texts exactly as they are."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, texts: Sequence[str]) -> Vectors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BGEWarning)
            return self._encoder.encode(texts, role="document")


def _by_text(probes: Sequence[Probe], wording: Wording, embed: _Embed) -> list[Candidate]:
    right = [wording.read(probe.text, probe.role) for probe in probes]
    rewritten = [[rewrite(wording, p.text, p.role) for p in probes] for _, _, rewrite in TEXT_FAULTS]
    # A rewriting that would leave a text blank leaves it as it is: no encoder takes blanks.
    rewritten = [[new if new.strip() else old for new, old in zip(r, right, strict=True)] for r in rewritten]
    distinct = list(dict.fromkeys(text for texts in (right, *rewritten) for text in texts))
    vectors = embed(distinct)
    row = {text: i for i, text in enumerate(distinct)}

    def candidate(name: str, remedy: str, texts: list[str]) -> Candidate:
        return Candidate(name, remedy, vectors[[row[text] for text in texts]])

    faults = zip(TEXT_FAULTS, rewritten, strict=True)
    return [
        candidate("as it should be", "", right),
        *(candidate(name, remedy, texts) for (name, remedy, _), texts in faults),
    ]


def _by_order(answers: Vectors, right: Vectors) -> Iterator[Candidate]:
    cosines = answers.astype(np.float64) @ right.T
    nearest = cosines.argmax(axis=1)
    own = cosines[np.arange(len(right)), np.arange(len(right))]
    moved = cosines.max(axis=1) > np.maximum(own + 0.001, LOWER)
    if moved.sum() > 1 and len(set(nearest[moved].tolist())) == moved.sum():
        rows = np.where(moved, nearest, np.arange(len(right)))
        remedy = "the host gives vectors back in another order than the texts: send one text per request (max_inputs=1)"
        yield Candidate("rows in another order", remedy, right[rows])


def _by_engine(reference: Encoder, probes: Sequence[Probe], wording: Wording, right: Vectors) -> Iterator[Candidate]:
    if not isinstance(reference, LocalEngine):
        return
    texts = [wording.read(probe.text, probe.role) for probe in probes]
    with pooled_otherwise(reference) as engines:
        for pooling, engine in engines:
            remedy = f"start the host with {reference.card.pooling} pooling; its vectors are a space of their own"
            yield Candidate(f"{pooling} pooling", remedy, _Embed(engine)(texts))
    long = [i for i, probe in enumerate(probes) if probe.kind == "long"]
    for limit in lower_limits(reference.card.max_tokens, LONGEST):
        vectors = right.copy()
        with sibling(reference, replace(reference.card, max_tokens=limit)) as engine:
            vectors[long] = _Embed(engine)([texts[i] for i in long])
        remedy = f"the host reads {limit} tokens where the model reads {reference.card.max_tokens}: raise its limit"
        yield Candidate(f"cut at {limit} tokens", remedy, vectors)


def _by_model(others: Iterable[Encoder], probes: Sequence[Probe], notes: list[str]) -> Iterator[Candidate]:
    for other in others:
        try:
            vectors = _Embed(other)([other.format([p.text], p.role)[0] for p in probes])
        except BGEError as error:
            notes.append(f"{other.card.id} could not be compared: {error}")
            continue
        yield Candidate(other.card.id, "the host serves another model", vectors, same_model=False)


def rank_causes(answers: Vectors, right: Candidate, candidates: Sequence[Candidate]) -> Diagnosis:
    """Order explanations by how near their vectors come to the answers, and decide.

    An explanation other than ``right`` has to come nearer by a third of its own distance from ``right``, over the
    probes that it changes; chance and coarse arithmetic do not.
    """
    found: list[tuple[Cause, Candidate]] = []
    indistinct: list[str] = []
    for candidate in candidates:
        changed = _cosines(candidate.vectors, right.vectors) < _ALIKE
        if not changed.any():
            indistinct.append(candidate.name)
            continue
        mean = float(_cosines(answers, candidate.vectors).mean())
        found.append((Cause(candidate.name, candidate.remedy, mean, int(changed.sum())), candidate))
    found.sort(key=lambda pair: -pair[0].cosine)
    cosines = _cosines(answers, right.vectors)
    as_it_should = Cause(right.name, "", float(cosines.mean()), 0)
    best = next((pair for pair in found if _nearer(answers, pair[1], right)), None)
    causes = sorted([as_it_should, *(cause for cause, _ in found)], key=lambda cause: -cause.cosine)
    if best is None or best[0].cosine < max(LOWER, as_it_should.cosine):
        chosen, cause, verdict = as_it_should, None, _without_cause(cosines)
    else:
        chosen = cause = best[0]
        verdict = "same model in another space" if best[1].same_model else "not this model"
    runner_up = next((other for other in causes if other is not chosen), None)
    return Diagnosis(verdict, cosines, cause, runner_up, tuple(causes), tuple(indistinct))


def _cosines(one: Vectors, other: Vectors) -> _Cosines:
    cosines: _Cosines = np.einsum("ij,ij->i", one.astype(np.float64), other.astype(np.float64))
    return np.minimum(cosines, 1.0)  # float32 rows are a little longer than 1


def _nearer(answers: Vectors, candidate: Candidate, right: Candidate) -> bool:
    apart = 1 - _cosines(candidate.vectors, right.vectors)
    changed = apart > 1 - _ALIKE
    gain = _cosines(answers, candidate.vectors) - _cosines(answers, right.vectors)
    return bool(gain[changed].mean() > apart[changed].mean() / 3)


def _without_cause(cosines: _Cosines) -> Outcome:
    if cosines.mean() >= SAME and cosines.min() >= 1 - 50 * (1 - SAME):
        return "same space"
    return "same model at lower precision" if cosines.mean() >= LOWER else "not this model"
