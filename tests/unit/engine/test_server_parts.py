"""Small parts of the server: metrics text, log lines, the error table, content negotiation."""

import asyncio
import io
import json
import logging
import os

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tei_engine import errors
from tei_engine.models.kinds import Kind
from tei_engine.server import error_table, grpc_app, http_native, http_requests, life, listening, logs
from tei_engine.server.metrics import Counter, Gauge, Histogram
from tei_engine.server.service import Service
from tei_engine.server.settings import read_settings


def test_a_histogram_is_cumulative():
    histogram = Histogram((1.0, 2.0, 4.0))
    for value in (0.5, 1.0, 3.0, 9.0):
        histogram.observe(value)
    assert list(histogram.lines("x")) == [
        'x_bucket{le="1"} 2',
        'x_bucket{le="2"} 2',
        'x_bucket{le="4"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 13.5",
        "x_count 4",
    ]


async def test_grpc_health_follows_the_engines(monkeypatch):
    monkeypatch.setattr(life, "_HEALTH_SECONDS", 0.001)
    monkeypatch.setattr(Service, "is_healthy", False)
    monkeypatch.setattr(Service, "kind", Kind.RERANKER)
    service = Service(read_settings(["--model-id", "x"], {}))
    with listening.bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    listener = await grpc_app.start(service, f"127.0.0.1:{port}")
    await listener.show(ready=True, kind=Kind.RERANKER)
    telling = asyncio.create_task(life._tell_health(service, listener))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(10):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="tei.v1.Rerank"))
        while (await watch.read()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
            pass
        monkeypatch.setattr(Service, "is_healthy", True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    telling.cancel()
    await listener.drain(0)


def test_gauges_keep_every_byte():
    assert list(Gauge(lambda: 166_723_584).lines("x")) == ["x 166723584"]


def test_counters_and_gauges():
    counter = Counter("method", ("single", "batch"))
    counter.add("batch", 3)
    assert list(counter.lines("c")) == ['c{method="single"} 0', 'c{method="batch"} 3']
    assert list(Gauge(lambda: 2.5).lines("g")) == ["g 2.5"]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        (None, logging.INFO),
        ("debug", logging.DEBUG),
        ("info,text_embeddings_router=warn", logging.INFO),
        ("text_embeddings_router=debug", logging.INFO),
        ("hyper=off,ERROR", logging.ERROR),
    ],
)
def test_the_bare_level_counts(text, level):
    assert logs.level_of(text) == level


def record(message, **more):
    return logging.LogRecord("tei_engine.x", logging.WARNING, "/a/b/c/d.py", 7, message, (), None, **more)


def test_log_lines_have_the_routers_shape():
    reading, writing = os.pipe()
    logs.Lines(json_output=True, descriptor=writing).emit(record("hello \ud800 \n"))
    os.close(writing)
    with io.FileIO(reading) as stream:
        line = json.loads(stream.read())
    assert line["timestamp"].endswith("Z")
    del line["timestamp"]
    assert line == {
        "level": "WARN",
        "message": "hello ? \n",
        "target": "tei_engine::x",
        "filename": "b/c/d.py",
        "line_number": 7,
    }


def test_a_closed_log_is_nobodys_end():
    reading, writing = os.pipe()
    os.close(reading)
    logs.Lines(json_output=False, descriptor=writing).emit(record("lost"))
    os.close(writing)


def test_every_kind_of_error_has_a_status_and_a_code():
    assert set(error_table.HTTP_STATUS) == set(errors.ErrorKind) == set(error_table.GRPC_CODE)


def test_bodies_of_errors():
    error = errors.empty("nothing").at_row(3)
    assert error_table.native_body(error) == {"error": "nothing", "error_type": "Empty", "row": 3}
    assert error_table.openai_body(error) == {"message": "nothing", "code": 400, "type": "Empty", "row": 3}
    assert "row" not in error_table.native_body(errors.overloaded())


@pytest.mark.parametrize(
    ("accept", "binary"),
    [
        (b"application/octet-stream", True),
        (b"application/octet-stream, application/json;q=0.5", True),
        (b"application/json, application/octet-stream;q=0.5", False),
        (b"application/octet-stream, application/json", False),
        (b"application/octet-stream, */*;q=0.1", True),
        (b"*/*", False),
        (b"", False),
        (b"application/octet-stream;q=x", False),
    ],
)
def test_binary_must_be_preferred(accept, binary):
    assert http_native._prefers_binary(accept) is binary


@pytest.mark.parametrize("depth", [127, 129])
def test_nesting_is_bounded(depth):
    body = b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"
    if depth < 128:
        http_requests.read_object(body)
    else:
        with pytest.raises(http_requests.BodyError, match="recursion limit exceeded"):
            http_requests.read_object(body)


def test_brackets_in_strings_are_no_nesting():
    assert http_requests.read_object(json.dumps({"inputs": "[" * 1000}).encode())


def test_binding_twice_is_refused_and_releases():
    first = listening.bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(errors.StartError, match=rf"could not bind 127\.0\.0\.1:{port}: Address already in use"):
        listening.bind("127.0.0.1", port)
    first.close()
    listening.check_free("127.0.0.1", port)


def test_a_name_that_does_not_resolve():
    with pytest.raises(errors.StartError, match=r"could not bind no-such-host\.invalid:1"):
        listening.bind("no-such-host.invalid", 1)
