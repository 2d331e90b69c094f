"""The local engine: a model on this machine behind one worker thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..catalog.records import ModelCard
from ..core.checks import refuse_truncation
from ..core.encoder import Blank, Encoder, Role, Stream, Truncate, Usage
from ..core.tokenizer import TextTokenizer
from ..errors import BGEError, BGEWarning, ConfigError, ModelLoadError
from .architecture import brief, read_weights
from .backends.base import Backend
from .backends.devices import DevicesBackend
from .calls import LocalCall
from .files import Weights, find_folder, get_folder
from .machine import is_native
from .scheduler import Scheduler
from .select import Choice, Settings, choose, find_device, refuse_emulated, usable_weights
from .token_heads import TokenHeads

_LOG = logging.getLogger("bge_integrations")


class LocalEngine(Encoder):
    """Embeds on this machine. The model is loaded at first use; concurrent calls are merged into batches."""

    def __init__(
        self,
        card: ModelCard,
        *,
        query_instruction: str | None = None,
        blank: Blank = "error",
        truncate: Truncate = "warn",
        device: str | None = None,
        devices: Sequence[str] = (),
        backend: str = "auto",
        precision: str | None = None,
        trust_remote_code: bool = False,
        pooling: str | None = None,
    ) -> None:
        if truncate not in ("warn", "error"):
            raise ConfigError(f"truncate must be 'warn' or 'error', not {truncate!r}")
        self.card = card if pooling is None else replace(card, pooling=pooling)
        self.query_instruction = query_instruction
        self.blank = blank
        self.truncate = truncate
        self.settings = Settings(self.card, device, tuple(devices), backend, precision, trust_remote_code, pooling)
        self.variant = "int8" if precision == "int8" else ""
        self.usage = Usage()
        # Settings, not self: the worker thread must not keep alive an engine that nobody holds any more.
        self._scheduler = Scheduler(partial(load_backend, self.settings, choose, _loaded))
        self._tokenizer: TextTokenizer | None = None

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Queue checked texts for the worker thread.

        Raises:
            ConfigError: the model has no default query instruction and none was passed.
        """
        refuse = partial(refuse_truncation, model=self.card.id, max_tokens=self.card.max_tokens)
        self._scheduler.submit(
            LocalCall(self.format(texts, role), stream, refuse if self.truncate == "error" else None)
        )

    def tokenizer(self) -> TextTokenizer:
        """Return the model's tokenizer.

        Raises:
            ModelLoadError: the model's files cannot be found or fetched.
        """
        if self._tokenizer is None:
            settings = self.settings
            kinds = usable_weights(settings, find_device(settings))
            self._tokenizer = TextTokenizer.read(get_folder(self.card, kinds, code=settings.trust_remote_code))
        return self._tokenizer

    def describe(self) -> dict[str, Any]:
        """Return backend, precision, device, threads, why they were chosen, and how often the model ran."""
        loop = self._scheduler.loop
        backend = loop.backend  # read once: another thread may close the engine meanwhile
        chosen = backend.describe() if backend is not None else foreseen(self.settings, choose)
        return {**super().describe(), **chosen, "loaded": backend is not None, "forward_passes": loop.passes}

    def close(self) -> None:
        """Stop the worker after the batch in hand and let the model go; a later call loads it again."""
        self._scheduler.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scheduler": copy(self._scheduler), "_tokenizer": None}

    def __repr__(self) -> str:
        return f"LocalEngine({self.card.id!r}, backend={self.settings.backend!r})"


Choose = Callable[[Settings, str, Path, Sequence[Weights]], Choice]


def foreseen(settings: Settings, choose: Choose) -> dict[str, Any]:
    """Return what will be chosen, as far as the files that are here tell."""
    device = find_device(settings)
    try:
        kinds = usable_weights(settings, device)
        folder = find_folder(settings.card, kinds)
        if folder is not None:
            chosen = choose(settings, device, folder, kinds)
            return replace(chosen, device=", ".join(settings.devices) or chosen.device).describe()
    except (ModelLoadError, ImportError) as error:
        return {"backend": settings.backend, "device": device, "why": str(error)}
    return {"backend": settings.backend, "device": device, "why": "not on this machine yet"}


Build = Callable[[Settings, Choice, Path], Backend]


def load_backend(settings: Settings, choose: Choose, build: Build, native: AbstractContextManager[Any]) -> Backend:
    """Find or fetch the model's files and load them.

    Args:
        settings: what the user asked for.
        choose: chooses what computes, once the files are here.
        build: makes what was chosen.
        native: entered while packages are imported and weights read, but not while files are fetched.

    Raises:
        ModelLoadError: the files cannot be found, fetched or read.
        MissingExtraError: a package is not installed.
    """
    with _loading(settings):
        device = find_device(settings)
        kinds = usable_weights(settings, device)
        folder = get_folder(settings.card, kinds, code=settings.trust_remote_code)
        with native:
            choice = choose(settings, device, folder, kinds)
            refuse_emulated(choice, asked_twice=settings.backend != "auto")
            devices = settings.devices or (choice.device,)
            backends = [build(settings, replace(choice, device=device), folder) for device in devices]
            backend = backends[0] if len(backends) == 1 else DevicesBackend(backends)
    _LOG.info("%s: %s", settings.card.id, ", ".join(f"{key} {value}" for key, value in backend.describe().items()))
    return backend


@contextmanager
def _loading(settings: Settings) -> Iterator[None]:
    """Turn whatever fails while a model is loaded into an error that names the model.

    Raises:
        ModelLoadError: whatever it is.
    """
    try:
        yield
    except (BGEError, BGEWarning):
        raise
    except BaseException as error:
        # Anything may be in these files: values that are no numbers, what makes a Rust library panic.
        where = f" from {settings.card.folder!r}" if settings.card.folder else ""
        raise ModelLoadError(
            f"{settings.card.id!r} cannot be loaded{where} ({brief(error)}): are its files and packages complete?"
        ) from error


def _loaded(settings: Settings, choice: Choice, folder: Path) -> Backend:
    card = settings.card
    if choice.backend == "onnx":
        from .backends.onnx import OnnxBackend

        return OnnxBackend(choice, card, folder)
    if choice.backend == "torch":
        from .backends.packed import PackedBackend

        tokenizer = TextTokenizer.read(folder, card.max_tokens)
        heads = TokenHeads(folder, tokenizer, choice.device) if len(card.outputs) > 1 else None
        advise = settings.precision is None and choice.device == "cpu" and bool(is_native("bfloat16"))
        return PackedBackend(choice, read_weights(folder), tokenizer, pooling=card.pooling, heads=heads, advise=advise)
    from .backends.sentence_transformers import SentenceTransformerBackend

    return SentenceTransformerBackend(
        choice, card, folder, trust_remote_code=settings.trust_remote_code, pooling=settings.pooling
    )
