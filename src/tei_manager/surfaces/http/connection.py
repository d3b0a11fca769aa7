"""What the HTTP library does not guard against: heads without end, trickling clients, offers of other protocols.

The embedded engine has a guard of its own: neither program imports the other.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT_BYTES = 64 * 1024  # request line and headers, or the trailers behind a chunked body
LOOK_EVERY_SECS = 30.0
SLOWEST_BYTES_PER_SEC = 1024

# no body that we accept holds these bytes: JSON has no bare word after a line break
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class GuardedConnection(HttpToolsProtocol):
    """One connection of the HTTP door. Between two requests it has its keep-alive time and is left alone."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._awaits_request = True
        self._began_lately = True
        self._bytes_outside_body = 0
        self._bytes_since_look = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(LOOK_EVERY_SECS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # after a reset the library keeps it, and the connection with it

    def data_received(self, data: bytes) -> None:
        self._bytes_since_look += len(data)
        self._bytes_outside_body += len(data)
        # Java's client offers h2c by default. The offer may be ignored, but the parser would stop there and lose
        # the body, so the header gets a name that means nothing
        super().data_received(_UPGRADE.sub(b"\r\nx-offer:", data))
        if self._awaits_request and self._bytes_outside_body > HEAD_LIMIT_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        self._awaits_request = self._began_lately = True
        self._bytes_outside_body = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._bytes_outside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._awaits_request = False
        super().on_message_complete()

    def _look(self) -> None:
        is_our_turn = self.flow.read_paused  # we do not listen just now
        too_slow = self._bytes_since_look < SLOWEST_BYTES_PER_SEC * LOOK_EVERY_SECS
        if self._awaits_request and not self._began_lately and not is_our_turn and too_slow:
            self.transport.abort()
            return
        self._began_lately = False
        self._bytes_since_look = 0
        self._timer = self.loop.call_later(LOOK_EVERY_SECS, self._look)
