"""Every verb in every state: the table of verbs."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tei_manager.domain import errors
from tei_manager.domain.instance import Desired, Instance, Status
from tei_manager.testing.driver import KILL, TERM, Script
from tei_manager.testing.plane import EPOCH, Plane

Arrange = Callable[[Plane], Awaitable[None]]


async def stopped(plane: Plane) -> None:
    await plane.create("x", autostart=False)


async def spawning(plane: Plane) -> None:
    plane.driver.script("x", Script(start_secs=5))
    await plane.create("x")
    await plane.settle()
    assert (plane.get("x").status, plane.get("x").pid) == (Status.STARTING, None)
    plane.driver.script("x", Script())


async def starting(plane: Plane) -> None:
    plane.prober.becomes_ready_after("x", 100)
    await plane.create("x")
    await plane.settle()
    plane.prober.becomes_ready_after("x", 0)
    assert (plane.get("x").status, plane.get("x").pid) == (Status.STARTING, 1001)


async def running(plane: Plane) -> None:
    await plane.running("x")


async def backoff(plane: Plane) -> None:
    await plane.running("x")
    for _ in range(2):  # the first restart is at once
        plane.driver.exit("x")
        await plane.settle(1)
    assert (plane.get("x").status, plane.get("x").detail) == (Status.STARTING, "backoff")
    await plane.settle(10)


async def draining(plane: Plane) -> None:
    await plane.running("x")
    call = plane.frontdoor.begin_call("x")
    await plane.fleet.stop("x", wait=False)
    await plane.settle(1)
    assert (plane.get("x").status, plane.get("x").detail) == (Status.STOPPING, "draining")
    asyncio.get_running_loop().call_later(5, call.end)


async def stopping(plane: Plane) -> None:
    plane.driver.script("x", Script(stop_secs=5))
    await plane.running("x")
    await plane.fleet.stop("x", wait=False)
    await plane.settle(1)
    assert (plane.get("x").status, plane.get("x").detail) == (Status.STOPPING, None)
    plane.driver.script("x", Script())


async def failed(plane: Plane) -> None:
    plane.driver.script("x", Script(exits_after=0))
    await plane.create("x")
    await plane.until("x", Status.FAILED)
    plane.driver.script("x", Script())


ALL = [stopped, spawning, starting, running, backoff, draining, stopping, failed]
ALIVE = [starting, running, draining, stopping]


def only_one_at_a_time(plane: Plane) -> None:
    assert len(plane.living("x")) <= 1


async def watch(plane: Plane) -> None:
    while True:
        only_one_at_a_time(plane)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("arrange", ALL)
async def test_start_leads_to_running_from_every_state(plane: Plane, arrange: Arrange) -> None:
    await arrange(plane)
    before, begun = plane.get("x"), plane.now
    answer = await plane.fleet.start("x")
    assert answer.desired is Desired.RUNNING
    assert answer.pid is not None
    if arrange in (starting, running):
        assert answer.pid == before.pid
    if arrange is backoff:
        assert plane.now - begun < 1
    now = await plane.until("x", Status.RUNNING)
    assert now.pid == answer.pid
    assert now.restarts == before.restarts
    assert now.last_error is None


@pytest.mark.parametrize("arrange", ALL)
async def test_stop_leads_to_stopped_from_every_state(plane: Plane, arrange: Arrange) -> None:
    await arrange(plane)
    answer = await plane.fleet.stop("x")
    assert (answer.status, answer.pid, answer.desired) == (Status.STOPPED, None, Desired.STOPPED)
    assert plane.living() == []
    await plane.settle(1000)
    assert plane.get("x").status is Status.STOPPED
    assert plane.living() == []


@pytest.mark.parametrize("arrange", ALL)
async def test_restart_leads_to_a_new_process_from_every_state(plane: Plane, arrange: Arrange) -> None:
    await arrange(plane)
    before = plane.get("x")
    watcher = asyncio.create_task(watch(plane))
    answer = await plane.fleet.restart("x")
    assert answer.pid not in (None, before.pid)
    assert answer.restarts == before.restarts + 1
    now = await plane.until("x", Status.RUNNING)
    assert now.pid == answer.pid
    assert now.restarts == before.restarts + 1
    assert plane.metrics.counts["restarted"] == before.restarts + 1
    watcher.cancel()


@pytest.mark.parametrize("arrange", ALL)
async def test_delete_leaves_nothing_from_every_state(plane: Plane, arrange: Arrange) -> None:
    await arrange(plane)
    port = plane.get("x").ports.main
    await plane.fleet.delete("x")
    assert plane.living() == []
    assert plane.fleet.instances() == ()
    assert plane.frontdoor.published == ()
    assert plane.store.state.records == ()
    with pytest.raises(errors.UnknownInstance):
        plane.get("x")
    # the port is free again, and so is the name
    assert (await plane.running("x", port=port)).ports.main == port


@pytest.mark.parametrize("arrange", ALL)
@pytest.mark.parametrize("verb", ["start", "stop", "restart", "delete"])
async def test_two_equal_verbs_at_once_act_as_one(plane: Plane, arrange: Arrange, verb: str) -> None:
    await arrange(plane)
    restarts, spawns = plane.get("x").restarts, len(plane.machine.processes)
    act = getattr(plane.fleet, verb)
    await asyncio.gather(act("x"), act("x"), act("x"))
    if verb == "delete":
        assert plane.fleet.instances() == ()
        assert plane.living() == []
        return
    now = plane.get("x")
    assert now.restarts == restarts + (verb == "restart")
    if verb == "stop":
        assert now.status is Status.STOPPED
    else:
        assert (await plane.until("x", Status.RUNNING)).pid == now.pid
        # one that was on its way when the restart came is not counted among those before
        assert len(plane.machine.processes) <= spawns + 1 + (arrange is spawning)


@pytest.mark.parametrize("arrange", ALL)
async def test_a_start_at_the_same_moment_as_a_delete_starts_nothing_that_stays(
    plane: Plane, arrange: Arrange
) -> None:
    await arrange(plane)
    results = await asyncio.gather(
        plane.fleet.delete("x"), plane.fleet.start("x"), plane.fleet.restart("x"), return_exceptions=True
    )
    assert results[0] is None
    for result in results[1:]:
        assert isinstance(result, Instance | errors.UnknownInstance)
    await plane.settle(100)
    assert plane.fleet.instances() == ()
    assert plane.living() == []


@pytest.mark.parametrize("ticks", range(12))
async def test_a_start_that_comes_while_a_delete_is_finishing_is_answered(plane: Plane, ticks: int) -> None:
    await plane.running("x")
    deleting = asyncio.create_task(plane.fleet.delete("x"))
    for _ in range(ticks):
        await asyncio.sleep(0)
    try:
        async with asyncio.timeout(200):
            await plane.fleet.start("x")
    except errors.UnknownInstance:
        pass
    await deleting
    await plane.settle(10)
    assert plane.living() == []


async def test_stop_while_the_process_is_being_spawned_ends_it(plane: Plane) -> None:
    await spawning(plane)
    await plane.fleet.stop("x")
    assert [process.is_alive for process in plane.machine.processes] == [False]


async def test_stop_before_the_spawn_has_begun_starts_nothing(plane: Plane) -> None:
    plane.store.save_secs = 5.0
    await asyncio.wait({asyncio.create_task(plane.create("x"))}, timeout=1)
    await plane.fleet.stop("x")
    assert plane.driver.orders == []
    assert plane.get("x").status is Status.STOPPED


async def test_stop_answers_when_somebody_starts_it_again_meanwhile(plane: Plane) -> None:
    await stopping(plane)
    stop = asyncio.create_task(plane.fleet.stop("x"))
    await plane.settle()
    await plane.fleet.start("x")
    begun = plane.now
    answer = await stop
    assert plane.now - begun < 1
    assert answer.desired is Desired.RUNNING
    await plane.until("x", Status.RUNNING)


async def test_a_restart_during_a_stop_spawns_after_the_stop(plane: Plane) -> None:
    await stopping(plane)
    begun = plane.now
    await plane.fleet.restart("x")
    assert plane.now - begun == pytest.approx(4, abs=0.1)
    assert plane.get("x").restarts == 1
    await plane.until("x", Status.RUNNING)


async def test_the_answer_of_a_restart_is_the_new_process_even_while_the_old_one_is_being_spawned(
    plane: Plane,
) -> None:
    await spawning(plane)
    answer = await plane.fleet.restart("x")
    alive = [process.handle.pid for process in plane.living("x")]
    assert [answer.pid] == alive


async def test_a_stop_without_waiting_answers_at_once(plane: Plane) -> None:
    await plane.running("x")
    plane.frontdoor.begin_call("x")
    begun = plane.now
    answer = await plane.fleet.stop("x", wait=False)
    assert plane.now == begun
    assert answer.status is Status.STOPPING


async def test_a_stop_asks_first_and_kills_after_the_grace(plane: Plane) -> None:
    plane.driver.script("x", Script(ignores_term=True))
    await plane.running("x")
    begun = plane.now
    await plane.fleet.stop("x")
    assert plane.now - begun == pytest.approx(30)
    assert plane.machine.processes[0].signals == [TERM, KILL]


async def test_a_process_that_survives_its_kill_is_told_and_tried_again(plane: Plane) -> None:
    plane.driver.script("x", Script(is_unkillable=True, ignores_term=True))
    await plane.running("x")
    killed_at = EPOCH + plane.now + 30
    with pytest.raises(errors.DriverError, match="could not be stopped"):
        await plane.fleet.stop("x")
    [stuck] = plane.fleet.degraded
    assert stuck.reason == "stuck-instance"
    assert stuck.since == pytest.approx(killed_at, abs=1)  # not when it was tried last
    assert (stuck.detail or "").startswith("process 1001 of instance 'x' does not end: ")
    assert plane.get("x").pid == 1001
    assert plane.store.state.records[0].handle is not None
    # neither its name nor its port are anybody else's yet
    with pytest.raises(errors.Conflict):
        await plane.create("x")
    plane.driver.exit("x")
    await plane.until("x", Status.STOPPED, within=61)
    assert plane.fleet.degraded == ()


async def test_a_delete_that_failed_can_be_repeated(plane: Plane) -> None:
    plane.driver.script("x", Script(is_unkillable=True, ignores_term=True))
    await plane.running("x")
    with pytest.raises(errors.DriverError):
        await plane.fleet.delete("x")
    assert [each.name for each in plane.fleet.instances()] == ["x"]
    plane.driver.exit("x")
    await plane.fleet.delete("x")
    assert plane.fleet.instances() == ()


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "delete"])
async def test_a_verb_on_an_unknown_name_says_so(plane: Plane, verb: str) -> None:
    with pytest.raises(errors.UnknownInstance):
        await getattr(plane.fleet, verb)("nobody")


async def test_a_caller_who_goes_away_undoes_nothing(plane: Plane) -> None:
    await plane.create("x", autostart=False)
    plane.driver.script("x", Script(start_secs=5))
    start = asyncio.create_task(plane.fleet.start("x"))
    await plane.settle(1)
    start.cancel()
    await plane.until("x", Status.RUNNING)


async def test_a_restart_waits_for_calls_in_flight_first(plane: Plane) -> None:
    await plane.running("x")
    call = plane.frontdoor.begin_call("x")
    restart = asyncio.create_task(plane.fleet.restart("x"))
    await plane.settle(3)
    assert plane.machine.processes[0].signals == []
    call.end()
    await restart
    assert not call.is_cut
    await plane.until("x", Status.RUNNING)
    assert plane.frontdoor.events == [("announce", "x"), ("withdraw", "x"), ("announce", "x")]
