"""Instances as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tei_manager.adapters.drivers import process_table
from tei_manager.adapters.drivers.exit_watch import ExitWatch
from tei_manager.domain import errors
from tei_manager.ports.driver import Exit, Found, Gone, Handle, Order, Recovery, Unverified

T = TypeVar("T")

NAME = "subprocess"
KILL_WAIT_SECS = 5.0
VERSION_TIMEOUT_SECS = 5.0
_REMEMBERED_EXITS = 1024
# what exec says of a program that is missing or is none; repeating the start cannot help
_NO_PROGRAM = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@dataclass(slots=True)
class _Stop:
    """A stop under way, shared by all who asked for it."""

    deadline: float
    poke: asyncio.Event
    task: asyncio.Task[Exit] | None = None


class SubprocessDriver:
    """Implements `ports.driver.Driver`. Belongs to the event loop it is used in.

    Processes lead a session of their own, write straight to their log file and have no pipe to us, so they outlive
    the manager; `recover` and `find` see them again.
    """

    def __init__(self) -> None:
        # not the default threads: a stop must not queue behind somebody's slow disk
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="driver")
        self._watches: OrderedDict[tuple[int, int], ExitWatch] = OrderedDict()
        self._stops: dict[tuple[int, int], _Stop] = {}
        self._background: set[asyncio.Future[Any]] = set()
        self._versions: dict[tuple[str, int, int], str] = {}

    async def start(self, order: Order) -> Handle:
        task = asyncio.create_task(self._start(order), name=f"start {order.name}")
        self._keep(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._bury)
            raise

    async def wait(self, handle: Handle) -> Exit:
        return await asyncio.shield(self._watch(handle).gone)

    async def stop(self, handle: Handle, *, grace_secs: float) -> Exit:
        loop = asyncio.get_running_loop()
        key, deadline = _key(handle), loop.time() + grace_secs
        if (stop := self._stops.get(key)) is None:
            stop = self._stops[key] = _Stop(deadline, asyncio.Event())
            stop.task = asyncio.create_task(self._stop(handle, stop), name=f"stop {handle.pid}")
            stop.task.add_done_callback(lambda task: self._stopped(key, task))
            self._keep(stop.task)
        elif deadline < stop.deadline:
            stop.deadline = deadline
            stop.poke.set()
        assert stop.task is not None
        return await asyncio.shield(stop.task)

    async def recover(self, handle: Handle) -> Recovery:
        return await self._in_thread(_recover, handle)

    async def find(self, nonce: str) -> Handle | None:
        sight = await self._in_thread(process_table.find_leader, nonce)
        return _handle(sight.pid, sight.start_ticks, nonce) if sight else None

    async def version(self, program: str) -> str | None:
        return await self._in_thread(self._version, program)

    async def close(self) -> None:
        """Let go of everything; processes live on. A start or stop under way is finished first."""
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        self._threads.shutdown(wait=False)

    # -- starting ---------------------------------------------------------------------------------------------

    async def _start(self, order: Order) -> Handle:
        handle = await self._in_thread(_spawn, order)
        # from now on its end is seen and it is reaped, whether anybody asks or not
        self._watch(handle).is_proven = True
        return handle

    def _bury(self, task: asyncio.Task[Handle]) -> None:
        """End a process whose start was cancelled meanwhile: nobody has its handle."""
        if task.cancelled() or task.exception() is not None:
            return
        burial = asyncio.ensure_future(self.stop(task.result(), grace_secs=0.0))
        burial.add_done_callback(_look_away)
        self._keep(burial)

    # -- ending -----------------------------------------------------------------------------------------------

    async def _stop(self, handle: Handle, stop: _Stop) -> Exit:
        loop = asyncio.get_running_loop()
        watch = self._watch(handle)
        if not watch.is_proven:
            if isinstance(await self.recover(handle), Unverified):
                raise errors.DriverError(f"process {handle.pid} cannot be proven ours and is left alone")
            watch.is_proven = True
        watch.gone.add_done_callback(lambda _: stop.poke.set())
        asked, killed_at, pause = False, None, 0.01
        while await self._in_thread(_living, handle, watch.saw_it):
            now = loop.time()
            if now < stop.deadline:
                if not asked:
                    await self._in_thread(_signal, handle, watch.saw_it, signal.SIGTERM)
                asked = True
                # once the leader is gone nothing tells us of the others: look again and again
                limit = min(stop.deadline - now, pause if watch.gone.done() else 1.0)
            else:
                killed_at = killed_at or now
                if now - killed_at > KILL_WAIT_SECS:
                    raise errors.DriverError(
                        f"process {handle.pid} still lives {KILL_WAIT_SECS:g} s after SIGKILL",
                        details={"pid": handle.pid},
                    )
                await self._in_thread(_signal, handle, watch.saw_it, signal.SIGKILL)
                limit = pause
            pause = min(pause * 1.5, 0.2)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.poke.wait(), limit)
            stop.poke.clear()
        return await asyncio.shield(watch.gone)

    def _stopped(self, key: tuple[int, int], task: asyncio.Task[Exit]) -> None:
        del self._stops[key]
        _look_away(task)

    # -- watching ---------------------------------------------------------------------------------------------

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _watch(self, handle: Handle) -> ExitWatch:
        key = _key(handle)
        if (watch := self._watches.get(key)) is None:
            if handle.boot_id != process_table.boot_id():
                key = (handle.pid, -1)  # nothing of an earlier boot lives: matches no process
            watch = self._watches[key] = ExitWatch(*key)
            self._forget_old_exits()
        return watch

    def _forget_old_exits(self) -> None:
        ended = [key for key, watch in self._watches.items() if watch.gone.done()]
        for key in ended[: max(0, len(ended) - _REMEMBERED_EXITS)]:
            del self._watches[key]

    # -- asking -----------------------------------------------------------------------------------------------

    def _version(self, program: str) -> str | None:
        found = shutil.which(program)
        if found is None:
            return None
        try:
            path = os.path.realpath(found)
            status = Path(path).stat()
        except OSError:
            return None
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in self._versions and (line := _first_line(found)) is not None:
            self._versions[key] = line
        return self._versions.get(key)

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        call = functools.partial(work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _key(handle: Handle) -> tuple[int, int]:
    return handle.pid, handle.start_ticks


def _handle(pid: int, start_ticks: int, nonce: str) -> Handle:
    return Handle(driver=NAME, pid=pid, start_ticks=start_ticks, boot_id=process_table.boot_id(), nonce=nonce)


def _look_away(task: asyncio.Future[Exit]) -> None:
    # an error belongs to those who wait; if they all went, nobody is to be told
    if not task.cancelled():
        task.exception()


def _spawn(order: Order) -> Handle:
    program = order.argv[0] if order.argv else ""
    try:
        log = _open_log(order.log_path)
    except OSError as error:
        raise errors.DriverError(f"log file {order.log_path}: {error.strerror or error}") from error
    try:
        process = subprocess.Popen(
            order.argv,
            env={**order.env, process_table.NONCE: order.nonce},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            close_fds=True,
            start_new_session=True,
        )
    except _NO_PROGRAM as error:
        raise errors.DriverError(f"{program}: {error.strerror}", code="ENGINE_NOT_FOUND") from error
    except (OSError, ValueError, IndexError) as error:
        raise errors.DriverError(f"{program} cannot be started: {error}") from error
    finally:
        os.close(log)
    # the watch reaps it by its pidfd; Popen's own bookkeeping would reap it, or complain, at any moment
    process.returncode = 0
    sight = process_table.look(process.pid)
    if sight is None:  # only if the process table itself cannot be read
        os.killpg(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        raise errors.DriverError(f"process {process.pid} cannot be seen in the process table")
    return _handle(process.pid, sight.start_ticks, order.nonce)


def _open_log(path: str) -> int:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _recover(handle: Handle) -> Recovery:
    sight = process_table.look(handle.pid) if handle.boot_id == process_table.boot_id() else None
    if sight is None or sight.is_dead or sight.start_ticks != handle.start_ticks:
        return Gone()
    try:
        nonce = process_table.nonce_of(handle.pid)
    except PermissionError:
        return Unverified(handle.pid)
    if nonce is None:
        # all else agrees; programs that rewrite their title overwrite their environment
        return Unverified(handle.pid)
    return Found(handle) if nonce == handle.nonce else Gone()


def _living(handle: Handle, was_watched: bool) -> list[process_table.Sight]:
    if handle.boot_id != process_table.boot_id():
        return []
    return process_table.members(handle.pid, handle.start_ticks, handle.nonce, was_watched=was_watched)


def _signal(handle: Handle, was_watched: bool, signum: signal.Signals) -> None:
    living = _living(handle, was_watched)
    if any(sight.group == handle.pid for sight in living):
        process_table.send_group(handle.pid, signum)
    for sight in living:
        if sight.group != handle.pid:  # a group of its own inside our session
            process_table.send(sight, signum)
        if signum is signal.SIGTERM:
            process_table.send(sight, signal.SIGCONT)  # a stopped process cannot handle anything


def _first_line(program: str) -> str | None:
    """First line of `program --version`. A file takes the output: a pipe stays open in whoever inherits it."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [program, "--version"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError):
            return None
        try:
            code = process.wait(VERSION_TIMEOUT_SECS)
        except subprocess.TimeoutExpired:
            code = None
            process_table.send_group(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        lines = output.read(65536).decode(errors="replace").split("\n")
    line = next((line.strip() for line in lines if line.strip()), None)
    return line if code == 0 else None
