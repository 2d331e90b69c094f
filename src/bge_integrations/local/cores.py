"""How many threads a matrix product should use."""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_granted: int | None = None


def limit_cores(count: int | None) -> None:
    """Bound the cores of models loaded from now on in this process to what a scheduler granted it; None lifts that."""
    global _granted
    _granted = count


def usable_cores(cpus: Path = _CPUS, cgroup: Path = _CGROUP) -> int:
    """Return the physical cores that this process may use: its affinity, bounded by its container's quota.

    Two hyperthreads of one core share its multipliers, so a second one only adds contention.
    """
    cores = len({_siblings(cpus, cpu) for cpu in _affinity()})
    return max(1, min(bound for bound in (cores, _quota(cgroup), _granted) if bound))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpus: Path, cpu: int) -> str:
    return _line(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _quota(cgroup: Path) -> int | None:
    """Return the whole cores of the control group's quota (version 2, else version 1), or None without one."""
    quota, _, period = _line(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = _line(cgroup / "cpu/cpu.cfs_quota_us"), _line(cgroup / "cpu/cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return max(1, round(int(quota) / int(period)))


def _line(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""
