"""A bound on request heads, which the HTTP library does not have: a flood of headers ends its connection."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_LIMIT = 64 * 1024
"""Bytes of a request line and its headers."""


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, hanging up on a head that does not end within `HEAD_LIMIT` bytes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_in_head = True
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Bytes from the connection."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > HEAD_LIMIT:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """The parser has seen the first byte of a request."""
        self._is_in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser has seen the empty line."""
        self._is_in_head = False
        super().on_headers_complete()
