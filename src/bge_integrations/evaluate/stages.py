"""The encoder and the reranker of a run: loaded, cached by who computes, checked before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog.records import OutputName, Role
from ..core.encoder import Encoder, Outputs
from ..core.reranker import Pair, Reranker
from ..core.token_outputs import NAMES
from ..load import load_encoder, load_reranker
from .runs import Run

__all__ = ["Stages", "encode", "open_stages", "score"]


@dataclass
class Stages:
    """The encoder and the reranker of a run.

    Attributes:
        run: what they are of.
        encoder: with its cache.
        reranker: likewise, or None.
        place: what the cache of vectors is called by; runs with one place share vectors.
        outputs: what is computed: for all runs of one place the same, so that each passage is embedded once.
    """

    run: Run
    encoder: Encoder
    reranker: Reranker | None
    place: str
    outputs: tuple[OutputName, ...]

    def close(self) -> None:
        """Let the models go."""
        self.encoder.close()
        if self.reranker is not None:
            self.reranker.close()

    def check(self, question: str) -> None:
        """Find out what can fail before hours of work, by one question: outputs, files, keys.

        Raises:
            BGEError: it cannot be used.
        """
        encode(self.encoder.engine, [question], "query", self.run.outputs)
        if self.reranker is not None:
            score(self.reranker.engine, [Pair(question, question)])


def open_stages(run: Run, cache: Path | None) -> Stages:
    """Load what a run names; nothing is computed or sent yet.

    Vectors of one space from two hosts, or of two precisions, never share a cache here: their difference is what is
    measured.

    Args:
        run: what to load.
        cache: folder for the files of vectors and scores.

    Raises:
        ConfigError: there is no such model, host or option.
    """
    encoder = load_encoder(run.model, **{**run.options, "cache": False, "show_progress": False})
    place = _digest(encoder.document_space, encoder.base_url, run.options)
    reranker = None
    if run.reranker:
        name = None if run.reranker is True else run.reranker
        reranker = load_reranker(name, **{**run.reranker_options, "cache": False})
    if cache is not None:
        from ..wrappers.cache import CachedEncoder, CachedReranker

        encoder = CachedEncoder(encoder, cache / f"vectors-{place}.sqlite")
        if reranker is not None:
            scores = _digest(reranker.space, reranker.base_url, run.reranker_options)
            reranker = CachedReranker(reranker, cache / f"scores-{scores}.sqlite")
    return Stages(run, encoder, reranker, place, run.outputs)


def _digest(space: str, host: str | None, options: dict[str, Any]) -> str:
    computed_by = ("provider", "wire_model", "dialect", "device", "backend", "precision")
    parts = [space, host, *(options.get(name) for name in computed_by)]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def encode(
    encoder: Encoder,
    texts: Sequence[str],
    role: Role,
    names: Sequence[OutputName],
    tell: Callable[[int], None] | None = None,
) -> tuple[Outputs, int]:
    """Return the outputs of texts, and how many of these were truncated."""
    cut, output = list[int](), encoder.output_for([name for name in NAMES if name in names])
    future = encoder.submit_rows(
        texts,
        role=role,
        output=output,
        on_batch=(lambda positions, _: tell(len(positions))) if tell else None,
        on_truncated=cut.extend,
    )
    return Outputs.of(output, _result(future)), len(cut)


def score(reranker: Reranker, pairs: Sequence[Pair]) -> tuple[Any, int]:
    """Return the logits of pairs, and how many of these were truncated."""
    cut = list[int]()
    return _result(reranker.submit(pairs, on_truncated=cut.extend)), len(cut)


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BaseException:  # also Ctrl-C: nothing more is sent
        future.cancel()
        raise
