"""What became of every request: outcomes by kind, durations, faults, and how many inputs were in flight."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.soak.questions import Fault

_LINGER = 10.0
"""Seconds for which a request that its client gave up still counts as in flight: the engine learns of it later."""

_FAULTS = 20


class Flight:
    """Inputs of one request under way; `peak` is the most that all requests together had meanwhile."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.peak = 0
        self.is_given_up = False


class Tally:
    """Counts everything. Belongs to one event loop."""

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self._open: set[Flight] = set()
        self._in_flight = 0
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self.faults: list[str] = []
        self.fault_count = 0
        self._confirmed = 0
        self._given_up = 0

    @contextmanager
    def flight(self, inputs: int) -> Iterator[Flight]:
        """Count `inputs` as in flight within the block; longer if it is left by an exception or given up."""
        one = Flight(inputs)
        self._open.add(one)
        self._in_flight += inputs
        for each in self._open:
            each.peak = max(each.peak, self._in_flight)
        try:
            yield one
        except BaseException:
            one.is_given_up = True
            raise
        finally:
            if one.is_given_up:
                self._given_up += inputs
                asyncio.get_running_loop().call_later(_LINGER, self._land, one)
            else:
                self._land(one)

    def _land(self, one: Flight) -> None:
        self._open.discard(one)
        self._in_flight -= one.inputs

    def check_overload(self, flight: Flight) -> None:
        """Raise Fault if `flight` was refused although all inputs in flight together had permits."""
        if flight.peak <= self._permits:
            raise Fault(f"refused for want of permits with {flight.peak} of {self._permits} inputs in flight")

    def confirm(self, requests: int) -> None:
        """Count requests for inputs whose answer was right; a message of a stream is one."""
        self._confirmed += requests

    def note(self, kind: str, outcome: str, began: float) -> None:
        """Count one request that ended as it may."""
        self._outcomes[kind, outcome] += 1
        if outcome == "answered":
            self._seconds[kind].append(time.perf_counter() - began)

    def fault(self, kind: str, error: BaseException) -> None:
        """Count one request that did not."""
        self._outcomes[kind, "fault"] += 1
        self.fault_count += 1
        if len(self.faults) < _FAULTS:
            way = " > ".join(frame.name for frame in traceback.extract_tb(error.__traceback__)[-5:])
            self.faults.append(f"{kind}: {type(error).__name__}: {error} ({way})"[:600])

    @property
    def total(self) -> int:
        """Requests that are done."""
        return self._outcomes.total()

    def result(self) -> dict[str, Any]:
        """Everything as JSON can hold it; durations in seconds."""
        every = [value for values in self._seconds.values() for value in values]
        return {
            "outcomes": self._by_kind(),
            "seconds": {kind: _quantiles(values) for kind, values in sorted(self._seconds.items())},
            "all_seconds": _quantiles(every),
            "faults": self.faults,
            "fault_count": self.fault_count,
            "confirmed": self._confirmed,
            "given_up": self._given_up,
        }

    def _by_kind(self) -> dict[str, dict[str, int]]:
        shown: dict[str, dict[str, int]] = {}
        for (kind, outcome), count in sorted(self._outcomes.items()):
            shown.setdefault(kind, {})[outcome] = count
        return shown


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {name: ordered[round(last * share)] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
