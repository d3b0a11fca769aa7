"""The layers around the routes: paths, request ids, hosts, origins, errors nobody foresaw."""

import pytest
import structlog

from tei_manager.testing.fleet import FakeFleet


@pytest.mark.parametrize("path", ["/a//b", "/instances/../x", "/./x", "/a%5Cb", "/a%00", "/a%2525", "/a%ff", "//"])
async def test_a_path_that_two_readers_could_understand_differently(door, path):
    reply = await door("GET", path)
    assert (reply.status, reply.code) == (400, "INVALID_PATH")
    assert reply.headers["x-request-id"] == reply.json["request_id"]


async def test_a_head_that_is_too_large(door):
    reply = await door("GET", "/health", headers={"x-long": "a" * 70_000})
    assert (reply.status, reply.code) == (431, "HEADERS_TOO_LARGE")


async def test_a_body_length_given_twice_closes_the_connection(door):
    reply = await door("POST", "/instances", headers={"content-length": "1", "transfer-encoding": "chunked"})
    assert (reply.status, reply.headers["connection"]) == (400, "close")


async def test_an_unknown_path_and_a_wrong_method_in_the_dialect_of_the_path(door):
    control = await door("GET", "/nowhere")
    assert (control.status, control.code) == (404, "NOT_FOUND")
    assert set(control.json) == {"error", "code", "timestamp", "request_id"}
    openai = await door("POST", "/v1/nowhere")
    assert openai.status == 404
    assert openai.json["error"] == {
        "message": "There is nothing at this path",
        "type": "invalid_request_error",
        "param": None,
        "code": "not_found",
    }
    wrong = await door("PUT", "/instances")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "GET, HEAD, POST")
    contested = await door("GET", "/v1/embeddings/")
    assert (contested.status, contested.code) == (405, "method_not_allowed")
    assert contested.json["message"] == contested.json["detail"] == contested.json["error"]["message"]
    assert contested.json["id"] == contested.headers["x-request-id"]


async def test_the_request_id_is_the_callers_if_it_is_well_formed(door):
    kept = await door("GET", "/health", headers={"x-request-id": "My.id_1-2"})
    assert kept.headers["x-request-id"] == "My.id_1-2"
    for bad in ("a b", "a" * 129, ""):
        new = await door("GET", "/health", headers={"x-request-id": bad})
        assert len(new.headers["x-request-id"]) == 36
        assert new.headers["x-request-id"][14] == "7"


async def test_the_request_id_is_in_every_log_line(door):
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        await door("GET", "/health", headers={"x-request-id": "abc"})
    assert [(line["event"], line["request_id"], line["status"]) for line in lines] == [("Request", "abc", 200)]


async def test_an_error_nobody_foresaw_shows_nothing_but_the_request_id(door):
    door.gateway.error = RuntimeError("secret at 10.0.0.1:8080")
    with structlog.testing.capture_logs() as lines:
        reply = await door("POST", "/v1/embeddings", json_body={"model": "m", "input": "x"})
    assert (reply.status, reply.code) == (500, "internal_error")
    assert reply.headers["x-request-id"] in reply.json["error"]["message"]
    assert b"secret" not in reply.body
    assert any(line["event"] == "Request failed" and line["exc_info"] for line in lines)


async def test_an_error_nobody_foresaw_on_a_control_route(make_door):
    class Broken(FakeFleet):
        def instances(self):
            raise RuntimeError("secret")

    with structlog.testing.capture_logs():
        reply = await make_door(Broken())("GET", "/instances")
    assert (reply.status, reply.code) == (500, "INTERNAL_ERROR")
    assert b"secret" not in reply.body


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "[::1]:9000", "localhost", "LOCALHOST:9000", "10.1.2.3"])
async def test_hosts_that_no_web_page_can_make_up(door, host):
    assert (await door("GET", "/health", headers={"host": host})).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9000", "localhost.evil.example", "127.0.0.1.evil.example"]
)
async def test_a_foreign_host_on_a_loopback_bind(make_door, host):
    reply = await make_door()("GET", "/health", headers={"host": host})
    assert (reply.status, reply.code) == (403, "FORBIDDEN")
    assert (await make_door(allowed_hosts=(host,))("GET", "/health", headers={"host": host})).status == 200
    assert (await make_door(is_loopback=False)("GET", "/health", headers={"host": host})).status == 200


async def test_an_origin_that_is_not_listed(door):
    headers = {"origin": "https://evil.example"}
    reply = await door("POST", "/instances/x/stop", headers=headers)
    assert (reply.status, reply.code) == (403, "FORBIDDEN")
    assert "access-control-allow-origin" not in reply.headers
    reply = await door("POST", "/v1/embeddings", headers=headers)
    assert (reply.status, reply.code) == (403, "origin_not_allowed")
    assert (await door("OPTIONS", "/instances", headers=headers)).status == 403
    assert (await door("GET", "/health", headers={"origin": "null"})).status == 403


async def test_a_listed_origin_gets_cors_headers_on_answers_and_errors(make_door):
    door = make_door(cors_origins=("https://ui.example",))
    headers = {"origin": "https://ui.example"}
    for path in ("/health", "/nowhere"):
        reply = await door("GET", path, headers=headers)
        if reply.status == 200:
            assert reply.headers["access-control-allow-origin"] == "https://ui.example"
            assert reply.headers["vary"] == "Origin"
    asked = {
        **headers,
        "access-control-request-method": "DELETE",
        "access-control-request-headers": "content-type,x-request-id",
    }
    preflight = await door("OPTIONS", "/instances/bge", headers=asked)
    assert preflight.status == 204
    assert "DELETE" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "content-type,x-request-id"
    assert "access-control-allow-origin" not in (await door("GET", "/health")).headers
