"""The error answers of the testing engine, and how each door spells them."""

from __future__ import annotations

from dataclasses import dataclass

# error_type -> HTTP status, gRPC code, label of te_request_failure
KINDS = {
    "Empty": (400, "INVALID_ARGUMENT", "validation"),
    "Validation": (422, "INVALID_ARGUMENT", "validation"),
    "Tokenizer": (422, "FAILED_PRECONDITION", "tokenization"),
    "Overloaded": (429, "RESOURCE_EXHAUSTED", "overloaded"),
    "Backend": (424, "FAILED_PRECONDITION", "inference"),
    "Unhealthy": (503, "UNAVAILABLE", "inference"),
}
_BY_STATUS = {400: "Empty", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
_GRPC_BY_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    405: "UNIMPLEMENTED",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(eq=False)
class Fault(Exception):
    """A request that is refused or fails: `kind` is the `error_type` of TEI's JSON."""

    kind: str
    message: str
    status: int
    grpc_code: str
    label: str

    def __str__(self) -> str:
        return self.message


def fault(kind: str, message: str, *, label: str | None = None) -> Fault:
    """A fault of one of TEI's kinds."""
    status, code, default_label = KINDS[kind]
    return Fault(kind, message, status, code, label or default_label)


def scripted_fault(status: int, grpc_code: str | None) -> Fault:
    """The fault of `--error-every`: any HTTP status, with the gRPC code that fits it unless one is given."""
    kind = _BY_STATUS.get(status, "Backend")
    code = grpc_code or (KINDS[kind][1] if status in (400, 422, 424, 429, 503) else _GRPC_BY_STATUS.get(status))
    return Fault(kind, "scripted error", status, code or "UNKNOWN", KINDS[kind][2])
