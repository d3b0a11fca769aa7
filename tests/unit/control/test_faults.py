"""Mistakes of our own: they become facts that a person can read, and the actor lives on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tei_manager.domain.instance import Status
from tei_manager.ports.driver import Exit, Handle, Order
from tei_manager.testing.driver import Script
from tei_manager.testing.plane import Plane

BUG = RuntimeError("a bug")


def fails(times: int, then: Any) -> Any:
    """A coroutine function that raises so often and then does what it should."""
    left = times

    async def act(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise BUG
        return await then(*arguments, **named)

    return act


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane(health_check_initial_delay_secs=0)
    await plane.open()
    yield plane
    await plane.close()
    assert plane.living() == []


async def settled(plane: Plane) -> None:
    await plane.settle(100)
    assert plane.get("x").status is Status.RUNNING
    assert len(plane.living()) == 1
    assert len(plane.frontdoor.endpoints) == 1
    await plane.fleet.stop("x")
    assert plane.living() == []
    await plane.fleet.start("x")
    await plane.until("x", Status.RUNNING)


async def test_a_driver_that_breaks_at_a_start(plane: Plane) -> None:
    plane.driver.start = fails(2, plane.driver.start)  # type: ignore[method-assign]
    await plane.create("x")
    await plane.settle(1)
    assert "internal error in spawn: RuntimeError('a bug')" in (plane.get("x").last_error or "")
    await settled(plane)


async def test_a_step_that_breaks_after_the_process_was_started_does_not_lose_it(plane: Plane) -> None:
    start = plane.driver.start

    async def begin(order: Order) -> Handle:
        handle = await start(order)
        plane.driver.start = start  # type: ignore[method-assign]
        plane.frontdoor.publish = broken  # type: ignore[method-assign]
        return handle

    def broken(instances: object) -> None:
        del plane.frontdoor.publish  # type: ignore[method-assign]
        raise BUG

    plane.driver.start = begin  # type: ignore[method-assign]
    await plane.create("x")
    await plane.settle(1)
    assert [process.is_alive for process in plane.machine.processes] == [False, True]
    await settled(plane)


async def test_a_driver_that_breaks_while_it_waits_for_an_exit(plane: Plane) -> None:
    plane.driver.wait = fails(1, plane.driver.wait)  # type: ignore[method-assign]
    await plane.create("x")
    await settled(plane)
    assert [process.is_alive for process in plane.machine.processes].count(True) == 1


async def test_a_log_that_cannot_be_read_after_an_exit(plane: Plane) -> None:
    await plane.running("x")
    plane.logs.failure = OSError("disk")
    plane.driver.exit("x", Exit(signal=11))
    await plane.settle(1)
    plane.logs.failure = None
    await settled(plane)


async def test_a_driver_that_breaks_at_a_stop_never_leads_to_two_processes(plane: Plane) -> None:
    await plane.running("x")
    plane.driver.stop = fails(3, plane.driver.stop)  # type: ignore[method-assign]
    restart = asyncio.create_task(plane.fleet.restart("x"))
    while not restart.done():
        assert len(plane.living()) <= 1
        await plane.settle(0.1)
    await settled(plane)


async def test_a_prober_that_breaks_before_it_is_ready(plane: Plane) -> None:
    plane.prober.ask = fails(1, plane.prober.ask)  # type: ignore[method-assign]
    await plane.create("x")
    await settled(plane)


async def test_a_prober_that_breaks_later_does_not_end_the_watch(plane: Plane) -> None:
    await plane.running("x")
    plane.prober.ask = fails(1, plane.prober.ask)  # type: ignore[method-assign]
    await plane.settle(31)
    from tei_manager.ports.prober import Seen

    plane.prober.says("x", Seen(False, "503"), Seen(False, "503"), Seen(False, "503"), Seen(True))
    await plane.settle(91)
    assert plane.get("x").restarts == 1
    await settled(plane)


async def test_a_door_that_breaks_at_an_announcement(plane: Plane) -> None:
    plane.frontdoor.failure = BUG
    await plane.create("x")
    await plane.settle(1)
    assert "internal error in announce" in (plane.get("x").last_error or "")
    plane.frontdoor.failure = None
    await settled(plane)


async def test_a_door_that_breaks_while_draining(plane: Plane) -> None:
    await plane.running("x")
    plane.frontdoor.withdraw = fails(1, plane.frontdoor.withdraw)  # type: ignore[method-assign]
    begun = plane.now
    await plane.fleet.stop("x")
    assert plane.now - begun < 1
    assert plane.living() == []
    plane.frontdoor.endpoints.clear()


async def test_a_look_at_the_ports_that_breaks(plane: Plane) -> None:
    await plane.create("x", autostart=False)
    taken = plane.taken

    class Broken(set[int]):
        def __contains__(self, port: object) -> bool:
            plane.taken = taken
            raise BUG

    plane.taken = Broken()
    await plane.fleet.start("x")
    await settled(plane)


async def test_a_picture_that_cannot_be_published_wakes_those_who_wait(plane: Plane) -> None:
    plane.driver.script("x", Script(stop_secs=3))
    await plane.running("x")
    stop = asyncio.create_task(plane.fleet.stop("x"))
    await plane.settle(1)
    publish = plane.frontdoor.publish

    def broken(instances: object) -> None:
        raise BUG

    plane.frontdoor.publish = broken  # type: ignore[method-assign]
    begun = plane.now
    await stop
    assert plane.now - begun < 3
    plane.frontdoor.publish = publish  # type: ignore[method-assign]
