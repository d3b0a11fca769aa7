"""Calling an engine over gRPC: bytes out, bytes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tei_manager.domain import errors
from tei_manager.domain.target import Endpoint

Metadata = tuple[tuple[str, str | bytes], ...]

UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class GrpcAnswer:
    """One whole answer of a unary call."""

    body: bytes
    initial: Metadata
    trailing: Metadata


class Unreachable(errors.UpstreamError):
    """No connection, or it broke. `is_answered`: the engine had begun to answer."""

    code = "UPSTREAM_UNREACHABLE"

    def __init__(self, instance: str, *, is_answered: bool = False) -> None:
        super().__init__(f"Instance '{instance}' is unreachable")
        self.is_answered = is_answered


class EngineStatus(errors.UpstreamError):
    """The engine ended a call with a status of its own. `status` is gRPC's number, never 0."""

    def __init__(self, status: int, message: str, *, trailing: Metadata = (), is_answered: bool = False) -> None:
        super().__init__(message)
        self.status, self.trailing, self.is_answered = status, trailing, is_answered


class GrpcStream(Protocol):
    """One streaming call. Everything but `cancel` raises `EngineStatus`, `Unreachable` or, after the engine ended
    the call, nothing: `send` and `done_sending` are then without effect."""

    async def connected(self) -> None:
        """Return when the call exists at the engine; to be waited for before anything else. If this raises,
        nothing was sent."""
        ...

    async def send(self, message: bytes) -> bool:
        """Send one message when there is room for it. False: the engine has ended the call."""
        ...

    async def done_sending(self) -> None: ...

    async def initial_metadata(self) -> Metadata:
        """Wait for the beginning of the answer."""
        ...

    async def receive(self) -> bytes | None:
        """The next answer; None: the engine ended the call well."""
        ...

    async def trailing_metadata(self) -> Metadata:
        """What came with the end. Wait for `receive` to return None first."""
        ...

    def cancel(self) -> None:
        """End the call. Without effect on one that has ended."""
        ...


class GrpcUpstream(Protocol):
    """Connections to engines, one per process of an instance (`Endpoint.uid`), opened by its first call."""

    async def unary(
        self, endpoint: Endpoint, path: str, request: bytes, *, metadata: Metadata, timeout_secs: float | None
    ) -> GrpcAnswer:
        """Make one call. Raises `EngineStatus`, `Unreachable` or `errors.UpstreamTimeout`. Cancelling ends the
        call at the engine, too."""
        ...

    def stream(
        self, endpoint: Endpoint, path: str, *, metadata: Metadata, timeout_secs: float | None
    ) -> GrpcStream:
        """Begin a call with any number of messages in both directions. The caller must `cancel` it at the end."""
        ...

    def forget(self, uid: str) -> None:
        """Close the connection of an endpoint that is gone. Calls still in flight there are cut."""
        ...

    async def close(self) -> None:
        """Close everything. Calls in flight are cut."""
        ...
