"""Error kind → HTTP status and gRPC code: one table, looked up at the edge."""

from __future__ import annotations

from typing import Any

from tei_engine.errors import ErrorKind, RequestError

HTTP_STATUS = {
    ErrorKind.EMPTY: 400,
    ErrorKind.VALIDATION: 422,
    ErrorKind.TOKENIZER: 422,
    ErrorKind.OVERLOADED: 429,
    ErrorKind.BACKEND: 424,
    ErrorKind.UNHEALTHY: 503,
    ErrorKind.DEADLINE: 503,
}

GRPC_CODE = {
    ErrorKind.EMPTY: "INVALID_ARGUMENT",
    ErrorKind.VALIDATION: "INVALID_ARGUMENT",
    ErrorKind.TOKENIZER: "FAILED_PRECONDITION",
    ErrorKind.OVERLOADED: "RESOURCE_EXHAUSTED",
    ErrorKind.BACKEND: "FAILED_PRECONDITION",
    ErrorKind.UNHEALTHY: "UNAVAILABLE",
    ErrorKind.DEADLINE: "DEADLINE_EXCEEDED",
}
"""Names of `grpc.StatusCode`."""

RETRY_AFTER = frozenset({429, 503})
"""Statuses that say `Retry-After: 1`."""


def native_body(error: RequestError) -> dict[str, Any]:
    """The body of TEI's own routes."""
    body: dict[str, Any] = {"error": error.message, "error_type": error.kind.value}
    return body if error.row is None else body | {"row": error.row}


def openai_body(error: RequestError) -> dict[str, Any]:
    """The body of the OpenAI-shaped routes."""
    body: dict[str, Any] = {"message": error.message, "code": HTTP_STATUS[error.kind], "type": error.kind.value}
    return body if error.row is None else body | {"row": error.row}
