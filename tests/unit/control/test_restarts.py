"""What follows when a process ends by itself."""

import asyncio
from typing import Any

import pytest

from tei_manager.domain.instance import EngineKind, Instance, Status
from tei_manager.policy.ports import Range
from tei_manager.policy.restart import Limits
from tei_manager.ports.driver import Exit
from tei_manager.testing.driver import Script
from tei_manager.testing.plane import Plane, spec

CRASH = Exit(signal=11)
USAGE, FAILED_START = Exit(code=2), Exit(code=1)


async def opened(**settings: Any) -> Plane:
    plane = Plane(**settings)
    await plane.open()
    return plane


async def next_start(plane: Plane, name: str = "x", within: float = 2000) -> float:
    """Seconds until another process is started."""
    begun, orders = plane.now, len(plane.driver.orders)
    while len(plane.driver.orders) == orders:
        assert plane.now - begun < within, "never started again"
        await asyncio.sleep(0.01)
    return plane.now - begun


async def embedded(plane: Plane, name: str = "x", **fields: Any) -> Instance:
    """An engine whose exits we know to read."""
    return await plane.create(name, engine=EngineKind.EMBEDDED, command=None, **fields)


async def test_delays_in_a_row_are_0_base_2_base_up_to_the_maximum() -> None:
    plane = await opened(restart=Limits(base_secs=30, max_secs=100))
    await plane.running("x")
    delays = []
    for restarts in range(1, 7):
        plane.driver.exit("x", CRASH)
        delays.append(round(await next_start(plane)))
        assert (await plane.until("x", Status.RUNNING)).restarts == restarts
    assert delays == [0, 30, 60, 100, 100, 100]
    assert plane.metrics.counts["restarted"] == 6
    assert plane.metrics.counts["exited signal"] == 6


async def test_the_row_ends_when_it_ran_long_enough() -> None:
    plane = await opened(restart_reset_after_secs=300)
    await plane.running("x")
    for _ in range(2):
        plane.driver.exit("x", CRASH)
        await next_start(plane)
        await plane.until("x", Status.RUNNING)
    await plane.settle(299)
    plane.driver.exit("x", CRASH)
    assert await next_start(plane) == pytest.approx(60, abs=0.1)
    await plane.until("x", Status.RUNNING)
    await plane.settle(301)
    plane.driver.exit("x", CRASH)
    assert await next_start(plane) < 0.1
    # the total goes on
    assert (await plane.until("x", Status.RUNNING)).restarts == 4


@pytest.mark.parametrize("verb", ["start", "restart"])
async def test_the_row_ends_by_the_word_of_a_person(verb: str) -> None:
    plane = await opened()
    await plane.running("x")
    for _ in range(2):
        plane.driver.exit("x", CRASH)
        await next_start(plane)
        await plane.until("x", Status.RUNNING)
    await getattr(plane.fleet, verb)("x")
    await plane.until("x", Status.RUNNING)
    plane.driver.exit("x", CRASH)
    assert await next_start(plane) < 0.1


async def test_it_gives_up_after_the_last_restart_until_a_person_acts() -> None:
    plane = await opened(restart=Limits(max_restarts=2))
    await plane.running("x")
    for _ in range(3):
        plane.driver.exit("x", CRASH)
        await plane.until("x", Status.RUNNING, Status.FAILED)
        await plane.settle(40)
    now = plane.get("x")
    assert (now.status, now.detail, now.pid, now.restarts) == (Status.FAILED, "gave_up", None, 2)
    assert now.last_error == "gave up after 2 restarts (process killed by signal 11)"
    await plane.settle(10_000)
    assert plane.get("x").status is Status.FAILED
    await plane.fleet.start("x")
    assert (await plane.until("x", Status.RUNNING)).last_error is None


async def test_a_model_that_cannot_be_loaded_gets_a_second_try() -> None:
    plane = await opened()
    plane.driver.script("x", Script(exits_after=1, exits_with=FAILED_START))
    plane.prober.becomes_ready_after("x", 10)
    await embedded(plane)
    now = await plane.until("x", Status.FAILED)
    assert len(plane.driver.orders) == 2
    assert now.restarts == 1
    assert now.detail == "exited"


async def test_arguments_that_are_wrong_fail_at_once() -> None:
    plane = await opened()
    plane.driver.script("x", Script(exits_after=1, exits_with=USAGE))
    plane.prober.becomes_ready_after("x", 10)
    await embedded(plane)
    await plane.until("x", Status.FAILED)
    assert len(plane.driver.orders) == 1


async def test_a_missing_program_fails_at_once() -> None:
    from tei_manager.domain import errors

    plane = await opened()
    missing = errors.DriverError("serve: No such file or directory", code="ENGINE_NOT_FOUND")
    plane.driver.script("x", Script(start_error=missing))
    await plane.create("x")
    now = await plane.until("x", Status.FAILED)
    assert (now.last_error, now.pid) == ("serve: No such file or directory", None)
    assert len(plane.driver.orders) == 1


async def test_a_process_that_cannot_be_started_is_tried_again_later() -> None:
    from tei_manager.domain import errors

    plane = await opened()
    plane.driver.script("x", Script(start_error=errors.DriverError("no more processes")))
    await plane.create("x")
    await plane.settle(1)
    assert plane.get("x").detail == "backoff"
    assert plane.get("x").last_error == "no more processes"
    plane.driver.script("x", Script())
    assert (await plane.until("x", Status.RUNNING)).restarts == 2


async def test_a_download_that_failed_is_tried_again() -> None:
    plane = await opened()
    plane.logs.text["/log/x.log"] = ""
    plane.driver.script("x", Script(exits_after=1, exits_with=FAILED_START))
    plane.prober.becomes_ready_after("x", 10)
    await embedded(plane)
    for _ in range(3):
        await plane.settle(0.5)
        plane.logs.text["/log/x.log"] += "error: could not download the model: dns error\n"
        await next_start(plane)
    assert plane.get("x").status is Status.STARTING
    assert plane.get("x").restarts == 3


@pytest.mark.parametrize("retry", [False, True])
async def test_an_unexplained_end_of_a_first_start_fails_unless_told_to_retry(retry: bool) -> None:
    plane = await opened(restart=Limits(retry_first_start=retry))
    plane.driver.script("x", Script(exits_after=1, exits_with=Exit(code=0)))
    plane.prober.becomes_ready_after("x", 10)
    await plane.create("x")
    await plane.settle(5)
    now = plane.get("x")
    assert (now.status, now.detail) == ((Status.STARTING, "backoff") if retry else (Status.FAILED, "exited"))


async def test_an_automatic_port_that_was_taken_is_given_up_before_the_start() -> None:
    plane = await opened()
    await plane.create("x", autostart=False)
    plane.taken.add(8080)
    now = await plane.fleet.start("x")
    assert now.ports.main == 8081
    assert plane.store.state.records[0].ports.main == 8081
    now = await plane.until("x", Status.RUNNING)
    assert (now.ports.main, now.restarts) == (8081, 0)
    # nobody holds the port that was given up
    plane.taken.clear()
    assert (await plane.running("y", port=8080)).ports.main == 8080


async def test_an_engine_that_dies_of_a_stolen_port_gets_another_one_once() -> None:
    plane = await opened()
    plane.prober.becomes_ready_after("x", 10)
    plane.logs.text["/log/x.log"] = ""
    await plane.create("x")
    for start in range(2):
        await plane.settle(1)
        assert plane.get("x").ports.main == 8080 + start
        plane.logs.text["/log/x.log"] += "error: address already in use\n"
        plane.driver.exit("x", FAILED_START)
        delay = await next_start(plane)
        assert delay == pytest.approx(30 * start, abs=0.1)
    assert plane.get("x").ports.main == 8081
    assert (await plane.until("x", Status.RUNNING)).ports.main == 8081


async def test_an_explicit_port_that_was_taken_is_waited_for() -> None:
    plane = await opened()
    await plane.create("x", port=8090, autostart=False)
    plane.taken.add(8090)
    now = await plane.fleet.start("x")
    assert now.status is Status.STARTING
    await plane.settle(1)
    now = plane.get("x")
    assert (now.detail, now.last_error) == ("backoff", "port 8090 is in use by another process")
    assert plane.driver.orders == []
    plane.taken.clear()
    assert (await plane.until("x", Status.RUNNING)).ports.main == 8090


async def test_no_free_port_at_all_is_waited_for_too() -> None:
    plane = await opened(range=Range(start=8080, end=8081))
    await plane.create("x", autostart=False)
    plane.taken.add(8080)
    await plane.fleet.start("x")
    await plane.settle(1)
    assert plane.get("x").detail == "backoff"
    assert "No free instance port" in (plane.get("x").last_error or "")
    plane.taken.clear()
    assert (await plane.until("x", Status.RUNNING)).ports.main == 8080


async def test_an_exit_while_draining_ends_in_stopped() -> None:
    plane = await opened()
    await plane.running("x")
    plane.frontdoor.begin_call("x")
    await plane.fleet.stop("x", wait=False)
    plane.driver.exit("x", CRASH)
    now = await plane.until("x", Status.STOPPED)
    assert (now.last_error, now.restarts) == (None, 0)


async def test_an_exit_while_a_restart_drains_starts_at_once() -> None:
    plane = await opened()
    await plane.running("x")
    plane.frontdoor.begin_call("x")
    restart = asyncio.create_task(plane.fleet.restart("x"))
    await plane.settle(1)
    plane.driver.exit("x", CRASH)
    begun = plane.now
    assert (await restart).restarts == 1
    assert plane.now - begun < 0.1


async def test_what_an_exit_leaves_of_its_group_is_swept_before_the_next_start() -> None:
    plane = await opened()
    plane.driver.script("x", Script(members=2))
    await plane.running("x")
    plane.driver.exit("x", CRASH)
    await plane.settle(1)
    assert plane.get("x").status is Status.RUNNING
    assert [process.handle.pid for process in plane.living()] == [1002]


async def test_an_instance_that_ended_can_be_stopped_in_its_backoff() -> None:
    plane = await opened()
    await plane.running("x")
    for _ in range(2):
        plane.driver.exit("x", CRASH)
        await plane.settle(1)
    assert (await plane.fleet.stop("x")).status is Status.STOPPED
    await plane.settle(1000)
    assert len(plane.driver.orders) == 2


async def test_two_instances_know_nothing_of_each_other() -> None:
    plane = await opened()
    await plane.running("x")
    other = await plane.running("y")
    for _ in range(3):
        plane.driver.exit("x", CRASH)
        await plane.settle(1)
    assert plane.get("y") == other
    assert spec("y") == other.spec
