"""Which ports an instance gets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

METRICS_WINDOW = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Automatic ports: `start` inclusive, `end` exclusive; metrics ports from `metrics_start` on."""

    start: int = 8080
    end: int = 8180
    metrics_start: int = 9100


def main_port(within: Range, taken: Collection[int], after: int, is_free: Callable[[int], bool]) -> int | None:
    """The next free port behind `after`, round the range (next fit: a port just released rests)."""
    size = within.end - within.start
    first = after + 1 if within.start <= after < within.end else within.start
    return _first((within.start + (first - within.start + i) % size for i in range(size)), taken, is_free)


def second_port(within: Range, taken: Collection[int], is_free: Callable[[int], bool]) -> int | None:
    """The highest free port, so that explicit ports at the bottom (8080, 8081 …) stay free."""
    return _first(range(within.end - 1, within.start - 1, -1), taken, is_free)


def metrics_port(within: Range, taken: Collection[int], is_free: Callable[[int], bool]) -> int | None:
    """The lowest free port of the metrics window."""
    top = min(within.metrics_start + METRICS_WINDOW, 65536)
    return _first(range(within.metrics_start, top), taken, is_free)


def _first(candidates: Iterable[int], taken: Collection[int], is_free: Callable[[int], bool]) -> int | None:
    return next((port for port in candidates if port not in taken and is_free(port)), None)
