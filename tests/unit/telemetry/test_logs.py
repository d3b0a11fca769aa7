"""Log lines: one format for everybody, typed fields, no secrets, and no harm from a bad stream."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tei_manager.adapters.telemetry import levels, logs
from tei_manager.adapters.telemetry.stream import StreamHandler
from tei_manager.kits.masking import is_secret, masked_env


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.configure("info", stream=io.StringIO())  # takes back the levels of single loggers
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


def test_a_json_line_has_exactly_the_agreed_shape(stream):
    structlog.stdlib.get_logger("tei_manager.x").info(
        "Instance added", name="a", gpu_id=0, pid=None, secs=1.5, on=True
    )
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "fields": {"message": "Instance added", "name": "a", "gpu_id": 0, "pid": None, "secs": 1.5, "on": True},
        "target": "tei_manager.x",
    }
    assert list(json.loads(stream.getvalue())) == ["timestamp", "level", "fields", "target"]


def test_foreign_loggers_come_out_the_same(stream):
    logging.getLogger("uvicorn.error").warning("at %s", "port", extra={"color_message": "c", "port": 9000})
    # pytest's own handlers would raise for a text that does not fit its arguments
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, StreamHandler)]
    logging.getLogger("grpc").error("broken %d", "arguments")
    first, second = lines(stream)
    assert (first["level"], first["target"]) == ("WARN", "uvicorn.error")
    assert first["fields"] == {"message": "at port", "port": 9000}
    assert second["fields"] == {"message": "broken %d"}


def test_request_and_trace_ids_stand_beside_the_fields(stream):
    with structlog.contextvars.bound_contextvars(request_id="r-1", trace_id="t", instance="a"):
        logging.getLogger("asyncio").info("x")
    structlog.get_logger("y").info("z")
    first, second = lines(stream)
    assert (first["request_id"], first["trace_id"], first["fields"]["instance"]) == ("r-1", "t", "a")
    assert "request_id" not in second


def test_exceptions_are_a_text(stream):
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger("x").exception("failed", name="a")
    (line,) = lines(stream)
    assert line["level"] == "ERROR"
    assert line["fields"]["exception"].endswith("ValueError: bad")


def test_secrets_and_odd_values(stream):
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    structlog.get_logger("x").info(
        "m", api_key="sk-1", max_tokens=5, env={"HF_TOKEN": "hf", "A": "b"}, odd=Odd(), nan=float("nan"),
        big=2**70, path="a\udc80", items=(1, "x"), message="mine", tokens=["a"],
    )  # fmt: skip
    (line,) = lines(stream)
    assert line["fields"] == {
        "message": "m",
        "api_key": "***",
        "max_tokens": 5,
        "env": {"HF_TOKEN": "***", "A": "b"},
        "odd": "<Odd>",
        "nan": None,
        "big": str(2**70),
        "path": "a\\udc80",
        "items": [1, "x"],
        "message_": "mine",
        "tokens": "***",
    }
    assert masked_env({"MY_PASSWORD": "x", "SECRET_A": "y", "HOME": "z"}) == {
        "MY_PASSWORD": "***",
        "SECRET_A": "***",
        "HOME": "z",
    }
    assert is_secret("api_key")


def test_levels_of_single_loggers():
    stream = io.StringIO()
    logs.configure("tei_manager::control=debug,warn", "json", stream)
    logging.getLogger("tei_manager.control.fleet").debug("yes")
    structlog.get_logger("tei_manager.control").debug("yes")
    structlog.get_logger("tei_manager.serving").info("no")
    logs.configure("trace", "json", stream)
    logging.getLogger("tei_manager.control").log(levels.TRACE, "yes")
    assert [line["level"] for line in lines(stream)] == ["DEBUG", "DEBUG", "TRACE"]


@pytest.mark.parametrize(
    ("text", "general", "loggers"),
    [
        ("info", 20, {}),
        ("WARNING", 30, {}),
        ("a.b=debug, error", 40, {"a.b": 10}),
        ("a::b=trace", 20, {"a.b": 5}),
    ],
)
def test_level_texts(text, general, loggers):
    assert levels.parse(text) == levels.Levels(general, loggers)


@pytest.mark.parametrize("text", ["", "loud", "info,debug", "a=", "=info", "a=b=info", "info,", "a b=info"])
def test_refused_level_texts(text):
    with pytest.raises(ValueError, match="expected trace, debug, info, warn or error"):
        levels.parse(text)


@given(st.text(max_size=20))
def test_no_level_text_crashes(text):
    with contextlib.suppress(ValueError):
        levels.parse(text)


def test_pretty_lines_are_plain_without_a_terminal():
    stream = io.StringIO()
    logs.configure("info", "pretty", stream)
    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("tei_manager.x").info("hello", name="a b", port=9000, none=None)
    text = stream.getvalue()
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} INFO  hello name="a b" port=9000 none=null request_id=r-1  tei_manager.x\n', text
    )


def test_pretty_lines_on_a_terminal_are_coloured_and_show_exceptions():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.configure("info", "pretty", stream)
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("x").exception("failed")
    assert "\x1b[31mERROR\x1b[0m failed" in stream.getvalue()
    assert stream.getvalue().endswith("ValueError: bad\n")


def test_configuring_twice_logs_once(stream):
    again = io.StringIO()
    logs.configure("info", "json", again)
    logging.getLogger("x").info("m")
    assert (len(lines(stream)), len(lines(again))) == (0, 1)


def test_a_closed_stream_does_no_harm(tmp_path):
    with (tmp_path / "log").open("w") as file:
        logs.configure("info", "json", file)
    logging.getLogger("x").info("lost")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        logs.configure("info", "json", full)
        logging.getLogger("x").info("lost")


def test_a_broken_pipe_does_no_harm():
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        logs.configure("info", "json", stream)
        os.close(read)
        logging.getLogger("x").info("lost")


def test_a_reader_that_stops_costs_lines_and_not_time():
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb", buffering=0) as reader:
        logs.configure("info", "json", stream)
        log = logging.getLogger("x")
        begin = time.monotonic()
        for number in range(60):
            log.info("m", extra={"number": number, "filling": "x" * 5000})
        assert time.monotonic() - begin < 5  # blocking forever is the fault that is meant
        os.set_blocking(read, False)
        text = b""
        while chunk := reader.read(1 << 20):
            text += chunk
        log.info("again")
        text += reader.read(1 << 20) or b""
    found = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
    assert found[-1]["fields"]["message"] == "again"
    assert re.fullmatch(r"\d+ log lines were dropped: nobody reads them", found[-2]["fields"]["message"])
    assert 5 < len(found) < 60


def test_a_file_gets_utf8_lines_at_once(tmp_path):
    file = tmp_path / "log"
    with file.open("w", encoding="ascii") as stream:
        logs.configure("info", "json", stream)
        logging.getLogger("x").info("grüße")
        assert json.loads(file.read_text(encoding="utf-8"))["fields"]["message"] == "grüße"
