"""`wait_running`: what a caller with `?wait=true` is told, and when."""

import asyncio

import pytest

from tei_manager.domain import errors
from tei_manager.domain.instance import Status
from tei_manager.ports.driver import Exit
from tei_manager.testing.driver import Script
from tei_manager.testing.plane import Plane


async def test_create_answers_starting_and_waiting_brings_running(plane: Plane) -> None:
    created = await plane.create("x")
    assert created.status is Status.STARTING
    assert (await plane.fleet.wait_running("x", timeout_secs=None)).status is Status.RUNNING


async def test_create_answers_starting_even_if_the_state_cannot_be_saved(plane: Plane) -> None:
    plane.store.failure = OSError("disk full")
    created = await plane.create("x")
    assert created.status is Status.STARTING
    assert (await plane.fleet.wait_running("x", timeout_secs=None)).status is Status.RUNNING


async def test_a_failure_is_told_at_once_with_its_details(plane: Plane) -> None:
    plane.driver.script("x", Script(exits_after=2, exits_with=Exit(code=3)))
    plane.prober.becomes_ready_after("x", 100)
    plane.logs.text["/log/x.log"] = "one\nerror: no such tensor\n"
    await plane.create("x")
    begun = plane.now
    with pytest.raises(errors.InstanceFailed, match="did not start") as caught:
        await plane.fleet.wait_running("x", timeout_secs=None)
    assert plane.now - begun == pytest.approx(2, abs=0.1)
    assert caught.value.details["status"] == "failed"
    assert "process exited with code 3" in str(caught.value.details["last_error"])
    assert caught.value.details["log_tail"] == ["one", "error: no such tensor"]
    assert plane.get("x").status is Status.FAILED


async def test_the_time_of_the_caller_ends_the_wait_not_the_start(plane: Plane) -> None:
    plane.prober.becomes_ready_after("x", 10)
    await plane.create("x")
    with pytest.raises(errors.StartupTimeout):
        await plane.fleet.wait_running("x", timeout_secs=5)
    assert (await plane.until("x", Status.RUNNING)).restarts == 0


async def test_a_restart_at_once_does_not_end_the_wait(plane: Plane) -> None:
    plane.driver.script("x", Script(exits_after=1, exits_with=Exit(signal=11)))
    plane.prober.becomes_ready_after("x", 5)
    await plane.create("x")
    await plane.settle(0.5)
    plane.driver.script("x", Script())
    now = await plane.fleet.wait_running("x", timeout_secs=None)
    assert (now.status, now.restarts) == (Status.RUNNING, 1)


async def test_a_backoff_ends_the_wait(plane: Plane) -> None:
    plane.driver.script("x", Script(exits_after=1, exits_with=Exit(signal=11)))
    plane.prober.becomes_ready_after("x", 5)
    await plane.create("x")
    begun = plane.now
    with pytest.raises(errors.InstanceFailed, match="killed by signal 11"):
        await plane.fleet.wait_running("x", timeout_secs=None)
    assert plane.now - begun == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("verb", ["stop", "delete"])
async def test_whoever_waits_is_told_when_it_is_stopped_or_deleted(plane: Plane, verb: str) -> None:
    plane.prober.becomes_ready_after("x", 100)
    await plane.create("x")
    waiting = asyncio.create_task(plane.fleet.wait_running("x", timeout_secs=None))
    await plane.settle(1)
    await getattr(plane.fleet, verb)("x")
    begun = plane.now
    with pytest.raises((errors.InstanceFailed, errors.UnknownInstance)):
        await waiting
    assert plane.now - begun < 1


async def test_a_restart_does_not_end_the_wait(plane: Plane) -> None:
    plane.prober.becomes_ready_after("x", 10)
    await plane.create("x")
    waiting = asyncio.create_task(plane.fleet.wait_running("x", timeout_secs=None))
    await plane.settle(1)
    answer = await plane.fleet.restart("x")
    assert (await waiting).pid == answer.pid
