"""From an error to a gRPC status, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from tei_manager.domain import errors
from tei_manager.ports.grpc_upstream import EngineStatus, Metadata
from tei_manager.surfaces.grpc import metadata

TABLE: Mapping[type[BaseException], grpc.StatusCode] = {
    errors.UnknownInstance: grpc.StatusCode.NOT_FOUND,
    errors.UnknownTarget: grpc.StatusCode.NOT_FOUND,
    errors.Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.CallerError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CapacityError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.UpstreamTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.UpstreamError: grpc.StatusCode.UNAVAILABLE,
}
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_LONGEST_PUSHBACK_MS = 30_000


@dataclass(frozen=True, slots=True)
class Rendered:
    code: grpc.StatusCode
    message: str
    trailing: Metadata


def render(error: BaseException, request_id: str) -> Rendered:
    """The status for an error. Of one that is not ours nothing is shown but the request id."""
    trailing: Metadata = ((metadata.REQUEST_ID, request_id),)
    if isinstance(error, EngineStatus):
        code = _BY_NUMBER.get(error.status, grpc.StatusCode.UNKNOWN)
        return Rendered(code, str(error), metadata.outward(error.trailing) + trailing)
    code = next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), grpc.StatusCode.INTERNAL)
    if code is grpc.StatusCode.INTERNAL:
        return Rendered(code, f"Internal error (request_id {request_id})", trailing)
    if isinstance(error, errors.NotReady) and error.retry_after is not None:
        pause_ms = min(_LONGEST_PUSHBACK_MS, max(0, round(error.retry_after * 1000)))
        trailing = (("grpc-retry-pushback-ms", str(pause_ms)), *trailing)
    return Rendered(code, str(error), trailing)
