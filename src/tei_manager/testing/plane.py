"""The control plane on fakes, in virtual time: a fleet, and the world it believes in.

    async def scene() -> None:
        plane = Plane()
        await plane.open()
        await plane.create("bge")
        await plane.until("bge", Status.RUNNING)
        plane.driver.exit("bge")
        ...
        await plane.close()

    clock.run(scene())

`crash` leaves the machine and the state file as a `kill -9` of the manager would; `open` is then the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tei_manager.control.fleet import Fleet
from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.instance import EngineKind, Instance, InstanceSpec, Origin, Status
from tei_manager.engines import catalog
from tei_manager.ports.fleet import LogSlice
from tei_manager.testing.driver import FakeDriver, FakeMachine, FakeProcess
from tei_manager.testing.frontdoor import FakeFrontDoor
from tei_manager.testing.journal import MemoryJournal
from tei_manager.testing.prober import FakeProber
from tei_manager.testing.store import MemoryStore

EPOCH = 1_700_000_000.0
SETTLED_SECS = 0.001


class FakeLogs:
    """Log files in memory: `text[path]`, all of it of the run that is looked at."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.failure: Exception | None = None  # raised by `tail` while it is set

    def size(self, path: str) -> int:
        return len(self.text.get(path, ""))

    def tail(self, path: str, *, max_bytes: int = 16384, since_offset: int = 0) -> str:
        if self.failure is not None:
            raise self.failure
        return self.text.get(path, "")[since_offset:][-max_bytes:]

    def read_slice(
        self, path: str, *, start: int | None = None, end: int | None = None, tail: int | None = None
    ) -> LogSlice:
        lines = tuple(self.text.get(path, "").splitlines())
        return LogSlice(lines, 0, len(lines), len(lines))


class FakeModels:
    """Models on this machine: `folders[path]` are the names of the files there."""

    def __init__(self) -> None:
        self.folders: dict[str, tuple[str, ...]] = {}

    def folder(self, source: str) -> str | None:
        return source if source in self.folders else None

    def files(self, folder: str, suffix: str) -> tuple[str, ...]:
        return tuple(name for name in self.folders[folder] if name.endswith(suffix))


class CountingMetrics:
    """Implements `ports.metrics.ControlMetrics`: `counts[method]` is how often it was told."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def watch(self, instances: Callable[[], Iterable[Instance]]) -> None:
        self._count("watch")

    def created(self, instance: str, model: str) -> None:
        self._count("created")

    def deleted(self, instance: str) -> None:
        self._count("deleted")

    def restarted(self, instance: str) -> None:
        self._count("restarted")

    def exited(self, instance: str, cause: str) -> None:
        self._count(f"exited {cause}")

    def probe_failed(self, instance: str) -> None:
        self._count("probe_failed")

    def probed(self, instance: str, secs: float) -> None:
        self._count("probed")

    def became_ready(self, engine: str, secs: float) -> None:
        self._count("became_ready")

    def state_recovered(self) -> None:
        self._count("state_recovered")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


class Plane:
    """One machine and one state file, and on them one manager after the other."""

    def __init__(
        self,
        *,
        seeds: tuple[Mapping[str, object], ...] = (),
        machine: FakeMachine | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**{"log_dir": "/log", "api_allow_command": True, **settings})
        self.seeds = seeds
        self.machine = machine or FakeMachine()
        self.driver = FakeDriver(self.machine)
        self.store = MemoryStore()
        self.prober = FakeProber(self.machine)
        self.logs = FakeLogs()
        self.models = FakeModels()
        self.taken: set[int] = set()  # ports that foreign processes hold
        self.frontdoor, self.metrics = FakeFrontDoor(), CountingMetrics()
        self.journal = MemoryJournal(lambda: EPOCH + asyncio.get_running_loop().time())
        self.fleet = self._new_fleet()

    def _new_fleet(self) -> Fleet:
        self.frontdoor, self.metrics = FakeFrontDoor(), CountingMetrics()
        loop = asyncio.get_running_loop()
        world = World(
            engines=catalog.ENGINES,
            driver=self.driver,
            prober=self.prober,
            inspector=self.prober,
            frontdoor=self.frontdoor,
            store=self.store,
            logs=self.logs,
            models=self.models,
            metrics=self.metrics,
            journal=self.journal,
            port_is_free=lambda _, port: self.is_free(port),
            environ={"PATH": "/bin"},
            now=lambda: EPOCH + loop.time(),
            jitter=lambda: 0.0,
        )
        return Fleet(world, self.settings, seeds=self.seeds)

    # -- the life of managers ---------------------------------------------------------------------------------

    async def open(self) -> None:
        await self.fleet.open()
        await self.settle()

    async def close(self) -> None:
        await self.fleet.close()
        await self.driver.close()

    async def crash(self) -> None:
        """End the manager and whoever waits for it, without a word; `open` then starts the next one."""
        state = self.store.state
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        # what the driver has set going is the machine's: a process that got its signal ends all the same
        ours = [task for task in tasks if "FakeDriver" not in getattr(task.get_coro(), "__qualname__", "")]
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, return_exceptions=True)
        self.store.state = state
        self.driver = FakeDriver(self.machine)
        self.fleet = self._new_fleet()

    # -- the world --------------------------------------------------------------------------------------------

    def is_free(self, port: int) -> bool:
        """Whether nobody listens there: no foreign process and none of ours."""
        ours = (process for process in self.machine.living() if process.is_alive)
        return port not in self.taken and not any(str(port) in process.order.argv for process in ours)

    def living(self, name: str | None = None) -> list[FakeProcess]:
        return self.machine.living(name)

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    # -- the fleet --------------------------------------------------------------------------------------------

    async def create(self, name: str, *, origin: Origin = Origin.API, **fields: Any) -> Instance:
        """Of engine `command`, so that the port is all that an instance needs."""
        return await self.fleet.create(spec(name, **fields), origin=origin)

    async def running(self, name: str, **fields: Any) -> Instance:
        await self.create(name, **fields)
        return await self.until(name, Status.RUNNING)

    def get(self, name: str) -> Instance:
        return self.fleet.get(name)

    async def until(self, name: str, *status: Status, within: float = 3600.0) -> Instance:
        """Wait, in virtual time, until the instance has one of these statuses."""
        deadline = self.now + within
        while (now := self.get(name)).status not in status:
            if self.now > deadline:
                raise AssertionError(f"{name} is {now.status} ({now.detail}, {now.last_error})")
            await asyncio.sleep(0.05)
        return now

    async def settle(self, secs: float = SETTLED_SECS) -> None:
        """Let everything happen that is due within so many seconds."""
        await asyncio.sleep(secs)


def spec(name: str, **fields: Any) -> InstanceSpec:
    """A specification for engine `command`."""
    plain = InstanceSpec(
        name=name, model_id=f"test/{name}", engine=EngineKind.COMMAND, command=("serve", "--port", "{port}")
    )
    return replace(plain, **fields)


def seed(name: str, **values: object) -> dict[str, object]:
    """The same as an entry of the configuration file."""
    plain = {
        "name": name,
        "model_id": f"test/{name}",
        "engine": "command",
        "command": ["serve", "--port", "{port}"],
    }
    return {**plain, **values}
