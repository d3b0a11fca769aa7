"""Metrics of the gRPC door for prometheus_client.

They are counted in plain numbers and turned into the library's families when somebody asks: its own counters take
a lock each, and the warm path of a call would take ten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
OVERHEAD_BUCKETS = (25e-6, 50e-6, 100e-6, 200e-6, 400e-6, 600e-6, 1e-3, 2e-3, 5e-3, 10e-3, 25e-3)

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Labels = tuple[str, ...]


class _Histogram:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        found, below = [], 0
        for bound, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found


class PrometheusGrpcMetrics(Collector):
    """Implements `ports.grpc_metrics.GrpcMetrics`; read through the given registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._connections: defaultdict[Labels, int] = defaultdict(int)
        self._engine_calls: defaultdict[Labels, int] = defaultdict(int)
        self._requests: defaultdict[Labels, int] = defaultdict(int)
        self._errors: defaultdict[Labels, int] = defaultdict(int)
        self._retries: defaultdict[Labels, int] = defaultdict(int)
        self._in_flight: defaultdict[Labels, int] = defaultdict(int)
        self._streams: defaultdict[Labels, int] = defaultdict(int)
        self._unary_secs: defaultdict[Labels, _Histogram] = defaultdict(lambda: _Histogram(REQUEST_BUCKETS))
        self._secs: defaultdict[Labels, _Histogram] = defaultdict(lambda: _Histogram(REQUEST_BUCKETS))
        self._own_secs: defaultdict[Labels, _Histogram] = defaultdict(lambda: _Histogram(OVERHEAD_BUCKETS))
        registry.register(self)

    def connected(self, instance: str) -> None:
        self._connections[(instance,)] += 1

    def began(self, instance: str, method: str, *, is_stream: bool) -> None:
        self._engine_calls[(instance, method)] += 1
        self._in_flight[(instance,)] += 1
        if is_stream:
            self._streams[(instance,)] += 1

    def left(self, instance: str, *, is_stream: bool) -> None:
        self._in_flight[(instance,)] -= 1
        if is_stream:
            self._streams[(instance,)] -= 1

    def retried(self, instance: str) -> None:
        self._retries[(instance,)] += 1

    def ended(self, instance: str, method: str, code: str, secs: float, *, own_secs: float | None = None) -> None:
        is_ok = code == "OK"
        self._requests[(method, instance, "ok" if is_ok else "error")] += 1
        self._secs[(method,)].observe(secs)
        if own_secs is not None:
            self._unary_secs[(method, instance)].observe(secs)
            self._own_secs[(method,)].observe(own_secs)
        if not is_ok:
            self._errors[(method, code)] += 1

    def end_gauges(self, instance: str) -> None:
        """End the gauges of a deleted instance; its counters stay until `forget`."""
        for by_instance in (self._in_flight, self._streams):
            _drop(by_instance, 0, instance)

    def forget(self, instance: str) -> None:
        """End every series of a deleted instance."""
        self.end_gauges(instance)
        for by_instance in (self._connections, self._engine_calls, self._retries):
            _drop(by_instance, 0, instance)
        _drop(self._requests, 1, instance)
        _drop(self._unary_secs, 1, instance)

    def collect(self) -> Iterator[Family]:
        method, instance = "method", "instance"
        yield _counter("tei_mux_requests", "Calls ended.", self._requests, method, instance, "status")
        yield _counter("tei_mux_errors", "Calls ended with an error.", self._errors, method, "code")
        yield _counter("tei_mux_retries", "Calls made again on another instance.", self._retries, instance)
        yield _counter("tei_grpc_pool_connections", "Engine connections opened.", self._connections, instance)
        yield _counter("tei_grpc_pool_requests", "Engine calls made.", self._engine_calls, instance, method)
        yield _gauge("tei_mux_in_flight_requests", "Engine calls running.", self._in_flight, instance)
        yield _gauge("tei_mux_open_streams", "Streaming engine calls running.", self._streams, instance)
        yield _histogram("tei_mux_request_duration_seconds", "Unary calls.", self._unary_secs, method, instance)
        yield _histogram(
            "tei_grpc_multiplexer_request_duration_seconds", "Calls of all kinds.", self._secs, method
        )
        yield _histogram(
            "tei_mux_overhead_seconds", "Unary calls less their engine calls.", self._own_secs, method
        )

    def describe(self) -> Iterable[Family]:
        """What will be collected: names only, so that two metrics of one name are noticed at registration."""
        return self.collect()


def _drop(series: defaultdict[Labels, int] | defaultdict[Labels, _Histogram], at: int, value: str) -> None:
    for labels in [labels for labels in series if labels[at] == value]:
        del series[labels]


def _counter(name: str, doc: str, values: Mapping[Labels, int], *labels: str) -> CounterMetricFamily:
    family = CounterMetricFamily(name, doc, labels=labels)
    for of, value in tuple(values.items()):
        family.add_metric(of, value)
    return family


def _gauge(name: str, doc: str, values: Mapping[Labels, int], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, doc, labels=labels)
    for of, value in tuple(values.items()):
        family.add_metric(of, value)
    return family


def _histogram(name: str, doc: str, values: Mapping[Labels, _Histogram], *labels: str) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, doc, labels=labels)
    for of, value in tuple(values.items()):
        family.add_metric(of, value.buckets(), value.total)
    return family
