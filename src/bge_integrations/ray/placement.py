"""How many workers a cluster has room for, and what each of them may reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import ConfigError

__all__ = ["Workers", "plan_tasks", "plan_workers"]


class Workers(NamedTuple):
    """How many workers, and what the scheduler reserves for each."""

    size: int
    cpus: float
    gpus: float


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    *,
    local: bool,
    workers: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Workers:
    """Plan workers so that a CPU is always left for reading and writing.

    A worker holds what it reserves for as long as the job lasts. Reading needs a whole CPU; where workers held all of
    them, nothing would ever be read and the job would wait for itself. So one CPU in eight, and one of each machine,
    stays free; on machines too small for that, workers reserve none: they compute as ever, only not counted by Ray.

    Args:
        nodes: resources (``"CPU"``, ``"GPU"``) of each machine.
        local: the model runs on the workers, not at a host.
        workers: how many; by default one per GPU, else one per free CPU, else (for a host) one per machine.
        num_cpus: what each reserves, and how many threads it computes with.
        num_gpus: the same of GPUs; by default 1 where the cluster has any and the model runs on the workers.

    Raises:
        ConfigError: the cluster has no room for them.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    cpus, gpus = sum(node.get("CPU", 0) for node in nodes), sum(node.get("GPU", 0) for node in nodes)
    if num_gpus is None:
        num_gpus = float(local and gpus >= 1)
    if num_gpus > gpus:
        raise ConfigError(f"workers that need {num_gpus:g} GPUs do not fit into a cluster with {gpus:g}")
    room = sum(max(0, node.get("CPU", 0) - max(1, node.get("CPU", 0) // 8)) for node in nodes)
    if workers is None:
        workers = _default(len(nodes), cpus, gpus, room, num_cpus, num_gpus, local=local)
    if workers < 1:
        raise ConfigError(f"at least one worker is needed, not {workers}; the cluster has {cpus:g} CPUs")
    if num_cpus is None:
        num_cpus = float(local and not num_gpus and workers <= room)
    if workers * num_cpus > cpus - 1:
        raise ConfigError(
            f"{workers} workers of {num_cpus:g} CPUs leave none of the cluster's {cpus:g} for reading and "
            "writing: use fewer workers, or num_cpus=0"
        )
    return Workers(workers, num_cpus, num_gpus)


def _default(
    nodes: int, cpus: float, gpus: float, room: float, num_cpus: float | None, num_gpus: float, *, local: bool
) -> int:
    if num_gpus:
        return int(gpus / num_gpus)
    if not local:
        return nodes
    if num_cpus:
        return int(room / num_cpus)
    return int(room if room >= 0.75 * cpus else cpus)


def plan_tasks(
    nodes: Sequence[Mapping[str, float]],
    *,
    local: bool,
    workers: int | None = None,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Workers:
    """Return how many tasks run at a time where nothing else has to find room beside them.

    Raises:
        ConfigError: the cluster has no machine on which one fits.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    if num_gpus is None:
        num_gpus = float(local and any(node.get("GPU", 0) >= 1 for node in nodes))
    if num_cpus is None:
        num_cpus = float(local and not num_gpus)
    slots = sum(_slots(node, num_cpus, num_gpus) for node in nodes)
    if not slots:
        raise ConfigError(f"no machine of the cluster has the {num_cpus:g} CPUs and {num_gpus:g} GPUs of one worker")
    return Workers(workers or slots, num_cpus, num_gpus)


def _slots(node: Mapping[str, float], num_cpus: float, num_gpus: float) -> int:
    rooms = [int(node.get(name, 0) / each) for name, each in (("CPU", num_cpus), ("GPU", num_gpus)) if each]
    return min(rooms, default=1)
