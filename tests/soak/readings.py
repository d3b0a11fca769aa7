"""What can be seen of an engine from outside: its metrics, and what the system says of its process."""

from __future__ import annotations

import os
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
_SHARE = 1.05
_SLACK = 15 * MIB
_FEWEST = 10
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a process. `at` is of `time.monotonic`; `cpu` in seconds since its start, `rss` in bytes."""

    at: float
    cpu: float
    rss: int
    threads: int
    files: int


def look(pid: int) -> Reading:
    """How the process is now. Raises OSError if it is gone."""
    proc = Path(f"/proc/{pid}")
    times = (proc / "stat").read_text().rpartition(")")[2].split()[11:13]
    resident = int((proc / "statm").read_text().split()[1]) * _PAGE
    threads, files = (len(list((proc / name).iterdir())) for name in ("task", "fd"))
    return Reading(time.monotonic(), sum(map(int, times)) / _TICKS, resident, threads, files)


@dataclass(frozen=True, slots=True)
class Trend:
    """The median of the second fifth of some readings, and that of the last."""

    early: float
    late: float

    @property
    def growth(self) -> float:
        """By how much it has grown."""
        return self.late - self.early


def trend(readings: Sequence[Reading], read: Callable[[Reading], float]) -> Trend:
    """How `read` developed; the first fifth is warm-up. Raises ValueError for fewer than ten readings."""
    if len(readings) < _FEWEST:
        raise ValueError(f"{len(readings)} readings are too few to tell a trend")
    fifth = len(readings) // 5
    values = [read(reading) for reading in readings]
    return Trend(statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:]))


def is_flat(rss: Trend) -> bool:
    """Whether resident memory stayed where it was: within 5 % or 15 MiB."""
    return rss.late <= rss.early * _SHARE or rss.growth <= _SLACK


def read_metrics(port: int) -> dict[str, float]:
    """Every series of `/metrics`, by name and labels as they are written there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def total(metrics: dict[str, float], name: str) -> float:
    """The sum of a counter over its labels."""
    return sum(value for series, value in metrics.items() if series.partition("{")[0] == name)
