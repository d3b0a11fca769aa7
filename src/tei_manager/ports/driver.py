"""How a started thing is run, found again and ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One process to start. `nonce` (hex) is in `env` too: it proves later that a process is ours."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log_path: str
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Handle:
    """What is needed to find a started process again, also after a crash of the manager.

    A pid alone proves nothing (the system reuses it): the start time in clock ticks since boot, the boot and the
    nonce must agree as well.
    """

    driver: str
    pid: int
    start_ticks: int
    boot_id: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. Both None: it is gone and nobody could see how (it was not our child)."""

    code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A recorded process is alive and ours."""

    handle: Handle


@dataclass(frozen=True, slots=True)
class Gone:
    """A recorded process is proven gone."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """Something runs under that pid and cannot be proven ours: leave it alone."""

    pid: int


Recovery = Found | Gone | Unverified


class Driver(Protocol):
    """Runs instances. Every method is safe to cancel and to repeat."""

    async def start(self, order: Order) -> Handle:
        """Start a process of its own session, output appended to `log_path`.

        Raises `errors.DriverError`; then nothing runs. With `code` ENGINE_NOT_FOUND the program is missing.
        """
        ...

    async def wait(self, handle: Handle) -> Exit:
        """Return when the process is gone, at most 1 s later."""
        ...

    async def stop(self, handle: Handle, *, grace_secs: float) -> Exit:
        """End the whole process group: TERM, then KILL after `grace_secs`. Stopping twice equals stopping once.

        Raises `errors.DriverError` if it still lives 5 s after KILL.
        """
        ...

    async def recover(self, handle: Handle) -> Recovery:
        """Look for a process started earlier, perhaps by another manager process."""
        ...

    async def find(self, nonce: str) -> Handle | None:
        """Find a process by nonce alone: a start whose answer was lost."""
        ...

    async def version(self, program: str) -> str | None:
        """First line of `<program> --version`, None if it cannot be run; remembered per (path, size, mtime)."""
        ...
