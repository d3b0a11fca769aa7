"""The series of the control plane: present from the start, exact at the scrape, gone in time."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from tei_manager.adapters.telemetry.prometheus import PrometheusMetrics
from tei_manager.domain.instance import Instance, InstanceSpec, Ports, Status


def instance(name, status=Status.RUNNING, failures=0):
    spec = InstanceSpec(name=name, model_id="m")
    return Instance(spec=spec, ports=Ports(main=1), created_at=0, status=status, health_check_failures=failures)


class Metrics(PrometheusMetrics):
    def __init__(self):
        self.now = 0.0
        super().__init__(CollectorRegistry(), version="1.2.3", clock=lambda: self.now)

    def value(self, name, **labels):
        for family in text_string_to_metric_families(self.text().decode()):
            for sample in family.samples:
                if sample.name == f"tei_manager_{name}" and sample.labels == labels:
                    return sample.value
        return None


@pytest.fixture
def metrics():
    return Metrics()


def test_gauges_are_read_at_the_scrape(metrics):
    known = [instance("a"), instance("b", Status.STARTING), instance("c", failures=1)]
    metrics.watch(lambda: known)
    assert metrics.value("instances_count") == 3
    assert metrics.value("instances", status="running") == 2
    assert metrics.value("instances", status="failed") == 0
    assert [metrics.value("instance_up", instance=name) for name in "abc"] == [1, 0, 0]
    known.pop()
    assert metrics.value("instances_count") == 2
    assert metrics.value("instance_up", instance="c") is None


def test_what_exists_before_anything_happened(metrics):
    assert metrics.value("instances_count") == 0
    assert metrics.value("state_recovered") == 0
    assert metrics.value("build_info", version="1.2.3") == 1
    metrics.created("a", "m")
    assert metrics.value("instance_restarts_total", instance="a") == 0
    assert metrics.value("health_check_failures_total", instance="a") == 0
    assert metrics.value("instance_exits_total", instance="a", cause="signal") == 0


def test_every_event_is_counted(metrics):
    metrics.created("a", "m")
    metrics.restarted("a")
    metrics.exited("a", "code")
    metrics.probe_failed("a")
    metrics.probed("a", 0.25)
    metrics.became_ready("tei", 3.0)
    metrics.state_recovered()
    metrics.http("/health", 200, 0.001)
    metrics.upstream("a", "embed", "ok", 0.01)
    metrics.retried("a", "upstream_died")
    metrics.deleted("a")
    assert metrics.value("instances_created_total", instance="a", model="m") == 1
    assert metrics.value("instances_deleted_total", instance="a") == 1
    assert metrics.value("instance_restarts_total", instance="a") == 1
    assert metrics.value("instance_exits_total", instance="a", cause="code") == 1
    assert metrics.value("health_check_failures_total", instance="a") == 1
    assert metrics.value("health_check_duration_seconds_sum", instance="a") == 0.25
    assert metrics.value("instance_start_duration_seconds_count", engine="tei") == 1
    assert metrics.value("state_recovered") == 1
    assert metrics.value("http_requests_total", route="/health", code="200") == 1
    assert metrics.value("http_request_duration_seconds_count", route="/health") == 1
    assert metrics.value("upstream_calls_total", upstream="a", op="embed", outcome="ok") == 1
    assert metrics.value("upstream_seconds_count", upstream="a", op="embed") == 1
    assert metrics.value("upstream_retries_total", **{"upstream": "a", "class": "upstream_died"}) == 1
    assert "_created{" not in metrics.text().decode().replace("instances_created_total", "")


def test_counters_of_a_deleted_instance_end_ten_minutes_later(metrics):
    metrics.created("a", "m")
    metrics.probe_failed("a")
    metrics.deleted("a")
    metrics.now = 599
    assert metrics.value("health_check_failures_total", instance="a") == 1
    metrics.now = 601
    assert 'instance="a"' not in metrics.text().decode()


def test_counters_of_a_name_that_comes_back_go_on(metrics):
    metrics.created("a", "m")
    metrics.deleted("a")
    metrics.created("a", "n")
    metrics.now = 10_000
    assert metrics.value("instances_created_total", instance="a", model="m") == 1
    assert metrics.value("instances_deleted_total", instance="a") == 1


def test_others_hear_of_a_deletion_at_once_and_of_the_end_of_counters_later():
    heard, now = [], [0.0]
    metrics = PrometheusMetrics(
        CollectorRegistry(),
        version="1",
        clock=lambda: now[0],
        on_delete=lambda name: heard.append(f"deleted {name}"),
        on_purge=lambda name: heard.append(f"purged {name}"),
    )
    metrics.created("a", "m")
    metrics.deleted("a")
    metrics.text()
    assert heard == ["deleted a"]
    now[0] = 601.0
    metrics.text()
    assert heard == ["deleted a", "purged a"]
