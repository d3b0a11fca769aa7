"""The control routes, by what they answer."""

import asyncio

import pytest

from tei_manager.domain.instance import Status
from tei_manager.ports.fleet import Degraded, Warning
from tei_manager.testing.fleet import FakeFleet

SPEC = {"name": "bge", "model_id": "BAAI/bge-small-en-v1.5"}
KEYS = [
    *("name", "model_id", "port", "status", "pid", "created_at", "uptime_secs", "restarts"),
    *(
        "health_check_failures",
        "last_health_check",
        "gpu_id",
        "prometheus_port",
        "last_error",
        "detail",
        "desired",
    ),
    *("engine", "driver", "protocol", "grpc_port", "revision", "dtype", "pooling", "max_batch_tokens"),
    *("max_concurrent_requests", "gpu_ids", "extra_args", "env", "log_level", "aliases", "autostart"),
    *("startup_timeout_secs", "command", "health_path", "started_at", "origin"),
]


async def test_a_created_instance_is_shown_at_once_with_every_key_in_order(door):
    reply = await door("POST", "/instances", json_body=SPEC)
    assert reply.status == 201
    assert reply.headers["location"] == "/instances/bge"
    assert list(reply.json) == KEYS
    assert reply.json["status"] == "starting"
    assert reply.json["port"] == 8080
    assert reply.json["driver"] == "subprocess"
    assert reply.json["engine"] == "embedded"
    assert reply.json["gpu_id"] is None
    assert reply.json["uptime_secs"] == 0


async def test_times_are_utc_with_milliseconds(door):
    reply = await door("POST", "/instances", json_body=SPEC)
    assert len(reply.json["created_at"]) == len("2025-11-18T19:00:00.000Z")
    assert reply.json["created_at"].endswith("Z")


async def test_create_and_wait_answers_when_it_runs(door):
    reply = await door("POST", "/instances?wait=true&timeout_secs=5", json_body=SPEC)
    assert (reply.status, reply.json["status"]) == (201, "running")


async def test_create_and_wait_tells_of_a_failure_and_keeps_the_instance(make_door):
    fleet = FakeFleet(starts_by_itself=False)
    door = make_door(fleet)
    asking = asyncio.create_task(door("POST", "/instances?wait=true", json_body=SPEC))
    await asyncio.sleep(0.01)
    fleet.write_log("bge", "Error: no such model")
    fleet.crash("bge", "process exited with code 1: Error: no such model")
    reply = await asking
    assert (reply.status, reply.code) == (502, "INSTANCE_FAILED")
    assert reply.json["details"] == {
        "status": "failed",
        "last_error": "process exited with code 1: Error: no such model",
        "log_tail": ["Error: no such model"],
    }
    assert (await door("GET", "/instances/bge")).json["pid"] is None


async def test_create_and_wait_gives_up_in_time(make_door):
    door = make_door(FakeFleet(starts_by_itself=False))
    reply = await door("POST", "/instances?wait=true&timeout_secs=0.02", json_body=SPEC)
    assert (reply.status, reply.code) == (504, "STARTUP_TIMEOUT")
    assert reply.json["details"]["status"] == "starting"


async def test_an_instance_that_is_not_started_is_not_waited_for(door):
    reply = await door("POST", "/instances?wait=true", json_body={**SPEC, "autostart": False})
    assert (reply.status, reply.json["status"], reply.json["started_at"]) == (201, "stopped", None)


async def test_all_problems_of_a_specification_are_reported_at_once(door):
    wrong = {"name": "bad name", "model_id": "x", "max_batch_tokens": True, "modle": 1}
    reply = await door("POST", "/instances", json_body=wrong)
    assert (reply.status, reply.code) == (400, "INVALID_INSTANCE_NAME")
    problems = {each["path"]: each["code"] for each in reply.json["details"]["problems"]}
    assert problems == {
        "name": "INVALID_INSTANCE_NAME",
        "max_batch_tokens": "INVALID_TYPE",
        "modle": "UNKNOWN_FIELD",
    }
    assert not door.fleet.instances()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model_id": "m"}, 422, "MISSING_FIELD"),
        ({"name": "a", "model_id": 1}, 422, "INVALID_TYPE"),
        ({"name": "a", "model_id": "m", "prot": 1}, 422, "UNKNOWN_FIELD"),
        ({"name": "a", "model_id": "../m"}, 400, "INVALID_MODEL_ID"),
        ({"name": "a", "model_id": "m", "port": 80}, 400, "INVALID_PORT"),
        ({"name": "a", "model_id": "m", "gpu_id": -1}, 400, "INVALID_GPU_ID"),
        ({"name": "a", "model_id": "m", "pooling": "max"}, 400, "VALIDATION_ERROR"),
        ({"name": "a", "model_id": "m", "engine": "command", "command": ["x", "{port}"]}, 403, "FORBIDDEN"),
    ],
)
async def test_a_wrong_specification(door, body, status, code):
    reply = await door("POST", "/instances", json_body=body)
    assert (reply.status, reply.code) == (status, code)
    assert set(reply.json) >= {"error", "code", "timestamp", "request_id"}


async def test_an_unknown_field_names_the_nearest_one(door):
    reply = await door("POST", "/instances", json_body={**SPEC, "prot": 8080})
    assert reply.json["details"]["problems"][0]["nearest"] == "port"


@pytest.mark.parametrize(
    ("second", "status", "code", "text"),
    [
        ({"name": "BGE"}, 409, "INSTANCE_EXISTS", "Instance 'BGE' already exists"),
        ({"port": 8080}, 409, "PORT_CONFLICT", "Port 8080 already in use by instance 'bge'"),
        ({"aliases": ["bge"]}, 409, "ALIAS_CONFLICT", None),
    ],
)
async def test_what_is_taken_is_refused(door, second, status, code, text):
    await door("POST", "/instances", json_body=SPEC)
    reply = await door("POST", "/instances", json_body={**SPEC, "name": "other", **second})
    assert (reply.status, reply.code) == (status, code)
    assert text is None or reply.json["error"] == text


async def test_no_room_for_more_instances(make_door):
    door = make_door(FakeFleet(max_instances=0))
    reply = await door("POST", "/instances", json_body=SPEC)
    assert (reply.status, reply.code) == (422, "MAX_INSTANCES_REACHED")


async def test_no_port_left(make_door):
    door = make_door(FakeFleet(ports=()))
    reply = await door("POST", "/instances", json_body=SPEC)
    assert (reply.status, reply.code) == (422, "PORT_ALLOCATION_FAILED")


@pytest.mark.parametrize("body", [b"", b"{", b'{"a":1} x', b"[1]", b'"x"', b'{"a":NaN}', b'{"a":"\xff"}'])
async def test_a_body_that_is_no_json_object(door, body):
    reply = await door("POST", "/instances", body=body, headers={"content-type": "application/json"})
    assert (reply.status, reply.code) == (400, "INVALID_JSON")


async def test_a_body_nested_deeper_than_128_levels(door):
    for depth, code in ((126, "UNKNOWN_FIELD"), (129, "INVALID_JSON")):
        body = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        reply = await door("POST", "/instances", body=body, headers={"content-type": "application/json"})
        assert reply.json["details"]["problems"][0]["code"] if depth < 128 else reply.code == code
        assert reply.code == (code if depth > 128 else "UNKNOWN_FIELD")


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_a_body_of_another_type(door, kind):
    reply = await door("POST", "/instances", body=b"{}", headers={"content-type": kind})
    assert (reply.status, reply.code) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_verb_with_a_form_as_its_body_is_refused(door):
    await door("POST", "/instances", json_body=SPEC)
    form = {"content-type": "text/plain"}
    reply = await door("POST", "/instances/bge/stop", body=b"x", headers=form)
    assert (reply.status, reply.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert (await door("POST", "/instances/bge/stop", headers=form)).status == 200


async def test_a_body_that_is_too_large_declared_or_counted(make_door):
    door = make_door(max_body_mb=0.001)
    json_type = {"content-type": "application/json"}
    declared = await door("POST", "/instances", headers={**json_type, "content-length": "5000"})
    counted = await door("POST", "/instances", body=[b" " * 600, b" " * 600], headers=json_type)
    for reply in (declared, counted):
        assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_body_that_stops_arriving(make_door):
    door = make_door(body_idle_timeout_secs=0.02)
    reply = await door("POST", "/instances", body=[], headers={"content-type": "application/json"})
    assert (reply.status, reply.code) == (408, "REQUEST_TIMEOUT")


async def test_values_of_secret_names_are_masked(door):
    secrets = {"HF_TOKEN": "x", "MY_KEY": "x", "SECRET_A": "x", "PASSWORD": "x", "PLAIN": "y"}
    spec = {**SPEC, "env": secrets, "extra_args": ["--api-key", "x", "--hf-token=x", "--auto-truncate"]}
    reply = await door("POST", "/instances", json_body=spec)
    assert reply.json["env"] == dict.fromkeys(secrets, "***") | {"PLAIN": "y"}
    assert reply.json["extra_args"] == ["--api-key", "***", "--hf-token=***", "--auto-truncate"]


async def test_instances_are_listed_by_creation_and_filtered(make_door):
    times = iter(range(100))
    door = make_door(FakeFleet(clock=lambda: float(next(times)), starts_by_itself=False))
    assert (await door("GET", "/instances")).json == []
    await door("POST", "/instances", json_body={**SPEC, "name": "z"})
    await door("POST", "/instances", json_body={**SPEC, "name": "a", "engine": "tei", "model_id": "other"})
    door.fleet.become_ready("a")

    async def names(query):
        return [each["name"] for each in (await door("GET", f"/instances{query}")).json]

    assert await names("") == ["z", "a"]
    assert await names("/") == ["z", "a"]
    assert await names("?status=running") == ["a"]
    assert await names("?engine=embedded") == ["z"]
    assert await names("?model_id=BAAI/bge-small-en-v1.5") == ["z"]
    assert await names("?model_id=BAAI/bge-small-en-v1.5&status=running") == []


@pytest.mark.parametrize("query", ["status=up", "engine=x", "model_id=..", "status="])
async def test_a_filter_of_no_meaning(door, query):
    reply = await door("GET", f"/instances?{query}")
    assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "query", ["wait=maybe", "wait=true&timeout_secs=0", "timeout_secs=3601", "timeout_secs=x"]
)
async def test_a_wait_of_no_meaning(door, query):
    for path in ("/instances", "/instances/bge/start"):
        reply = await door("POST", f"{path}?{query}", json_body=SPEC)
        assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")
    assert not door.fleet.instances()


@pytest.mark.parametrize("name", ["nope", "no%20pattern", ".hidden", "x" * 70])
async def test_an_unknown_instance(door, name):
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/start"), ("POST", "/stop"), ("GET", "/logs")]:
        reply = await door(method, f"/instances/{name}{path}")
        assert (reply.status, reply.code) == (404, "INSTANCE_NOT_FOUND")
    assert (await door("GET", "/instances/nope")).json["error"] == "Instance 'nope' not found"


async def test_verbs(door):
    await door("POST", "/instances?wait=true", json_body=SPEC)
    stopped = await door("POST", "/instances/bge/stop")
    assert (stopped.json["status"], stopped.json["pid"], stopped.json["desired"]) == ("stopped", None, "stopped")
    started = await door("POST", "/instances/bge/start")
    assert (started.status, started.json["status"]) == (200, "starting")
    restarted = await door("POST", "/instances/bge/restart?wait=true")
    assert (restarted.json["status"], restarted.json["restarts"]) == ("running", 1)
    stopping = await door("POST", "/instances/bge/stop?wait=false")
    assert stopping.json["status"] == "stopping"
    deleted = await door("DELETE", "/instances/bge")
    assert (deleted.status, deleted.body) == (204, b"")
    assert (await door("GET", "/instances")).json == []


async def test_a_slice_of_the_log(door):
    await door("POST", "/instances", json_body=SPEC)
    assert (await door("GET", "/instances/bge/logs")).json == {"lines": [], "start": 0, "end": 0, "total_lines": 0}
    door.fleet.write_log("bge", *"abcde")

    async def cut(query):
        found = (await door("GET", f"/instances/bge/logs?{query}")).json
        return "".join(found["lines"]), found["start"], found["end"]

    assert await cut("") == ("abcde", 0, 5)
    assert await cut("start=1&end=3") == ("bc", 1, 3)
    assert await cut("start=-2") == ("de", 3, 5)
    assert await cut("end=-2") == ("abc", 0, 3)
    assert await cut("start=-99&end=99") == ("abcde", 0, 5)
    assert (await cut("start=3&end=1"))[0] == ""
    assert await cut("tail=2") == ("de", 3, 5)
    assert await cut("tail=0") == ("", 5, 5)


@pytest.mark.parametrize("query", ["start=x", "end=1.5", "tail=-1", "tail=1&start=0", "follow=true"])
async def test_a_log_slice_of_no_meaning(door, query):
    await door("POST", "/instances", json_body=SPEC)
    reply = await door("GET", f"/instances/bge/logs?{query}")
    assert (reply.status, reply.code) == (400, "VALIDATION_ERROR")


async def test_health_says_what_is_degraded_and_stays_200(door):
    reply = await door("GET", "/health")
    assert (reply.status, reply.json["status"], reply.json["degraded"]) == (200, "healthy", [])
    door.fleet.degraded = (
        Degraded("state-save", since=0.0, detail="no space left"),
        Degraded("stuck-instance", detail="one"),
        Degraded("stuck-instance", detail="two"),
    )
    door.fleet.warnings = (Warning("AUTH_DISABLED", "anybody may enter"),)
    reply = await door("GET", "/health/live")
    assert (reply.status, reply.json["status"]) == (200, "degraded:state-save,stuck-instance")
    assert reply.json["degraded"] == [
        {"reason": "state-save", "since": "1970-01-01T00:00:00.000Z", "device": None, "detail": "no space left"},
        {"reason": "stuck-instance", "since": None, "device": None, "detail": "one"},
        {"reason": "stuck-instance", "since": None, "device": None, "detail": "two"},
    ]
    assert reply.json["warnings"] == [{"code": "AUTH_DISABLED", "message": "anybody may enter"}]


async def test_ready(make_door):
    has_grpc = True
    door = make_door(has_grpc=lambda: has_grpc)
    await door("POST", "/instances?wait=true", json_body=SPEC)
    reply = await door("GET", "/ready")
    assert reply.status == 200
    assert reply.json["checks"] == {"state": True, "http": True, "grpc": True, "draining": False}
    assert reply.json["instances"] == {"total": 1, "ready": 1}
    has_grpc = False
    reply = await door("GET", "/ready/")
    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "NOT_READY", "1")
    assert reply.json["details"]["checks"]["grpc"] is False
    has_grpc, door.fleet.is_reconciled = True, False
    assert (await door("GET", "/health/ready")).status == 503
    door.fleet.is_reconciled, door.fleet.is_draining = True, True
    assert (await door("GET", "/ready")).json["details"]["checks"]["draining"] is True


async def test_while_draining_only_questions_are_answered(door):
    await door("POST", "/instances?wait=true", json_body=SPEC)
    door.fleet.is_draining = True
    for method, path in [
        *(("POST", "/instances"), ("DELETE", "/instances/bge"), ("POST", "/instances/bge/stop")),
        *(("POST", "/v1/embeddings"), ("POST", "/nowhere")),
    ]:
        reply = await door(method, path, json_body={})
        assert (reply.status, reply.code.upper()) == (503, "SHUTTING_DOWN")
        assert reply.headers["retry-after"] == "1"
    assert (await door("GET", "/instances/bge")).json["status"] == "running"


async def test_metrics_count_requests_by_pattern(door):
    await door("POST", "/instances?wait=true", json_body=SPEC)
    await door("GET", "/instances/bge")
    await door("GET", "/instances/nope")
    await door("GET", "/some/where")
    reply = await door("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.body.decode()
    assert 'tei_manager_http_requests_total{code="200",route="/instances/{name}"} 1.0' in text
    assert 'tei_manager_http_requests_total{code="404",route="/instances/{name}"} 1.0' in text
    assert 'tei_manager_http_requests_total{code="404",route="other"} 1.0' in text
    assert 'tei_manager_instance_up{instance="bge"} 1.0' in text
    assert 'tei_manager_build_info{version="1.2.3"} 1.0' in text


async def test_a_caller_who_leaves_while_waiting_changes_nothing(make_door):
    door = make_door(FakeFleet(starts_by_itself=False))
    reply = await door("POST", "/instances?wait=true", json_body=SPEC, hang_up_after=0.01)
    assert reply is None
    assert door.fleet.get("bge").status is Status.STARTING
    assert b'http_requests_total{code="499",route="/instances"} 1.0' in door.metrics.text()
