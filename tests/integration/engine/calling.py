"""What tests of the gRPC side share."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest


@contextlib.contextmanager
def channel_to(engine: Any, *options: tuple[str, Any]) -> Iterator[grpc.Channel]:
    """A connection of its own: channels to one address with the same options share one."""
    unshared = ("grpc.use_local_subchannel_pool", 1)
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}", options=[unshared, *options]) as channel:
        yield channel


def failure(call: Callable[[], Any]) -> tuple[str, str]:
    """The status that `call` ends with: its name and details."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


def metrics(engine: Any) -> dict[str, float]:
    """Every series of `/metrics`."""
    lines = engine.get("/metrics").body.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Ask until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def endless(message: Any) -> Iterator[Any]:
    """One message again and again."""
    return itertools.repeat(message)
