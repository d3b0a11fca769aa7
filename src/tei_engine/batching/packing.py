"""Which queued entries share the next run. Pure: no clock, no lock, no thread.

The oldest entry of a lane opens a run; it is filled with entries of like length, because padding is work for
nothing and, on a processor, a run of a few hundred tokens is already as efficient as any larger one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, Protocol, TypeVar

WINDOW = 1024
"""How many queued entries are looked at when a run is filled."""

CHUNK = 32
"""Entries of one job in the lanes at a time, so that a large batch cannot stand ahead of everyone."""

_PADDING = 1.25
_PASSES = 8
_RUNS = 20
_STREAK = 3


class Queued(Protocol):
    """What packing looks at. `queued_at` is a time in seconds; `passed_over` is counted here."""

    passed_over: int

    @property
    def length(self) -> int: ...
    @property
    def queued_at(self) -> float: ...
    @property
    def has_priority(self) -> bool: ...
    @property
    def job(self) -> Hashable: ...


Item = TypeVar("Item", bound=Queued)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run: padded tokens (one entry may exceed them alone) and, if given, entries."""

    tokens: int
    entries: int | None = None


class Lanes(Generic[Item]):
    """Entries waiting for a run, in two lanes: priority (single short requests) and bulk."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._priority: list[Item] = []
        self._bulk: list[Item] = []
        self._in_lane: dict[Hashable, int] = {}
        self._backlog: dict[Hashable, deque[Item]] = {}
        self._streak = 0
        self._forced = False

    def __len__(self) -> int:
        return len(self._priority) + len(self._bulk) + sum(map(len, self._backlog.values()))

    def push(self, items: Iterable[Item]) -> None:
        """Queue entries in their order; beyond `CHUNK` of one job they wait behind the lanes."""
        for item in items:
            if self._in_lane.get(item.job, 0) < CHUNK:
                self._enter(item)
            else:
                self._backlog.setdefault(item.job, deque()).append(item)

    def remove(self, unwanted: Callable[[Item], bool]) -> list[Item]:
        """Take out and return every entry for which `unwanted` is true."""
        removed = [item for item in (*self._priority, *self._bulk) if unwanted(item)]
        for job, waiting in list(self._backlog.items()):
            removed += [item for item in waiting if unwanted(item)]
            self._backlog[job] = deque(item for item in waiting if not unwanted(item))
        self._leave(removed)
        return removed

    def take(self, *, now: float, mean_run: float, idle: int = 1) -> list[Item]:
        """The entries of the next run, removed from the lanes; empty only when nothing is queued.

        longest × count ≤ `limits.tokens` unless it is a single entry, and padded ≤ 1.25 × real tokens. `mean_run`
        is the mean duration of a run in the unit of `now`. `idle` threads are there to share a short queue.
        """
        bulk_is_due = any(item.passed_over >= _PASSES for item in self._bulk[:WINDOW]) or (
            bool(self._bulk) and now - self._bulk[0].queued_at > _RUNS * mean_run
        )
        take_bulk = self._bulk and (
            not self._priority or ((bulk_is_due or self._streak >= _STREAK) and not self._forced)
        )
        if not take_bulk and not self._priority:
            return []
        # a due bulk entry opens one run, then priority has its turn: neither lane can shut out the other
        self._forced = bool(take_bulk and self._priority)
        self._streak = 0 if take_bulk else self._streak + 1
        first, second = (self._bulk, self._priority) if take_bulk else (self._priority, self._bulk)
        run = self._fill(_anchor(first), first, second, self._share(idle))
        taken = set(map(id, run))
        for lane in (self._priority, self._bulk):
            _count_passed(lane, taken)
        self._leave(run)
        return run

    def _share(self, idle: int) -> int:
        """Tokens of one run, so that of a queue which one run could hold every idle thread gets a part."""
        if idle < 2 or len(self) > self._limits.tokens:  # a token each: the queue is long enough for all
            return self._limits.tokens
        queued = sum(item.length for item in (*self._priority, *self._bulk))
        return min(self._limits.tokens, -(-queued // idle))

    def _fill(self, anchor: Item, first: list[Item], second: list[Item], tokens: int) -> list[Item]:
        run, longest, real = [anchor], anchor.length, anchor.length
        limit = self._limits.entries or WINDOW
        for lane in (first, second):
            near = sorted(islice(lane, WINDOW), key=lambda item: abs(item.length - anchor.length))
            for item in near:
                if longest * (len(run) + 1) > tokens or len(run) >= limit:
                    return run
                widest = max(longest, item.length)
                padded = widest * (len(run) + 1)
                if item is anchor or padded > tokens or padded > _PADDING * (real + item.length):
                    continue
                run.append(item)
                longest, real = widest, real + item.length
        return run

    def _enter(self, item: Item) -> None:
        self._in_lane[item.job] = self._in_lane.get(item.job, 0) + 1
        (self._priority if item.has_priority else self._bulk).append(item)

    def _leave(self, items: list[Item]) -> None:
        gone = set(map(id, items))
        for lane in (self._priority, self._bulk):
            kept = [item for item in lane if id(item) not in gone]
            for item in lane:
                if id(item) in gone:
                    self._in_lane[item.job] -= 1
            lane[:] = kept
        for job in {item.job for item in items}:
            self._refill(job)

    def _refill(self, job: Hashable) -> None:
        waiting = self._backlog.get(job)
        while waiting and self._in_lane.get(job, 0) < CHUNK:
            self._enter(waiting.popleft())
        if not waiting:
            self._backlog.pop(job, None)
        if not self._in_lane.get(job, 0):
            self._in_lane.pop(job, None)


def _anchor(lane: list[Item]) -> Item:
    """The first entry passed over too often, else the oldest."""
    return next((item for item in lane[:WINDOW] if item.passed_over >= _PASSES), lane[0])


def _count_passed(lane: list[Item], taken: set[int]) -> None:
    """Every entry that a younger one of its lane overtook has been passed over once more."""
    last = max((place for place, item in enumerate(lane) if id(item) in taken), default=-1)
    for item in lane[: last + 1]:
        if id(item) not in taken:
            item.passed_over += 1
