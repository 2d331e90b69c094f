"""The local reranker: a model on this machine behind the same worker thread as embeddings have."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

from ..catalog.local_folder import no_reranker
from ..catalog.records import RerankerCard
from ..catalog.weights import is_lfs_pointer
from ..core.batches import Stream
from ..core.checks import Blank, Truncate, refuse_truncation
from ..core.pairs import PairTokenizer
from ..core.reranker import Pair, Reranker
from ..core.usage import Usage
from ..errors import ConfigError, ModelLoadError
from .architecture import read_architecture, read_weights
from .backends.base import Backend
from .calls import LocalCall
from .engine import foreseen, load_backend
from .files import Weights, has_weights
from .scheduler import Scheduler
from .select import Choice, Settings

__all__ = ["LocalReranker"]


class LocalReranker(Reranker):
    """Scores on this machine. The model is loaded at first use; concurrent calls are merged into batches."""

    def __init__(
        self,
        card: RerankerCard,
        *,
        blank: Blank = "error",
        truncate: Truncate = "warn",
        device: str | None = None,
        devices: Sequence[str] = (),
        backend: str = "auto",
        precision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if truncate not in ("warn", "error"):
            raise ConfigError(f"truncate must be 'warn' or 'error', not {truncate!r}")
        self.card, self.blank, self.truncate = card, blank, truncate
        self.settings = Settings(card, device, tuple(devices), backend, precision, trust_remote_code)
        self.variant = "int8" if precision == "int8" else ""
        self.usage = Usage()
        self._scheduler = Scheduler(partial(load_backend, self.settings, choose_scores, _loaded))

    def batches(self, pairs: list[Pair], stream: Stream) -> None:
        """Queue checked pairs for the worker thread."""
        refuse = partial(refuse_truncation, model=self.card.id, max_tokens=self.card.max_tokens)
        self._scheduler.submit(LocalCall(pairs, stream, refuse if self.truncate == "error" else None))

    @property
    def longest(self) -> int:  # type: ignore[override]
        """Tokens of the longest pair so far."""
        backend = self._scheduler.loop.backend
        return 0 if backend is None else backend.longest  # None before the first call

    def describe(self) -> dict[str, Any]:
        """Return backend, precision, device, threads, why they were chosen, and how often the model ran."""
        loop = self._scheduler.loop
        backend = loop.backend  # read once: another thread may close the engine meanwhile
        chosen = backend.describe() if backend is not None else foreseen(self.settings, choose_scores)
        return {**super().describe(), **chosen, "loaded": backend is not None, "forward_passes": loop.passes}

    def close(self) -> None:
        """Stop the worker after the batch in hand and let the model go; a later call loads it again."""
        self._scheduler.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scheduler": copy(self._scheduler)}

    def __repr__(self) -> str:
        return f"LocalReranker({self.card.id!r}, backend={self.settings.backend!r})"


def choose_scores(settings: Settings, device: str, folder: Path, kinds: Sequence[Weights]) -> Choice:
    """Choose for a reranker whose files are here.

    Raises:
        ModelLoadError: the folder has no weights that can be used, or is no reranker's.
    """
    card = settings.card
    held = [kind for kind in kinds if has_weights(folder, kind)]
    if not held:
        raise ModelLoadError(f"{str(folder)!r} has no weights for {' or '.join(kinds)}: did the download finish?")
    reason = no_reranker(folder)
    if reason:
        raise ModelLoadError(f"{str(folder)!r} {reason}")
    if is_lfs_pointer(folder / "tokenizer.json"):
        raise ModelLoadError(f"{str(folder / 'tokenizer.json')!r} is a git-lfs pointer: run `git lfs pull` there")
    if held[0] == "onnx":
        why = "asked for" if "torch" not in kinds else "CPU, onnxruntime is installed, the file is there"
        return Choice(card.id, "onnx", "cpu", settings.precision or "float32", why)
    precision = settings.precision or ("float16" if device.startswith("cuda") else "float32")
    if settings.backend == "sentence-transformers":
        return Choice(card.id, "sentence-transformers", device, precision, "asked for")
    shape, reason = read_architecture(folder, card)
    if shape is None:
        return Choice(card.id, "sentence-transformers", device, precision, f"not for the packed engine: {reason}")
    kind = "XLM-R" if shape.first_position else "BERT"
    why = "asked for" if settings.backend == "torch" else f"a {kind} encoder with a classifier, packed"
    return Choice(card.id, "torch", device, precision, why, shape)


def _loaded(settings: Settings, choice: Choice, folder: Path) -> Backend:
    from .backends.scores import CrossEncoderScores, OnnxScores, PackedScores

    card = settings.card
    if choice.backend == "onnx":
        return OnnxScores(choice, card, folder)
    if choice.backend == "torch":
        weights = read_weights(folder, keep=("pooler.",))  # the first layer of a BERT's classifier
        return PackedScores(choice, weights, PairTokenizer.read(folder, card.max_tokens))
    return CrossEncoderScores(choice, card, folder, trust_remote_code=settings.trust_remote_code)
