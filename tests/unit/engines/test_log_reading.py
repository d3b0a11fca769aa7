"""Log lines row by row, the last error, masking."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_manager.engines.log_reading import Fact, LogFact, cpu_line, last_error, mask, read_line


def line(message: str, level: str = "INFO") -> str:
    return json.dumps({"timestamp": "2025-11-19T14:38:49Z", "level": level, "message": message, "target": "t"})


@pytest.mark.parametrize(
    ("message", "fact"),
    [
        ("Downloading `model.safetensors`", LogFact(Fact.DOWNLOADING, "model.safetensors")),
        ("Model artifacts downloaded in 1.2s", LogFact(Fact.DOWNLOADED)),
        ("Maximum number of tokens per request: 512", LogFact(Fact.MAX_INPUT_LENGTH, "512")),
        ("Backend does not support it, forcing `max_batch_requests=8`", LogFact(Fact.MAX_BATCH_REQUESTS, "8")),
        ("Starting model backend", LogFact(Fact.LOADING)),
        (
            "Starting Bert model on Cuda(CudaDevice(DeviceId(1)))",
            LogFact(Fact.DEVICE, "Cuda(CudaDevice(DeviceId(1)))"),
        ),
        ("Starting Bert model on Cpu", LogFact(Fact.DEVICE, "Cpu")),
        ("Warming up model", LogFact(Fact.WARMING)),
        ("Using CPU instead", LogFact(Fact.CPU_FALLBACK, "Using CPU instead")),
        ("Could not create backend: x", LogFact(Fact.CPU_FALLBACK, "Could not create backend: x")),
        ("Starting HTTP server: 127.0.0.1:8080", LogFact(Fact.PROTOCOL, "http")),
        ("Starting gRPC server: 127.0.0.1:8080", LogFact(Fact.PROTOCOL, "grpc")),
        ("Ready", LogFact(Fact.READY)),
        (
            "Invalid hostname, defaulting to 0.0.0.0",
            LogFact(Fact.BOUND_WIDE, "Invalid hostname, defaulting to 0.0.0.0"),
        ),
        ("Ready or not", None),
        ("Success", None),
    ],
)
def test_facts(message, fact):
    assert read_line(line(message)) == fact


def test_an_error_is_a_fact_and_so_is_the_nested_form_of_the_record():
    assert read_line(line("it broke", "ERROR")) == LogFact(Fact.LAST_ERROR, "it broke")
    assert read_line('{"level":"INFO","fields":{"message":"Ready"}}') == LogFact(Fact.READY)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("2025 WARN x: Using CPU instead", LogFact(Fact.CPU_FALLBACK, "2025 WARN x: Using CPU instead")),
        ("INFO Starting Bert model on Cpu", LogFact(Fact.DEVICE, "Cpu")),
        ("Error: Could not create backend", LogFact(Fact.LAST_ERROR, "Error: Could not create backend")),
        ("Ready", None),
        ("{not json", None),
        ("[1]", None),
        ("", None),
    ],
)
def test_plain_text_is_read_only_where_it_cannot_be_misread(text, fact):
    assert read_line(text) == fact


CLAP = """error: the argument '--prometheus-port <PROMETHEUS_PORT>' cannot be used multiple times

Usage: text-embeddings-router [OPTIONS]

For more information, try '--help'.
"""
CHAIN = """Error: Could not create backend

Caused by:
    0: Could not start backend
    1: cannot find tensor x
"""


@pytest.mark.parametrize(
    ("tail", "error"),
    [
        ("", None),
        (line("all well"), None),
        (f"{line('first', 'ERROR')}\n{line('second', 'ERROR')}\n{line('later')}", "second"),
        (CLAP, "error: the argument '--prometheus-port <PROMETHEUS_PORT>' cannot be used multiple times"),
        (CHAIN, "Error: Could not create backend: Could not start backend: cannot find tensor x"),
        ("ERROR: loud\nother", "ERROR: loud"),
        ("Error: a\nCaused by:\n    b\nStack backtrace:\n    c", "Error: a: b"),
        (f"{CHAIN}{line('logged', 'ERROR')}", "logged"),
        (
            "thread 'main' panicked at src/main.rs:1:2:\nboom\nnote: run",
            "thread 'main' panicked at src/main.rs:1:2: boom",
        ),
        ("\x1b[31mError: red\x1b[0m", "Error: red"),
        ("an error: in the middle", None),
    ],
)
def test_last_error(tail, error):
    assert last_error(tail) == error


def test_a_long_error_is_cut():
    assert len(last_error("error: " + "x" * 5000) or "") == 1000


@pytest.mark.parametrize("key", ["swordfish", 'quo"te', 'tricky")swordfish', "back\\slash", "end\\", "a, b"])
def test_keys_that_the_router_prints_are_masked(key):
    rust = key.replace("\\", "\\\\").replace('"', '\\"')
    message = f'Args {{ model_id: "a/b", api_key: Some("{rust}"), hf_token: None, port: 80 }}'
    for text in (message, line(message)):
        shown = mask(text)
        assert rust not in shown
        assert key not in shown
        assert "swordfish" not in shown
        assert "model_id: " in shown
        assert "***" in shown


def test_known_secrets_are_masked_anywhere():
    assert mask("token=abcd and abcd", ["abcd", ""]) == "token=*** and ***"
    assert mask("api_key: None") == "api_key: None"


FALLBACK, CPU, CUDA = (
    line("Using CPU instead"),
    line("Starting Bert model on Cpu"),
    line("Starting Bert model on Cuda(0)"),
)


@pytest.mark.parametrize(
    ("lines", "pinned", "found"),
    [
        ([FALLBACK, CPU], False, "Using CPU instead"),
        ([FALLBACK, CUDA], True, None),
        ([CUDA, FALLBACK], True, "Using CPU instead"),
        ([CPU], False, None),
        ([CPU], True, "Starting Bert model on Cpu"),
        ([], True, None),
    ],
)
def test_a_model_that_went_to_the_cpu_is_noticed(lines, pinned, found):
    assert cpu_line("\n".join(lines), pinned=pinned) == found


@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    read_line(text)
    last_error(text)
    cpu_line(text, pinned=True)
