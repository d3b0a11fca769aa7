"""One contract for every driver: the fake of `tei_manager.testing.driver` and the real one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from tei_manager.adapters.drivers import process_table
from tei_manager.adapters.drivers.subprocess import SubprocessDriver
from tei_manager.domain import errors
from tei_manager.ports.driver import Driver, Exit, Found, Gone, Handle, Order, Unverified
from tei_manager.testing.driver import FakeDriver, FakeMachine, Script

LINUX = sys.platform == "linux"
FOREVER = "while :; do sleep 1; done"
# kind -> what a shell does, and what the fake is told
KINDS: dict[str, tuple[str, Script]] = {
    "obedient": (f"echo up; {FOREVER}", Script(output="up\n")),
    "stubborn": (f"trap '' TERM; echo up; {FOREVER}", Script(output="up\n", ignores_term=True)),
    "polite": (
        f"trap 'exit 7' TERM; echo up; {FOREVER}",
        Script(output="up\n", exit_on_term=Exit(code=7)),
    ),
    "three": ("echo up; exit 3", Script(output="up\n", exits_after=0.0, exits_with=Exit(code=3))),
    "abort": (
        "echo up; kill -ABRT $$",
        Script(output="up\n", exits_after=0.0, exits_with=Exit(signal=signal.SIGABRT)),
    ),
    # the leader ends at TERM, its children live on and ignore TERM
    "family": (
        f"trap '' TERM; sh -c '{FOREVER}' & sh -c '{FOREVER}' & trap 'exit 0' TERM; echo up; {FOREVER}",
        Script(output="up\n", members=2, exit_on_term=Exit(code=0)),
    ),
    # the leader ends at once and leaves a child behind
    "orphan": (
        f"trap '' TERM; sh -c '{FOREVER}' & echo up; exit 4",
        Script(output="up\n", exits_after=0.0, exits_with=Exit(code=4), members=1),
    ),
    "missing": (
        "",
        Script(start_error=errors.DriverError("no-such-program: gone", code="ENGINE_NOT_FOUND")),
    ),
}


class Rig:
    """A driver, and what the tests need to know of the world behind it."""

    driver: Driver

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Handle] = []

    def order(self, kind: str, *, nonce: str = "a1" * 16, name: str = "one") -> Order:
        return Order(
            name=name, argv=self.argv(kind), env={"PATH": os.environ["PATH"]}, log_path=self.log(name), nonce=nonce
        )

    def log(self, name: str = "one") -> str:
        return str(self.folder / f"{name}.log")

    def argv(self, kind: str) -> tuple[str, ...]:
        return ("/no-such-program",) if kind == "missing" else ("sh", "-c", KINDS[kind][0])

    async def start(self, kind: str, **more: str) -> Handle:
        """Start and wait until it is up."""
        order = self.order(kind, **more)
        log = Path(order.log_path)
        before = log.stat().st_size if log.exists() else 0
        handle = await self.driver.start(order)
        self.started.append(handle)
        await until(lambda: log.stat().st_size > before)
        return handle

    def living(self) -> int:
        """Processes that are left, group members included."""
        raise NotImplementedError

    def restarted(self) -> Driver:
        """A driver of another manager process on the same machine."""
        raise NotImplementedError


class FakeRig(Rig):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.machine = FakeMachine()
        self.driver = self.fake = FakeDriver(self.machine)

    def order(self, kind: str, **more: str) -> Order:
        order = super().order(kind, **more)
        self.fake.script(order.name, KINDS[kind][1])
        return order

    def living(self) -> int:
        return sum(process.is_alive + process.members for process in self.machine.living())

    def restarted(self) -> Driver:
        return FakeDriver(self.machine)


class RealRig(Rig):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.driver = SubprocessDriver()
        self.drivers = [self.driver]

    def living(self) -> int:
        leaders = {handle.pid for handle in self.started}
        return sum(session in leaders for session, state in processes().values() if state != "Z")

    def restarted(self) -> Driver:
        self.drivers.append(SubprocessDriver())
        return self.drivers[-1]


def processes() -> dict[int, tuple[int, str]]:
    """pid -> (session, state)"""
    seen = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            seen[int(entry.name)] = (int(fields[3]), fields[0])
    return seen


def zombies() -> list[int]:
    me = os.getpid()
    found = []
    for pid, (_, state) in processes().items():
        if state == "Z":
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found += [pid] if parent == me else []
    return found


async def until(predicate: Callable[[], bool], secs: float = 10.0) -> None:
    async with asyncio.timeout(secs):
        while not predicate():
            await asyncio.sleep(0.005)


@pytest.fixture(params=["fake", "subprocess"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "fake":
        yield FakeRig(tmp_path)
        return
    if not LINUX:
        pytest.skip("looks at /proc")
    real = RealRig(tmp_path)
    yield real
    for handle in real.started:
        await real.driver.stop(handle, grace_secs=0)
    for driver in real.drivers:
        await driver.close()
    assert zombies() == []


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[RealRig]:
    if not LINUX:
        pytest.skip("looks at /proc")
    rig = RealRig(tmp_path)
    yield rig
    for handle in rig.started:
        await rig.driver.stop(handle, grace_secs=0)
    for driver in rig.drivers:
        await driver.close()
    assert zombies() == []


async def test_start_answers_a_handle_of_a_running_process(rig: Rig) -> None:
    handle = await rig.start("obedient")
    assert handle.nonce == "a1" * 16
    assert handle.boot_id
    assert await rig.driver.recover(handle) == Found(handle)


async def test_output_is_appended_to_the_log(rig: Rig) -> None:
    Path(rig.log()).write_text("before\n")
    handle = await rig.start("three")
    await rig.driver.wait(handle)
    handle = await rig.start("three")
    await rig.driver.wait(handle)
    assert Path(rig.log()).read_text() == "before\nup\nup\n"


@pytest.mark.parametrize(("kind", "expected"), [("three", Exit(code=3)), ("abort", Exit(signal=6))])
async def test_exit_code_and_signal_are_seen(rig: Rig, kind: str, expected: Exit) -> None:
    handle = await rig.start(kind)
    assert await asyncio.wait_for(rig.driver.wait(handle), 1.0) == expected
    assert await rig.driver.wait(handle) == expected
    assert rig.living() == 0


async def test_waits_share_one_end_and_survive_a_cancelled_one(rig: Rig) -> None:
    handle = await rig.start("obedient")
    waits = [asyncio.create_task(rig.driver.wait(handle)) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await asyncio.wait([waits[0]])
    assert waits[0].cancelled()
    await rig.driver.stop(handle, grace_secs=5)
    assert await asyncio.gather(*waits[1:]) == [Exit(signal=15), Exit(signal=15)]


async def test_stop_by_term(rig: Rig) -> None:
    handle = await rig.start("polite")
    assert await rig.driver.stop(handle, grace_secs=5) == Exit(code=7)
    assert rig.living() == 0


async def test_ignored_term_becomes_kill_after_the_grace(rig: Rig) -> None:
    handle = await rig.start("stubborn")
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await rig.driver.stop(handle, grace_secs=0.3) == Exit(signal=9)
    assert 0.3 <= loop.time() - began < 1.5
    assert rig.living() == 0


async def test_no_grace_is_kill_at_once(rig: Rig) -> None:
    handle = await rig.start("polite")
    assert await rig.driver.stop(handle, grace_secs=0) == Exit(signal=9)


async def test_stopping_twice_equals_stopping_once(rig: Rig) -> None:
    handle = await rig.start("polite")
    first = await rig.driver.stop(handle, grace_secs=5)
    assert await rig.driver.stop(handle, grace_secs=5) == first
    assert rig.living() == 0


async def test_concurrent_stops_share_one_end(rig: Rig) -> None:
    handle = await rig.start("polite")
    stops = [rig.driver.stop(handle, grace_secs=5) for _ in range(5)]
    assert await asyncio.gather(*stops) == [Exit(code=7)] * 5


async def test_a_second_stop_with_less_grace_shortens_the_first(rig: Rig) -> None:
    handle = await rig.start("stubborn")
    patient = asyncio.create_task(rig.driver.stop(handle, grace_secs=60))
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(rig.driver.stop(handle, grace_secs=0), 2) == Exit(signal=9)
    assert await asyncio.wait_for(patient, 2) == Exit(signal=9)


async def test_a_second_stop_with_more_grace_does_not_lengthen_the_first(rig: Rig) -> None:
    handle = await rig.start("stubborn")
    first = asyncio.create_task(rig.driver.stop(handle, grace_secs=0.2))
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(rig.driver.stop(handle, grace_secs=60), 2) == Exit(signal=9)
    await first


async def test_stop_of_what_is_gone_is_success(rig: Rig) -> None:
    handle = await rig.start("three")
    await rig.driver.wait(handle)
    assert await rig.driver.stop(handle, grace_secs=5) == Exit(code=3)


@pytest.mark.parametrize("grace", [0.0, 0.2])
async def test_stop_ends_the_members_of_its_group(rig: Rig, grace: float) -> None:
    handle = await rig.start("family")
    assert rig.living() >= 3
    await rig.driver.stop(handle, grace_secs=grace)
    assert rig.living() == 0


async def test_stop_sweeps_what_outlived_its_leader(rig: Rig) -> None:
    handle = await rig.start("orphan")
    assert await rig.driver.wait(handle) == Exit(code=4)
    assert rig.living() >= 1
    assert await rig.driver.stop(handle, grace_secs=0) == Exit(code=4)
    assert rig.living() == 0


async def test_a_missing_program_leaves_nothing(rig: Rig) -> None:
    with pytest.raises(errors.DriverError, match="no-such-program") as refusal:
        await rig.driver.start(rig.order("missing"))
    assert refusal.value.code == "ENGINE_NOT_FOUND"
    assert rig.living() == 0
    assert await rig.driver.find("a1" * 16) is None


async def test_find_by_nonce_alone(rig: Rig) -> None:
    handle = await rig.start("obedient", nonce="b2" * 16)
    await rig.start("obedient", nonce="c3" * 16, name="two")
    assert await rig.restarted().find("b2" * 16) == handle
    assert await rig.driver.find("d4" * 16) is None
    await rig.driver.stop(handle, grace_secs=5)
    assert await rig.driver.find("b2" * 16) is None


async def test_recover_tells_gone_from_alive(rig: Rig) -> None:
    handle = await rig.start("obedient")
    other = rig.restarted()
    assert await other.recover(handle) == Found(handle)
    assert await other.recover(replace(handle, start_ticks=handle.start_ticks - 1)) == Gone()
    assert await other.recover(replace(handle, boot_id="another")) == Gone()
    assert await other.recover(replace(handle, nonce="f" * 32)) == Gone()
    await rig.driver.stop(handle, grace_secs=5)
    assert await other.recover(handle) == Gone()


async def test_a_reused_number_is_left_alone(rig: Rig) -> None:
    handle = await rig.start("obedient")
    stranger = replace(handle, start_ticks=handle.start_ticks - 1)
    other = rig.restarted()
    assert await other.wait(stranger) == Exit()
    assert await other.stop(stranger, grace_secs=0) == Exit()
    assert await other.stop(replace(handle, boot_id="another"), grace_secs=0) == Exit()
    assert await rig.driver.recover(handle) == Found(handle)


async def test_another_manager_watches_and_stops_it(rig: Rig) -> None:
    handle = await rig.start("stubborn")
    other = rig.restarted()
    wait = asyncio.create_task(other.wait(handle))
    await asyncio.sleep(0.02)
    assert not wait.done()
    await other.stop(handle, grace_secs=0.05)
    await asyncio.wait_for(wait, 1.0)
    assert rig.living() == 0


async def test_a_cancelled_stop_goes_on(rig: Rig) -> None:
    handle = await rig.start("polite")
    stop = asyncio.create_task(rig.driver.stop(handle, grace_secs=5))
    await asyncio.sleep(0.01)
    stop.cancel()
    assert await asyncio.wait_for(rig.driver.wait(handle), 2) == Exit(code=7)


# -- the real one alone -------------------------------------------------------------------------------------------


async def test_argv_and_environment_are_exact(real: RealRig) -> None:
    argv = (shutil.which("sleep") or "sleep", "60")
    env = {"A": "1 2", "B": "ü=x\ny"}
    order = replace(real.order("obedient"), argv=argv, env=env)
    handle = await real.driver.start(order)
    real.started.append(handle)
    process = Path(f"/proc/{handle.pid}")
    # the kernel shows both only an instant after the new program has taken over
    await until(lambda: bool((process / "environ").read_bytes()))
    assert (process / "cmdline").read_bytes() == b"\0".join(map(os.fsencode, argv)) + b"\0"
    given = dict(item.split("=", 1) for item in (process / "environ").read_text().rstrip("\0").split("\0"))
    assert given == {**env, "TEI_MANAGER_NONCE": order.nonce}
    assert (process / "fd" / "0").readlink() == Path("/dev/null")
    assert (process / "fd" / "1").readlink() == (process / "fd" / "2").readlink() == Path(order.log_path)
    assert sorted(entry.name for entry in (process / "fd").iterdir()) == ["0", "1", "2"]
    assert os.getsid(handle.pid) == os.getpgid(handle.pid) == handle.pid
    assert Path(order.log_path).stat().st_mode & 0o007 == 0


async def test_a_stopped_process_is_ended(real: RealRig) -> None:
    for kind, expected in (("stubborn", Exit(signal=9)), ("polite", Exit(code=7))):
        handle = await real.start(kind)
        os.kill(handle.pid, signal.SIGSTOP)
        assert await real.driver.stop(handle, grace_secs=0.3) == expected


async def test_what_is_not_executable_is_no_program(real: RealRig, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    for program in (str(plain), str(tmp_path), str(plain / "below")):
        with pytest.raises(errors.DriverError, match=str(tmp_path)) as refusal:
            await real.driver.start(replace(real.order("three"), argv=(program,)))
        assert refusal.value.code == "ENGINE_NOT_FOUND"


async def test_arguments_no_system_takes_are_an_error_of_ours(real: RealRig) -> None:
    for argv in (("sh", "a\0b"), (), ("sh", "\ud800")):
        with pytest.raises(errors.DriverError):
            await real.driver.start(replace(real.order("three"), argv=argv))


async def test_a_log_that_cannot_be_opened_is_an_error(real: RealRig, tmp_path: Path) -> None:
    with pytest.raises(errors.DriverError, match="log file"):
        await real.driver.start(replace(real.order("three"), log_path=str(tmp_path)))


async def test_a_cancelled_start_leaves_no_process(real: RealRig) -> None:
    for delay in (0.0, 0.0, 0.001, 0.002):
        start = asyncio.create_task(real.driver.start(real.order("obedient", nonce="e5" * 16)))
        await asyncio.sleep(delay)
        start.cancel()
        done, _ = await asyncio.wait([start])
        if not start.cancelled():
            real.started.append(done.pop().result())
            await real.driver.stop(real.started[-1], grace_secs=0)
    assert isinstance(real.driver, SubprocessDriver)
    await real.driver.close()
    real.driver = real.restarted()
    assert await real.driver.find("e5" * 16) is None


async def test_a_hidden_nonce_is_unverified_and_left_alone(real: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await real.start("obedient")
    other = real.restarted()

    def refuse(pid: int) -> str | None:
        raise PermissionError(pid)

    with monkeypatch.context() as patch:
        patch.setattr(process_table, "nonce_of", refuse)
        assert await other.recover(handle) == Unverified(handle.pid)
        assert await other.find(handle.nonce) is None
        with pytest.raises(errors.DriverError, match="cannot be proven ours"):
            await other.stop(handle, grace_secs=0)
    assert await real.driver.recover(handle) == Found(handle)


async def test_without_pidfd_the_table_is_read(real: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    handle = await real.start("three")
    assert await asyncio.wait_for(real.driver.wait(handle), 1.5) == Exit(code=3)
    handle = await real.start("family")
    assert await real.driver.stop(handle, grace_secs=0.1) == Exit(code=0)
    assert real.living() == 0


async def test_what_cannot_be_killed_is_an_error(real: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = await real.start("stubborn")
    with monkeypatch.context() as patch:
        patch.setattr("tei_manager.adapters.drivers.subprocess.KILL_WAIT_SECS", 0.2)
        patch.setattr(os, "killpg", lambda *_: None)
        with pytest.raises(errors.DriverError, match="still lives"):
            await real.driver.stop(handle, grace_secs=0)
    assert await real.driver.stop(handle, grace_secs=0) == Exit(signal=9)


def test_under_uvloop(tmp_path: Path) -> None:
    async def life() -> None:
        rig = RealRig(tmp_path)
        handle = await rig.start("three")
        assert await asyncio.wait_for(rig.driver.wait(handle), 1.0) == Exit(code=3)
        handle = await rig.start("family")
        assert await rig.driver.stop(handle, grace_secs=0.1) == Exit(code=0)
        assert rig.living() == 0
        assert zombies() == []
        await rig.driver.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life())


MANAGER = """
import asyncio, dataclasses, json, os, sys
from tei_manager.adapters.drivers.subprocess import SubprocessDriver
from tei_manager.ports.driver import Order

async def main():
    driver = SubprocessDriver()
    log, *argv = sys.argv[1:]
    order = Order(name="one", argv=tuple(argv), env=dict(os.environ), log_path=log, nonce="ad" * 16)
    handle = await driver.start(order)
    print(json.dumps(dataclasses.asdict(handle)), flush=True)
    await driver.wait(handle)

asyncio.run(main())
"""


@pytest.mark.parametrize("has_pidfd", [True, False])
async def test_a_killed_managers_process_is_adopted(
    real: RealRig, monkeypatch: pytest.MonkeyPatch, has_pidfd: bool
) -> None:
    """The process is nobody's child that we know: its end is seen all the same, how it ended is not."""
    argv = [sys.executable, "-c", MANAGER, real.log(), *real.argv("stubborn")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as manager:
        assert manager.stdout is not None
        handle = Handle(**json.loads(await asyncio.to_thread(manager.stdout.readline)))
        manager.kill()
    real.started.append(handle)
    await until(lambda: Path(real.log()).read_text() == "up\n")
    if not has_pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    assert await real.driver.recover(handle) == Found(handle)
    assert await real.driver.find("ad" * 16) == handle
    ends = asyncio.gather(real.driver.wait(handle), real.driver.stop(handle, grace_secs=0.1))
    assert await asyncio.wait_for(ends, 2) == [Exit(), Exit()]
    assert real.living() == 0
    assert await real.driver.recover(handle) == Gone()


REAPER = """
import asyncio, ctypes, os, sys
from pathlib import Path
from tei_manager.adapters.drivers.subprocess import SubprocessDriver
from tei_manager.ports.driver import Order

assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER, as for process 1 of a container

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

async def main():
    driver = SubprocessDriver()
    log, *argv = sys.argv[1:]
    for grace in (0.0, 0.1, 0.0, 0.1):
        order = Order(name="one", argv=tuple(argv), env=dict(os.environ), log_path=log, nonce=os.urandom(16).hex())
        handle = await driver.start(order)
        await asyncio.sleep(0.1)
        await driver.stop(handle, grace_secs=grace)
        print(children(), flush=True)

asyncio.run(main())
"""


async def test_orphans_that_we_inherit_are_reaped(real: RealRig) -> None:
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        pytest.skip("the kernel lists no children")
    for kind in ("family", "orphan"):
        argv = [sys.executable, "-c", REAPER, real.log(), *real.argv(kind)]
        run = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=20)
        assert (run.returncode, run.stdout) == (0, "[]\n" * 4), run.stderr


async def test_many_at_once(real: RealRig) -> None:
    handles = await asyncio.gather(
        *(real.driver.start(real.order("obedient", name=f"n{i}", nonce=f"{i:032x}")) for i in range(20))
    )
    real.started += handles
    assert len({handle.pid for handle in handles}) == 20
    ends = await asyncio.gather(*(real.driver.stop(handle, grace_secs=5) for handle in handles))
    assert ends == [Exit(signal=15)] * 20
    assert real.living() == 0


async def test_processes_outlive_a_closed_driver(real: RealRig) -> None:
    handle = await real.start("obedient")
    assert isinstance(real.driver, SubprocessDriver)
    await real.driver.close()
    real.driver = real.restarted()
    assert await real.driver.recover(handle) == Found(handle)
    await real.driver.stop(handle, grace_secs=5)


async def test_version_is_asked_once_per_file(real: RealRig, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    calls = tmp_path / "calls"
    program.write_text(f"#!/bin/sh\necho x >> {calls}\necho; echo tool 1.2.3; echo more\n")
    program.chmod(0o755)
    for _ in range(3):
        assert await real.driver.version(str(program)) == "tool 1.2.3"
    assert calls.read_text() == "x\n"
    program.write_text("#!/bin/sh\necho tool 1.3\n")
    assert await real.driver.version(str(program)) == "tool 1.3"
    assert await real.driver.version(str(tmp_path / "none")) is None


async def test_version_of_a_program_that_fails_or_hangs(
    real: RealRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tei_manager.adapters.drivers.subprocess.VERSION_TIMEOUT_SECS", 0.2)
    program = tmp_path / "tool"
    for script in ("echo no; exit 1", "echo 1.0; sleep 60"):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert await real.driver.version(str(program)) is None
