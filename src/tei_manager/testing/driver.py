"""A driver that starts nothing: processes in memory that behave as told.

    machine = FakeMachine()
    driver = FakeDriver(machine)
    driver.script("bge", Script(ignores_term=True))
    handle = await driver.start(order)
    driver.exit("bge", Exit(code=1))

It keeps the contract of `ports.driver.Driver`: tests/contract/test_driver.py runs on it and on the real one.
Processes live in the `FakeMachine`: a second driver on the same machine is a restarted manager.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tei_manager.domain import errors
from tei_manager.ports.driver import Exit, Found, Gone, Handle, Order, Recovery, Unverified

TERM, KILL = 15, 9
WELL = Exit(code=0)
BADLY = Exit(code=1)
TERMINATED = Exit(signal=TERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How the processes of one instance behave. Times are in seconds of the driver's clock."""

    start_error: errors.DriverError | None = None  # raised by `start`; nothing runs then
    start_secs: float = 0.0  # how long a start takes
    output: str = ""  # appended to the log at the start
    exits_after: float | None = None
    exits_with: Exit = WELL
    ignores_term: bool = False
    stop_secs: float = 0.0  # from TERM to the exit
    exit_on_term: Exit = TERMINATED
    members: int = 0  # further processes of its group, which outlive it until they are killed
    is_unkillable: bool = False  # `stop` raises
    is_unreadable: bool = False  # `recover` cannot prove whose it is


@dataclass(slots=True)
class FakeProcess:
    """One started process. `signals` are those it got, in order."""

    order: Order
    handle: Handle
    script: Script
    members: int
    exit: asyncio.Future[Exit]  # how the leader ended
    empty: asyncio.Future[None]  # done when its members are gone, too
    signals: list[int] = field(default_factory=list)
    is_child: bool = True  # of the manager that runs now: only then is its exit code seen

    @property
    def is_alive(self) -> bool:
        return not self.exit.done()

    def end(self, exit_: Exit, *, with_members: bool = False) -> None:
        if with_members:
            self.members = 0
        if not self.exit.done():
            self.exit.set_result(exit_)
        if not self.members and not self.empty.done():
            self.empty.set_result(None)


class FakeMachine:
    """Where fake processes live. Outlasts its drivers, as a machine outlasts its managers."""

    def __init__(self, boot_id: str = "boot-1") -> None:
        self.boot_id = boot_id
        self.processes: list[FakeProcess] = []
        self._pids = itertools.count(1001)
        self._ticks = itertools.count(100_000, 7)

    def reboot(self) -> None:
        """Everything dies unseen, and what was recorded names another boot."""
        for process in self.processes:
            process.end(Exit(), with_members=True)
        self.boot_id += "'"

    def living(self, name: str | None = None) -> list[FakeProcess]:
        """Processes alive now, group members that outlived their leader included."""
        return [
            process
            for process in self.processes
            if (process.is_alive or process.members) and name in (None, process.order.name)
        ]

    def add(self, order: Order, script: Script) -> FakeProcess:
        handle = Handle(
            driver="fake",
            pid=next(self._pids),
            start_ticks=next(self._ticks),
            boot_id=self.boot_id,
            nonce=order.nonce,
        )
        loop = asyncio.get_running_loop()
        process = FakeProcess(order, handle, script, script.members, loop.create_future(), loop.create_future())
        self.processes.append(process)
        return process

    def get(self, handle: Handle) -> FakeProcess | None:
        return next((process for process in self.processes if process.handle == handle), None)


class FakeDriver:
    """Implements `ports.driver.Driver`. `sleep` is the clock: inject a virtual one to test without waiting.

    `orders` are all starts asked for, refused ones included.
    """

    def __init__(
        self, machine: FakeMachine | None = None, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    ) -> None:
        self.machine = machine or FakeMachine()
        self.orders: list[Order] = []
        self.versions: dict[str, str | None] = {}
        self._sleep = sleep
        self._scripts: dict[str, Script] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for process in self.machine.processes:
            process.is_child = False

    def script(self, name: str, script: Script) -> None:
        """Say how processes of this instance behave that start from now on."""
        self._scripts[name] = script

    def exit(self, name: str, exit_: Exit = BADLY) -> None:
        """End the living process of an instance now."""
        for process in self.machine.living(name):
            process.end(exit_)

    async def start(self, order: Order) -> Handle:
        self.orders.append(order)
        script = self._scripts.get(order.name, Script())
        if script.start_secs:
            await self._sleep(script.start_secs)
        if script.start_error is not None:
            raise script.start_error
        process = self.machine.add(order, script)
        if script.output:
            _append(order.log_path, script.output)
        if script.exits_after is not None:
            self._later(script.exits_after, lambda: process.end(script.exits_with))
        return process.handle

    async def wait(self, handle: Handle) -> Exit:
        process = self.machine.get(handle)
        if process is None:
            return Exit()
        exit_ = await asyncio.shield(process.exit)
        return exit_ if process.is_child else Exit()

    async def stop(self, handle: Handle, *, grace_secs: float) -> Exit:
        process = self.machine.get(handle)
        if process is None:
            return Exit()
        if process.is_alive and process.script.is_unreadable and not process.is_child:
            raise errors.DriverError(f"process {handle.pid} cannot be proven ours and is left alone")
        if grace_secs > 0 and (process.is_alive or process.members):
            self._terminate(process)
            await self._patience(process, grace_secs)
        if process.is_alive or process.members:
            process.signals.append(KILL)
            if process.script.is_unkillable:
                raise errors.DriverError(f"process {handle.pid} still lives 5 s after SIGKILL")
            process.end(Exit(signal=KILL), with_members=True)
        return await self.wait(handle)

    async def recover(self, handle: Handle) -> Recovery:
        for process in self.machine.living():
            seen = process.handle
            same = (seen.pid, seen.start_ticks, seen.boot_id) == (handle.pid, handle.start_ticks, handle.boot_id)
            if same and process.is_alive:
                if process.script.is_unreadable:
                    return Unverified(handle.pid)
                return Found(handle) if seen.nonce == handle.nonce else Gone()
        return Gone()

    async def find(self, nonce: str) -> Handle | None:
        living = (process for process in self.machine.living() if process.is_alive)
        return next((process.handle for process in living if process.handle.nonce == nonce), None)

    async def version(self, program: str) -> str | None:
        """What `versions` says of the program."""
        return self.versions.get(program)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _terminate(self, process: FakeProcess) -> None:
        if TERM in process.signals:
            return
        process.signals.append(TERM)
        script = process.script
        if not script.ignores_term:
            self._later(script.stop_secs, lambda: process.end(script.exit_on_term))

    async def _patience(self, process: FakeProcess, grace_secs: float) -> None:
        """Wait until the process is gone or the shortest grace that anybody gave is over."""

        async def run_out() -> None:
            await self._sleep(grace_secs)

        timer = asyncio.create_task(run_out())
        try:
            await asyncio.wait((timer, process.empty), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)

    def _later(self, secs: float, act: Callable[[], None]) -> None:
        async def run() -> None:
            if secs:
                await self._sleep(secs)
            act()

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _append(path: str, text: str) -> None:
    with Path(path).open("a") as log:
        log.write(text)
