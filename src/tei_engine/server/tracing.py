"""W3C trace context: the id of a caller's trace, shown by the log lines about its request."""

from __future__ import annotations

import re
from contextvars import ContextVar

# https://www.w3.org/TR/trace-context/#traceparent-header: version, trace, parent, flags, what later versions add
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    r"(?P<more>-.*)?"
)

_current: ContextVar[str | None] = ContextVar("trace_id", default=None)


def follow(traceparent: str | bytes | None) -> None:
    """Remember the trace of the request that this task answers; none if the header is absent or not valid.

    To be called for every request: a task may be born in the context of another request.
    """
    _current.set(trace_id_of(traceparent) if traceparent else None)


def trace_id() -> str | None:
    """The trace that this task works for."""
    return _current.get()


def trace_id_of(traceparent: str | bytes) -> str | None:
    """The 32 hexadecimal digits of the trace in a `traceparent` header; None if it is not valid."""
    text = traceparent.decode("latin-1") if isinstance(traceparent, bytes) else traceparent
    found = _TRACEPARENT.fullmatch(text)
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    return found["trace"]
