"""Sockets that are bound before anything slow happens, so that a busy port is known at once."""

from __future__ import annotations

import os
import socket

from tei_engine.errors import StartError


def bind(hostname: str, port: int) -> socket.socket:
    """A bound TCP socket, not yet listening. Raises StartError `could not bind HOST:PORT: <reason>`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"could not bind {hostname}:{port}: {error.strerror or error}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # on Linux a second bind succeeds until one of the two listens, so listening is what claims the port
        bound.listen(2048)
    except OSError as error:
        bound.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StartError(f"could not bind {hostname}:{port}: {reason}") from error
    bound.setblocking(False)
    return bound


def check_free(hostname: str, port: int) -> None:
    """Raise StartError if `port` is busy; for listeners that can only bind by themselves."""
    bind(hostname, port).close()


def address_of(hostname: str, port: int) -> str:
    """HOST:PORT, with the brackets that an IPv6 host needs."""
    return f"[{hostname}]:{port}" if ":" in hostname else f"{hostname}:{port}"
