"""The te_* series of TEI: present from the start, and really counting."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

_DURATIONS = [1e-5 * 1.5**k for k in range(1, 36)]
_SIZES = [float(2**k) for k in range(13)]
_TOKENS = [float(2**k) for k in range(21)]
_METHODS = [{"method": "single"}, {"method": "batch"}]
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

Labels = Mapping[str, str]


class Metrics:
    """Counters, one gauge and histograms, printed in Prometheus' text format."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[str, float]] = {
            "te_request_count": {_label(labels): 0 for labels in _METHODS},
            "te_request_success": {_label(labels): 0 for labels in _METHODS},
            "te_request_failure": {_label({"err": err}): 0 for err in _FAILURES},
            "te_embed_count": {"": 0},
            "te_embed_success": {"": 0},
            "te_predict_count": {"": 0},
            "te_predict_success": {"": 0},
        }
        self.queue_size = 0
        self._histograms = {
            f"te_{family}{phase}_duration": _Histogram(_DURATIONS)
            for family in ("request", "embed", "predict")
            for phase in ("", "_tokenization", "_queue", "_inference")
        }
        self._histograms["te_request_input_length"] = _Histogram(_TOKENS)
        self._histograms["te_batch_next_size"] = _Histogram(_SIZES)
        self._histograms["te_batch_next_tokens"] = _Histogram(_TOKENS)

    def add(self, name: str, labels: Labels | None = None, amount: int = 1) -> None:
        """Raise a counter."""
        series = self._counters[name]
        key = _label(labels or {})
        series[key] = series.get(key, 0) + amount

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._histograms[name].observe(value)

    def text(self) -> str:
        """Everything, as a scrape shows it."""
        lines = []
        for name, series in self._counters.items():
            lines.append(f"# TYPE {name} counter")
            lines += [f"{name}{labels} {value:g}" for labels, value in series.items()]
        lines += ["# TYPE te_queue_size gauge", f"te_queue_size {self.queue_size}"]
        for name, histogram in self._histograms.items():
            lines.append(f"# TYPE {name} histogram")
            lines += histogram.lines(name)
        return "\n".join(lines) + "\n"


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        total, lines = 0, []
        for bound, count in zip([*map(repr, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self._sum!r}", f"{name}_count {total}"]


def _label(labels: Labels) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
