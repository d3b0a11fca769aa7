"""Ports are tried on real sockets: bound, listening, left behind in TIME_WAIT."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tei_manager.adapters.host_ports import is_bindable

LOCAL = "127.0.0.1"


@contextmanager
def listening(address: str, family: int = socket.AF_INET) -> Iterator[int]:
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen()
        yield server.getsockname()[1]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_port_is_free_until_somebody_listens() -> None:
    with listening(LOCAL) as port:
        assert not is_bindable(LOCAL, port)
    assert is_bindable(LOCAL, port)
    assert is_bindable(LOCAL, port)


@pytest.mark.parametrize("host", [LOCAL, "localhost", "0.0.0.0"])
@pytest.mark.parametrize("taken", ["0.0.0.0", "127.0.0.1"])
def test_a_listener_elsewhere_on_the_machine_counts(host: str, taken: str) -> None:
    with listening(taken) as port:
        assert not is_bindable(host, port)


@pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")
@pytest.mark.parametrize("taken", ["::", "::1"])
def test_a_listener_on_ipv6_counts(taken: str) -> None:
    with listening(taken, socket.AF_INET6) as port:
        assert not is_bindable(LOCAL, port)
        assert not is_bindable("::1", port)
    assert is_bindable("::1", port)


def test_a_bound_port_that_does_not_listen_yet_counts() -> None:
    with socket.socket() as other:
        other.bind((LOCAL, 0))
        assert not is_bindable(LOCAL, other.getsockname()[1])


def test_time_wait_does_not_count() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((LOCAL, 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection((LOCAL, port)) as client:
            accepted, _ = server.accept()
            accepted.close()  # the side that closes first waits
            assert client.recv(1) == b""
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind((LOCAL, port))
    assert is_bindable(LOCAL, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 300])
def test_an_address_that_is_not_ours_is_not_bindable(host: str) -> None:
    assert not is_bindable(host, 18_089)
