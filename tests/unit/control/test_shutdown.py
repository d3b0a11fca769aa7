"""The end of a manager: everything stops, nothing that is wanted changes."""

import asyncio

import pytest

from tei_manager.domain import errors
from tei_manager.domain.instance import Desired, Status
from tei_manager.testing.driver import KILL, Script
from tei_manager.testing.plane import Plane


@pytest.fixture
async def plane() -> Plane:
    plane = Plane()
    await plane.open()
    return plane


async def test_a_shutdown_stops_in_parallel_and_leaves_what_is_desired(plane: Plane) -> None:
    for name in ("a", "b", "c"):
        plane.driver.script(name, Script(ignores_term=True))
        await plane.running(name)
    await plane.create("off", autostart=False)
    begun = plane.now
    await plane.fleet.close()
    assert plane.now - begun == pytest.approx(30, abs=0.1)
    assert plane.living() == []
    desired = {record.spec.name: record.desired for record in plane.store.state.records}
    assert desired == dict.fromkeys("abc", Desired.RUNNING) | {"off": Desired.STOPPED}
    assert all(record.handle is None for record in plane.store.state.records)


async def test_a_shutdown_drains_first(plane: Plane) -> None:
    await plane.running("x")
    call = plane.frontdoor.begin_call("x")
    closing = asyncio.create_task(plane.fleet.close())
    await plane.settle(5)
    assert plane.machine.processes[0].signals == []
    call.end()
    await closing
    assert not call.is_cut
    assert plane.frontdoor.endpoints == {}


async def test_every_changing_verb_is_refused_meanwhile(plane: Plane) -> None:
    plane.driver.script("x", Script(ignores_term=True))
    await plane.running("x")
    closing = asyncio.create_task(plane.fleet.close())
    await plane.settle(1)
    assert plane.fleet.is_draining
    verbs = [
        plane.create("y"),
        plane.fleet.start("x"),
        plane.fleet.stop("x"),
        plane.fleet.restart("x"),
        plane.fleet.delete("x"),
    ]
    for verb in verbs:
        with pytest.raises(errors.NotReady) as caught:
            await verb
        assert caught.value.code == "SHUTTING_DOWN"
    assert plane.get("x").status is Status.STOPPING
    await closing


async def test_a_second_signal_cuts_every_grace(plane: Plane) -> None:
    for name in ("a", "b"):
        plane.driver.script(name, Script(ignores_term=True))
        await plane.running(name)
    plane.frontdoor.begin_call("b")
    hurry = asyncio.Event()
    begun = plane.now
    closing = asyncio.create_task(plane.fleet.close(hurry=hurry))
    await plane.settle(3)
    hurry.set()
    await closing
    assert plane.now - begun == pytest.approx(3, abs=0.1)
    assert plane.living() == []
    assert all(process.signals[-1] == KILL for process in plane.machine.processes)


async def test_a_second_signal_ends_also_what_is_just_being_spawned(plane: Plane) -> None:
    plane.driver.script("x", Script(start_secs=5))
    await plane.create("x")
    await plane.settle()
    hurry = asyncio.Event()
    hurry.set()
    await plane.fleet.close(hurry=hurry)
    await plane.settle(100)
    assert plane.living() == []


async def test_a_process_that_cannot_be_killed_does_not_keep_the_manager_for_ever(plane: Plane) -> None:
    plane.driver.script("x", Script(is_unkillable=True, ignores_term=True))
    await plane.running("x")
    begun = plane.now
    await plane.fleet.close()
    assert plane.now - begun <= 70
    # the next manager is to find it
    assert plane.store.state.records[0].handle == plane.machine.processes[0].handle


async def test_nor_does_it_once_somebody_is_in_a_hurry(plane: Plane) -> None:
    plane.driver.script("x", Script(is_unkillable=True, ignores_term=True))
    await plane.running("x")
    hurry = asyncio.Event()
    hurry.set()
    begun = plane.now
    await plane.fleet.close(hurry=hurry)
    assert plane.now - begun <= 10


async def test_a_shutdown_ends_a_backoff_and_leaves_failed_alone(plane: Plane) -> None:
    plane.driver.script("failed", Script(exits_after=0))
    await plane.create("failed")
    await plane.running("again")
    for _ in range(2):
        plane.driver.exit("again")
        await plane.settle(1)
    assert plane.get("again").detail == "backoff"
    begun = plane.now
    await plane.fleet.close()
    assert plane.now == begun
    assert plane.get("failed").status is Status.FAILED
    await plane.settle(1000)
    assert plane.living() == []


@pytest.mark.parametrize("ticks", range(12))
async def test_a_creation_at_the_same_moment_starts_nothing_that_stays(plane: Plane, ticks: int) -> None:
    creating = asyncio.create_task(plane.create("x"))
    for _ in range(ticks):
        await asyncio.sleep(0)
    await plane.fleet.close()
    await asyncio.gather(creating, return_exceptions=True)
    await plane.settle(100)
    assert plane.living() == []
    registered = [record.desired for record in plane.store.state.records]
    assert registered == ([] if creating.exception() else [Desired.RUNNING])


@pytest.mark.parametrize("verb", ["delete", "start", "restart", "stop"])
@pytest.mark.parametrize("ticks", range(8))
async def test_a_verb_under_way_does_not_hold_up_the_end(plane: Plane, verb: str, ticks: int) -> None:
    plane.driver.script("x", Script(stop_secs=3))
    await plane.running("x")
    under_way = asyncio.create_task(getattr(plane.fleet, verb)("x"))
    for _ in range(ticks):
        await asyncio.sleep(0)
    begun = plane.now
    await plane.fleet.close()
    assert plane.now - begun < 4
    await asyncio.gather(under_way, return_exceptions=True)
    await plane.settle(100)
    assert plane.living() == []


async def test_whoever_waits_for_an_instance_is_told(plane: Plane) -> None:
    plane.prober.becomes_ready_after("x", 200)
    await plane.create("x")
    waiting = asyncio.create_task(plane.fleet.wait_running("x", timeout_secs=None))
    await plane.settle(1)
    await plane.fleet.close()
    begun = plane.now
    with pytest.raises(errors.InstanceFailed):
        await waiting
    assert plane.now == begun


async def test_a_failing_save_does_not_hold_up_the_end(plane: Plane) -> None:
    await plane.running("x")
    plane.store.failure = OSError("disk full")
    await plane.fleet.close()
    assert plane.living() == []
