"""An encoder that asks its host for one published vector before it trusts it with the first real text."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextvars import copy_context
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from ..catalog import MODELS
from ..catalog.golden import ACCEPTED, Golden, Judgement, judge, read_golden
from ..catalog.records import ModelCard, Role
from ..core.encoder import FutureEncoder, OnBatch, Vectors
from ..errors import BGEWarning, HostError, SpaceMismatchError
from .base import WrappedEncoder

__all__ = ["GuardedEncoder", "check_probe", "probe_of"]


class UnverifiedWarning(BGEWarning):
    """``verify="first-use"`` was asked for a model of which no values are published."""


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


class GuardedEncoder(WrappedEncoder):
    """Refuses a host that does not give the model's published vector.

    One text goes to the host before the first real request; that it passed is remembered for the day, per host,
    name at the host, and space of the vectors.

    Args:
        inner: the encoder of the host.
        host: where it is, for the memory and the message.
        memory: JSON file that remembers; ``None`` for this object alone.
        today: the day, as text.
    """

    def __init__(
        self, inner: FutureEncoder, *, host: str, memory: Path | None = None, today: Callable[[], str] = _today
    ) -> None:
        super().__init__(inner)
        self.host, self.memory, self._day = host, memory, today
        self._passed = ""
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._probe: Future[None] | None = None

    def start(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Future[Vectors]:
        """Begin to embed, after the host has been looked at."""
        check = self._check()
        if check is None:
            return self.inner.start(texts, role, on_batch)
        begin = partial(copy_context().run, self.inner.start, texts, role, on_batch)
        return _after(check, begin, len(texts))

    def _check(self) -> Future[None] | None:
        with self._lock:
            if self._passed == self._day():
                return None
            if self._probe is None:
                golden = probe_of(self.card)
                if golden is None or self._remembered():
                    self._settle(warn=golden is None)
                    return None
                return self._ask(golden)
            return self._probe

    def _settle(self, *, warn: bool) -> None:
        if warn and not self._passed:
            warnings.warn(
                f"no values of {self.card.id!r} with {self.card.pooling} pooling are published: {self.host} is used "
                "unverified; compare it once with `bge verify --against local`",
                UnverifiedWarning,
                stacklevel=6,
            )
        self._passed = self._day()

    def _ask(self, golden: Golden) -> Future[None]:
        verdict = self._probe = Future()

        def judge_answer(answer: Future[Vectors]) -> None:
            try:
                check_probe(golden, answer.result(), self.host, self.variant)
                self._remember()
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to those who wait
                self._finish(passed=False)
                verdict.set_exception(error)
            else:
                self._finish(passed=True)
                verdict.set_result(None)

        self.inner.start([golden.text], golden.role, None).add_done_callback(judge_answer)
        return verdict

    def _finish(self, *, passed: bool) -> None:
        # May run inside _check, on the thread that already holds the lock: plain stores only.
        self._probe = None
        self._passed = self._day() if passed else ""

    @property
    def _key(self) -> str:
        wire = getattr(getattr(self.inner, "endpoint", None), "wire_model", "")
        return hashlib.sha256("\n".join([self.host, wire, self.document_space]).encode()).hexdigest()[:32]

    def _remembered(self) -> bool:
        return self.memory is not None and _read(self.memory).get(self._key) == self._day()

    def _remember(self) -> None:
        if self.memory is not None:
            today = self._day()
            kept = {key: day for key, day in _read(self.memory).items() if day == today}
            _write(self.memory, {**kept, self._key: today})

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works."""
        return {**self.inner.describe(), "verify": "first-use"}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_probe")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def probe_of(card: ModelCard) -> Golden | None:
    """Return the published vector that tells most about a model, or None where there is none for its pooling."""
    catalogued = next((known for known in MODELS if known.id == card.id), None)
    if catalogued is None or catalogued.pooling != card.pooling:
        return None
    return max(read_golden().of(card), key=lambda golden: len(golden.at), default=None)


def check_probe(golden: Golden, answer: Vectors, host: str, variant: str = "") -> Judgement:
    """Refuse an answer that is not the model's published vector.

    Raises:
        SpaceMismatchError: says the verdict and the cosine.
    """
    found = judge(golden, answer[0])
    lower = found.verdict == "same model at lower precision"
    if found.verdict == "same space" or (lower and (variant == "int8" or found.cosine >= ACCEPTED)):
        return found
    reason = "it looks like a coarser copy of that model, which is a space of its own" if lower else found.verdict
    raise SpaceMismatchError(
        f"{host} does not serve {golden.model!r} in its own vector space: {reason} (cosine {found.cosine:.4f} to the "
        f"published vector of {golden.text!r}); `bge verify --against local` finds out what differs. "
        "None of your texts was sent",
        model=golden.model,
        verdict=found.verdict,
        cosine=found.cosine,
    )


def _after(check: Future[None], begin: Callable[[], Future[Vectors]], count: int) -> Future[Vectors]:
    """Return a Future of what ``begin`` starts once the check has passed; cancelling it cancels that."""
    result: Future[Vectors] = Future()

    def begun(done: Future[None]) -> None:
        if result.cancelled():
            return
        try:
            done.result()
            work = begin()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            _settle(result, error=_for_texts(error, count))
            return
        result.add_done_callback(lambda outer: work.cancel() if outer.cancelled() else None)
        work.add_done_callback(lambda ended: _copy(ended, result))

    check.add_done_callback(begun)
    return result


def _copy(ended: Future[Vectors], result: Future[Vectors]) -> None:
    if ended.cancelled():
        result.cancel()
        return
    error = ended.exception()
    _settle(result, error=error) if error else _settle(result, vectors=ended.result())


def _settle(result: Future[Vectors], *, vectors: Vectors | None = None, error: BaseException | None = None) -> None:
    try:
        if error is not None:
            result.set_exception(error)
        elif vectors is not None:
            result.set_result(vectors)
    except InvalidStateError:
        pass  # cancelled in the meantime


def _for_texts(error: BaseException, count: int) -> BaseException:
    if not isinstance(error, HostError):
        return error
    mine = copy.copy(error)
    mine.positions, mine.finished, mine.unfinished = (), (), tuple(range(count))
    return mine


def _read(path: Path) -> dict[str, str]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(day) for key, day in data.items()} if isinstance(data, dict) else {}


def _write(path: Path, data: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            json.dump(data, file)
        os.replace(file.name, path)  # noqa: PTH105 - one atomic step
    except OSError as error:
        warnings.warn(
            f"cannot remember that the host was verified ({error}): it is asked again", BGEWarning, stacklevel=2
        )
