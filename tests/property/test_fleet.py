"""Whatever happens, in whatever order: the fleet settles in what is wanted; no process is lost or doubled."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tei_manager.domain import errors
from tei_manager.domain.instance import Desired, EngineKind, Status
from tei_manager.policy.ports import Range
from tei_manager.policy.restart import Limits
from tei_manager.ports.driver import Exit
from tei_manager.ports.prober import Seen
from tei_manager.testing import clock
from tei_manager.testing.driver import FakeMachine, FakeProcess, Script
from tei_manager.testing.plane import Plane

PORTS = range(8080, 8088)
EVERYBODY = ("a", "b")
SCRIPTS = [
    Script(),
    Script(start_secs=2, stop_secs=3),
    Script(ignores_term=True, members=2),
    Script(exits_after=1, exits_with=Exit(signal=11)),
    Script(exits_after=1, exits_with=Exit(code=0)),
    Script(start_error=errors.DriverError("no more processes")),
]
# TERM, a crash, an unexplained end, a mistake in the arguments
EXITS = [Exit(signal=15), Exit(signal=11), Exit(code=0), Exit(code=2)]
# longer than any limit, backoff, drain or grace
LONG_SECS = 2000.0


@dataclass(frozen=True)
class Create:
    name: str
    port: int | None
    is_embedded: bool


@dataclass(frozen=True)
class Tell:
    """Verbs by several people at the same moment."""

    name: str
    verbs: tuple[str, ...]


@dataclass(frozen=True)
class Exits:
    name: str
    exit_: Exit


@dataclass(frozen=True)
class Behaves:
    """How the next processes live, and how engines answer from now on."""

    name: str
    script: Script
    is_ill: bool
    loads_secs: float


@dataclass(frozen=True)
class Calls:
    name: str
    count: int  # the first one never ends by itself


@dataclass(frozen=True)
class TakesPort:
    port: int


@dataclass(frozen=True)
class Disk:
    is_full: bool


@dataclass(frozen=True)
class Manager:
    is_killed: bool  # else it is stopped as it should be
    away_secs: float


NAMES = st.sampled_from(EVERYBODY)
VERBS = st.sampled_from(["start", "stop", "restart", "delete"])
WAITS = st.sampled_from([0.0, 0.001, 1.0, 2.5, 31.0, 100.0])
EVENTS = st.one_of(
    st.builds(Tell, NAMES, st.lists(VERBS, min_size=1, max_size=4).map(tuple)),
    st.builds(Tell, NAMES, st.lists(VERBS, min_size=1, max_size=4).map(tuple)),
    st.builds(Create, NAMES, st.none() | st.sampled_from(PORTS), st.booleans()),
    st.builds(Exits, NAMES, st.sampled_from(EXITS)),
    st.builds(Behaves, NAMES, st.sampled_from(SCRIPTS), st.booleans(), st.sampled_from([0.0, 5.0, 1000.0])),
    st.builds(Calls, NAMES, st.integers(1, 3)),
    st.builds(TakesPort, st.sampled_from(PORTS)),
    st.builds(Disk, st.booleans()),
    st.builds(Manager, st.booleans(), WAITS),
)
# (what happens, loop turns after it, seconds after those)
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, 12), WAITS), min_size=1, max_size=20)


class WatchedMachine(FakeMachine):
    """Notices two processes of one instance that live at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.doubled: list[str] = []

    def add(self, order: Any, script: Script) -> FakeProcess:
        if self.living(order.name):
            self.doubled.append(order.name)
        return super().add(order, script)


class Story:
    """One life of a machine."""

    def __init__(self) -> None:
        self.machine = WatchedMachine()
        self.plane = Plane(
            machine=self.machine,
            range=Range(start=PORTS.start, end=PORTS.stop, metrics_start=9100),
            restart=Limits(base_secs=10, max_secs=60),
            health_check_initial_delay_secs=0,
            startup_timeout_secs=60,
        )
        self.callers: set[asyncio.Task[Any]] = set()

    async def tell(self, steps: list[tuple[Any, int, float]]) -> None:
        await self.plane.open()
        for name in EVERYBODY:
            await self.plane.create(name)
        for event, turns, secs in steps:
            await self.happen(event)
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(secs)
        await self.end()

    def call(self, verb: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Somebody calls, and waits for the answer while other things happen."""

        async def caller() -> None:
            with contextlib.suppress(errors.CallerError, errors.CapacityError):
                await verb()

        self.callers.add(asyncio.create_task(caller()))

    async def happen(self, event: Any) -> None:
        plane = self.plane
        match event:
            case Create(name, port, is_embedded):
                fields: dict[str, Any] = {"engine": EngineKind.EMBEDDED, "command": None} if is_embedded else {}
                self.call(lambda: plane.create(name, port=port, **fields))
            case Tell(name, verbs):
                for verb in verbs:
                    self.call(lambda verb=verb: getattr(plane.fleet, verb)(name))  # type: ignore[misc]
            case Exits(name, exit_):
                plane.driver.exit(name, exit_)
            case Behaves(name, script, is_ill, loads_secs):
                plane.driver.script(name, script)
                plane.prober.says(name, Seen(not is_ill, "503"))
                plane.prober.becomes_ready_after(name, loads_secs)
            case Calls(name, count):
                if any(each.instance == name for each in plane.frontdoor.endpoints.values()):
                    calls = [plane.frontdoor.begin_call(name) for _ in range(count)]
                    for secs, call in enumerate(calls[1:], start=1):
                        asyncio.get_running_loop().call_later(5 * secs, call.end)
            case TakesPort(port):
                if plane.is_free(port):
                    plane.taken.add(port)
            case Disk(is_full):
                plane.store.failure = OSError("disk full") if is_full else None
            case Manager(is_killed, away_secs):
                await self.change_managers(is_killed, away_secs)

    async def change_managers(self, is_killed: bool, away_secs: float) -> None:
        if self.plane.store.failure is not None:
            # what a full disk did not take is lost with the manager: that is its price, so it gets a moment here
            self.plane.store.failure = None
            await asyncio.sleep(5.1)
        if not is_killed:
            await self.plane.fleet.close()
            assert self.plane.living() == []
        await self.plane.crash()
        self.callers.clear()
        await asyncio.sleep(away_secs)
        await self.plane.open()

    # -- what must hold ---------------------------------------------------------------------------------------

    async def end(self) -> None:
        """The world becomes friendly, nobody asks for anything any more, and then everything ends."""
        self.plane.store.failure = None
        self.plane.taken.clear()
        for name in EVERYBODY:
            self.plane.driver.script(name, Script())
            self.plane.prober.says(name, Seen(True))
            self.plane.prober.becomes_ready_after(name, 0)
        await asyncio.sleep(LONG_SECS)
        for caller in self.callers:
            assert caller.done(), "somebody still waits for an answer"
            caller.result()
        self.check_instances()
        await self.check_ports()
        wanted = {record.spec.name: record.desired for record in self.plane.store.state.records}
        await self.plane.close()
        assert self.plane.living() == []
        assert self.plane.frontdoor.endpoints == {}
        assert {record.spec.name: record.desired for record in self.plane.store.state.records} == wanted

    def check_instances(self) -> None:
        assert self.machine.doubled == []
        assert self.plane.fleet.degraded == ()
        assert self.plane.fleet.warnings == ()
        instances = self.plane.fleet.instances()
        for each in instances:
            allowed = {Status.RUNNING, Status.FAILED} if each.desired is Desired.RUNNING else {Status.STOPPED}
            assert each.status in allowed, (each.name, each.status, each.detail, each.last_error)
            assert (each.pid is None) is (each.status is not Status.RUNNING)
            assert "internal" not in (each.last_error or "")
            assert each == self.plane.get(each.name), "the snapshot is old"
        living = {process.order.name: process.handle.pid for process in self.plane.living()}
        assert living == {each.name: each.pid for each in instances if each.pid is not None}
        uids = {each.uid for each in instances if each.status is Status.RUNNING}
        assert set(self.plane.frontdoor.endpoints) == uids
        assert self.plane.frontdoor.published == instances
        saved = {record.spec.name: record for record in self.plane.store.state.records}
        assert saved.keys() == {each.name for each in instances}
        for each in instances:
            record = saved[each.name]
            assert (record.desired, record.ports, record.restarts) == (each.desired, each.ports, each.restarts)
            assert (record.handle.pid if record.handle else None) == each.pid
            assert record.intent_nonce is None

    async def check_ports(self) -> None:
        """Exactly the ports of registered instances are booked."""
        ports = [port for each in self.plane.fleet.instances() for port in each.ports.all]
        assert len(ports) == len(set(ports))
        for port in PORTS:
            try:
                await self.plane.create("probe", port=port, autostart=False)
            except errors.Conflict:
                assert port in ports
            else:
                assert port not in ports
                await self.plane.fleet.delete("probe")


@given(STEPS)
@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_the_fleet_settles_in_what_is_wanted(steps: list[tuple[Any, int, float]]) -> None:
    async def story() -> None:
        await Story().tell(steps)

    with structlog.testing.capture_logs():
        clock.run(story())
