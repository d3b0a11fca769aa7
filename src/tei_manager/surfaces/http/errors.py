"""From an error to an answer: status, code, Retry-After and body of each dialect, in one table.

Codes are the upper-case words of `domain.errors` and of `Refused`; the control routes show them as they are, the
OpenAI dialect in lower case or as the table says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

import orjson

from tei_manager.domain import errors
from tei_manager.surfaces.http import clock

# code -> (status, code in the OpenAI dialect if it is another word)
TABLE: Mapping[str, tuple[int, str | None]] = {
    # the request itself
    "INVALID_PATH": (400, None),
    "INVALID_JSON": (400, None),
    "INVALID_VALUE": (400, None),
    "MISSING_REQUIRED_PARAMETER": (400, None),
    "UNSUPPORTED_PARAMETER": (400, None),
    "UNSUPPORTED_INPUT_TYPE": (400, None),
    "ARRAY_ABOVE_MAX_LENGTH": (400, None),
    "VALIDATION_ERROR": (400, "invalid_value"),
    "INVALID_INSTANCE_NAME": (400, None),
    "INVALID_MODEL_ID": (400, None),
    "INVALID_PORT": (400, None),
    "INVALID_GPU_ID": (400, None),
    "ENGINE_NOT_FOUND": (400, None),
    "INVALID_CONFIG": (400, None),
    "MANAGED_FLAG": (400, None),
    "DUPLICATE_FLAG": (400, None),
    "UNKNOWN_FLAG": (400, None),
    "FLAG_NEEDS_VERSION": (400, None),
    "MISSING_FIELD": (422, None),
    "INVALID_TYPE": (422, None),
    "UNKNOWN_FIELD": (422, None),
    "FORBIDDEN": (403, None),
    "ORIGIN_NOT_ALLOWED": (403, None),
    "HOST_NOT_ALLOWED": (403, "origin_not_allowed"),
    "NOT_FOUND": (404, None),
    "INSTANCE_NOT_FOUND": (404, "model_not_found"),
    "MODEL_NOT_FOUND": (404, None),
    "METHOD_NOT_ALLOWED": (405, None),
    "REQUEST_TIMEOUT": (408, None),
    "PAYLOAD_TOO_LARGE": (413, "request_too_large"),
    "UNSUPPORTED_MEDIA_TYPE": (415, None),
    "HEADERS_TOO_LARGE": (431, None),
    # what is registered
    "INSTANCE_EXISTS": (409, None),
    "PORT_CONFLICT": (409, None),
    "ALIAS_CONFLICT": (409, None),
    "MAX_INSTANCES_REACHED": (422, None),
    "PORT_ALLOCATION_FAILED": (422, None),
    "INSTANCE_FAILED": (502, None),
    "STARTUP_TIMEOUT": (504, None),
    # what answers
    "OPERATION_NOT_SUPPORTED": (400, None),
    "CONTEXT_LENGTH_EXCEEDED": (400, None),
    "UPSTREAM_REJECTED": (400, None),
    "QUEUE_FULL": (429, None),
    "UPSTREAM_RATE_LIMITED": (429, None),
    "UPSTREAM_ERROR": (502, None),
    "UPSTREAM_UNREACHABLE": (502, "upstream_error"),
    "UPSTREAM_DIED": (502, None),
    "UPSTREAM_MALFORMED": (502, None),
    "UPSTREAM_AUTH_FAILED": (502, None),
    "NOT_READY": (503, "no_healthy_upstream"),
    "FLEET_UNHEALTHY": (503, None),
    "INSTANCE_UNHEALTHY": (503, None),
    "SHUTTING_DOWN": (503, None),
    "UPSTREAM_TIMEOUT": (504, None),
    # us
    "IO_ERROR": (500, "internal_error"),
    "INTERNAL_ERROR": (500, None),
}
# an error whose code is not in the table has the status of its type
_BY_TYPE: Mapping[type[BaseException], int] = {
    errors.Conflict: 409,
    errors.CallerError: 400,
    errors.CapacityError: 422,
    errors.NotReady: 503,
    errors.UpstreamTimeout: 504,
    errors.UpstreamError: 502,
}
_REPEATING_CANNOT_HELP = range(400, 500)


class Refused(errors.CallerError):
    """The door refuses a request by itself. `param` is the field that OpenAI's error body names."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.param, self.headers, self.retry_after = param, tuple(headers), retry_after


class Dialect(Enum):
    CONTROL = auto()
    OPENAI = auto()
    CONTESTED = auto()  # OpenAI's, on a path that other vendors' clients call too


def dialect_of(path: str) -> Dialect:
    """The dialect in which errors on a path are told, routed or not."""
    if path.rstrip("/") in ("/v1/embeddings", "/openai/v1/embeddings"):
        return Dialect.CONTESTED
    return Dialect.OPENAI if path.startswith(("/v1/", "/openai/")) or path == "/v1" else Dialect.CONTROL


@dataclass(frozen=True, slots=True)
class Rendered:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def status_of(error: BaseException) -> int:
    code = error.code if isinstance(error, errors.TeiManagerError) else "INTERNAL_ERROR"
    if code in TABLE:
        return TABLE[code][0]
    return next((_BY_TYPE[kind] for kind in type(error).__mro__ if kind in _BY_TYPE), 500)


def render(error: BaseException, dialect: Dialect, request_id: str) -> Rendered:
    """The answer for an error. Of an error that is not ours nothing is shown but the request id."""
    status = status_of(error)
    if isinstance(error, errors.TeiManagerError):
        code, message = error.code, str(error)
    else:
        code, message = "INTERNAL_ERROR", f"Internal error, see the log for request {request_id}"
    headers = [*getattr(error, "headers", ()), *_retry_headers(error, status, dialect)]
    body: Mapping[str, object]
    if dialect is Dialect.CONTROL:
        body = _control(error, code, message, request_id)
    else:
        body = _openai(error, status, code, message)
        if dialect is Dialect.CONTESTED:
            body = {**body, "message": message, "detail": message, "id": request_id}
    return Rendered(status, tuple(headers), orjson.dumps(body, default=str))


def _control(error: BaseException, code: str, message: str, request_id: str) -> Mapping[str, object]:
    code = {"HOST_NOT_ALLOWED": "FORBIDDEN", "ORIGIN_NOT_ALLOWED": "FORBIDDEN"}.get(code, code)
    body: dict[str, object] = {
        "error": message,
        "code": code,
        "timestamp": clock.now_text(),
        "request_id": request_id,
    }
    details = dict(getattr(error, "details", {}))
    if isinstance(error, errors.InvalidSpec):
        details["problems"] = [
            {"path": each.path, "code": each.code, "message": each.message}
            | ({"nearest": each.nearest} if each.nearest else {})
            for each in error.problems
        ]
    return body | ({"details": details} if details else {})


def _openai(error: BaseException, status: int, code: str, message: str) -> Mapping[str, object]:
    kind = "server_error" if status >= 500 else "requests" if status == 429 else "invalid_request_error"
    word = (TABLE[code][1] if code in TABLE else None) or code.lower()
    return {
        "error": {"message": message, "type": kind, "param": getattr(error, "param", None), "code": word},
    }


def _retry_headers(error: BaseException, status: int, dialect: Dialect) -> Iterable[tuple[str, str]]:
    after: float | None = getattr(error, "retry_after", None)
    if status in (429, 503):
        # a 503 of the control routes always names a time; elsewhere only one that is known
        if after is None and dialect is Dialect.CONTROL:
            after = 1
        if after is not None:
            yield "retry-after", str(max(1, math.ceil(after)))
            yield "retry-after-ms", str(max(1, math.ceil(after * 1000)))
    elif status in _REPEATING_CANNOT_HELP and status != 408 and dialect is not Dialect.CONTROL:
        yield "x-should-retry", "false"
