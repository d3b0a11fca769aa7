"""Metrics by prometheus_client: the one door to that library for the control plane and the HTTP door."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from tei_manager.domain.instance import Instance, Status

REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PROBE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
START_BUCKETS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200)
COUNTERS_OUTLIVE_SECS = 600.0

# a creation time beside every counter doubles the page and is not among the documented series
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


def new_registry() -> CollectorRegistry:
    """An empty registry, to be shared by the metrics of all doors."""
    return CollectorRegistry()


class _Watched(Collector):
    """Gauges of the instances, read at the scrape: they cannot be late and end with their instance."""

    def __init__(self) -> None:
        self.instances: Callable[[], Iterable[Instance]] = tuple

    def collect(self) -> Iterable[GaugeMetricFamily]:
        instances = tuple(self.instances())
        count = GaugeMetricFamily("tei_manager_instances_count", "Registered instances.", value=len(instances))
        by_status = GaugeMetricFamily("tei_manager_instances", "Instances by status.", labels=["status"])
        for status in Status:
            by_status.add_metric([status], sum(instance.status is status for instance in instances))
        up = GaugeMetricFamily("tei_manager_instance_up", "Whether an instance is healthy.", labels=["instance"])
        for instance in instances:
            up.add_metric([instance.name], float(instance.is_healthy))
        return count, by_status, up


class PrometheusMetrics:
    """Implements `ports.metrics.ControlMetrics` and `ports.metrics.HttpMetrics` on a given registry.

    `clock` is monotonic seconds; it only decides when the counters of a deleted instance end. `on_purge(instance)`
    is called then and `on_delete(instance)` at the deletion, so that others end their counters and their gauges.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        clock: Callable[[], float] = time.monotonic,
        on_delete: Callable[[str], None] = lambda _: None,
        on_purge: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._registry, self._clock = registry, clock
        self._watched = _Watched()
        registry.register(self._watched)
        build = Gauge("tei_manager_build_info", "The running version.", ["version"], registry=registry)
        build.labels(version).set(1)
        self._created = self._counter("instances_created", "Instances registered.", "instance", "model")
        self._deleted = self._counter("instances_deleted", "Instances deleted.", "instance")
        self._restarts = self._counter("instance_restarts", "Restarts, manual and automatic.", "instance")
        self._exits = self._counter("instance_exits", "Processes that ended unasked.", "instance", "cause")
        self._failures = self._counter("health_check_failures", "Failed liveness probes.", "instance")
        self._probes = self._histogram(
            "health_check_duration_seconds", "Liveness probes.", PROBE_BUCKETS, "instance"
        )
        self._starts = self._histogram(
            "instance_start_duration_seconds", "Spawn to ready.", START_BUCKETS, "engine"
        )
        self._recovered = Gauge(
            "tei_manager_state_recovered", "Whether the state came from its backup.", registry=registry
        )
        self._requests = self._counter("http_requests", "Requests by route and status.", "route", "code")
        self._seconds = self._histogram(
            "http_request_duration_seconds", "Requests by route.", REQUEST_BUCKETS, "route"
        )
        self._upstream_calls = self._counter("upstream_calls", "Calls to engines.", "upstream", "op", "outcome")
        self._upstream_seconds = self._histogram(
            "upstream_seconds", "Calls to engines.", REQUEST_BUCKETS, "upstream", "op"
        )
        self._upstream_retries = self._counter("upstream_retries", "Calls made again.", "upstream", "class")
        # metric and label values of every series that carries an instance's name
        self._series: dict[str, set[tuple[MetricWrapperBase, tuple[str, ...]]]] = {}
        self._on_delete, self._on_purge = on_delete, on_purge
        self._ended: dict[str, float] = {}  # deleted instance -> when its counters end

    def watch(self, instances: Callable[[], Iterable[Instance]]) -> None:
        self._watched.instances = instances

    def created(self, instance: str, model: str) -> None:
        self._ended.pop(instance, None)
        self._of(instance, self._created, instance, model).inc()
        # a counter that begins at its first event hides that event from rate()
        for counter in (self._restarts, self._failures):
            self._of(instance, counter, instance)
        for cause in ("code", "signal"):
            self._of(instance, self._exits, instance, cause)

    def deleted(self, instance: str) -> None:
        self._of(instance, self._deleted, instance).inc()
        self._ended[instance] = self._clock() + COUNTERS_OUTLIVE_SECS
        self._on_delete(instance)

    def restarted(self, instance: str) -> None:
        self._of(instance, self._restarts, instance).inc()

    def exited(self, instance: str, cause: str) -> None:
        self._of(instance, self._exits, instance, cause).inc()

    def probe_failed(self, instance: str) -> None:
        self._of(instance, self._failures, instance).inc()

    def probed(self, instance: str, secs: float) -> None:
        self._of(instance, self._probes, instance).observe(secs)

    def became_ready(self, engine: str, secs: float) -> None:
        self._starts.labels(engine).observe(secs)

    def state_recovered(self) -> None:
        self._recovered.set(1)

    def http(self, route: str, code: int, secs: float) -> None:
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(secs)

    def upstream(self, upstream: str, op: str, outcome: str, secs: float) -> None:
        self._of(upstream, self._upstream_calls, upstream, op, outcome).inc()
        self._of(upstream, self._upstream_seconds, upstream, op).observe(secs)

    def retried(self, upstream: str, kind: str) -> None:
        self._of(upstream, self._upstream_retries, upstream, kind).inc()

    def text(self) -> bytes:
        self._purge()
        return prometheus_client.generate_latest(self._registry)

    def _purge(self) -> None:
        now = self._clock()
        for instance in [name for name, end in self._ended.items() if end <= now]:
            del self._ended[instance]
            for metric, labels in self._series.pop(instance, ()):
                metric.remove(*labels)
            self._on_purge(instance)

    def _of(self, instance: str, metric: MetricWrapperBase, *labels: str):  # type: ignore[no-untyped-def]
        self._series.setdefault(instance, set()).add((metric, labels))
        return metric.labels(*labels)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"tei_manager_{name}", doc, labels, registry=self._registry)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tei_manager_{name}", doc, labels, registry=self._registry, buckets=buckets)
