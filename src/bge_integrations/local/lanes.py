"""Calls that wait, and how they are merged into batches."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.encoder import Vectors, check_vectors
from ..errors import BadAnswerError
from .backends.base import Backend
from .jobs import Job
from .plan import SLICE_CHARACTERS, SLICE_TEXTS, Indices, cut_batches, slice_end

NOTHING: Indices = np.empty(0, np.int64)


@dataclass
class Slice:
    """Texts of one or more jobs, tokenised together and cut into batches.

    Attributes:
        owners: for each text, the position of its job in ``jobs``.
        indices: for each text, its position in that job.
    """

    jobs: list[Job]
    items: list[Any]
    owners: Indices
    indices: Indices
    batches: deque[Indices]

    def next_batch(self) -> Indices:
        """Return the texts of the next batch for which somebody still waits; may be none."""
        if not self.batches:
            return NOTHING
        batch = self.batches.popleft()
        alive = np.array([job.alive for job in self.jobs])
        return batch if alive.all() else batch[alive[self.owners[batch]]]

    def deliver(self, batch: Indices, rows: Vectors) -> None:
        """Give each job its rows."""
        owners = self.owners[batch]
        for owner in np.unique(owners).tolist() if len(self.jobs) > 1 else [0]:
            mine = owners == owner
            if self.jobs[owner].alive:
                self.jobs[owner].put(self.indices[batch[mine]], rows if mine.all() else rows[mine])

    def fail(self, batch: Indices, error: Exception) -> None:
        """Fail every job that has a text in the batch."""
        for owner in np.unique(self.owners[batch]).tolist():
            mine = batch[self.owners[batch] == owner]
            self.jobs[owner].fail(_positioned(error, self.indices[mine], batch, mine))


def _positioned(error: Exception, indices: Indices, batch: Indices, mine: Indices) -> Exception:
    """Return an error about rows of a batch as one about texts of a call."""
    if not isinstance(error, BadAnswerError):
        return error
    wrong = set(batch[list(error.positions)].tolist())
    positions = [index for index, text in zip(indices.tolist(), mine.tolist(), strict=True) if text in wrong]
    return BadAnswerError(error.message, provider="local", positions=positions)


class Lane:
    """Jobs that wait, and the slice of them that is being computed."""

    def __init__(self) -> None:
        self.jobs: deque[Job] = deque()
        self.slice: Slice | None = None
        self.passes = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to compute."""
        return bool(self.jobs or self.slice)

    def run_batch(self, backend: Backend) -> None:
        """Compute one batch, or find that nobody waits for it any more."""
        current = self.slice or self._next_slice(backend)
        batch = current.next_batch()
        # An idle engine keeps no call alive, so that it can go away itself.
        self.slice = current if current.batches else None
        if not len(batch):
            return
        self.passes += 1
        try:
            rows = backend.forward([current.items[i] for i in batch])
            dimensions = current.jobs[0].dimensions
            current.deliver(batch, check_vectors(rows, count=len(batch), dimensions=dimensions))
        except Exception as error:  # noqa: BLE001 - belongs to the calls that the batch is of
            current.fail(batch, error)

    def _next_slice(self, backend: Backend) -> Slice:
        jobs: list[Job] = []
        parts: list[range] = []
        texts: list[str] = []
        characters = SLICE_CHARACTERS
        while self.jobs and len(texts) < SLICE_TEXTS and (characters > 0 or not texts):
            job = self.jobs[0]
            if not job.alive or not _allowed(job, backend):
                self.jobs.popleft()
                continue
            part, ready = job.take(SLICE_TEXTS - len(texts), characters)
            jobs.append(job)
            parts.append(part)
            texts += ready
            characters -= sum(map(len, ready))
            if job.taken == len(job.texts):
                self.jobs.popleft()
        try:
            return _tokenised(jobs, parts, texts, backend)
        except Exception as error:  # noqa: BLE001 - belongs to the calls whose texts these are
            for job in jobs:
                job.fail(error)
            return Slice([], [], NOTHING, NOTHING, deque())

    def fail(self, error: BaseException) -> None:
        """Fail everything that waits."""
        for job in [*self.jobs, *(self.slice.jobs if self.slice else ())]:
            job.fail(error)
        self.jobs.clear()
        self.slice = None


def _allowed(job: Job, backend: Backend) -> bool:
    """Tell a strict job which texts are too long before anything of it is computed."""
    if not job.strict or job.taken:
        return True
    try:
        start = 0
        while start < len(job.texts):
            end = slice_end(job.texts, start, SLICE_TEXTS, SLICE_CHARACTERS)
            job.cut += [start + i for i in backend.tokenize(job.prepare(job.texts[start:end])).cut]
            start = end
        job.report(job.cut)
    except Exception as error:  # noqa: BLE001 - belongs to the call
        job.fail(error)
    return job.alive


def _tokenised(jobs: list[Job], parts: list[range], texts: list[str], backend: Backend) -> Slice:
    owners = np.repeat(np.arange(len(jobs)), [len(part) for part in parts])
    indices = np.concatenate([np.arange(part.start, part.stop) for part in parts] or [NOTHING])
    tokens = backend.tokenize(texts)
    for owner, job in enumerate(jobs):
        job.tokens += int(tokens.lengths[owners == owner].sum())
        job.cut += [] if job.strict else [int(indices[i]) for i in tokens.cut if owners[i] == owner]
        if job.taken == len(job.texts) and not job.strict:
            _report(job)
    batches = deque(cut_batches(tokens.lengths, backend.budget, padded=backend.padded))
    return Slice(jobs, tokens.items, owners, indices, batches)


def _report(job: Job) -> None:
    try:
        job.report(job.cut)
    except Exception as error:  # noqa: BLE001 - a warning that is an error belongs to the call
        job.fail(error)
