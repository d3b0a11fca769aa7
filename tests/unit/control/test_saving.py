"""The state file follows memory, and never stands in its way."""

import asyncio

import pytest

from tei_manager.control.keeper import Keeper
from tei_manager.domain import spec as specs
from tei_manager.domain.instance import Desired, Status
from tei_manager.ports.store import State
from tei_manager.testing.driver import Script
from tei_manager.testing.plane import EPOCH, Plane
from tei_manager.testing.store import MemoryStore

FULL = OSError(28, "No space left on device")


async def test_a_creation_is_saved_before_its_answer(plane: Plane) -> None:
    plane.store.save_secs = 0.5
    begun = plane.now
    await plane.create("x")
    assert plane.now - begun >= 0.5
    [record] = plane.store.state.records
    assert (record.spec.name, record.desired) == ("x", Desired.RUNNING)


async def test_every_verb_is_saved_before_its_answer(plane: Plane) -> None:
    await plane.running("x")
    plane.store.save_secs = 0.5
    await plane.fleet.stop("x", wait=False)
    assert plane.store.state.records[0].desired is Desired.STOPPED
    await plane.fleet.start("x")
    assert plane.store.state.records[0].desired is Desired.RUNNING
    await plane.fleet.delete("x")
    assert plane.store.state.records == ()


async def test_the_intent_is_saved_before_the_spawn_and_the_handle_after_it(plane: Plane) -> None:
    plane.driver.script("x", Script(start_secs=5))
    await plane.create("x")
    await plane.settle(1)
    [record] = plane.store.state.records
    assert record.handle is None
    assert record.intent_nonce == plane.driver.orders[0].nonce
    assert record.launched == specs.fingerprint(record.spec)
    await plane.settle(5)
    [record] = plane.store.state.records
    assert record.handle == plane.machine.processes[0].handle
    assert record.intent_nonce is None


async def test_no_process_is_started_before_its_intent_is_saved(plane: Plane) -> None:
    plane.store.save_secs = 2
    creating = asyncio.create_task(plane.create("x"))
    await plane.settle(1.9)
    assert plane.driver.orders == []
    await creating
    await plane.until("x", Status.RUNNING)


async def test_the_handle_of_a_process_that_is_gone_is_not_kept(plane: Plane) -> None:
    await plane.running("x")
    first = plane.store.state.records[0].handle
    assert first is not None
    await plane.fleet.restart("x")
    await plane.settle(1)
    assert plane.store.state.records[0].handle not in (None, first)
    await plane.fleet.stop("x")
    await plane.settle()
    assert plane.store.state.records[0].handle is None


async def test_the_handle_is_kept_as_long_as_the_process_may_live(plane: Plane) -> None:
    plane.driver.script("x", Script(ignores_term=True))
    await plane.running("x")
    await plane.fleet.stop("x", wait=False)
    await plane.settle(10)
    assert plane.store.state.records[0].handle == plane.machine.processes[0].handle


async def test_what_counts_over_time_is_saved(plane: Plane) -> None:
    await plane.running("x")
    plane.driver.exit("x")
    await plane.settle(1)
    [record] = plane.store.state.records
    assert (record.restarts, record.ever_ready) == (1, True)


async def test_a_full_disk_fails_no_verb_is_told_and_healed(plane: Plane) -> None:
    await plane.running("kept")
    saved = plane.store.state
    plane.store.failure = FULL
    failing_since = EPOCH + plane.now
    await plane.running("x")
    [degraded] = plane.fleet.degraded
    assert (degraded.reason, degraded.detail) == ("state-save", str(FULL))
    assert degraded.since == pytest.approx(failing_since, abs=1)
    await plane.fleet.restart("x")
    await plane.fleet.stop("x")
    assert plane.get("x").status is Status.STOPPED
    assert plane.store.state is saved
    await plane.settle(20)
    plane.store.failure = None
    assert plane.fleet.degraded == (degraded,)  # the same failure, and since when
    await plane.settle(5.1)
    assert plane.fleet.degraded == ()
    assert [record.spec.name for record in plane.store.state.records] == ["kept", "x"]
    assert plane.store.state.records[1].desired is Desired.STOPPED


async def test_any_error_of_the_store_is_survived_and_repeated(plane: Plane) -> None:
    plane.store.failure = ValueError("a bug")  # type: ignore[assignment]
    await plane.running("x")
    await plane.settle(11)
    assert [(each.reason, each.detail) for each in plane.fleet.degraded] == [("state-save", "a bug")]
    plane.store.failure = None
    await plane.settle(5.1)
    assert plane.fleet.degraded == ()
    assert len(plane.store.state.records) == 1


# -- the keeper by itself -------------------------------------------------------------------------------------


class Numbered:
    """A store whose versions are counted; a snapshot is taken when its save begins."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.save_secs = 1.0
        self.taken = 0
        self.keeper = Keeper(self.store, self._snapshot, lambda: 0.0)

    def _snapshot(self) -> State:
        self.taken += 1
        return State(deleted_seeds={str(self.taken): {}})


async def test_callers_that_wait_share_one_save() -> None:
    numbered = Numbered()
    await asyncio.gather(*(numbered.keeper.save() for _ in range(10)))
    assert len(numbered.store.saved) == 1
    first = asyncio.create_task(numbered.keeper.save())
    await asyncio.sleep(0.5)
    # these came after the snapshot was taken: they need another one
    await asyncio.gather(*(numbered.keeper.save() for _ in range(10)))
    assert first.done()
    assert len(numbered.store.saved) == 3


async def test_a_caller_who_goes_away_does_not_interrupt_the_save() -> None:
    numbered = Numbered()
    first, second = asyncio.create_task(numbered.keeper.save()), asyncio.create_task(numbered.keeper.save())
    await asyncio.sleep(0.5)
    first.cancel()
    await second
    assert len(numbered.store.saved) == 1


async def test_a_save_that_nobody_waits_for_any_more_is_finished() -> None:
    numbered = Numbered()
    caller = asyncio.create_task(numbered.keeper.save())
    await asyncio.sleep(0.5)
    caller.cancel()
    await asyncio.sleep(1)
    assert len(numbered.store.saved) == 1
    with pytest.raises(asyncio.CancelledError):
        await caller


async def test_saves_never_run_at_the_same_time() -> None:
    numbered, running, most = Numbered(), 0, 0
    save = numbered.store.save

    async def counted(state: State) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await save(state)
        running -= 1

    numbered.store.save = counted  # type: ignore[method-assign]

    async def later(secs: float) -> None:
        await asyncio.sleep(secs)
        await numbered.keeper.save()

    await asyncio.gather(*(later(number * 0.3) for number in range(20)))
    assert most == 1
    assert numbered.store.state == State(deleted_seeds={str(numbered.taken): {}})
