"""A Ray cluster as an encoder: what one machine's job asks for, all machines compute."""

from __future__ import annotations

import contextvars
import logging
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ..core.encoder import Encoder, OnBatch, Role, Vectors, on_cut, report_cut
from ..errors import (
    BGEError,
    ConfigError,
    HostError,
    HostUnavailableError,
    InputError,
    MissingExtraError,
    TruncationWarning,
)
from ..load import engine_of
from ..wrappers.base import Wrapper
from .batch import BGEBatchEncoder
from .placement import Workers, plan_tasks

__all__ = ["RayEncoder", "connect", "need_ray", "nodes", "spread"]

# A text that ends its worker each time must not do so for ever.
_ATTEMPTS = 5
_PATIENCE = 1.0


def need_ray() -> None:
    """Say which extra is missing.

    Raises:
        MissingExtraError: there is no Ray.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError:
        raise MissingExtraError("this needs Ray: pip install 'bge-integrations[ray]'") from None


def connect(address: str | None = None) -> None:
    """Join a cluster, or start one on this machine where none is named here or in ``RAY_ADDRESS``.

    Args:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``.

    Raises:
        MissingExtraError: there is no Ray.
        ConfigError: no cluster answers there.
    """
    need_ray()
    import ray

    if ray.is_initialized():
        return
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster at {address or 'RAY_ADDRESS'!r}: {error}") from error


def _knock(address: str | None) -> None:
    """Fail at once where nobody listens; Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), _PATIENCE * 10).close()


def nodes() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    import ray

    connect()
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def spread(encoder: Encoder, address: str | None = None, *, workers: int | None = None) -> Encoder:
    """Return an encoder whose engine works on a cluster, while what is around it (cache, bar, check) stays here.

    Args:
        encoder: changed in place where something is around its engine.
        address: as ``connect`` takes it.
        workers: as ``RayEncoder`` takes it.

    Raises:
        MissingExtraError: there is no Ray.
        ConfigError: no cluster answers there, or it has no room.
    """
    connect(address)
    around, engine = None, encoder
    while isinstance(engine, Wrapper):
        around, engine = engine, engine.inner
    there = RayEncoder(engine, workers=workers)
    there.plan()
    if around is None:
        return there
    around.inner = there
    return encoder


class RayEncoder(Wrapper):
    """An encoder whose texts are embedded on the cluster, in batches, each by whatever worker is free.

    A batch whose worker or machine is lost is computed anew elsewhere. Rows come back to the caller's machine, so
    nothing but the cluster has to be shared; ``embed_dataset`` is for what is too large for one machine to read or
    write. Each worker keeps to the bounds of requests and tokens per minute by itself.

    Args:
        encoder: what embeds on the workers; pickled without model and keys.
        batch: texts per task.
        workers: how many tasks run at a time; by default as many as there is room for.
        num_cpus: CPUs of each, and its threads; by default 1.
        num_gpus: GPUs of each; by default 1 where the cluster has any and the model runs on the workers.

    Attributes:
        lanes: calls at a time that keep all workers busy, the second while the first waits for its last batches.
    """

    lanes = 2

    def __init__(
        self,
        encoder: Encoder,
        *,
        batch: int = 256,
        workers: int | None = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
    ) -> None:
        super().__init__(encoder)
        self.batch, self.workers, self.num_cpus, self.num_gpus = batch, workers, num_cpus, num_gpus
        self.batches = BGEBatchEncoder(role="document", encoder=encoder)
        # Shared by all calls: one call's last batches must not leave another's more than ``workers``.
        self.free = deque(range(workers)) if workers else None

    def start(self, texts: list[str], role: Role, on_batch: OnBatch | None) -> Future[Vectors]:
        """Begin to hand batches out; a thread waits for them."""
        call = _Call(self, texts, role, on_batch)
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(call.run,), name="bge-ray", daemon=True).start()
        return call.future

    def describe(self) -> dict[str, Any]:
        """Return how the inner encoder works, and on how much of the cluster."""
        return {**super().describe(), "ray": self.plan()._asdict()}

    def plan(self) -> Workers:
        """Return how many tasks run at a time, and what each reserves.

        Raises:
            ConfigError: the cluster has no room for one.
        """
        return plan_tasks(
            nodes(),
            local=not hasattr(engine_of(self.inner), "endpoint"),
            workers=self.workers,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )


class _Call:
    """One call: batches that wait, batches that are under way, rows that are there."""

    def __init__(self, encoder: RayEncoder, texts: list[str], role: Role, on_batch: OnBatch | None) -> None:
        self.encoder, self.texts, self.role, self.on_batch = encoder, texts, role, on_batch
        self.future: Future[Vectors] = Future()
        self.vectors = np.empty((len(texts), encoder.card.dimensions), np.float32)
        self.waiting = deque(range(first, min(first + encoder.batch, len(texts))) for first in _firsts(texts, encoder))
        self.running: dict[Any, range] = {}
        self.finished: list[int] = []
        self.cut: list[int] = []

    def run(self) -> None:
        """Do all of it, and answer the caller."""
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - it is the caller's, wherever it comes from
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(error)
        else:
            if self.future.set_running_or_notify_cancel():
                self.future.set_result(self.vectors)

    def _work(self) -> None:
        import ray

        plan = self.encoder.plan()
        task = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=_ATTEMPTS, max_calls=0)(_embed)
        batches = ray.put(self.encoder.batches)
        # Twice as many as there are workers, so that none waits for this thread.
        room = 2 * plan.size
        try:
            while (self.waiting or self.running) and not self.future.cancelled():
                while self.waiting and len(self.running) < room and self._enter():
                    rows = self.waiting.popleft()
                    self.running[task.remote(batches, self.texts[rows.start : rows.stop], self.role)] = rows
                if self.running:
                    self._take(ray.wait(list(self.running), timeout=_PATIENCE)[0])
                else:
                    time.sleep(_PATIENCE / 50)  # other calls have all workers
        finally:
            for reference in self.running:
                ray.cancel(reference)
                self._leave()
        report_cut(
            sorted(self.cut), model=self.encoder.card.id, max_tokens=self.encoder.card.max_tokens, truncate="warn"
        )

    def _enter(self) -> bool:
        free = self.encoder.free
        try:
            return free is None or free.pop() >= 0
        except IndexError:
            return False

    def _leave(self) -> None:
        if self.encoder.free is not None:
            self.encoder.free.append(0)

    def _take(self, done: Sequence[Any]) -> None:
        import ray

        for reference in done:
            rows = self.running.pop(reference)
            self._leave()
            try:
                vectors, cut, used = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise self._translate(error, rows) from error
            self.vectors[rows.start : rows.stop] = vectors
            self.finished.extend(rows)
            self.cut.extend(rows.start + i for i in cut)
            self.encoder.usage.add(**used)
            if self.on_batch:
                self.on_batch(rows, vectors)

    def _translate(self, error: Any, rows: range) -> BGEError:
        cause = getattr(error, "cause", None)
        left = sorted(set(range(len(self.texts))) - set(self.finished))
        if not isinstance(cause, BGEError):
            return HostUnavailableError(
                f"the cluster could not embed texts {rows.start} to {rows.stop - 1}: {str(error).strip():.500}",
                provider="ray",
                model=self.encoder.card.id,
                positions=rows,
                finished=sorted(self.finished),
                unfinished=left,
            )
        if isinstance(cause, (InputError, HostError)) and cause.positions:
            cause.positions = tuple(rows.start + i for i in cause.positions)
            if rows.start:
                cause.message += f" [in the list as it was given: {', '.join(map(str, cause.positions[:10]))}]"
                cause.args = (cause.message,)
        if isinstance(cause, HostError):
            cause.finished, cause.unfinished = tuple(sorted(self.finished)), tuple(left)
        return cause


def _firsts(texts: Sequence[str], encoder: RayEncoder) -> range:
    return range(0, len(texts), encoder.batch)


def _embed(batches: BGEBatchEncoder, texts: list[str], role: Role) -> tuple[Vectors, list[int], dict[str, float]]:
    """Run on a worker."""
    encoder, cut = batches.loaded(), list[int]()
    before = encoder.usage.to_dict()

    def note(positions: Sequence[int]) -> Sequence[int]:
        cut.extend(positions)
        return positions

    token = on_cut.set(note)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # the driver says it, once for all batches
            vectors = encoder.encode(texts, role=role)
    finally:
        on_cut.reset(token)
    after = encoder.usage.to_dict()
    used = {name: after[name] - (before[name] or 0) for name in after if after[name] and name != "seconds"}
    return vectors, cut, used
