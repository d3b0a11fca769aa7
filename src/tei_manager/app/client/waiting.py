"""Waiting until an instance can be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tei_manager.app.client.console import Console
from tei_manager.app.client.failures import CommandFailed
from tei_manager.app.client.progress import Progress
from tei_manager.app.client.rest import Client, Json, instance_path

POLL_S = 0.3
REDRAW_S = 0.1
PATIENCE_S = 600.0
GRACE_S = 10.0  # beyond the manager's own time limit, so that its verdict is the one that is seen
LOG_LINES = 20


@dataclass(frozen=True, slots=True)
class Waiter:
    """Polls instances and draws their progress; `clock` and `sleep` are those of the caller."""

    client: Client
    progress: Progress
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def until_running(self, instance: Json, timeout_s: float | None = None) -> Json:
        """The instance object once it is `running`.

        Raises `CommandFailed` if it failed (with its last error and log lines), was stopped by somebody, or
        is not there after `timeout_s`: by default its own startup timeout and a little, else ten minutes.
        """
        name = str(instance["name"])
        own = instance.get("startup_timeout_secs")
        limit = timeout_s if timeout_s is not None else (PATIENCE_S if own is None else float(own) + GRACE_S)
        deadline = self.clock() + limit
        self.progress.begin()
        while True:
            self.progress.show(instance)
            match instance.get("status"):
                case "running":
                    self.progress.wipe()
                    return instance
                case "failed":
                    self.progress.wipe()
                    raise self._failure(instance)
                # between the two halves of a restart an instance is stopped and still wanted
                case "stopped" if instance.get("desired") != "running":
                    self.progress.wipe()
                    raise CommandFailed(f"instance '{name}' was stopped before it was running")
            if self.clock() >= deadline:
                self.progress.wipe()
                raise CommandFailed(
                    f"instance '{name}' is not running after {limit:g} s; it keeps trying "
                    f"(see 'tei-manager instances logs {name}')"
                )
            self._pause(instance)
            instance = self.client.get(instance_path(name))

    def _pause(self, instance: Json) -> None:
        until = self.clock() + POLL_S
        while (left := until - self.clock()) > 0:
            self.sleep(min(left, REDRAW_S))
            self.progress.show(instance)

    def _failure(self, instance: Json) -> CommandFailed:
        name = str(instance["name"])
        lines = [f"instance '{name}' failed: {instance.get('last_error') or 'no reason given'}"]
        try:
            log = self.client.get(instance_path(name, "logs"), {"tail": LOG_LINES})["lines"]
        except (CommandFailed, KeyError, TypeError):
            log = []  # the reason is told already; a log that cannot be read must not hide it
        if log:
            lines += [f"last lines of its log ('tei-manager instances logs {name}' shows more):"]
            lines += [f"  {line}" for line in log]
        return CommandFailed(*lines)


@contextmanager
def waiter(
    client: Client, console: Console, width: int | None, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Iterator[Waiter]:
    """A waiter that leaves a clean line behind, and says so when a person stops waiting."""
    with Progress(console.err, width=width, clock=clock) as progress:
        try:
            yield Waiter(client, progress, clock, sleep)
        except KeyboardInterrupt:
            progress.wipe()
            console.note("no longer waiting; the instance keeps loading")
            raise
