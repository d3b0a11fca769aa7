"""Counters, gauges and histograms under text-embeddings-router's names, in Prometheus' text format.

Written here rather than taken from a library: a request observes some fifteen histograms, and these cost a tenth.
Everything belongs to the event loop, so nothing is locked.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tei_engine.graph.outputs import Output

if TYPE_CHECKING:
    from tei_engine.batching.compute import Outcome
    from tei_engine.batching.jobs import Entry, Job

_DURATIONS = tuple(1e-5 * 1.5**k for k in range(1, 36))
_FAILURES = (
    "validation",
    "batch_size",
    "model_type",
    "overloaded",
    "tokenization",
    "inference",
    "dropped",
    "missing_values",
)


class Counter:
    """Only grows; one series per label value, or a single one."""

    def __init__(self, label: str | None = None, values: Iterable[str] = ()) -> None:
        self._label = label
        self._counts: dict[str, int] = dict.fromkeys(values, 0) if label else {"": 0}

    def add(self, value: str = "", amount: int = 1) -> None:
        """Count `amount` more under `value`."""
        self._counts[value] = self._counts.get(value, 0) + amount

    def lines(self, name: str) -> Iterable[str]:
        """The series as text."""
        for value, count in self._counts.items():
            labels = f'{{{self._label}="{value}"}}' if self._label else ""
            yield f"{name}{labels} {count}"


class Gauge:
    """A number read when it is asked for."""

    def __init__(self, read: Callable[[], float], labels: str = "") -> None:
        self._read = read
        self._labels = labels

    def lines(self, name: str) -> Iterable[str]:
        """The series as text."""
        yield f"{name}{self._labels} {self._read():.15g}"


class Histogram:
    """Observations in buckets with fixed upper bounds."""

    def __init__(self, bounds: Sequence[float], label: str = "") -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._label = label

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """The series as text, buckets cumulative."""
        total = 0
        extra = f"{self._label}," if self._label else ""
        for bound, count in zip([*self._bounds, float("inf")], self._counts, strict=True):
            total += count
            shown = "+Inf" if bound == float("inf") else f"{bound:.10g}"
            yield f'{name}_bucket{{{extra}le="{shown}"}} {total}'
        labels = f"{{{self._label}}}" if self._label else ""
        yield f"{name}_sum{labels} {self._sum:.9g}"
        yield f"{name}_count{labels} {total}"


Series = Counter | Gauge | Histogram


class Metrics:
    """Every series of the engine, present from the start. Counts what the pipeline and the routes tell it."""

    def __init__(self) -> None:
        methods = ("single", "batch")
        self.requests = Counter("method", methods)
        self.successes = Counter("method", methods)
        self.failures = Counter("err", _FAILURES)
        self._embeds, self._embed_successes = Counter(), Counter()
        self._predicts, self._predict_successes = Counter(), Counter()
        parts = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
        self._request = {part: Histogram(_DURATIONS) for part in parts}
        self._embed = {part: Histogram(_DURATIONS) for part in parts}
        self._predict = {part: Histogram(_DURATIONS) for part in parts}
        self._input_length = Histogram([2.0**k for k in range(15)])
        self._run_size = Histogram([2.0**k for k in range(13)])
        self._run_tokens = Histogram([2.0**k for k in range(21)])
        self._padding = Histogram((1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.5, 2.0))
        self._run_seconds = Histogram(_DURATIONS)
        self._lane_wait = {lane: Histogram(_DURATIONS, f'lane="{lane}"') for lane in ("priority", "bulk")}
        self._gauges: dict[str, tuple[str, Gauge]] = {}
        self._is_paused = False

    def gauge(
        self, name: str, text: str, read: Callable[[], float], labels: Mapping[str, str] | None = None
    ) -> None:
        """Add, or replace, a gauge that `read` answers."""
        shown = ",".join(f'{key}="{_escaped(value)}"' for key, value in (labels or {}).items())
        self._gauges[name] = (text, Gauge(read, f"{{{shown}}}" if shown else ""))

    def limit_input_length(self, longest: int) -> None:
        """Fix the buckets of the input length to powers of two up to `longest` tokens."""
        bounds = [2.0**k for k in range(longest.bit_length()) if 2**k <= longest]
        self._input_length = Histogram(bounds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing of what the pipeline does within the block."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def saw_job(self, job: Job) -> None:
        """Count the inputs of one job."""
        if not self._is_paused:
            (self._predicts if job.ask.want is Output.LOGITS else self._embeds).add(amount=len(job.entries))

    def saw_run(self, outcome: Outcome) -> None:
        """Count one run."""
        if self._is_paused or not outcome.real:
            return
        self._run_size.observe(outcome.computed)
        self._run_tokens.observe(outcome.real)
        self._padding.observe(outcome.padded / outcome.real)
        self._run_seconds.observe(outcome.seconds)

    def saw_entry(self, entry: Entry) -> None:
        """Count one input that is done."""
        if self._is_paused:
            return
        is_score = entry.job.ask.want is Output.LOGITS
        (self._predict_successes if is_score else self._embed_successes).add()
        family = self._predict if is_score else self._embed
        self._observe(family, entry.tokenization, entry.queue, entry.inference)
        family["duration"].observe(entry.tokenization + entry.queue + entry.inference)
        self._input_length.observe(entry.length)
        self._lane_wait["priority" if entry.has_priority else "bulk"].observe(entry.queue)

    def saw_request(self, total: float, tokenization: float, queue: float, inference: float) -> None:
        """Observe one successful request's durations, in seconds."""
        self._request["duration"].observe(total)
        self._observe(self._request, tokenization, queue, inference)

    @staticmethod
    def _observe(family: dict[str, Histogram], tokenization: float, queue: float, inference: float) -> None:
        family["tokenization_duration"].observe(tokenization)
        family["queue_duration"].observe(queue)
        family["inference_duration"].observe(inference)

    def render(self) -> bytes:
        """All series in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for name, kind, text, series in self._all():
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            for one in series:
                lines += one.lines(name)
        return ("\n".join(lines) + "\n").encode()

    def _all(self) -> Iterable[tuple[str, str, str, Sequence[Series]]]:
        yield "te_request_count", "counter", "requests", [self.requests]
        yield "te_request_success", "counter", "requests answered", [self.successes]
        yield "te_request_failure", "counter", "requests not answered, by reason", [self.failures]
        yield "te_embed_count", "counter", "inputs to embed", [self._embeds]
        yield "te_embed_success", "counter", "inputs embedded", [self._embed_successes]
        yield "te_predict_count", "counter", "inputs to classify or rank", [self._predicts]
        yield "te_predict_success", "counter", "inputs classified or ranked", [self._predict_successes]
        for prefix, family in (("request", self._request), ("embed", self._embed), ("predict", self._predict)):
            for part, histogram in family.items():
                yield f"te_{prefix}_{part}", "histogram", f"seconds, {part.replace('_', ' ')}", [histogram]
        yield "te_request_input_length", "histogram", "tokens of an input", [self._input_length]
        yield "te_batch_next_size", "histogram", "inputs in a run", [self._run_size]
        yield "te_batch_next_tokens", "histogram", "tokens in a run, without padding", [self._run_tokens]
        yield "tei_engine_padding_ratio", "histogram", "padded / real tokens of a run", [self._padding]
        yield "tei_engine_run_seconds", "histogram", "seconds of a run", [self._run_seconds]
        yield "tei_engine_lane_wait_seconds", "histogram", "seconds queued", list(self._lane_wait.values())
        for name, (text, gauge) in self._gauges.items():
            yield name, "gauge", text, [gauge]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not exist."""
    try:
        with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123 - read on every scrape
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
