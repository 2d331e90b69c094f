"""What a verification found, as plain data and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..catalog.golden import ACCEPTED, Verdict

_SHOWN = 4

Outcome = Verdict | Literal["same model in another space", "not checked"]


@dataclass(frozen=True)
class GoldenResult:
    """One known value, and how close the host's vector came to it."""

    text: str
    role: str
    verdict: Verdict
    cosine: float
    deviation: float
    components: int
    source: str


@dataclass(frozen=True)
class ProbeResult:
    """One probe and its cosine to the reference."""

    kind: str
    role: str
    text: str
    cosine: float


@dataclass(frozen=True)
class Cause:
    """An explanation of why vectors differ.

    Attributes:
        name: short name, such as ``"mean pooling"``.
        remedy: what to do about it.
        cosine: mean over all probes between the answers and what this cause would give.
        probes: number of probes whose vector it changes.
    """

    name: str
    remedy: str
    cosine: float
    probes: int


@dataclass(frozen=True)
class Finding:
    """One observation about the host's behaviour.

    Attributes:
        name: what was checked.
        ok: whether it is as it should be; ``None`` if it is neither good nor bad.
        says: what was observed.
        data: the same as numbers.
    """

    name: str
    ok: bool | None
    says: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The result of verifying an encoder.

    Attributes:
        verdict: the worst that golden values and reference say; ``"not checked"`` where there were neither.
        cosine: to the golden values or the reference, whichever is lower; ``None`` where there were neither.
        cause: what explains the vectors if they are in another space, or None.
        runner_up: the next best explanation.
        indistinct: causes that give this model the very same vectors, so that they neither matter nor show.
        int8: whether the encoder says of itself that it is an int8 copy.
    """

    model: str
    space: str
    host: str
    verdict: Outcome
    cosine: float | None = None
    cause: Cause | None = None
    runner_up: Cause | None = None
    causes: tuple[Cause, ...] = ()
    indistinct: tuple[str, ...] = ()
    golden: tuple[GoldenResult, ...] = ()
    probes: tuple[ProbeResult, ...] = ()
    behaviour: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    int8: bool = False

    @property
    def ok(self) -> bool:
        """Whether the vectors are shown to be the model's own, and nothing seen is a fault."""
        lower = self.verdict == "same model at lower precision" and (self.int8 or (self.cosine or 0) >= ACCEPTED)
        return (self.verdict == "same space" or lower) and all(finding.ok is not False for finding in self.behaviour)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings that are faults."""
        return tuple(finding for finding in self.behaviour if finding.ok is False)

    def finding(self, name: str) -> Finding:
        """Return one observation by name.

        Raises:
            KeyError: it was not checked.
        """
        return {finding.name: finding for finding in self.behaviour}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """Return the verdict as a sentence."""
        near = f" (cosine {self.cosine:.5f})" if self.cosine is not None else ""
        text = f"{self.model} at {self.host}: {self.verdict}{near}"
        if self.cause is not None:
            text += f"; {self.cause.name} explains it (cosine {self.cause.cosine:.4f}"
            text += f"; next {self.runner_up.name}, {self.runner_up.cosine:.4f})" if self.runner_up else ")"
            text += f": {self.cause.remedy}"
        elif self.verdict == "not this model" and self.runner_up is not None:
            text += f"; nothing known explains it (nearest: {self.runner_up.name}, {self.runner_up.cosine:.4f})"
        return text


def table(report: Report) -> list[tuple[str, str, str]]:
    """Return the report as rows of (mark, check, observation); the mark is ``"ok"``, ``"!!"`` or ``""``."""
    return list(_rows(report))


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    yield "ok" if report.ok else "!!", "verdict", report.summary()
    yield from _golden_rows(report.golden)
    if report.probes:
        worst = min(report.probes, key=lambda probe: probe.cosine)
        mean = sum(probe.cosine for probe in report.probes) / len(report.probes)
        seen = f"mean cosine {mean:.5f}, lowest {worst.cosine:.5f} ({worst.kind} {worst.role} {worst.text!r:.40})"
        yield "", f"{len(report.probes)} probes against the reference", seen
    for cause in report.causes[:4] if report.verdict != "same space" else ():
        yield "", f"explanation: {cause.name}", f"cosine {cause.cosine:.5f}, changes {cause.probes} probes"
    if report.indistinct:
        yield "", "no difference to this model", ", ".join(report.indistinct)
    for finding in report.behaviour:
        yield _mark(finding.ok), finding.name, finding.says
    for note in report.notes:
        yield "", "note", note


def _golden_rows(results: Sequence[GoldenResult]) -> Iterator[tuple[str, str, str]]:
    shown = sorted(results, key=lambda golden: golden.cosine)[:_SHOWN]
    for golden in shown:
        kind = f"{golden.components} values of {golden.text!r:.40}"
        seen = f"{golden.verdict}, cosine {golden.cosine:.5f}, largest deviation {golden.deviation:.1e}"
        yield _mark(golden.verdict != "not this model"), kind, f"{seen} ({golden.source})"
    if len(results) > _SHOWN:
        yield "", f"{len(results) - _SHOWN} more texts", f"cosine {shown[-1].cosine:.5f} and above"


def _mark(ok: bool | None) -> str:
    return "" if ok is None else "ok" if ok else "!!"
