"""Trace context: which headers are valid, and which log lines show them."""

import asyncio
import io
import json
import logging
import os

import pytest

from tei_engine import errors
from tei_engine.server import logs, tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-00".encode(),
        f"cc-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01-what-a-later-version-adds",
    ],
)
def test_valid_headers(header):
    assert tracing.trace_id_of(header) == TRACE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        TRACE,
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-01-more",
        f"cc-{TRACE}-{PARENT}-01more",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}-{PARENT}-01".encode("utf-16"),
    ],
)
def test_headers_that_are_ignored(header):
    assert tracing.trace_id_of(header) is None


@pytest.fixture
def written():
    """Send log records to a pipe; call the fixture to close it and read them."""
    reading, writing = os.pipe()
    handler = logs.Lines(json_output=True, descriptor=writing)
    root = logging.getLogger("tei_engine")
    root.addHandler(handler)

    def read():
        os.close(writing)
        with io.FileIO(reading) as stream:
            return [json.loads(line) for line in stream.read().splitlines()]

    yield read
    root.removeHandler(handler)


async def test_a_task_shows_its_own_trace(written):
    async def request(header):
        tracing.follow(header)
        await asyncio.sleep(0)
        errors.internal(ValueError("oh"))

    await asyncio.gather(request(f"00-{TRACE}-{PARENT}-01"), request(None), request("00-nonsense"))
    lines = written()
    assert [line.get("trace_id") for line in lines] == [TRACE, None, None]
    assert all(line["message"].startswith("internal error ") for line in lines)


async def test_a_request_without_a_header_forgets_the_one_before():
    tracing.follow(f"00-{TRACE}-{PARENT}-01")
    tracing.follow(None)
    assert tracing.trace_id() is None


def test_plain_lines_show_it_too():
    reading, writing = os.pipe()
    tracing.follow(f"00-{TRACE}-{PARENT}-01")
    record = logging.LogRecord("tei_engine.x", logging.ERROR, "a.py", 7, "hello", (), None)
    logs.Lines(json_output=False, descriptor=writing).emit(record)
    tracing.follow(None)
    os.close(writing)
    with io.FileIO(reading) as stream:
        assert stream.read().endswith(f"ERROR tei_engine::x: trace_id={TRACE} hello\n".encode())
