"""Calling an engine over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tei_manager.domain.target import Endpoint


@dataclass(frozen=True, slots=True)
class Wire:
    """One request as it goes out."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpUpstream(Protocol):
    """Connections to engines, kept open per process of an instance (`Endpoint.uid`)."""

    async def send(self, endpoint: Endpoint, wire: Wire, *, timeout_secs: float) -> Answer:
        """Send one request and read the whole answer, whatever its status. Redirects are not followed.

        Raises `errors.UpstreamError` with `code` UPSTREAM_UNREACHABLE (nothing was sent), UPSTREAM_DIED (it broke
        off before the whole answer) or UPSTREAM_MALFORMED (not HTTP, or too large), and `errors.UpstreamTimeout`.
        Cancelling the call closes its connection.
        """
        ...

    def forget(self, uid: str) -> None:
        """Close the connections of an endpoint that is gone. Calls still in flight there are cut."""
        ...

    async def close(self) -> None:
        """Close everything. Calls in flight are cut."""
        ...
