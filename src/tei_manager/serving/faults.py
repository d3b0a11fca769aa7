"""What an engine's error answer means, for every door: gateway contract §8 and §11. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from tei_manager.domain import errors
from tei_manager.ports.http_upstream import Answer

LONGEST_TEXT = 500
# an engine that was not there, or went away: the call may be made again anywhere, the same engine included
AGAIN = frozenset({"UPSTREAM_UNREACHABLE", "UPSTREAM_DIED"})
# an engine that cannot just now: only another one helps
ELSEWHERE = AGAIN | {"UPSTREAM_ERROR", "UPSTREAM_MALFORMED", "UPSTREAM_RATE_LIMITED", "UPSTREAM_AUTH_FAILED"}

_CALLERS_KINDS = {"Empty", "Validation", "Tokenizer"}
_WRONG_OPERATION = re.compile(r"model is not |is not available for ", re.IGNORECASE)
_TOO_LONG = re.compile(r"must have less than \d+ (tokens|characters)|maximum context length|too many tokens", re.I)
# addresses, files and credentials of an engine are nobody's business
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:\d{1,3}(?:\.\d{1,3}){3}|localhost|\[[0-9a-fA-F:]+\])(?::\d+)?\b")
_FILE = re.compile(r"(?<![\w/.`])/(?:[\w.@+-]+/)+[\w.@+-]*")
_CREDENTIAL = re.compile(r"\b(?:Bearer\s+\S+|(?:hf|sk|tm)[-_][A-Za-z0-9_-]{8,})")


def read(instance: str, answer: Answer) -> errors.UpstreamRefused:
    """The error that an answer other than 200 stands for. TEI's `error_type` decides before the status."""
    kind, text = _kind_and_text(answer.body)
    status = answer.status

    def fault(code: str, message: str, retry_after: float | None = None) -> errors.UpstreamRefused:
        return errors.UpstreamRefused(message, status=status, kind=kind, code=code, retry_after=retry_after)

    if kind == "Overloaded" or (status == 429 and kind is None):
        return fault("UPSTREAM_RATE_LIMITED", f"Instance '{instance}' is overloaded", _retry_after(answer))
    if kind == "Backend" and _WRONG_OPERATION.search(text):
        return fault("OPERATION_NOT_SUPPORTED", redacted(text))
    if kind in ("Backend", "Unhealthy"):
        return fault("UPSTREAM_ERROR", f"Instance '{instance}' failed")
    if kind in _CALLERS_KINDS or (400 <= status < 500 and status not in (401, 403, 404, 408, 424, 498)):
        code = "CONTEXT_LENGTH_EXCEEDED" if _TOO_LONG.search(text) else "UPSTREAM_REJECTED"
        return fault(code, redacted(text) or f"Instance '{instance}' refused the request")
    if status in (401, 403, 498):
        return fault("UPSTREAM_AUTH_FAILED", f"Instance '{instance}' refused the manager's credential")
    if status == 404 and "model" in text.lower():
        return fault("MODEL_NOT_FOUND", f"Instance '{instance}' does not know its model by this name")
    if status == 404:
        return fault("OPERATION_NOT_SUPPORTED", f"Instance '{instance}' does not offer this operation")
    if status >= 400:
        return fault("UPSTREAM_ERROR", f"Instance '{instance}' failed")
    return fault("UPSTREAM_MALFORMED", f"Instance '{instance}' gave an unreadable answer")


# gRPC's status numbers, as far as they mean something here
_CALLERS_STATUS = {3, 11}  # INVALID_ARGUMENT, OUT_OF_RANGE
_GRPC = {
    4: "UPSTREAM_TIMEOUT",  # DEADLINE_EXCEEDED
    7: "UPSTREAM_AUTH_FAILED",  # PERMISSION_DENIED
    8: "UPSTREAM_RATE_LIMITED",  # RESOURCE_EXHAUSTED
    12: "OPERATION_NOT_SUPPORTED",  # UNIMPLEMENTED
    16: "UPSTREAM_AUTH_FAILED",  # UNAUTHENTICATED
}
_GRPC_TEXTS = {
    "UPSTREAM_TIMEOUT": "did not answer in time",
    "UPSTREAM_AUTH_FAILED": "refused the manager's credential",
    "UPSTREAM_RATE_LIMITED": "is overloaded",
    "OPERATION_NOT_SUPPORTED": "does not offer this operation",
}


def read_status(instance: str, status: int, text: str) -> errors.UpstreamError:
    """The error that a gRPC status of an engine stands for; the same ones as over HTTP."""

    def fault(code: str, message: str) -> errors.UpstreamRefused:
        after = 1.0 if code == "UPSTREAM_RATE_LIMITED" else None
        return errors.UpstreamRefused(message, status=status, code=code, retry_after=after)

    if _WRONG_OPERATION.search(text):
        return fault("OPERATION_NOT_SUPPORTED", redacted(text))
    if status in _CALLERS_STATUS or text.startswith(("Input validation error", "tokenizer error")):
        return fault("CONTEXT_LENGTH_EXCEEDED" if _TOO_LONG.search(text) else "UPSTREAM_REJECTED", redacted(text))
    if (code := _GRPC.get(status)) is not None:
        return fault(code, f"Instance '{instance}' {_GRPC_TEXTS[code]}")
    return fault("UPSTREAM_ERROR", f"Instance '{instance}' failed")


def malformed(instance: str, what: str) -> errors.UpstreamError:
    return errors.UpstreamError(f"Instance '{instance}' answered {what}", code="UPSTREAM_MALFORMED")


def redacted(text: str) -> str:
    """An engine's text without addresses, paths and credentials, on one line, shortened."""
    for pattern in (_URL, _CREDENTIAL, _ADDRESS, _FILE):
        text = pattern.sub("…", text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _kind_and_text(body: bytes) -> tuple[str | None, str]:
    """TEI's error type and the message, of all shapes in use; of anything else (HTML, stack traces) nothing."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        is_text = len(body) <= LONGEST_TEXT and b"<" not in body and b"Traceback" not in body
        return None, body.decode("utf-8", "replace") if is_text else ""
    if not isinstance(value, Mapping):
        return None, ""
    inner: Any = value.get("error")
    if isinstance(inner, Mapping):
        return None, _text(inner.get("message"))
    kind = value.get("error_type") or value.get("type")
    text = _text(inner) or _text(value.get("message")) or _text(value.get("detail"))
    # the OpenAI shape of TEI has the type under another name; other servers have other words there
    known = {*_CALLERS_KINDS, "Overloaded", "Backend", "Unhealthy"}
    return (kind if kind in known else None), text


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _retry_after(answer: Answer) -> float:
    given = answer.headers.get("retry-after", "")
    return float(given) if given.isdigit() else 1.0
