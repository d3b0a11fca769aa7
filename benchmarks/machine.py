"""On what was measured, and how much of the machine others used meanwhile."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    *("tei-manager", "grpcio", "uvloop", "uvicorn", "aiohttp", "onnxruntime", "numpy"),
    *("tokenizers", "torch", "sentence-transformers"),
)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": [round(each, 2) for each in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Usage:
    """CPU seconds between the construction and now: of given processes, and of everybody else."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._processes = {pid: psutil.Process(pid) for pid in pids}
        self._own = {pid: _cpu_secs(process) for pid, process in self._processes.items()}
        self._busy, self._all = _system_secs()

    def of(self, pid: int) -> float:
        return _cpu_secs(self._processes[pid]) - self._own[pid]

    def foreign_share(self) -> float:
        """Share of the whole machine that other processes used, 0 to 1."""
        busy, everything = _system_secs()
        others = busy - self._busy - sum(self.of(pid) for pid in self._processes)
        return max(0.0, others / max(everything - self._all, 1e-9))


def rss_mib(pid: int) -> float:
    return round(float(psutil.Process(pid).memory_info().rss) / 2**20, 1)


def _cpu_secs(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _system_secs() -> tuple[float, float]:
    times = psutil.cpu_times()
    everything = float(sum(times)) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return everything - times.idle - getattr(times, "iowait", 0.0), everything
