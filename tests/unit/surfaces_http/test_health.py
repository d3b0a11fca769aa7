"""How the instances are, by what the routes answer."""

from dataclasses import replace

import pytest

from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import EngineKind, Origin, Status
from tei_manager.domain.spec import parse
from tei_manager.engines.metrics_reading import EngineInfo
from tei_manager.ports.fleet import Inspection
from tei_manager.testing.fleet import FakeFleet

NOW = 1_700_000_000.0


class Fleet(FakeFleet):
    """Instances whose pictures a test paints over."""

    def paint(self, name, **changes):
        self._put(replace(self.get(name), **changes))


@pytest.fixture
def fleet():
    return Fleet(clock=lambda: NOW, starts_by_itself=False)


@pytest.fixture
def door(make_door, fleet):
    return make_door(fleet)


async def created(fleet, name, *, runs=True, **fields):
    spec = parse({"name": name, "model_id": "a/b", **fields}, default_engine=EngineKind.EMBEDDED)
    await fleet.create(spec, origin=Origin.API)
    if runs:
        fleet.become_ready(name)
        fleet.paint(name, last_health_check=NOW + 1.5)


async def test_a_healthy_instance_has_no_error(door, fleet):
    await created(fleet, "one")
    reply = await door("GET", "/instances/one/health")
    assert reply.status == 200
    assert list(reply.json) == ["instance", "healthy", "last_check", "consecutive_failures", "uptime_seconds"]
    assert reply.json["instance"] == "one"
    assert reply.json["healthy"] is True
    assert reply.json["last_check"] == "2023-11-14T22:13:21.500Z"
    assert reply.json["consecutive_failures"] == 0
    assert isinstance(reply.json["uptime_seconds"], int)
    assert reply.json["uptime_seconds"] > 1000  # the process has run since NOW
    assert (await door("GET", "/instances/one/health?strict=true")).json == reply.json


async def test_an_instance_whose_last_probe_failed_is_not_healthy_and_says_why(door, fleet):
    await created(fleet, "one")
    fleet.paint("one", health_check_failures=5, probe_error="connection refused")
    reply = await door("GET", "/instances/one/health")
    assert (reply.status, reply.json["healthy"], reply.json["consecutive_failures"]) == (200, False, 5)
    assert list(reply.json)[-1] == "error"
    assert reply.json["error"] == "connection refused"
    strict = await door("GET", "/instances/one/health?strict=true")
    assert (strict.status, strict.code) == (503, "INSTANCE_UNHEALTHY")
    assert int(strict.headers["retry-after"]) >= 1
    assert strict.json["error"] == "Instance 'one' is unhealthy: connection refused"
    assert list(strict.json) == ["error", "code", "timestamp", "request_id", "details"]
    assert strict.json["details"] == reply.json
    assert (await door("GET", "/instances/one/health?strict=false")).status == 200


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"status": Status.STARTING, "detail": "loading"}, "not running (status: starting, loading)"),
        ({"status": Status.STOPPED, "detail": None}, "not running (status: stopped)"),
        (
            {"status": Status.FAILED, "last_error": "process exited with code 1", "probe_error": "no answer"},
            "process exited with code 1",
        ),
        (
            {"status": Status.STOPPING, "health_check_failures": 3, "probe_error": "no answer within 5s"},
            "no answer within 5s",
        ),
    ],
)
async def test_what_does_not_run_is_not_healthy(door, fleet, changes, error):
    await created(fleet, "one")
    fleet.paint("one", pid=None, **changes)
    reply = await door("GET", "/instances/one/health")
    assert (reply.status, reply.json["healthy"], reply.json["error"]) == (200, False, error)
    assert reply.json["uptime_seconds"] == 0


async def test_before_the_first_probe_there_is_no_check(door, fleet):
    await created(fleet, "one", runs=False)
    reply = await door("GET", "/instances/one/health")
    assert (reply.json["last_check"], reply.json["healthy"]) == (None, False)


async def fleet_of(fleet, well, ill):
    for number in range(well + ill):
        await created(fleet, f"i{number}")
        if number >= well:
            fleet.paint(f"i{number}", health_check_failures=1, probe_error="no answer within 5s")


@pytest.mark.parametrize(
    ("well", "ill", "status", "strict"),
    [
        (0, 0, "healthy", 200),
        (2, 0, "healthy", 200),
        (2, 1, "degraded", 200),
        (1, 1, "degraded", 200),  # half is not more than half
        (1, 2, "critical", 503),
        (0, 1, "down", 503),
        (0, 3, "down", 503),
    ],
)
async def test_the_fleet_as_a_whole(door, fleet, well, ill, status, strict):
    await fleet_of(fleet, well, ill)
    reply = await door("GET", "/health/all")
    assert reply.status == 200
    assert reply.json["overall_status"] == status
    assert [reply.json[key] for key in ("total_instances", "healthy_count", "unhealthy_count")] == [
        well + ill,
        well,
        ill,
    ]
    reply = await door("GET", "/health/all?strict=true")
    assert reply.status == strict
    if strict == 503:
        assert reply.code == "FLEET_UNHEALTHY"
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json["error"] == f"{ill} of {well + ill} instances are unhealthy"
        assert reply.json["details"]["overall_status"] == status


async def test_every_instance_that_is_wanted_is_listed_and_no_other(door, fleet):
    await fleet_of(fleet, 1, 1)
    await created(fleet, "stopped")
    await fleet.stop("stopped")
    await created(fleet, "later", runs=False, autostart=False)
    await created(fleet, "broken")
    fleet.crash("broken", "process exited with code 1")
    reply = await door("GET", "/health/all")
    keys = [
        "timestamp",
        "total_instances",
        "healthy_count",
        "unhealthy_count",
        "overall_status",
        "instances",
    ]
    assert list(reply.json) == keys
    assert [each["name"] for each in reply.json["instances"]] == ["broken", "i0", "i1"]
    broken, well, _ = reply.json["instances"]
    assert list(well) == ["name", "healthy", "last_check", "consecutive_failures", "uptime_seconds"]
    assert list(broken) == [*well, "error"]
    assert broken["error"] == "process exited with code 1"
    assert reply.json["overall_status"] == "critical"


async def test_what_an_instance_is_and_does(door, fleet):
    await created(fleet, "one", pooling="cls", max_batch_tokens=4096, prometheus_port=9100)
    info = EngineInfo("0.1.0", "embedding", "2cfc18c9", "float32", 512)
    fleet.inspections["one"] = Inspection(info, Figures(requests=12456, failed=12, timed=12444, seconds=292.4))
    reply = await door("GET", "/instances/one/info")
    assert reply.status == 200
    uptime = reply.json["uptime_seconds"]
    assert uptime > 1000
    # the text, so that the order of the keys is part of it
    assert reply.body.decode() == (
        '{"name":"one","model_id":"a/b","port":8080,"prometheus_port":9100,"gpu_id":null,"status":"running",'
        f'"pid":1001,"uptime_seconds":{uptime},"created_at":"2023-11-14T22:13:20.000Z",'
        '"health":{"healthy":true,"last_check":"2023-11-14T22:13:21.500Z","consecutive_failures":0},'
        '"config":{"max_batch_tokens":4096,"max_concurrent_requests":512,"pooling":"cls"},'
        '"metrics":{"total_requests":12456,"avg_latency_ms":23.497,"error_rate":0.000963},'
        '"engine":{"kind":"embedded","version":"0.1.0","model_type":"embedding","model_sha":"2cfc18c9",'
        '"model_dtype":"float32","max_input_length":512}}'
    )


async def test_no_requests_are_0_null_and_0(door, fleet):
    await created(fleet, "one", runs=False, autostart=False)
    reply = await door("GET", "/instances/one/info")
    assert '"metrics":{"total_requests":0,"avg_latency_ms":null,"error_rate":0.0}' in reply.body.decode()
    assert reply.json["engine"] == {
        "kind": "embedded",
        "version": None,
        "model_type": None,
        "model_sha": None,
        "model_dtype": None,
        "max_input_length": None,
    }
    assert (reply.json["pid"], reply.json["uptime_seconds"], reply.json["status"]) == (None, 0, "stopped")


@pytest.mark.parametrize("path", ["/instances/none/health", "/instances/none/info", "/instances/a%20b/health"])
async def test_an_unknown_name(door, path):
    reply = await door("GET", path)
    assert (reply.status, reply.code) == (404, "INSTANCE_NOT_FOUND")


@pytest.mark.parametrize("path", ["/health/all", "/instances/one/health"])
@pytest.mark.parametrize("strict", ["", "2", "maybe"])
async def test_strict_is_yes_or_no(door, fleet, path, strict):
    await created(fleet, "one")
    reply = await door("GET", f"{path}?strict={strict}")
    assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
    assert reply.json["error"].startswith("strict: expected true or false")


@pytest.mark.parametrize("path", ["/health/all", "/instances/one/health", "/instances/one/info"])
async def test_they_are_for_reading(door, fleet, path):
    await created(fleet, "one")
    reply = await door("POST", path)
    assert (reply.status, reply.code) == (405, "METHOD_NOT_ALLOWED")
    assert reply.headers["allow"] == "GET, HEAD"
