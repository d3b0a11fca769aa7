"""The compute threads: each takes the best run that can be formed at the moment it is free."""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from tei_engine import errors
from tei_engine.batching.jobs import Entry, Job
from tei_engine.batching.packing import Lanes, Limits
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.models.model import Batch, Model
from tei_engine.models.scores import nonzero, normalised

_log = logging.getLogger(__name__)

_STUCK_SECONDS = 60.0

_COMPANY_RUNS, _COMPANY_SECONDS = 2.0, 0.01
"""How long after a run with company the next lone text still counts as one of many."""

_SHORT, _WARM_SECONDS = 32, 0.04
"""A text of fewer tokens goes wide only within this time of the last run: ONNX Runtime's threads spin for some
50 ms, and to wake them costs more than they save (MiniLM, 12 tokens, two cores: wide 4 ms, narrow 7, woken 11).
"""


class _Mode(enum.Enum):
    """How a run uses the processor."""

    NARROW = "narrow"
    WIDE_ALONE = "wide, nothing beside it"
    WIDE_SHARED = "wide, but so long that narrow runs may go beside it"


@dataclass(slots=True)
class Outcome:
    """What became of the entries of one run: `computed` of them, of `real` tokens, `padded` ones, in `seconds`."""

    entries: list[Entry]
    errors: dict[int, errors.RequestError] = field(default_factory=dict)
    """By place in `entries`."""
    padded: int = 0
    real: int = 0
    computed: int = 0
    seconds: float = 0.0


class ComputeThreads:
    """Forms runs from the lanes and executes them; a lone run is wide, others run side by side."""

    def __init__(self, model: Model, *, workers: int, limits: Limits, done: Callable[[Outcome], None]) -> None:
        """`done` is called from a compute thread, once per run."""
        self._model = model
        self._limits = limits
        self._done = done
        self._changed = threading.Condition()
        self._lanes: Lanes[Entry] = Lanes(limits)
        self._running: dict[int, tuple[_Mode, float]] = {}  # thread number → (mode, start)
        self._mean_run = 0.01
        self._last_company = self._last_end = -math.inf
        self._failed = False
        self._test_wanted = False
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"compute-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queue_size(self) -> int:
        """Entries waiting for a run."""
        with self._changed:
            return len(self._lanes)

    def is_healthy(self) -> bool:
        """Whether the last run, or the self-test after it, succeeded and none is older than 60 s.

        While it has not, every question asks for another self-test, so that a passing fault heals.
        """
        now = time.perf_counter()
        if any(now - began > _STUCK_SECONDS for _, began in list(self._running.values())):
            return False
        if self._failed:
            with self._changed:
                self._test_wanted = True
                self._changed.notify()
            return False
        return True

    def submit(self, entries: list[Entry]) -> None:
        """Queue tokenised entries; from any thread."""
        with self._changed:
            self._lanes.push(entry for entry in entries if not entry.is_over)
            self._changed.notify(min(len(entries), len(self._threads)))

    def remove(self, job: Job) -> None:
        """Forget queued entries of `job` that nobody wants any more; what runs is finished and discarded."""
        with self._changed:
            self._lanes.remove(lambda entry: entry.job is job and entry.is_over)

    def close(self) -> None:
        """Let the threads end after their current run."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def _work(self, number: int) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._test_wanted and not self._may_run():
                    self._changed.wait()
                if self._closing:
                    return
                test, self._test_wanted = self._test_wanted, False
                entries, wide = ([], False) if test else self._take(number)
            if test:
                self._self_test()
                continue
            try:
                outcome = self._run(entries, wide)
            except Exception as error:  # a fault of ours must not take the thread, or its callers, with it
                fault = errors.internal(error)
                outcome = Outcome(entries, dict.fromkeys(range(len(entries)), fault))
            with self._changed:  # before anybody is answered: who asks again at once is alone
                del self._running[number]
                self._last_end = time.perf_counter()
                if self._lanes:
                    self._changed.notify_all()
            self._done(outcome)

    def _may_run(self) -> bool:
        return len(self._lanes) > 0 and all(mode is not _Mode.WIDE_ALONE for mode, _ in self._running.values())

    def _take(self, number: int) -> tuple[list[Entry], bool]:
        """Form a run, and decide whether it has the processor to itself."""
        now = time.perf_counter()
        idle = len(self._threads) - len(self._running)
        entries = self._lanes.take(now=now, mean_run=self._mean_run, idle=idle)
        wide = self._model.has_wide and self._is_alone(entries, now)
        above = max((entry.length for entry in entries), default=0) > self._limits.tokens
        mode = _Mode.NARROW if not wide else _Mode.WIDE_SHARED if above else _Mode.WIDE_ALONE
        self._running[number] = (mode, now)
        return entries, wide

    def _is_alone(self, entries: list[Entry], now: float) -> bool:
        """Whether this is one text, no other has been about for some runs, and all cores are worth their waking.

        Among several callers a run over all cores would make those wait who come a moment later, and its threads
        would spin while the answers are written.
        """
        if len(entries) > 1 or self._running or self._lanes:
            self._last_company = now
            return False
        if now - self._last_company <= max(_COMPANY_RUNS * self._mean_run, _COMPANY_SECONDS):
            return False
        return now - self._last_end < _WARM_SECONDS or any(entry.length >= _SHORT for entry in entries)

    def _run(self, entries: list[Entry], wide: bool) -> Outcome:
        began = time.perf_counter()
        now = time.monotonic()
        outcome = Outcome(entries)
        live = []
        for place, entry in enumerate(entries):
            entry.queue = began - entry.queued_at
            if entry.is_over:
                continue
            if entry.is_expired(now):
                outcome.errors[place] = errors.expired()
            else:
                live.append(place)
        if live:
            self._compute(outcome, live, wide)
            outcome.seconds = time.perf_counter() - began
            self._mean_run += 0.1 * (outcome.seconds - self._mean_run)
            outcome.computed = len(live)
            outcome.real = sum(entries[place].length for place in live)
            outcome.padded = len(live) * max(entries[place].length for place in live)
            for place in live:
                entries[place].inference = outcome.seconds
        return outcome

    def _compute(self, outcome: Outcome, live: list[int], wide: bool) -> None:
        entries = [outcome.entries[place] for place in live]
        try:
            faulty = self._forward(entries, wide)
        except Exception as error:
            _log.warning("run of %d entries failed: %s", len(entries), error)
            if len(entries) == 1:
                self._failed = self._test_wanted = True  # this thread tests next: the input's fault, or ours?
                outcome.errors[live[0]] = errors.backend(str(error))
                return
            for place in live:  # one of them spoils it: alone, each answers for itself
                self._compute(outcome, [place], wide)
            return
        self._failed = False
        for place, fault in faulty.items():
            outcome.errors[live[place]] = fault

    def _forward(self, entries: list[Entry], wide: bool) -> dict[int, errors.RequestError]:
        """Compute entries and write what they want; returns the errors of those whose result is not a number."""
        faulty: dict[int, errors.RequestError] = {}
        for want, write in _WRITERS.items():
            places = [place for place, entry in enumerate(entries) if entry.job.ask.want is want]
            if not places:
                continue
            chosen = [entries[place] for place in places]
            batch = Batch.of([entry.ids for entry in chosen], [entry.types for entry in chosen])
            [values] = self._model.run(batch, (want,), wide=wide)
            for row in write(values, chosen):
                faulty[places[row]] = _NOT_A_NUMBER.get(want, errors.backend(_NAN, label="missing_values"))
        return faulty

    def _self_test(self) -> None:
        """One token through the model decides whether a failure was the input's or ours."""
        try:
            [rows] = self._model.run(Batch.of([[0]]), self._model.outputs[:1])
            self._failed = not bool(np.isfinite(rows).all())
        except Exception as error:
            _log.warning("self-test failed: %s", error)


_NAN = "embedding is NaN"
_NOT_A_NUMBER = {
    Output.LOGITS: errors.RequestError(errors.ErrorKind.BACKEND, "score is NaN", label="missing_values")
}


def _write_vectors(vectors: FloatArray, entries: list[Entry]) -> Iterable[int]:
    """Each row to its job, cut to its dimensions, then normalised if asked; returns the broken ones."""
    whole: FloatArray | None = None
    for row, entry in enumerate(entries):
        ask = entry.job.ask
        size = entry.job.rows.shape[1]
        if not ask.normalize:
            entry.job.rows[entry.row] = vectors[row, :size]
        elif size < vectors.shape[1]:
            entry.job.rows[entry.row] = normalised(vectors[row : row + 1, :size])[0]
        else:
            if whole is None:
                whole = normalised(vectors)
            entry.job.rows[entry.row] = whole[row]
    return _broken(vectors)


def _write_logits(logits: FloatArray, entries: list[Entry]) -> Iterable[int]:
    for row, entry in enumerate(entries):
        entry.job.rows[entry.row] = logits[row]
    return _broken(logits)


def _write_tokens(tokens: FloatArray, entries: list[Entry]) -> Iterable[int]:
    """Padding is removed; its values mean nothing, and may be anything."""
    for row, entry in enumerate(entries):
        # a copy: a view would keep the whole run's output alive as long as the slowest of its callers
        entry.job.tokens[entry.row] = tokens[row, : entry.length].copy()
        if not np.isfinite(entry.job.tokens[entry.row]).all():
            yield row


def _write_sparse(weights: FloatArray, entries: list[Entry]) -> Iterable[int]:
    for row, entry in enumerate(entries):
        entry.job.sparse[entry.row] = nonzero(weights[row])
    return _broken(weights)


def _broken(rows: FloatArray) -> Iterable[int]:
    return [int(row) for row in np.flatnonzero(~np.isfinite(rows).all(axis=1))]


_WRITERS: dict[Output, Callable[[FloatArray, list[Entry]], Iterable[int]]] = {
    Output.POOLED: _write_vectors,
    Output.TOKENS: _write_tokens,
    Output.LOGITS: _write_logits,
    Output.SPARSE: _write_sparse,
}
