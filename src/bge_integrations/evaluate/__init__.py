"""Which model, precision, instruction, host, search and reranker is best for these questions? Measured side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.token_outputs import NAMES
from ..environment import cache_folder, expand_user
from ..errors import BGEError, CacheError, ConfigError
from .data import Judged, read_judged
from .measures import Values, check_measures, holm, interval, measure, p_value
from .ranking import OnProgress, Progress, Ranking, rank
from .report import Estimate, Evaluation, Result
from .runs import Run, parse_run
from .stages import Stages, open_stages

__all__ = ["Estimate", "Evaluation", "Progress", "Ranking", "Result", "Run", "evaluate", "parse_run"]


def evaluate(
    corpus: str | Path,
    queries: str | Path | None = None,
    qrels: str | Path | None = None,
    *,
    runs: Sequence[str | Mapping[str, Any]] = ("",),
    top: int = 100,
    measures: Sequence[str] = (),
    cache: bool | str | Path = True,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measure how well one or several configurations find the right passages of questions.

    Every run is tried with one question before the first one starts. Then passages are
    embedded block by block and searched exactly, so that memory does not grow with their vectors. At most 20 questions
    of each run, the first of them twice, are asked again, one at a time and without the cache, to measure the time.

    Args:
        corpus: a folder in BEIR's layout (``corpus.jsonl``, ``queries.jsonl``, ``qrels/test.tsv``); its corpus, with
            the two others; the passages alone, with pairs as ``queries``; or pairs alone: JSON lines, CSV, TSV or
            Parquet with columns ``question`` and ``passage``, whose passages are then the corpus.
        queries: file of questions (``_id``, ``text``); or, without ``qrels``, of pairs whose ``passage`` is the id or
            the text of one in ``corpus``.
        qrels: judgements: ``query-id``, ``corpus-id`` and ``score``, as BEIR has them, or TREC's lines of four.
        runs: configurations, as ``"bge-m3,hybrid,reranker=bge-reranker-v2-m3"`` or as mappings; see ``parse_run``. The
            default model by itself when left out.
        top: passages that are kept for each question.
        measures: names of ir-measures; ``nDCG@10``, ``R@top`` and ``RR@10`` when empty.
        cache: True for the user's folder, another folder, or False for none. With the vectors and scores in it, an
            interrupted run is resumed; those of two hosts or precisions are kept apart.
        seed: of the resampling.
        on_progress: called as parts are finished, from any thread.

    Raises:
        ConfigError: a file or a run is invalid; the error says where.
        CacheError: a folder was passed as ``cache`` that cannot be written.
        MissingExtraError: the extra ``eval`` is not installed.
        HostError: a host failed; the same call again resumes.

    Example:
        >>> from bge_integrations.evaluate import evaluate
        >>> print(evaluate("scifact/", runs=["bge-small-en-v1.5", "bge-m3,hybrid"]))  # doctest: +SKIP
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ConfigError(f"top must be a whole number of at least 1, not {top!r}")
    names = check_measures(measures or (f"nDCG@{min(10, top)}", f"R@{top}", f"RR@{min(10, top)}"), top)
    parsed = _numbered([parse_run(run) for run in ([runs] if isinstance(runs, (str, Mapping)) else runs)])
    judged = read_judged(corpus, queries, qrels)
    folder = _folder(cache)
    with ExitStack() as stack:
        every = [_opened(run, folder, stack) for run in parsed]
        _share_outputs(every)
        first = next(iter(judged.queries.values()))
        for stages in every:
            with _about(stages.run):
                stages.check(first)
            if len(every) > 1:  # the models of one run at a time are in memory
                stages.close()
        results = [_result(stages, judged, top, names, on_progress) for stages in every]
    _compare(results, names, seed)
    return Evaluation(judged.queries, len(judged.corpus.ids), names, results)


def _folder(cache: bool | str | Path) -> Path | None:
    if isinstance(cache, bool):
        return cache_folder() / "eval" if cache else None
    folder = expand_user(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(prefix=".bge-", dir=folder).close()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CacheError(f"the cache {str(cache)!r} is not a writable folder ({why}): pass another one") from None
    return folder


@contextmanager
def _about(run: Run) -> Iterator[None]:
    """Add to an error which run it ended."""
    try:
        yield
    except BGEError as error:
        raise error.add(f" (run {run.name!r})") from error.__cause__


def _numbered(runs: Sequence[Run]) -> list[Run]:
    """Number runs that have the same name."""
    names = [run.name for run in runs]
    return [
        run if names.index(run.name) == i else replace(run, name=f"{run.name} ({names[: i + 1].count(run.name)})")
        for i, run in enumerate(runs)
    ]


def _opened(run: Run, cache: Path | None, stack: ExitStack) -> Stages:
    with _about(run):
        stages = open_stages(run, cache)
    stack.callback(stages.close)
    return stages


def _share_outputs(every: Sequence[Stages]) -> None:
    """Have runs of one cache compute the same outputs, so that each passage is embedded once for all of them."""
    for stages in every:
        names = {name for other in every if other.place == stages.place for name in other.run.outputs}
        stages.outputs = tuple(name for name in NAMES if name in names)


def _result(stages: Stages, judged: Judged, top: int, names: Sequence[str], on_progress: OnProgress | None) -> Result:
    with _about(stages.run):
        ranking = rank(stages, judged, top, on_progress)
    how = {"encoder": stages.encoder.describe(), "reranker": stages.reranker and stages.reranker.describe()}
    values: dict[str, Values] = measure(names, judged.qrels, ranking.found)
    stages.close()  # so that two large models never share the memory
    return Result(stages.run.name, {}, values, ranking, stages.encoder.space, how)


def _compare(results: Sequence[Result], names: Sequence[str], seed: int) -> None:
    """Fill in what is known once all runs are done: means, intervals and p-values."""
    for name in names:
        first, *others = [result.values[name] for result in results]
        adjusted = holm([p_value(values, first, seed) for values in others])
        for result, p in zip(results, [None, *adjusted], strict=True):
            values = result.values[name]
            result.estimates[name] = Estimate(float(values.mean()), interval(values, seed), p)
