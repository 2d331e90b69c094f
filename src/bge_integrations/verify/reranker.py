"""Does this host really give that reranker's scores, and on which scale?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..catalog.records import RerankerCard
from ..catalog.rerank_hosts import Scale
from ..catalog.rerankers import RERANKERS
from ..catalog.score_values import KnownScores, published_scores
from ..core.reranker import Reranker
from ..core.score_scale import ScaleJudgement, judge_pairs, judge_scores
from ..errors import BadAnswerError, ConfigError, HostError
from ..remote.reranker import RemoteReranker
from .report import Finding

__all__ = ["ScoreReport", "table_of_scores", "verify_reranker"]

_ANSWER = "Paris is the capital of France."
_QUESTION = "What is the capital of France?"
_WORD = "and "  # one token for XLM-R
Ask = Callable[[str, list[str]], list[float]]


@dataclass(frozen=True)
class ScoreReport:
    """What was found out about a reranker.

    Attributes:
        scale: on which the scores stand; None where they are not the model's.
        cause: what explains a difference; "" where all is well.
        off: largest difference to the known logits.
        checked: how many known scores were compared.
        behaviour: what else was seen.
    """

    model: str
    host: str
    scale: Scale | None
    cause: str = ""
    off: float = 0.0
    checked: int = 0
    behaviour: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the scores are shown to be the model's own, and nothing seen is a fault."""
        found = self.checked > 0 and self.scale is not None and not self.cause
        return found and all(finding.ok is not False for finding in self.behaviour)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {"ok": self.ok, **asdict(self)}

    def summary(self) -> str:
        """Return the verdict as a sentence."""
        about = f"{self.model} at {self.host}"
        if not self.checked:
            return f"{about}: not checked, since no scores of this model are known; --golden FILE brings some"
        if self.scale is None:
            return f"{about}: {self.cause} (off by {self.off:.2f} in the logit)"
        raw = "logits" if self.scale == "logit" else "sigmoids"
        return f"{about}: {self.cause or 'the model itself'}, {raw} (off by {self.off:.3f} in the logit)"


def verify_reranker(
    reranker: Reranker, golden: str | PathLike[str] | None = None, *, behaviour: bool = True
) -> ScoreReport:
    """Find out whether a reranker's scores are those of its model, and what explains it if not.

    Caches are bypassed: the host itself is called.

    Args:
        reranker: remote or local.
        golden: a file of known scores (its ``rerank`` entries); the package's own when None.
        behaviour: whether to check where passages are truncated (about a dozen requests).

    Raises:
        ConfigError: the golden file cannot be read or holds nothing of this model.
        HostError: the host failed.
    """
    engine = reranker.engine
    ask = _asker(engine)
    known = published_scores(engine.card) if golden is None else _read(Path(golden), engine.card)
    sizes = [len(one.logits) for one in known]
    host = engine.base_url or "this machine"
    try:
        judgements = [judge_pairs(one.logits, ask(one.query, list(one.passages))) for one in known]
    except BadAnswerError as error:
        return ScoreReport(engine.card.id, host, None, str(error), checked=sum(sizes))
    # Several passages of one query tell more of a cause than one does.
    weights = [(one.scale is None, bool(one.cause), size, one.off) for one, size in zip(judgements, sizes, strict=True)]
    worst = judgements[max(range(len(weights)), key=weights.__getitem__)] if known else ScaleJudgement(None)
    cause = worst.cause
    if worst.scale is None and known:
        cause = _another_model(engine.card, ask) or cause
    seen = tuple(_behaviour(engine, ask)) if behaviour else ()
    return ScoreReport(engine.card.id, host, worst.scale, cause, worst.off, sum(sizes), seen)


def table_of_scores(report: ScoreReport) -> list[tuple[str, str, str]]:
    """Return the report as rows of (mark, check, observation)."""
    rows = [("ok" if report.ok else "!!", "verdict", report.summary())]
    marks = {None: "", True: "ok", False: "!!"}
    return rows + [(marks[one.ok], one.name, one.says) for one in report.behaviour]


def _asker(engine: Reranker) -> Ask:
    if isinstance(engine, RemoteReranker):
        return engine.raw_scores
    return lambda query, passages: engine.score(query, passages, scale="logit").tolist()


def _read(path: Path, card: RerankerCard) -> list[KnownScores]:
    """Return a file's entries about a model, all on the scale of logits.

    Raises:
        ConfigError: it cannot be read, or holds nothing of this model.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))["rerank"]
        mine = [entry for entry in entries if entry["model"].lower() == card.id.lower() and "logit" in entry["scale"]]
        found = [known for entry in mine for known in _by_query(entry)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{str(path)!r} is not a file of known scores ({type(error).__name__}: {error})") from None
    if not found:
        raise ConfigError(f"{str(path)!r} holds no logits of {card.id!r}")
    return found


def _by_query(entry: dict[str, Any]) -> Iterator[KnownScores]:
    pairs = entry.get("pairs") or [(entry["query"], document) for document in entry["documents"]]
    queries: dict[str, list[tuple[str, float]]] = {}
    for (query, passage), score in zip(pairs, entry["scores"], strict=True):
        queries.setdefault(query, []).append((passage, float(score)))
    for query, scored in queries.items():
        yield KnownScores(query, *zip(*scored, strict=True))


def _another_model(card: RerankerCard, ask: Ask) -> str:
    for other in RERANKERS:
        published = published_scores(other)
        if other.id == card.id or not published or other.hosts_only:
            continue
        found = judge_scores(other, ask(published[0].query, list(published[0].passages)))
        if found is not None and found.scale is not None and not found.cause:
            return f"these are the scores of {other.id}"
    return ""


def _behaviour(engine: Reranker, ask: Ask) -> Iterator[Finding]:
    yield _length(engine.card, ask)
    host = getattr(engine, "host", None)
    if host is not None and host.cuts_into_chunks:
        says = "long passages are cut into chunks, and the best chunk's score comes back: not the model's"
        yield Finding("chunks", False, says, {})
    try:
        ask(_QUESTION, [" ", _ANSWER])
        yield Finding("blank passages", True, "are scored", {})
    except HostError as error:
        yield Finding("blank passages", None, f"are refused (status {error.status})", {"status": error.status})


def _length(card: RerankerCard, ask: Ask) -> Finding:
    """Find after how many words a passage is truncated: from there on, an answer at its end changes no score."""
    most = min(card.max_tokens, card.recommended_tokens or card.max_tokens)
    whole = int(most * 0.9) - 20
    try:
        if _reads(ask, whole):
            return Finding("length", True, f"an answer behind {whole} words is read", {"words": whole})
        low, high = 0, whole
        while high - low > max(8, whole // 50):
            middle = (low + high) // 2
            low, high = (middle, high) if _reads(ask, middle) else (low, middle)
    except HostError as error:
        return Finding("length", None, f"a passage of {whole} words is refused (status {error.status})", {})
    says = f"passages are truncated after about {low} words; {card.id} reads {card.max_tokens} tokens"
    return Finding("length", False, says, {"words": low})


def _reads(ask: Ask, words: int) -> bool:
    filler = _WORD * words
    without, with_answer = ask(_QUESTION, [filler.strip(), filler + _ANSWER])
    return abs(without - with_answer) > 1e-6
