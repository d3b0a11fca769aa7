"""A control plane in memory: what `ports.fleet.Fleet` promises, without a single process.

    fleet = FakeFleet(doors=[router], ports=range(8080, 8090))
    await fleet.create(spec, origin=Origin.API)     # starting, and running a moment later
    fleet.crash("bge", "process exited with code 1")

With `starts_by_itself=False` nothing becomes ready until the test says `become_ready`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tei_manager.domain import errors
from tei_manager.domain.instance import (
    Desired,
    EngineKind,
    Instance,
    InstanceSpec,
    Origin,
    Ports,
    Protocol,
    Status,
)
from tei_manager.domain.target import Endpoint
from tei_manager.ports.fleet import Degraded, Inspection, LogSlice, Warning
from tei_manager.ports.frontdoor import FrontDoor

MOST_LINES = 10_000
TAIL_LINES = 50


class FakeFleet:
    """Implements `ports.fleet.Fleet`. Instances that run are announced to `doors` on their main port."""

    def __init__(
        self,
        *,
        doors: Sequence[FrontDoor] = (),
        default_engine: EngineKind = EngineKind.EMBEDDED,
        host: str = "127.0.0.1",
        ports: Iterable[int] = range(8080, 8180),
        max_instances: int | None = None,
        allows_command: bool = False,
        starts_by_itself: bool = True,
        protocol: Protocol = Protocol.HTTP,
        startup_timeout_secs: float = 300,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.default_engine = default_engine
        self.warnings: tuple[Warning, ...] = ()
        self.degraded: tuple[Degraded, ...] = ()
        self.inspections: dict[str, Inspection] = {}  # by name; nothing is known of the others
        self.is_reconciled = True
        self.is_draining = False
        self.verbs: list[tuple[str, str]] = []  # (verb, name) in the order they were asked for
        self._doors, self._host, self._ports = doors, host, tuple(ports)
        self._max_instances, self._allows_command = max_instances, allows_command
        self._starts_by_itself, self._protocol = starts_by_itself, protocol
        self._startup_timeout_secs, self._clock = startup_timeout_secs, clock
        self._instances: dict[str, Instance] = {}
        self._logs: dict[str, list[str]] = {}
        self._pids = itertools.count(1001)
        self._changed = asyncio.Event()

    # what the fleet promises

    def instances(self) -> tuple[Instance, ...]:
        return tuple(sorted(self._instances.values(), key=lambda each: (each.created_at, each.name)))

    def get(self, name: str) -> Instance:
        if (instance := self._instances.get(name)) is None:
            raise errors.UnknownInstance(name)
        return instance

    async def inspect(self, name: str) -> Inspection:
        self.get(name)
        return self.inspections.get(name, Inspection())

    async def create(self, spec: InstanceSpec, *, origin: Origin) -> Instance:
        self.verbs.append(("create", spec.name))
        self._admit(spec, origin)
        ports = Ports(main=self._port(spec), metrics=spec.prometheus_port)
        instance = Instance(
            spec=spec,
            ports=ports,
            created_at=self._clock(),
            origin=origin,
            desired=Desired.RUNNING if spec.autostart else Desired.STOPPED,
        )
        self._put(instance)
        return self._spawn(spec.name) if spec.autostart else instance

    async def delete(self, name: str) -> None:
        self.verbs.append(("delete", name))
        self.get(name)
        await self._end(name, Status.STOPPED)
        del self._instances[name]
        self._publish()

    async def start(self, name: str) -> Instance:
        self.verbs.append(("start", name))
        self._change(name, desired=Desired.RUNNING)
        if self.get(name).status in (Status.STARTING, Status.RUNNING):
            return self.get(name)
        return self._spawn(name)

    async def stop(self, name: str, *, wait: bool = True) -> Instance:
        self.verbs.append(("stop", name))
        self._change(name, desired=Desired.STOPPED)
        if not wait:
            if self.get(name).pid is None:
                return self.get(name)
            stopping = self._change(name, status=Status.STOPPING)
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self._end(name, Status.STOPPED)))
            return stopping
        return await self._end(name, Status.STOPPED)

    async def restart(self, name: str) -> Instance:
        self.verbs.append(("restart", name))
        self._change(name, desired=Desired.RUNNING)
        await self._end(name, Status.STOPPED)
        self._change(name, restarts=self.get(name).restarts + 1)
        return self._spawn(name)

    async def wait_running(self, name: str, *, timeout_secs: float | None) -> Instance:
        limit = timeout_secs or self.get(name).spec.startup_timeout_secs or self._startup_timeout_secs
        try:
            async with asyncio.timeout(limit):
                while (instance := self.get(name)).status not in (Status.RUNNING, Status.FAILED):
                    await self._changed.wait()
        except TimeoutError:
            text = f"Instance '{name}' did not become ready within {limit:g}s"
            raise errors.StartupTimeout(text, details=self._story(name)) from None
        if instance.status is Status.FAILED:
            raise errors.InstanceFailed(f"Instance '{name}' failed", details=self._story(name))
        return instance

    async def logs(
        self, name: str, *, start: int | None = None, end: int | None = None, tail: int | None = None
    ) -> LogSlice:
        self.get(name)
        lines = self._logs.get(name, [])
        total = len(lines)
        if tail is not None:
            start = total - tail
        elif start is None and end is None:
            start = total - MOST_LINES
        elif start is not None and start < 0:
            start = total + start
        first = min(max(start or 0, 0), total)
        last = total if end is None else min(max(total + end if end < 0 else end, 0), total)
        last = min(last, first + MOST_LINES)
        return LogSlice(tuple(lines[first:last]), first, max(first, last), total)

    # what a test says

    def become_ready(self, name: str, *, protocol: Protocol | None = None) -> Instance:
        """The engine answers: the instance runs and its endpoint is announced."""
        instance = self._change(name, status=Status.RUNNING, protocol=protocol or self._protocol)
        for door in self._doors:
            door.announce(self.endpoint(name))
        return instance

    def crash(self, name: str, text: str) -> Instance:
        """The process ended by itself, for good."""
        instance = self.get(name)
        for door in self._doors:
            if instance.uid is not None:
                asyncio.ensure_future(door.withdraw(instance.uid, drain_secs=0))  # noqa: RUF006 - the fake outlives it
        return self._change(
            name, status=Status.FAILED, detail="exited", last_error=text, pid=None, uid=None, started_at=None
        )

    def write_log(self, name: str, *lines: str) -> None:
        self._logs.setdefault(name, []).extend(lines)

    def endpoint(self, name: str) -> Endpoint:
        """The address under which a running instance is announced."""
        instance = self.get(name)
        assert instance.uid is not None, "it has no process"
        spec = instance.spec
        return Endpoint(
            instance=name,
            uid=instance.uid,
            host=self._host,
            http_port=None if instance.protocol is Protocol.GRPC else instance.ports.main,
            grpc_port=instance.grpc_port,
            protocol=instance.protocol,
            engine=spec.engine,
            model_id=spec.model_id,
            revision=spec.revision,
            pooling=spec.pooling,
            aliases=spec.aliases,
            max_concurrent_requests=spec.max_concurrent_requests,
        )

    # how it works

    def _admit(self, spec: InstanceSpec, origin: Origin) -> None:
        if self.is_draining:
            raise errors.NotReady("The manager is shutting down", code="SHUTTING_DOWN")
        if spec.engine is EngineKind.COMMAND and origin is Origin.API and not self._allows_command:
            raise errors.Forbidden("Engine 'command' is not allowed over REST; see api_allow_command")
        if spec.name.lower() in (name.lower() for name in self._instances):
            raise errors.Conflict(f"Instance '{spec.name}' already exists", code="INSTANCE_EXISTS")
        for other in self._instances.values():
            if spec.port is not None and spec.port in other.ports.all:
                text = f"Port {spec.port} already in use by instance '{other.name}'"
                raise errors.Conflict(text, code="PORT_CONFLICT")
            if shared := set(spec.aliases) & {other.name, other.spec.model_id}:
                text = f"Alias '{min(shared)}' is already the name or model of instance '{other.name}'"
                raise errors.Conflict(text, code="ALIAS_CONFLICT")
        if self._max_instances is not None and len(self._instances) >= self._max_instances:
            text = f"Maximum instance count ({self._max_instances}) reached"
            raise errors.CapacityError(text, code="MAX_INSTANCES_REACHED")

    def _port(self, spec: InstanceSpec) -> int:
        if spec.port is not None:
            return spec.port
        taken = {port for other in self._instances.values() for port in other.ports.all}
        for port in self._ports:
            if port not in taken:
                return port
        raise errors.CapacityError("No port is free", code="PORT_ALLOCATION_FAILED")

    def _spawn(self, name: str) -> Instance:
        pid = next(self._pids)
        instance = self._change(
            name,
            status=Status.STARTING,
            pid=pid,
            uid=f"uid-{pid}",
            started_at=self._clock(),
            detail=None,
            last_error=None,
        )
        if self._starts_by_itself:
            asyncio.get_running_loop().call_soon(self._came_up, name, pid)
        return instance

    def _came_up(self, name: str, pid: int) -> None:
        instance = self._instances.get(name)
        if instance is not None and instance.pid == pid and instance.status is Status.STARTING:
            self.become_ready(name)

    async def _end(self, name: str, status: Status) -> Instance:
        instance = self.get(name)
        if instance.uid is not None:
            for door in self._doors:
                await door.withdraw(instance.uid, drain_secs=1)
        if name not in self._instances:
            return instance
        return self._change(name, status=status, pid=None, uid=None, started_at=None, protocol=Protocol.UNKNOWN)

    def _story(self, name: str) -> dict[str, object]:
        instance = self.get(name)
        tail = self._logs.get(name, [])[-TAIL_LINES:]
        return {"status": str(instance.status), "last_error": instance.last_error, "log_tail": tail}

    def _change(self, name: str, **changes: object) -> Instance:
        return self._put(replace(self.get(name), **changes))  # type: ignore[arg-type]

    def _put(self, instance: Instance) -> Instance:
        self._instances[instance.name] = instance
        self._publish()
        return instance

    def _publish(self) -> None:
        for door in self._doors:
            door.publish(self.instances())
        self._changed.set()
        self._changed = asyncio.Event()
