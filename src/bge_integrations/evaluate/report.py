"""What an evaluation found, as plain data and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .measures import Values
from .ranking import Ranking

__all__ = ["Estimate", "Evaluation", "Result"]


@dataclass(frozen=True)
class Estimate:
    """One measure of one run.

    Attributes:
        mean: over all questions.
        interval: its 95 % bootstrap interval; None for fewer than two questions.
        p: of a paired permutation test against the first row, Holm-adjusted for the number of rows; None for the first.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None

    def __str__(self) -> str:
        low_high = f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval else ""
        return f"{self.mean:.3f}{low_high}"


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        name: of the run.
        estimates: of each measure by its name.
        values: each measure of each question, float64, in the order of the questions.
        ranking: what was found, the time of a question, and what it costs.
        space: name of the space of its vectors.
        how: how encoder and reranker work, as plain data without secrets.
    """

    name: str
    estimates: dict[str, Estimate]
    values: dict[str, Values]
    ranking: Ranking
    space: str
    how: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without the passages found for each question."""
        ranking = self.ranking
        return {
            "name": self.name,
            "measures": {name: vars(estimate) for name, estimate in self.estimates.items()},
            "milliseconds_per_question": ranking.milliseconds,
            "timed_questions": ranking.timed,
            "usd_corpus": ranking.usd_corpus,
            "usd_per_1000_questions": ranking.usd_per_1000_questions,
            "truncated": ranking.truncated,
            "space": self.space,
            "how": self.how,
        }


@dataclass(frozen=True)
class Evaluation:
    """Runs side by side; ``print`` it for the table.

    Attributes:
        queries: text of each question by its id.
        passages: how many there are.
        measures: their names; the first one decides what is significant in the table.
        results: a row for each run, in their order.
    """

    queries: dict[str, str]
    passages: int
    measures: list[str]
    results: list[Result]

    def table(self) -> list[tuple[str, ...]]:
        """Return the header and a row for each run."""
        compared, priced = len(self.results) > 1, any(_prices(result.ranking) for result in self.results)
        head = ["", *self.measures, *["p"] * compared, "ms", *["$ passages", "$ 1000 questions"] * priced]
        rows = [tuple(head)]
        for result in self.results:
            row = [result.name, *(str(result.estimates[name]) for name in self.measures)]
            row += [_p(result.estimates[self.measures[0]].p)] * compared
            row += [f"{result.ranking.milliseconds:.1f}"]
            row += [_usd(result.ranking.usd_corpus), _usd(result.ranking.usd_per_1000_questions)] if priced else []
            rows.append(tuple(row))
        return rows

    def notes(self) -> list[str]:
        """Return what a reader must know about the table."""
        notes = [
            f"{len(self.queries):,} questions, {self.passages:,} passages; [95 % bootstrap interval over questions]"
        ]
        if len(self.results) > 1:
            notes.append(f"p: {self.measures[0]} against the first row, paired permutation test, Holm-adjusted")
        timed = min(result.ranking.timed for result in self.results)
        notes.append(f"ms: one question asked alone from this machine, without the search; median of {timed}")
        if any(_prices(result.ranking) for result in self.results):
            notes.append("$: by the provider's price for the tokens; -: on this machine, or no price is known")
        cut = [f"{result.name} {result.ranking.truncated:,}" for result in self.results if result.ranking.truncated]
        if cut:
            notes.append(f"texts, or pairs, that are longer than a model reads: {', '.join(cut)}")
        return notes

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.notes()])

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, the measures of each question included."""
        questions = [
            {
                "id": key,
                "text": text,
                "runs": [
                    {
                        **{name: float(result.values[name][i]) for name in self.measures},
                        "first": result.ranking.found[i][:10],
                    }
                    for result in self.results
                ],
            }
            for i, (key, text) in enumerate(self.queries.items())
        ]
        return {
            "passages": self.passages,
            "measures": self.measures,
            "runs": [result.to_dict() for result in self.results],
            "notes": self.notes(),
            "questions": questions,
        }


def _prices(ranking: Ranking) -> bool:
    return ranking.usd_corpus is not None or ranking.usd_per_1000_questions is not None


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
