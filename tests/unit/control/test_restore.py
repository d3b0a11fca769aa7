"""What the next manager makes of the state file and of the processes it finds."""

from dataclasses import replace
from typing import Any

import pytest

from tei_manager.domain.instance import Desired, Origin, Status
from tei_manager.engines.base import Ask
from tei_manager.ports.driver import Order
from tei_manager.ports.prober import Seen
from tei_manager.testing.driver import Script
from tei_manager.testing.plane import Plane, seed


async def opened(**settings: Any) -> Plane:
    plane = Plane(**settings)
    await plane.open()
    return plane


def codes(plane: Plane) -> list[str]:
    return [warning.code for warning in plane.fleet.warnings]


async def test_a_wanted_process_is_adopted_without_a_reload() -> None:
    plane = await opened()
    before = await plane.running("x")
    await plane.crash()
    await plane.open()
    now = await plane.until("x", Status.RUNNING, within=1)
    assert (now.pid, now.ports, now.created_at, now.restarts) == (before.pid, before.ports, before.created_at, 0)
    assert len(plane.machine.processes) == 1
    assert plane.frontdoor.events == [("announce", "x")]
    # it is supervised like any other
    plane.driver.exit("x")
    await plane.settle(2)
    assert plane.get("x").pid != before.pid
    assert plane.get("x").restarts == 1


async def test_it_shows_adopted_until_its_first_probe_passes() -> None:
    plane = await opened()
    await plane.running("x")
    await plane.crash()
    plane.prober.says("x", Seen(False, "503"))
    await plane.open()
    await plane.settle(10)
    assert (plane.get("x").status, plane.get("x").detail) == (Status.STARTING, "adopted")
    plane.prober.says("x", Seen(True))
    await plane.until("x", Status.RUNNING)


async def test_an_adopted_process_that_stays_silent_is_replaced() -> None:
    plane = await opened()
    await plane.running("x")
    await plane.crash()
    plane.prober.says("x", Seen(False, "503"))
    await plane.open()
    await plane.settle(302)
    plane.prober.says("x", Seen(True))
    assert (await plane.until("x", Status.RUNNING)).pid == 1002


async def test_a_process_that_nobody_wants_is_buried() -> None:
    plane = await opened()
    plane.driver.script("x", Script(stop_secs=5))
    await plane.running("x")
    await plane.fleet.stop("x", wait=False)
    await plane.crash()
    begun = plane.now
    await plane.open()
    assert plane.now - begun < 1
    assert plane.get("x").status is Status.STOPPING
    await plane.until("x", Status.STOPPED)
    assert plane.living() == []


async def test_what_is_gone_is_started_again_and_what_was_stopped_is_not() -> None:
    plane = await opened()
    await plane.running("on")
    await plane.running("off")
    await plane.fleet.stop("off")
    await plane.crash()
    plane.machine.reboot()
    await plane.open()
    now = await plane.until("on", Status.RUNNING)
    assert (now.pid, now.restarts) == (1003, 0)
    assert plane.get("off").status is Status.STOPPED


async def test_an_instance_that_failed_is_tried_once_more_by_the_next_manager() -> None:
    plane = await opened()
    plane.driver.script("x", Script(exits_after=0))
    await plane.create("x")
    await plane.until("x", Status.FAILED)
    await plane.crash()
    plane.driver.script("x", Script())
    await plane.open()
    await plane.until("x", Status.RUNNING)


async def test_what_cannot_be_proven_ours_is_left_alone_and_told() -> None:
    plane = await opened()
    plane.driver.script("x", Script(is_unreadable=True))
    await plane.running("x")
    await plane.crash()
    plane.driver.script("x", Script())
    await plane.open()
    assert codes(plane) == ["ORPHAN_UNVERIFIED"]
    assert "pid 1001" in plane.fleet.warnings[0].message
    now = await plane.until("x", Status.RUNNING)
    # its port counts as taken
    assert now.ports.main == 8081
    assert plane.machine.processes[0].is_alive
    assert plane.machine.processes[0].signals == []


async def test_a_start_whose_answer_was_lost_is_found_by_its_nonce() -> None:
    plane = await opened()
    plane.driver.script("x", Script(start_secs=5))
    await plane.create("x")
    await plane.settle(1)
    await plane.crash()
    [record] = plane.store.state.records
    assert record.intent_nonce is not None
    order = Order(
        name="x", argv=("serve", "--port", "8080"), env={}, log_path="/log/x.log", nonce=record.intent_nonce
    )
    plane.machine.add(order, Script())
    await plane.open()
    assert (await plane.until("x", Status.RUNNING)).pid == 1001
    assert len(plane.machine.processes) == 1


async def test_a_start_that_never_happened_is_made() -> None:
    plane = await opened()
    plane.driver.script("x", Script(start_secs=5))
    await plane.create("x")
    await plane.settle(1)
    await plane.crash()
    plane.driver.script("x", Script())
    await plane.open()
    await plane.until("x", Status.RUNNING)
    assert len(plane.machine.processes) == 1


async def test_a_process_with_an_older_specification_is_started_anew() -> None:
    plane = await opened()
    await plane.running("x")
    await plane.crash()
    [record] = plane.store.state.records
    changed = replace(record, spec=replace(record.spec, env={"NEW": "1"}))
    plane.store.state = replace(plane.store.state, records=(changed,))
    await plane.open()
    now = await plane.until("x", Status.RUNNING)
    assert (now.pid, now.restarts) == (1002, 0)
    assert plane.driver.orders[0].env["NEW"] == "1"


async def test_it_is_still_known_to_be_older_by_a_third_manager() -> None:
    plane = await opened()
    plane.driver.script("x", Script(stop_secs=20))
    await plane.running("x")
    await plane.crash()
    [record] = plane.store.state.records
    changed = replace(record, spec=replace(record.spec, env={"NEW": "1"}))
    plane.store.state = replace(plane.store.state, records=(changed,))
    await plane.open()
    await plane.settle(1)
    assert plane.get("x").status is Status.STOPPING
    await plane.crash()
    await plane.open()
    now = await plane.until("x", Status.RUNNING)
    assert now.pid == 1002


async def test_what_can_change_under_a_process_restarts_nothing() -> None:
    plane = await opened()
    await plane.running("x")
    await plane.crash()
    [record] = plane.store.state.records
    changed = replace(record, spec=replace(record.spec, aliases=("new",)))
    plane.store.state = replace(plane.store.state, records=(changed,))
    await plane.open()
    assert (await plane.until("x", Status.RUNNING)).pid == 1001
    [endpoint] = plane.frontdoor.endpoints.values()
    assert endpoint.aliases == ("new",)


async def test_without_auto_restore_only_seeds_start() -> None:
    plane = Plane(auto_restore=False, seeds=(seed("seed"), seed("stopped")))
    await plane.open()
    await plane.create("made")
    for name in ("seed", "stopped", "made"):
        await plane.until(name, Status.RUNNING)
    await plane.fleet.stop("stopped")
    await plane.fleet.close()
    await plane.crash()
    await plane.open()
    await plane.until("seed", Status.RUNNING)
    await plane.settle(10)
    assert plane.get("made").status is Status.STOPPED
    assert plane.get("made").desired is Desired.STOPPED
    # a person's stop outlives every manager
    assert plane.get("stopped").status is Status.STOPPED


async def test_opening_waits_for_no_instance() -> None:
    plane = await opened()
    await plane.running("x")
    await plane.crash()
    plane.machine.reboot()
    plane.driver.script("x", Script(start_secs=50))
    begun = plane.now
    await plane.open()
    assert plane.fleet.is_reconciled
    assert plane.now - begun < 1
    assert plane.get("x").status is Status.STARTING


async def test_warnings_of_the_store_are_told() -> None:
    from tei_manager.testing.store import MemoryStore

    plane = Plane()
    plane.store = MemoryStore(warnings=(("STATE_RECOVERED", "the backup is used"),))
    await plane.crash()
    await plane.open()
    assert codes(plane) == ["STATE_RECOVERED"]
    assert plane.metrics.counts["state_recovered"] == 1


# -- seeds ----------------------------------------------------------------------------------------------------


async def next_manager(plane: Plane, *seeds: dict[str, object], graceful: bool = True) -> None:
    if graceful:
        await plane.fleet.close()
    plane.seeds = seeds
    await plane.crash()
    await plane.open()


async def test_a_seed_is_created_once() -> None:
    plane = Plane(seeds=(seed("x"),))
    await plane.open()
    before = await plane.until("x", Status.RUNNING)
    assert before.origin is Origin.CONFIG
    await next_manager(plane, seed("x"))
    assert (await plane.until("x", Status.RUNNING)).created_at == before.created_at
    assert codes(plane) == []


async def test_a_changed_seed_restarts_its_instance_alone() -> None:
    plane = Plane(seeds=(seed("x"), seed("y")))
    await plane.open()
    for name in ("x", "y"):
        await plane.until(name, Status.RUNNING)
    other = plane.get("y").pid
    await next_manager(plane, seed("x", port=8090), seed("y"), graceful=False)
    now = await plane.until("x", Status.RUNNING)
    assert (now.ports.main, now.restarts) == (8090, 0)
    assert (await plane.until("y", Status.RUNNING)).pid == other


async def test_a_seed_that_left_the_file_is_ended() -> None:
    plane = Plane(seeds=(seed("x"), seed("y")))
    await plane.open()
    await plane.until("x", Status.RUNNING)
    await next_manager(plane, seed("y"), graceful=False)
    assert [each.name for each in plane.fleet.instances()] == ["y"]
    assert plane.living("x") == []
    assert [record.spec.name for record in plane.store.state.records] == ["y"]


async def test_its_port_can_be_had_by_the_seed_that_replaces_it() -> None:
    plane = Plane(seeds=(seed("old", port=8090),))
    await plane.open()
    await plane.until("old", Status.RUNNING)
    await next_manager(plane, seed("new", port=8090), graceful=False)
    assert (await plane.until("new", Status.RUNNING)).ports.main == 8090


@pytest.mark.parametrize("script", [Script(ignores_term=True), Script(ignores_term=True, is_unkillable=True)])
async def test_a_removed_seed_that_does_not_end_does_not_hold_up_the_start(script: Script) -> None:
    plane = Plane(seeds=(seed("x"),))
    plane.driver.script("x", script)
    await plane.open()
    await plane.until("x", Status.RUNNING)
    begun = plane.now
    await next_manager(plane, graceful=False)
    assert plane.now - begun < 3
    await plane.settle(40)
    if script.is_unkillable:
        assert codes(plane) == ["ORPHAN_UNVERIFIED"]
    else:
        assert plane.living() == []


async def test_a_deleted_seed_stays_deleted_until_its_entry_changes() -> None:
    plane = Plane(seeds=(seed("x"),))
    await plane.open()
    await plane.fleet.delete("x")
    for _ in range(2):
        await next_manager(plane, seed("x"))
        assert plane.fleet.instances() == ()
    await next_manager(plane, seed("x", aliases=["new"]))
    assert plane.get("x").spec.aliases == ("new",)
    await next_manager(plane, seed("x", aliases=["new"]))
    assert len(plane.fleet.instances()) == 1


async def test_a_seed_that_conflicts_is_told_and_the_others_start() -> None:
    plane = Plane(seeds=(seed("x", port=8090), seed("y", port=8090), seed("z", port=0), seed("w")))
    await plane.open()
    assert [each.name for each in plane.fleet.instances()] == ["w", "x", "z"]
    assert codes(plane) == ["CONFIG"]
    assert "instance 'y' was not created: Port 8090" in plane.fleet.warnings[0].message


async def test_a_change_that_would_take_what_another_has_is_told_and_not_made() -> None:
    plane = Plane(seeds=(seed("x"), seed("y")))
    await plane.open()
    await plane.until("y", Status.RUNNING)
    await next_manager(plane, seed("x"), seed("y", port=8080))
    assert [each.ports.main for each in plane.fleet.instances()] == [8080, 8081]
    assert codes(plane) == ["CONFIG"]
    await next_manager(plane, seed("x"), seed("y", aliases=["x"]))
    assert plane.get("y").spec.aliases == ()
    assert codes(plane) == ["CONFIG"]


async def test_two_seeds_may_swap_their_ports() -> None:
    plane = Plane(seeds=(seed("x", port=8090), seed("y", port=8091)))
    await plane.open()
    await plane.until("y", Status.RUNNING)
    await next_manager(plane, seed("x", port=8091), seed("y", port=8090), graceful=False)
    await plane.settle(100)
    assert [(each.ports.main, each.status) for each in plane.fleet.instances()] == [
        (8091, Status.RUNNING),
        (8090, Status.RUNNING),
    ]
    assert codes(plane) == []


async def test_a_seed_may_take_the_port_of_one_that_left_and_others_keep_theirs() -> None:
    plane = Plane(seeds=(seed("x", port=8090), seed("y")))
    await plane.open()
    await next_manager(plane, seed("y", port=8090))
    assert (await plane.until("y", Status.RUNNING)).ports.main == 8090
    assert codes(plane) == []


async def test_a_seed_that_changes_its_engine_gets_the_ports_that_engine_needs() -> None:
    plane = Plane(seeds=(seed("x"),))
    await plane.open()
    await plane.until("x", Status.RUNNING)
    embedded = {"name": "x", "model_id": "test/x", "engine": "embedded"}
    await next_manager(plane, embedded)
    now = await plane.until("x", Status.RUNNING)
    assert (now.ports.main, now.ports.grpc, now.ports.metrics) == (8080, 8179, 9100)
    assert any(probe.ask is Ask.GRPC_WARM_UP for _, probe in plane.prober.asked)
    await next_manager(plane, seed("x"))
    now = await plane.until("x", Status.RUNNING)
    assert now.ports.all == (8080,)


async def test_a_seed_that_is_now_to_start_by_itself_starts() -> None:
    plane = Plane(seeds=(seed("x", autostart=False),))
    await plane.open()
    await plane.settle(10)
    assert plane.get("x").status is Status.STOPPED
    await next_manager(plane, seed("x"))
    await plane.until("x", Status.RUNNING)


async def test_a_change_made_over_rest_stands_where_the_file_says_nothing_new() -> None:
    plane = Plane(seeds=(seed("x"),))
    await plane.open()
    await plane.fleet.stop("x")
    await next_manager(plane, seed("x"))
    assert plane.get("x").desired is Desired.STOPPED
