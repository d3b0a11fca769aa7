"""Until an engine answers, and whether it still does."""

import asyncio
from typing import Any

import pytest

from tei_manager.domain.instance import EngineKind, Status
from tei_manager.engines.base import Ask
from tei_manager.ports.prober import Seen
from tei_manager.testing.plane import EPOCH, Plane

ILL, WELL = Seen(False, "answered 503"), Seen(True)


async def opened(**settings: Any) -> Plane:
    plane = Plane(**settings)
    await plane.open()
    return plane


async def test_an_engine_that_is_ready_is_running_within_a_second() -> None:
    plane = await opened()
    plane.prober.becomes_ready_after("x", 60)
    await plane.create("x")
    begun = plane.now
    await plane.until("x", Status.RUNNING)
    assert 60 <= plane.now - begun < 61
    assert plane.get("x").health_check_failures == 0


async def test_a_start_in_which_nothing_moves_fails_after_its_limit() -> None:
    plane = await opened()
    plane.prober.becomes_ready_after("x", 100_000)
    await plane.create("x")
    begun = plane.now
    now = await plane.until("x", Status.FAILED)
    assert plane.now - begun == pytest.approx(300, abs=2)
    assert now.detail == "timed_out"
    assert now.last_error == "did not become ready within 300s (last check: connection refused)"
    assert plane.living() == []


async def test_a_limit_of_its_own_rules() -> None:
    plane = await opened()
    plane.prober.becomes_ready_after("x", 100_000)
    await plane.create("x", startup_timeout_secs=20)
    begun = plane.now
    await plane.until("x", Status.FAILED)
    assert plane.now - begun == pytest.approx(20, abs=1)


async def test_a_slow_start_that_moves_lives_until_the_longest_limit() -> None:
    plane = await opened(startup_timeout_max_secs=2000)
    plane.prober.becomes_ready_after("x", 100_000)
    plane.logs.text["/log/x.log"] = ""
    await plane.create("x")
    begun = plane.now
    while plane.get("x").status is Status.STARTING:
        plane.logs.text["/log/x.log"] += "downloading\n"
        await plane.settle(100)
    assert 2000 <= plane.now - begun < 2200
    assert plane.get("x").last_error == "did not become ready within 2000s (last check: connection refused)"


async def test_a_timeout_of_an_instance_that_has_run_before_is_tried_again() -> None:
    plane = await opened()
    await plane.running("x")
    plane.prober.becomes_ready_after("x", 100_000)
    await plane.fleet.restart("x")
    await plane.settle(301)
    assert plane.get("x").status is Status.STARTING
    assert len(plane.driver.orders) == 3
    assert plane.living("x") == [plane.machine.processes[2]]


async def test_it_is_announced_only_after_its_warm_up() -> None:
    plane = await opened()
    plane.prober.says("x", Seen(False, "Backend error"), about=Ask.GRPC_WARM_UP)
    await plane.create("x", engine=EngineKind.EMBEDDED, command=None)
    await plane.settle(5)
    assert plane.get("x").status is Status.STARTING
    assert plane.frontdoor.events == []
    plane.prober.says("x", WELL, about=Ask.GRPC_WARM_UP)
    await plane.until("x", Status.RUNNING)
    assert plane.frontdoor.events == [("announce", "x")]
    assert [probe.ask for _, probe in plane.prober.asked][-1] is Ask.GRPC_WARM_UP
    [endpoint] = plane.frontdoor.endpoints.values()
    assert (endpoint.http_port, endpoint.grpc_port) == (8080, 8179)
    assert endpoint.uid == plane.get("x").uid


async def test_a_warm_up_that_is_refused_as_our_mistake_counts_as_warm() -> None:
    plane = await opened()
    plane.prober.says("x", Seen(False, "not an embedding model", caller_fault=True), about=Ask.GRPC_WARM_UP)
    await plane.create("x", engine=EngineKind.EMBEDDED, command=None)
    await plane.settle(1)
    assert plane.get("x").status is Status.RUNNING


async def test_details_tell_how_far_a_start_is() -> None:
    plane = await opened()
    plane.prober.says("x", Seen(False, "503"))
    await plane.create("x", engine=EngineKind.EMBEDDED, command=None)
    assert plane.get("x").detail == "spawning"
    await plane.settle(1)
    assert plane.get("x").detail == "loading"
    plane.prober.says("x", WELL)
    plane.prober.takes("x", 2)
    await plane.settle(3)
    assert plane.get("x").detail == "warming"
    await plane.settle(3)
    assert (plane.get("x").status, plane.get("x").detail) == (Status.RUNNING, None)


async def test_failed_probes_in_a_row_restart_it() -> None:
    plane = await opened(health_check_initial_delay_secs=0)
    await plane.running("x")
    plane.prober.says("x", ILL, WELL, ILL, ILL, WELL, ILL, ILL, ILL, WELL)
    seen = []
    for _ in range(7):
        await plane.settle(30)
        seen.append(plane.get("x").health_check_failures)
    assert seen == [1, 0, 1, 2, 0, 1, 2]
    assert plane.machine.processes[0].is_alive
    await plane.settle(30)
    now = await plane.until("x", Status.RUNNING)
    assert (now.restarts, now.health_check_failures, now.pid) == (1, 0, 1002)
    assert plane.frontdoor.events == [("announce", "x"), ("withdraw", "x"), ("announce", "x")]
    assert plane.metrics.counts["probe_failed"] == 6


async def test_a_process_given_up_as_unhealthy_is_withdrawn_before_it_is_stopped() -> None:
    from tei_manager.testing.driver import Script

    plane = await opened(health_check_initial_delay_secs=0, max_failures_before_restart=1)
    plane.driver.script("x", Script(ignores_term=True))
    await plane.running("x")
    call = plane.frontdoor.begin_call("x")
    plane.prober.says("x", ILL, WELL)
    await plane.settle(31)
    now = plane.get("x")
    assert (now.status, now.pid) == (Status.STOPPING, 1001)
    assert plane.frontdoor.endpoints == {}
    assert call.is_cut
    await plane.settle(31)
    assert plane.get("x").status is Status.RUNNING


async def test_busy_is_not_dead() -> None:
    plane = await opened(health_check_initial_delay_secs=0, max_failures_before_restart=2)
    await plane.running("x")
    plane.prober.takes("x", 3600)
    for _ in range(10):
        plane.frontdoor.begin_call("x").end()
        await plane.settle(35)
    now = plane.get("x")
    assert (now.status, now.restarts, now.health_check_failures) == (Status.RUNNING, 0, 0)
    # without a call that ended well it is dead after all
    await plane.settle(3 * 35)
    assert plane.get("x").restarts == 1


async def test_failures_in_the_first_time_are_shown_and_restart_nothing() -> None:
    plane = await opened(health_check_interval_secs=10, health_check_initial_delay_secs=100)
    await plane.running("x")
    plane.prober.says("x", ILL)
    await plane.settle(95)
    assert plane.get("x").health_check_failures == 9
    assert plane.get("x").restarts == 0
    await plane.settle(10)
    assert plane.get("x").restarts == 1


async def test_no_limit_of_failures_means_never() -> None:
    plane = await opened(max_failures_before_restart=0)
    await plane.running("x")
    plane.prober.says("x", ILL)
    await plane.settle(3000)
    assert plane.get("x").health_check_failures == 100
    assert plane.get("x").restarts == 0


async def test_probes_never_start_what_is_stopped_failed_or_starting() -> None:
    plane = await opened(health_check_initial_delay_secs=0, max_failures_before_restart=1)
    for name in ("stopped", "starting"):
        await plane.running(name)
        plane.prober.says(name, ILL)
    await plane.fleet.stop("stopped")
    plane.prober.becomes_ready_after("starting", 200)
    await plane.fleet.restart("starting")
    asked = len(plane.prober.asked)
    await plane.settle(190)
    assert plane.get("stopped").status is Status.STOPPED
    assert plane.get("starting").status is Status.STARTING
    assert len(plane.driver.orders) == 3
    assert {name for name, _ in plane.prober.asked[asked:]} == {"starting"}


@pytest.mark.parametrize("ticks", range(10))
async def test_a_restart_at_the_moment_it_is_found_unhealthy_is_a_plain_restart(ticks: int) -> None:
    plane = await opened(health_check_initial_delay_secs=0, max_failures_before_restart=1)
    ready_at = ((await plane.running("x")).last_health_check or 0) - EPOCH
    plane.prober.says("x", ILL, WELL)
    await plane.settle(ready_at + 30 - plane.now)
    for _ in range(ticks):
        await asyncio.sleep(0)
    begun = plane.now
    answer = await plane.fleet.restart("x")
    assert plane.now - begun < 1
    assert (answer.restarts, answer.last_error, answer.pid) == (1, None, 1002)
    await plane.until("x", Status.RUNNING)
    assert len(plane.machine.processes) == 2


async def test_draining_waits_for_calls_and_cuts_what_is_left_after_its_time() -> None:
    plane = await opened(drain_timeout_secs=20)
    await plane.running("x")
    quick, slow = plane.frontdoor.begin_call("x"), plane.frontdoor.begin_call("x")
    begun = plane.now
    await plane.fleet.stop("x", wait=False)
    await plane.settle(5)
    quick.end()
    assert plane.machine.processes[0].signals == []
    assert plane.frontdoor.endpoints == {}
    await plane.until("x", Status.STOPPED)
    assert plane.now - begun == pytest.approx(20, abs=0.1)
    assert (quick.is_cut, slow.is_cut) == (False, True)


async def test_an_idle_instance_stops_at_once() -> None:
    plane = await opened()
    await plane.running("x")
    begun = plane.now
    await plane.fleet.stop("x")
    assert plane.now == begun


async def test_slow_probes_do_not_make_the_rounds_longer() -> None:
    plane = await opened(health_check_interval_secs=10, health_check_timeout_secs=4)
    await plane.create("x")
    await plane.until("x", Status.RUNNING)
    begun, asked = plane.now, len(plane.prober.asked)
    plane.prober.takes("x", 3)
    await asyncio.sleep(104)
    assert len(plane.prober.asked) - asked == 10
    assert plane.now - begun == pytest.approx(104, abs=1)
