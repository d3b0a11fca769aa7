"""The script: how the testing engine is told to misbehave. One table for flags, environment and documentation."""

from __future__ import annotations

import dataclasses
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PREFIX = "TESTING_ENGINE_"
GRPC_CODES = (
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch: its reader raises ValueError with the reason; `placeholder` "" = takes no value."""

    read: Callable[[str], Any]
    placeholder: str
    meaning: str


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("not a number of seconds ≥ 0")
    return value


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"not a whole number between {low} and {high}")
        return int(text)

    return read


def _exit_code(text: str) -> int:
    digits = text.removeprefix("-")
    value = int(text) if digits.isascii() and digits.isdigit() else 256
    if value > 255 or (value < 0 and -value not in signal.valid_signals()):
        raise ValueError("neither an exit code (0 to 255) nor a negative signal number")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"not one of {', '.join(choices)}")
        return text

    return read


def read_bool(text: str) -> bool:
    """`true`, `1`, `false`, `0`; ValueError otherwise."""
    if text not in ("true", "1", "false", "0"):
        raise ValueError("not one of true, false, 1, 0")
    return text in ("true", "1")


def _switch(default: Any, read: Callable[[str], Any], placeholder: str, meaning: str) -> Any:
    return field(default=default, metadata={"switch": Switch(read, placeholder, meaning)})


_count = _whole(0, 10**9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Every switch with its default: the field `ready_after` is `--ready-after` and TESTING_ENGINE_READY_AFTER."""

    ready_after: float = _switch(0.0, _seconds, "SECS", "becomes ready after SECS; nothing listens until then")
    loading_answers: bool = _switch(
        False, read_bool, "", "listens at once and answers 503 / UNAVAILABLE until ready, like tei-engine"
    )
    fail_with: str | None = _switch(
        None, str, "TEXT", "instead of becoming ready prints `Error: TEXT` on stderr and exits with --exit-code"
    )
    crash_after: float | None = _switch(None, _seconds, "SECS", "crashes SECS after it became ready")
    crash_after_requests: int | None = _switch(
        None, _count, "N", "answers N inference requests and crashes when the next one arrives"
    )
    exit_code: int = _switch(
        1, _exit_code, "N", "exit code of a crash and of --fail-with; negative: kills itself by signal -N"
    )
    ignore_sigterm: bool = _switch(False, read_bool, "", "ignores SIGTERM (not SIGINT)")
    stop_takes: float = _switch(0.0, _seconds, "SECS", "a graceful stop takes at least SECS")
    grow_mib: int = _switch(0, _count, "N", "takes N MiB of memory while loading and touches every page")
    grow_mib_per_request: int = _switch(0, _count, "N", "takes N MiB more with every inference request")
    answer_after: float = _switch(0.0, _seconds, "SECS", "every inference request takes SECS longer")
    error_every: int | None = _switch(
        None, _whole(1, 10**9), "N", "every N-th inference request fails with --error-status"
    )
    error_status: int = _switch(424, _whole(400, 599), "CODE", "HTTP status of --error-every")
    error_grpc_status: str | None = _switch(
        None, _one_of(*GRPC_CODES), "NAME", "gRPC code of --error-every; default: what fits --error-status"
    )
    error_inputs: str | None = _switch(
        None, str, "TEXT", "inputs that contain TEXT fail: 422 Validation / INVALID_ARGUMENT"
    )
    hang_after_requests: int | None = _switch(
        None, _count, "N", "answers N inference requests, then accepts and never answers; GET /health hangs too"
    )
    unhealthy_after: float | None = _switch(
        None, _seconds, "SECS", "SECS after ready every probe fails (/health, /info, Info) while inference works"
    )
    dimensions: int = _switch(8, _whole(1, 65536), "N", "length of the vectors")
    max_input_length: int = _switch(512, _whole(3, 10**9), "N", "tokens of one input, specials included")
    model_type: str = _switch(
        "embedding", _one_of("embedding", "classifier", "reranker"), "TYPE", "embedding, classifier or reranker"
    )
    protocol: str | None = _switch(
        None,
        _one_of("http", "grpc", "both"),
        "NAME",
        "http or grpc on --port, or both (gRPC on --grpc-port); default: both if --grpc-port is given, else http",
    )
    dump: str | None = _switch(
        None, str, "FILE", "writes {argv, env, pid, pgid, sid, cwd, fds} to FILE at start, as JSON"
    )
    log_lines: int = _switch(0, _count, "N", "logs N lines of noise while loading")
    cpu_fallback: bool = _switch(False, read_bool, "", "logs `Using CPU instead`, as TEI does without its GPU")
    version_text: str = _switch(
        "text-embeddings-router 1.9.3",
        str,
        "TEXT",
        "what --version prints; its last number is the protocol version",
    )
    chat_chunks: int = _switch(4, _count, "N", "words, and stream chunks, of a chat answer")
    chat_chunk_every: float = _switch(0.0, _seconds, "SECS", "pause before every chunk of a chat stream")
    chat_die_after: int | None = _switch(
        None, _count, "N", "a chat stream breaks off after N chunks: the connection closes without an end"
    )


def switches() -> dict[str, Switch]:
    """Flag name without dashes -> switch, in the order of the documentation."""
    return {f.name.replace("_", "-"): f.metadata["switch"] for f in dataclasses.fields(Script)}


def environment_name(flag: str) -> str:
    """The variable that means the same as the flag (given without dashes)."""
    return PREFIX + flag.upper().replace("-", "_")
