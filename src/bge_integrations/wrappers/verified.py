"""The first-use check: ask a host for one published vector before it gets the first real text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..catalog import MODELS
from ..catalog.golden import ACCEPTED, Golden, Judgement, judge, read_golden
from ..catalog.records import ModelCard, Role
from ..core.encoder import Encoder, Stream, Vectors
from ..core.files import write_atomic
from ..core.lock import Lock
from ..errors import HostError, SpaceMismatchError, UnverifiedWarning, warn
from .base import Wrapper

__all__ = ["VerifiedEncoder", "check_probe", "probe_of"]


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


class VerifiedEncoder(Wrapper):
    """Refuses a host whose answer differs from the model's published vector.

    One text is sent before the first real request. A pass is remembered for the day, per host, the model's name there,
    and the space of the vectors.

    Args:
        inner: the encoder of the host.
        host: its address, for the memory and the message.
        memory: JSON file of passed checks; ``None`` for this object alone.
        today: the day, as text.
    """

    def __init__(
        self, inner: Encoder, *, host: str, memory: Path | None = None, today: Callable[[], str] = _today
    ) -> None:
        super().__init__(inner)
        self.host, self.memory, self._day = host, memory, today
        self._passed = ""
        self._lock = Lock()  # guards what follows
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._probe: Future[None] | None = None

    def batches(self, texts: list[str], role: Role, stream: Stream) -> None:
        """Begin to embed, after the host has been checked."""
        check = self._check()
        if check is None:
            self.inner.batches(texts, role, stream)
            return
        context = copy_context()  # a callback runs on the engine's thread, without the caller's context variables

        def checked(done: Future[None]) -> None:
            if stream.cancelled:
                return
            try:
                done.result()
                context.run(self.inner.batches, texts, role, stream)
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
                # The probe's text is none of the caller's.
                stream.fail(error.at([[]]) if isinstance(error, HostError) else error)

        check.add_done_callback(checked)

    def _check(self) -> Future[None] | None:
        with self._lock:
            if self._pid != os.getpid():  # a probe under way in the parent never ends here
                self._reset()
            if self._passed == self._day():
                return None
            if self._probe is None:
                golden = probe_of(self.card)
                if golden is None or self._remembered():
                    self._trust(known=golden is not None)
                    return None
                return self._ask(golden)
            return self._probe

    def _trust(self, *, known: bool) -> None:
        if not known and not self._passed:
            warn(
                f"no values of {self.card.id!r} with {self.card.pooling} pooling are published: {self.host} is used "
                "unverified; compare it once with `bge verify --against local`",
                UnverifiedWarning,
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

        try:
            answer = self.inner.submit([golden.text], role=golden.role)
        except BaseException:
            self._probe = None  # nothing was begun that could end it
            raise
        answer.add_done_callback(judge_answer)
        return verdict

    def _finish(self, *, passed: bool) -> None:
        # May run inside _check, on the thread that already holds the lock: plain stores only.
        self._probe = None
        self._passed = self._day() if passed else ""

    @property
    def _key(self) -> str:
        wire = self.inner.describe().get("wire_model", "")
        return hashlib.sha256("\n".join([self.host, wire, self.document_space]).encode()).hexdigest()[:32]

    def _remembered(self) -> bool:
        return self.memory is not None and _read(self.memory).get(self._key) == self._day()

    def _remember(self) -> None:
        if self.memory is not None:
            # Processes that write at the same time lose one another's entries: those hosts are checked once more.
            today = self._day()
            kept = {key: day for key, day in _read(self.memory).items() if day == today}
            _write(self.memory, {**kept, self._key: today})

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works."""
        return {**self.inner.describe(), "verify": "first-use"}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_pid", "_probe")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def probe_of(card: ModelCard) -> Golden | None:
    """Return the published vector with the most known values, or None where there is none for the model's pooling."""
    catalogued = next((known for known in MODELS if known.id == card.id), None)
    if catalogued is None or catalogued.pooling != card.pooling:
        return None
    return max(read_golden().of(card), key=lambda golden: len(golden.at), default=None)


def check_probe(golden: Golden, answer: Vectors, host: str, variant: str = "") -> Judgement:
    """Refuse an answer that is not the model's published vector.

    Raises:
        SpaceMismatchError: says the verdict and the cosine.
    """
    judgement = judge(golden, answer[0])
    lower = judgement.verdict == "same model at lower precision"
    if judgement.verdict == "same space" or (lower and (variant == "int8" or judgement.cosine >= ACCEPTED)):
        return judgement
    reason = "it looks like a coarser copy of that model, which is a space of its own" if lower else judgement.verdict
    raise SpaceMismatchError(
        f"{host} does not serve {golden.model!r} in its own vector space: {reason} (cosine {judgement.cosine:.4f} to "
        f"the published vector of {golden.text!r}); `bge verify --against local` finds out what differs. "
        "None of your texts was sent",
        model=golden.model,
        verdict=judgement.verdict,
        cosine=judgement.cosine,
    )


def _read(path: Path) -> dict[str, str]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(day) for key, day in data.items()} if isinstance(data, dict) else {}


def _write(path: Path, data: dict[str, str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(data))
    except OSError as error:
        warn(f"cannot remember that the host was verified ({error}): it is checked again next time")
