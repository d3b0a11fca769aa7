"""What the control plane and the HTTP door count. Every method returns at once and never raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from tei_manager.domain.instance import Instance


class ControlMetrics(Protocol):
    """Names come from registered instances only; gauges are read at scrape from the `watch`ed instances."""

    def watch(self, instances: Callable[[], Iterable[Instance]]) -> None:
        """From now on read the gauges (`instances`, `instances_count`, `instance_up`) from this snapshot."""
        ...

    def created(self, instance: str, model: str) -> None:
        """An instance was registered, by the API or by the configuration."""
        ...

    def deleted(self, instance: str) -> None:
        """An instance is gone. Its gauges end at once, its counters 10 minutes later."""
        ...

    def restarted(self, instance: str) -> None:
        """A restart was begun, by a person or automatically."""
        ...

    def exited(self, instance: str, cause: str) -> None:
        """A process ended that nobody had asked to. `cause` is `code` or `signal`."""
        ...

    def probe_failed(self, instance: str) -> None:
        """A liveness probe failed."""
        ...

    def probed(self, instance: str, secs: float) -> None:
        """A liveness probe ended, well or not."""
        ...

    def became_ready(self, engine: str, secs: float) -> None:
        """A start succeeded, `secs` after its spawn."""
        ...

    def state_recovered(self) -> None:
        """The state file was unreadable and its backup was used."""
        ...


class HttpMetrics(Protocol):
    """What the HTTP door counts. `route` is a pattern such as `/instances/{name}`, never a caller's text."""

    def http(self, route: str, code: int, secs: float) -> None: ...

    def upstream(self, upstream: str, op: str, outcome: str, secs: float) -> None:
        """One call to an engine ended. `upstream` is an instance's name, `outcome` `ok` or a fault's class."""
        ...

    def retried(self, upstream: str, kind: str) -> None:
        """A call to `upstream` was given up for fault class `kind` and is made again."""
        ...

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        ...
