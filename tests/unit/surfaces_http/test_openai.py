"""OpenAI's dialect: what is read, what is refused, what is printed."""

import asyncio
import base64
import gzip
import json

import numpy as np
import pytest

from tei_manager.domain import errors
from tei_manager.serving.providers.instances import Vectors
from tei_manager.testing.fleet import FakeFleet

SPEC = {"name": "bge", "model_id": "BAAI/bge-small-en-v1.5", "aliases": ["small"]}
PATH = "/v1/embeddings"
JSON = {"content-type": "application/json"}


async def test_an_answer(door):
    reply = await door("POST", PATH, json_body={"model": "m", "input": ["a", "b"], "user": "u", "other": {}})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json == {
        "id": reply.headers["x-request-id"],
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.0, 0.1]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.1]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert b"0.10000000149" not in reply.body
    assert "x-should-retry" not in reply.headers


async def test_base64_is_little_endian_float32(door):
    reply = await door("POST", PATH, json_body={"model": "m", "input": "a", "encoding_format": "base64"})
    text = reply.json["data"][0]["embedding"]
    assert base64.b64decode(text) == np.array([0, 0.1], "<f4").tobytes()


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("text", ["text"]),
        (" ", [" "]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a\x00b", "\u202eRTL", "e\u0301"], ["a\x00b", "\u202eRTL", "e\u0301"]),
    ],
)
async def test_forms_of_input(door, given, inputs):
    assert (await door("POST", PATH, json_body={"model": "m", "input": given})).status == 200
    assert list(door.gateway.calls[0].inputs) == inputs


@pytest.mark.parametrize(
    ("fields", "truncate"),
    [
        ({}, "none"),
        ({"truncate": True}, "end"),
        ({"truncate": "START"}, "start"),
        ({"truncate": False}, "none"),
        ({"truncation": True}, "end"),
        ({"truncate_prompt_tokens": -1}, "end"),
    ],
)
async def test_words_for_cutting_an_input(door, fields, truncate):
    body = {"model": "m", "input": "a", "input_type": "search_query", "late_chunking": False, **fields}
    assert (await door("POST", PATH, json_body=body)).status == 200
    assert door.gateway.calls[0].truncate == truncate


async def test_an_explicit_null_is_an_absent_field(door):
    body = {"model": "m", "input": "a", "dimensions": None, "encoding_format": None, "user": None}
    reply = await door("POST", PATH, json_body=body)
    assert reply.json["data"][0]["embedding"] == [0.0, 0.1]


async def test_tokens_are_estimated_where_the_engine_is_silent(door):
    door.gateway.tokens = None
    reply = await door("POST", PATH, json_body={"model": "m", "input": ["12345", "1"]})
    assert reply.json["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert reply.headers["x-usage"] == "estimated"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": ""}, "missing_required_parameter", "model"),
        ({"model": 5}, "missing_required_parameter", "model"),
        ({"input": None}, "missing_required_parameter", "input"),
        *(
            ({"input": value}, "invalid_value", "input")
            for value in (
                *("", [], ["a", ""], 5, {}, True, ["a", 1], [[]], [[1], []], [1.0], [True], [-1], [[1.5]]),
                *([[True]], [[-1]], [["a"]], [None], [2**32], [2**70], ["a", ["b"]]),
            )
        ),
        ({"input": ["a"] * 2049}, "array_above_max_length", "input"),
        *(({"dimensions": value}, "invalid_value", "dimensions") for value in (0, -1, True, 1.0, "8", [])),
        *(({"output_dimension": value}, "invalid_value", "output_dimension") for value in (0, "8")),
        ({"truncate": "MIDDLE"}, "invalid_value", "truncate"),
        ({"truncation": 1}, "invalid_value", "truncation"),
        ({"truncate_prompt_tokens": 5}, "unsupported_parameter", "truncate_prompt_tokens"),
        ({"normalized": "no"}, "invalid_value", "normalized"),
        ({"embedding_type": "int8"}, "unsupported_parameter", "embedding_type"),
        ({"output_dtype": ["float"]}, "unsupported_parameter", "output_dtype"),
        ({"late_chunking": True}, "unsupported_parameter", "late_chunking"),
        ({"input_type": "poem"}, "unsupported_input_type", "input_type"),
        ({"task": 1}, "unsupported_input_type", "task"),
        *(
            ({"encoding_format": value}, "invalid_value", "encoding_format")
            for value in ("int8", "", 1, ["float"])
        ),
    ],
)
async def test_what_is_refused_before_anything_is_called(door, change, code, param):
    reply = await door("POST", PATH, json_body={"model": "m", "input": "a", **change})
    assert reply.status == 400
    error = reply.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert reply.headers["x-should-retry"] == "false"
    assert not door.gateway.calls


async def test_2048_inputs_and_one_long_list_of_ids_are_fine(door):
    assert (await door("POST", PATH, json_body={"model": "m", "input": ["a"] * 2048})).status == 200
    assert (await door("POST", PATH, json_body={"model": "m", "input": list(range(5000))})).status == 200
    assert len(door.gateway.calls[1].inputs) == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'{"input":"\xff"}', rb'{"input":"\ud800"}', b'{"a":1}{}', b'{"dimensions":NaN}'),
        b'{"model":"m","input":' + b"[" * 130 + b"]" * 130 + b"}",
    ],
)
async def test_a_body_that_is_no_json_object(door, body):
    reply = await door("POST", PATH, body=body, headers=JSON)
    assert (reply.status, reply.code, reply.json["error"]["param"]) == (400, "invalid_json", None)


async def test_content_types(door):
    body = b'{"model":"m","input":"a"}'
    for kind in ("application/json; charset=utf-8", "application/vnd.x+json"):
        assert (await door("POST", PATH, body=body, headers={"content-type": kind})).status == 200
    for headers in ({}, {"content-type": "text/plain"}, {"content-type": "application/json;charset=utf-16"}):
        reply = await door("POST", PATH, body=body, headers=headers)
        assert (reply.status, reply.code) == (415, "unsupported_media_type")


async def test_a_compressed_body(make_door):
    door = make_door(gateway_max_body_mb=0.001)
    body = gzip.compress(b'{"model":"m","input":"a"}')
    zipped = {**JSON, "content-encoding": "gzip"}
    assert (await door("POST", PATH, body=body, headers=zipped)).status == 200
    bomb = await door("POST", PATH, body=gzip.compress(b" " * 10_000), headers=zipped)
    assert (bomb.status, bomb.code) == (413, "request_too_large")
    for broken in (b"no gzip", body[:-4]):
        assert (await door("POST", PATH, body=broken, headers=zipped)).code == "invalid_json"
    brotli = await door("POST", PATH, body=body, headers={**JSON, "content-encoding": "br"})
    assert brotli.status == 415


async def test_a_body_that_is_too_large(make_door):
    door = make_door(gateway_max_body_mb=0.001)
    reply = await door("POST", PATH, body=[b" " * 700, b" " * 700], headers=JSON)
    assert (reply.status, reply.code, reply.headers["connection"]) == (413, "request_too_large", "close")


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code", "param"),
    [
        (errors.UnknownTarget("no"), 404, "invalid_request_error", "model_not_found", "model"),
        (errors.UnknownInstance("no"), 404, "invalid_request_error", "model_not_found", "model"),
        (errors.NotReady("soon", retry_after=1.2), 503, "server_error", "no_healthy_upstream", None),
        (errors.Withdrawn("a"), 503, "server_error", "no_healthy_upstream", None),
        (
            errors.CallerError("x", code="OPERATION_NOT_SUPPORTED"),
            *(400, "invalid_request_error", "operation_not_supported", "model"),
        ),
        (
            errors.CallerError("dimensions: too many", code="INVALID_VALUE"),
            *(400, "invalid_request_error", "invalid_value", "dimensions"),
        ),
        (
            errors.UpstreamRefused("empty", status=422, code="UPSTREAM_REJECTED"),
            *(400, "invalid_request_error", "upstream_rejected", "input"),
        ),
        (
            errors.UpstreamRefused("`dimensions` should be smaller", status=422, code="UPSTREAM_REJECTED"),
            *(400, "invalid_request_error", "upstream_rejected", "dimensions"),
        ),
        (
            errors.UpstreamRefused("long", status=413, code="CONTEXT_LENGTH_EXCEEDED"),
            *(400, "invalid_request_error", "context_length_exceeded", "input"),
        ),
        (
            errors.UpstreamRefused("busy", status=429, code="UPSTREAM_RATE_LIMITED", retry_after=2),
            *(429, "requests", "upstream_rate_limited", None),
        ),
        (errors.UpstreamError("x"), 502, "server_error", "upstream_error", None),
        (errors.UpstreamError("x", code="UPSTREAM_UNREACHABLE"), 502, "server_error", "upstream_error", None),
        (errors.UpstreamError("x", code="UPSTREAM_DIED"), 502, "server_error", "upstream_died", None),
        (errors.UpstreamError("x", code="UPSTREAM_MALFORMED"), 502, "server_error", "upstream_malformed", None),
        (
            errors.UpstreamError("x", code="UPSTREAM_AUTH_FAILED"),
            502,
            "server_error",
            "upstream_auth_failed",
            None,
        ),
        (errors.UpstreamTimeout("x"), 504, "server_error", "upstream_timeout", None),
    ],
)
async def test_faults(door, fault, status, kind, code, param):
    door.gateway.error = fault
    reply = await door("POST", PATH, json_body={"model": "m", "input": "a"})
    assert reply.status == status
    error = reply.json["error"]
    assert error == {"message": str(fault), "type": kind, "param": param, "code": code}
    assert (reply.json["message"], reply.json["detail"]) == (str(fault), str(fault))
    known = getattr(fault, "retry_after", None)
    assert reply.headers.get("retry-after") == (None if known is None else "2")
    assert reply.headers.get("retry-after-ms") == (None if known is None else str(int(known * 1000)))


async def test_a_large_answer_comes_in_slices_and_lets_others_run(door):
    rows = np.random.default_rng(1).standard_normal((64, 1024)).astype(np.float32)

    async def embed(call):
        return Vectors(rows, 1)

    door.gateway.embed = embed
    others = 0

    async def other():
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    reply = await door("POST", PATH, json_body={"model": "m", "input": ["a"] * 64})
    running.cancel()
    assert np.array_equal(np.array([each["embedding"] for each in reply.json["data"]], dtype=np.float32), rows)
    assert "content-length" not in reply.headers
    assert others > 5


async def test_a_caller_who_leaves_ends_the_call(door):
    door.gateway.hangs = True
    reply = await door("POST", PATH, json_body={"model": "m", "input": "a"}, hang_up_after=0.01)
    assert reply is None
    assert door.gateway.was_cancelled


async def test_the_other_spelling_of_the_path(door):
    assert (await door("POST", "/openai/v1/embeddings", json_body={"model": "m", "input": "a"})).status == 200


async def test_models_are_names_aliases_and_ids_of_what_runs_or_should(make_door):
    door = make_door(FakeFleet(clock=lambda: 1_700_000_000.7))
    assert (await door("GET", "/v1/models")).json == {"object": "list", "data": []}
    await door("POST", "/instances?wait=true", json_body=SPEC)
    await door("POST", "/instances", json_body={"name": "off", "model_id": "off/model", "autostart": False})
    await door("POST", "/instances", json_body={"name": "bge2", "model_id": SPEC["model_id"]})
    listed = (await door("GET", "/v1/models/")).json["data"]
    assert [each["id"] for each in listed] == ["BAAI/bge-small-en-v1.5", "bge", "bge2", "small"]
    assert listed[0]["object"] == "model"
    assert listed[0]["created"] == 1_700_000_000
    assert listed[0]["owned_by"] == "tei-manager"
    assert listed[0]["status"]["value"] == "loaded"


@pytest.mark.parametrize("spelling", ["BAAI/bge-small-en-v1.5", "BAAI%2Fbge-small-en-v1.5", "bge", "small"])
async def test_one_model(door, spelling):
    await door("POST", "/instances?wait=true", json_body=SPEC)
    reply = await door("GET", f"/v1/models/{spelling}")
    assert (reply.status, reply.json["id"]) == (200, spelling.replace("%2F", "/"))


async def test_an_unknown_model(door):
    reply = await door("GET", "/v1/models/org/nope")
    assert (reply.status, reply.code) == (404, "model_not_found")
    assert set(reply.json) == {"error"}
    assert json.loads(reply.body)["error"]["type"] == "invalid_request_error"
