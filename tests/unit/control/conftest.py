"""Every test here runs in virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from typing import Any

import pytest
import structlog

from tei_manager.testing.clock import VirtualLoop
from tei_manager.testing.plane import Plane


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualLoop}


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged, as values: rendering tracebacks of deliberate mistakes would take most of the time."""
    with structlog.testing.capture_logs() as entries:
        yield entries


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    """A manager that has just started on an empty machine."""
    plane = Plane()
    await plane.open()
    yield plane
    await plane.close()
    assert plane.living() == []
    assert plane.frontdoor.endpoints == {}
