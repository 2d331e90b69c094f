"""What this machine can compute with: devices, cores, half precisions."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError

_DEVICES = ("cpu", "cuda", "mps", "xpu", "npu", "hpu")
_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_granted: int | None = None  # cores that Ray granted to this process


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have; torch is imported only where there is a GPU's driver.

    Raises:
        ConfigError: it does not.
    """
    kind, _, index = device.partition(":")
    if kind not in _DEVICES or (":" in device and not index.isdigit()):
        raise ConfigError(
            f"no device {device!r}; choose one of {', '.join(_DEVICES)}, or a numbered one such as 'cuda:1'"
        )
    build = _torch_build()
    if kind == "mps" and sys.platform != "darwin":
        raise ConfigError("device='mps' is for Apple silicon: leave device= out to choose the best device")
    if kind != "cuda" or build is None or "rocm" in build:
        return
    if not _has_cuda_driver():
        raise ConfigError(f"device={device!r}, but this machine has no CUDA driver: leave device= out, or pass 'cpu'")
    if "+cpu" in build:
        raise ConfigError(f"device={device!r}, but torch {build} is built for CPUs only: install a CUDA build of torch")
    import torch

    if torch.cuda.device_count() <= int(index or 0):
        raise ConfigError(f"device={device!r}, but torch sees {torch.cuda.device_count()} CUDA device(s)")


def _torch_build() -> str | None:
    from importlib import metadata  # tells the build without importing torch

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def best_device() -> str:
    """Return the best device there is; does not import torch where there is only a CPU."""
    if not (_has_cuda_driver() or sys.platform == "darwin") or find_spec("torch") is None:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _has_cuda_driver() -> bool:
    try:
        # Comes with NVIDIA's driver and not with torch, so torch need not be imported to learn that there is no GPU.
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def is_native(precision: str) -> bool | None:
    """Return whether the CPU has instructions for a half precision, or None where that cannot be read."""
    features = _cpu_features()
    native = ("avx512_bf16", "amx_bf16", "bf16") if precision == "bfloat16" else ("avx512_fp16", "amx_fp16")
    return None if features is None else bool(features & set(native))


def _cpu_features() -> set[str] | None:
    """Return names of what the CPU can do, or None where they cannot be read."""
    import torch

    ask = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.11
    if ask is not None:
        return {name for name, there in ask().items() if there}
    flags = [line for line in _text(Path("/proc/cpuinfo")).splitlines() if line.startswith(("flags", "Features"))]
    return set(flags[0].partition(":")[2].split()) if flags else None


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
    return _text(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)


def _quota(cgroup: Path) -> int | None:
    """Return the whole cores of the control group's quota (version 2, else version 1), or None without one."""
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(cgroup / "cpu/cpu.cfs_quota_us"), _text(cgroup / "cpu/cpu.cfs_period_us")
    if not (quota.isdigit() and period.isdigit() and int(period)):  # without a limit: "max", in version 1 "-1"
        return None
    return max(1, round(int(quota) / int(period)))


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
