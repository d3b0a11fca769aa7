"""What the system knows about processes: who they are, who leads them, what their environment proves.

Reads /proc where there is one and asks psutil elsewhere (macOS). Everything here blocks for milliseconds at most
and sees a moment that may be over when it returns: identity is pid *and* start time, never a pid alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

NONCE = "TEI_MANAGER_NONCE"
_PROC = Path("/proc")
HAS_PROC = (_PROC / "self" / "stat").exists()


@dataclass(frozen=True, slots=True)
class Sight:
    """One process as it was seen. `is_dead`: it has ended and only waits to be reaped."""

    pid: int
    parent: int
    group: int
    session: int
    start_ticks: int
    is_dead: bool


@cache
def boot_id() -> str:
    """What tells this boot from others, as start times count from the boot."""
    if not HAS_PROC:
        return "absolute"  # start times are dates there, so they differ between boots by themselves
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def look(pid: int) -> Sight | None:
    """The process of that number, None if there is none."""
    return _look_proc(pid) if HAS_PROC else _look_psutil(pid)


def nonce_of(pid: int) -> str | None:
    """The nonce in the environment of a process, None if it has none.

    Raises PermissionError if the environment may not be read, or cannot be because the program overwrote it.
    """
    environment = _environ_proc(pid) if HAS_PROC else _environ_psutil(pid)
    return environment.get(NONCE)


def find_leader(nonce: str) -> Sight | None:
    """The living process that leads its session and whose environment holds this nonce."""
    for sight in _all():
        if sight.session != sight.pid or sight.is_dead or not _is_of_our_user(sight.pid):
            continue
        with contextlib.suppress(PermissionError):
            if nonce_of(sight.pid) == nonce:
                return sight
    return None


def members(leader: int, start_ticks: int, nonce: str, *, was_watched: bool) -> list[Sight]:
    """Who lives in the session or group that a process led, itself included.

    The system does not reuse a leader's number while anybody is left, so a leader that started at another time
    proves that all are gone. Without the leader, who carries our nonce is ours; who carries none is ours only if
    we watched the leader to its end (`was_watched`). Dead ones that are our own children are reaped.
    """
    first = look(leader)
    if first is not None and first.start_ticks != start_ticks:
        return []
    is_led = first is not None
    found = []
    for sight in _all():
        if leader not in (sight.group, sight.session):
            continue
        if sight.is_dead:
            if sight.pid != leader and sight.parent == os.getpid():
                _reap(sight.pid)
        elif is_led or _belongs(sight.pid, nonce, unless_told=was_watched):
            found.append(sight)
    return found


def send(sight: Sight, signum: signal.Signals) -> None:
    """Signal exactly the process that was seen; nothing happens if it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if not hasattr(os, "pidfd_open"):
            _send_unless_reused(sight, signum)
            return
        try:
            descriptor = os.pidfd_open(sight.pid)
        except ProcessLookupError:
            return
        except OSError:  # an old kernel, or a sandbox that forbids it
            _send_unless_reused(sight, signum)
            return
        try:
            if _is_same(sight):
                signal.pidfd_send_signal(descriptor, signum)
        finally:
            os.close(descriptor)


def send_group(leader: int, signum: signal.Signals) -> None:
    """Signal a group whose leader or members were just seen. Unlike one by one, it misses no fork."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signum)


def _send_unless_reused(sight: Sight, signum: signal.Signals) -> None:
    if _is_same(sight):
        os.kill(sight.pid, signum)


def _is_same(sight: Sight) -> bool:
    now = look(sight.pid)
    return now is not None and now.start_ticks == sight.start_ticks


def _belongs(pid: int, nonce: str, *, unless_told: bool) -> bool:
    try:
        carried = nonce_of(pid)
    except PermissionError:
        carried = None
    return unless_told if carried is None else carried == nonce


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _is_of_our_user(pid: int) -> bool:
    if not HAS_PROC:
        return True  # foreign environments cannot be read there anyway
    try:
        return (_PROC / str(pid)).stat().st_uid == os.getuid()
    except OSError:
        return False


def _all() -> Iterator[Sight]:
    for pid in (
        [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()] if HAS_PROC else psutil.pids()
    ):
        if (sight := look(pid)) is not None:
            yield sight


def _look_proc(pid: int) -> Sight | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name stands in parentheses and may itself contain some
    fields = text[text.rindex(")") + 2 :].split()
    # a dead first thread beside living ones is no dead process
    is_dead = fields[0] in "ZX" and int(fields[17]) <= 1
    return Sight(pid, int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]), is_dead)


def _environ_proc(pid: int) -> dict[str, str]:
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    if not raw.strip(b"\0"):
        # every process of ours has variables: an empty environment is one that could not be read
        raise PermissionError(f"environment of process {pid} is empty")
    pairs = (item.partition(b"=") for item in raw.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}


def _look_psutil(pid: int) -> Sight | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            ticks = int(process.create_time() * 1_000_000)
            parent, is_dead = process.ppid(), process.status() == psutil.STATUS_ZOMBIE
        return Sight(pid, parent, os.getpgid(pid), os.getsid(pid), ticks, is_dead)
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
        return None


def _environ_psutil(pid: int) -> dict[str, str]:
    try:
        environment: dict[str, str] = psutil.Process(pid).environ()
    except psutil.NoSuchProcess:
        return {}
    except (psutil.AccessDenied, OSError) as error:
        raise PermissionError(str(error)) from error
    if not environment:
        raise PermissionError(f"environment of process {pid} is empty")
    return environment
