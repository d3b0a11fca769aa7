"""Ends row by row."""

from __future__ import annotations

import pytest

from tei_manager.domain.exits import ExitKind
from tei_manager.engines.command import Command
from tei_manager.engines.tei import Tei

BIND = "Error: could not bind 127.0.0.1:8080: Address already in use\n"
IN_USE = "Error: Could not start server\n\nCaused by:\n    Address already in use (os error 98)\n"
RECORDER = "Error: failed to install Prometheus metrics exporter\n\nCaused by:\n    prometheus recorder: x\n"
DOWNLOAD = "Error: Could not download model artifacts\n\nCaused by:\n    request error: 503\n"
MODEL = "Error: `config.json` not found\n"
WARNING = '{"level":"WARN","message":"Could not download `1_Pooling/config.json`: request error: 404"}\n'


@pytest.mark.parametrize(
    ("code", "signal", "tail", "kind"),
    [
        (2, None, "error: unexpected argument\n", ExitKind.USAGE),
        (1, None, BIND, ExitKind.PORT),
        (1, None, IN_USE, ExitKind.PORT),
        (1, None, RECORDER, ExitKind.PORT),
        (1, None, DOWNLOAD, ExitKind.DOWNLOAD),
        (1, None, MODEL, ExitKind.MODEL),
        (1, None, WARNING + MODEL, ExitKind.MODEL),
        (1, None, "", ExitKind.MODEL),
        (127, None, "", ExitKind.MISSING),
        (134, None, "", ExitKind.CRASH),
        (None, 6, "", ExitKind.CRASH),
        (139, None, "", ExitKind.CRASH),
        (None, 11, "", ExitKind.CRASH),
        (137, None, "", ExitKind.CRASH),
        (None, 9, "", ExitKind.CRASH),
        (101, None, "", ExitKind.CRASH),
        (0, None, "", ExitKind.ENDED),
        (143, None, "", ExitKind.ENDED),
        (None, 15, "", ExitKind.ENDED),
        (3, None, "", ExitKind.ENDED),
        (None, None, "", ExitKind.ENDED),
    ],
)
def test_kinds_of_a_start_that_ended(code, signal, tail, kind):
    assert Tei().read_exit(code, signal, tail, was_ready=False).kind is kind


@pytest.mark.parametrize("code", [0, 1, 2, 127])
def test_an_end_after_ready_says_nothing_about_arguments_or_model(code):
    assert Tei().read_exit(code, None, MODEL, was_ready=True).kind is ExitKind.ENDED


@pytest.mark.parametrize(
    ("code", "signal", "tail", "ready", "text"),
    [
        (
            1,
            None,
            MODEL,
            False,
            "exited during startup: process exited with code 1: Error: `config.json` not found",
        ),
        (1, None, "", True, "process exited with code 1"),
        (None, 9, "", True, "process killed by signal 9"),
        (-11, None, "", False, "exited during startup: process killed by signal 11"),
        (137, None, "", True, "process exited with code 137"),
        (2, None, "error: a\nerror: b\n", False, "exited during startup: process exited with code 2: error: a"),
        (None, None, "", True, "process is gone, nobody saw how it ended"),
    ],
)
def test_texts(code, signal, tail, ready, text):
    assert Tei().read_exit(code, signal, tail, was_ready=ready).text == text


def test_seed_bug_the_duplicate_argument_would_be_named_as_such():
    tail = "error: the argument '--prometheus-port <PROMETHEUS_PORT>' cannot be used multiple times\n\nUsage: x\n"
    reason = Tei().read_exit(2, None, tail, was_ready=False)
    assert reason.kind is ExitKind.USAGE
    assert reason.text.endswith("'--prometheus-port <PROMETHEUS_PORT>' cannot be used multiple times")


@pytest.mark.parametrize(
    ("code", "signal", "tail", "ready", "kind"),
    [
        (1, None, MODEL, False, ExitKind.ENDED),
        (2, None, "", False, ExitKind.ENDED),
        (1, None, BIND, False, ExitKind.PORT),
        (1, None, BIND, True, ExitKind.ENDED),
        (127, None, "", False, ExitKind.MISSING),
        (None, 11, "", True, ExitKind.CRASH),
        (143, None, "", True, ExitKind.ENDED),
    ],
)
def test_codes_of_a_foreign_program_mean_little(code, signal, tail, ready, kind):
    assert Command().read_exit(code, signal, tail, was_ready=ready).kind is kind
