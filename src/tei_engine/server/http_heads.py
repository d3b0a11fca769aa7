"""Bounds that the HTTP library does not have: on the size of request heads, and on how slowly clients may send."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 1024
"""Bytes of a request line and its headers; of the trailers after a chunked body too."""

REFUSED_LIMIT = 64 * 1024 * 1024
"""Bytes of a body that are read after its request was refused, so that the client comes to read the answer."""

PERIOD = 30.0
"""Seconds between two looks at a connection."""

SLOWEST = 1024
"""Bytes per second, at least, while a request is on its way."""

_OFFER = re.compile(rb"(?i)\r\nupgrade:")


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, hanging up on heads and refused bodies without end, and on clients that only trickle.

    A connection that waits for its next request is not looked at here: it has its keep-alive time.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_owed = True  # the client has the word: its first request, or the rest of one
        self._is_fresh = True  # only since the last look
        self._since_body = 0
        self._thrown_away = 0
        self._since_look = 0
        self._look_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._look_timer = self.loop.call_later(PERIOD, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # after a reset the library keeps it, and the connection with it

    def data_received(self, data: bytes) -> None:
        """Bytes from the connection."""
        self._since_look += len(data)
        self._since_body += len(data)
        # an offer of another protocol (h2c: Java's client makes it by default) may be ignored, but the parser
        # would take the body for that protocol; no valid JSON holds these bytes
        super().data_received(_OFFER.sub(b"\r\nignored:", data))
        if self._is_owed and self._since_body > HEAD_LIMIT:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """The parser has seen the first byte of a request."""
        self._is_owed = self._is_fresh = True
        self._since_body = self._thrown_away = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """The parser has seen a piece of the body."""
        self._since_body = 0
        if self.cycle.response_complete:  # it was refused, and what is left of it is thrown away
            self._thrown_away += len(body)
            if self._thrown_away > REFUSED_LIMIT:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has seen the end of a request."""
        self._is_owed = False
        super().on_message_complete()

    def _look(self) -> None:
        is_patient = self._is_fresh or self.flow.read_paused  # paused: it is we who do not listen
        if self._is_owed and not is_patient and self._since_look < SLOWEST * PERIOD:
            self.transport.abort()
            return
        self._is_fresh = False
        self._since_look = 0
        self._look_timer = self.loop.call_later(PERIOD, self._look)
