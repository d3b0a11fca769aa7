"""Which ports of this machine are free."""

from __future__ import annotations

import errno
import socket

# this machine has no such family, or has it switched off
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def is_bindable(host: str, port: int) -> bool:
    """Whether a server could listen on `host` and on all addresses now, over IPv4 and IPv6.

    All addresses count because whoever listens there is reached under `host`, too. An old connection in TIME_WAIT
    does not. Blocks, but only for instants; says nothing about the next moment.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError):
        return False
    own = {(family, address[0]) for family, _, _, _, address in found}
    if not all(_binds(family, str(address), port) for family, address in own):
        return False
    everywhere = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - tried, not served
    return all(_binds(family, address, port, absent=True) for family, address in everywhere)


def _binds(family: int, address: str, port: int, *, absent: bool = False) -> bool:
    """`absent` is the answer where the machine has no such family."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # its own half only: IPv4 is asked about separately
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address, port))
            # two sockets may share a port until one listens
            probe.listen(1)
    except OSError as error:
        return absent and error.errno in _NO_FAMILY
    return True
