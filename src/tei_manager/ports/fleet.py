"""The control plane as its callers see it: the verbs of REST and of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import EngineKind, Instance, InstanceSpec, Origin
from tei_manager.engines.metrics_reading import EngineInfo


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Lines `start` (inclusive) to `end` (exclusive) of a log that has `total` lines now."""

    lines: tuple[str, ...]
    start: int
    end: int
    total: int


@dataclass(frozen=True, slots=True)
class Warning:
    """Something the operator should know. `code` is a stable upper-case word."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Degraded:
    """Something of ours works less well than it should. `reason` is a stable word such as `state-save`.

    `since` is in seconds since the epoch, `detail` for people.
    """

    reason: str
    since: float | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of the process that runs now, and of its work since it was started."""

    info: EngineInfo | None = None  # None = it has not told
    figures: Figures = field(default_factory=Figures)


class Fleet(Protocol):
    """Reads answer from memory at once. Verbs are idempotent: two equal ones at once act as one."""

    @property
    def default_engine(self) -> EngineKind:
        """The engine of a specification that names none."""
        ...

    @property
    def warnings(self) -> tuple[Warning, ...]: ...

    @property
    def degraded(self) -> tuple[Degraded, ...]:
        """Sorted by reason; empty = all is well."""
        ...

    @property
    def is_reconciled(self) -> bool:
        """Whether the first look at reality is done."""
        ...

    @property
    def is_draining(self) -> bool: ...

    def instances(self) -> tuple[Instance, ...]:
        """All registered instances by (created_at, name)."""
        ...

    def get(self, name: str) -> Instance:
        """Raises `errors.UnknownInstance`."""
        ...

    async def inspect(self, name: str) -> Inspection:
        """Ask the engine, if it answers at once, else what is remembered of it: within 100 ms, whatever it does.

        Raises `errors.UnknownInstance`.
        """
        ...

    async def create(self, spec: InstanceSpec, *, origin: Origin) -> Instance:
        """Register, save, and start if `autostart`; answers at once.

        Raises `errors.InvalidSpec`, `errors.Conflict`, `errors.CapacityError`, `errors.Forbidden`,
        `errors.NotReady` (shutting down); then nothing is registered.
        """
        ...

    async def delete(self, name: str) -> None:
        """Stop and forget; returns once the process is gone and the state is saved."""
        ...

    async def start(self, name: str) -> Instance:
        """Want it running. Returns after the spawn."""
        ...

    async def stop(self, name: str, *, wait: bool = True) -> Instance:
        """Want it stopped. Returns after the process is gone, or at once with `wait=False`."""
        ...

    async def restart(self, name: str) -> Instance:
        """Drain, stop, start. Returns after the spawn."""
        ...

    async def wait_running(self, name: str, *, timeout_secs: float | None) -> Instance:
        """Wait until it runs; None = its startup limit.

        Raises `errors.InstanceFailed` or `errors.StartupTimeout`, both with `details` {status, last_error,
        log_tail}; the instance stays registered.
        """
        ...

    async def logs(
        self, name: str, *, start: int | None = None, end: int | None = None, tail: int | None = None
    ) -> LogSlice:
        """Lines of the instance's log file; negative = from the end, beyond = clamped, at most 10 000 lines."""
        ...
