"""One run of an engine: from the intent to start it to the proof that it is gone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

import structlog

from tei_manager.control import surroundings
from tei_manager.control.readings import Readings
from tei_manager.control.settings import Settings
from tei_manager.control.watch import Subject
from tei_manager.control.world import World
from tei_manager.domain import errors
from tei_manager.domain import spec as specs
from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.domain.target import Endpoint
from tei_manager.engines import catalog
from tei_manager.engines.base import Launch, Refusal
from tei_manager.ports.driver import Handle, Order
from tei_manager.ports.fleet import Degraded

log = structlog.get_logger("tei_manager.control.process")

STUCK_RETRY_SECS = (1.0, 60.0)


class NotStarted(Exception):
    """No process runs; `reason` says why."""

    def __init__(self, reason: ExitReason) -> None:
        super().__init__(reason.text)
        self.reason = reason


class Process:
    """Created with the intent to start, before anything runs: `nonce` is saved first, so that a process whose
    start was not answered can be found again.

    `adopted` is the handle of a process that an earlier manager started, and the fingerprint of the specification
    it was started with, None = not known.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        ports: Ports,
        world: World,
        settings: Settings,
        adopted: tuple[Handle, str | None] | None = None,
    ) -> None:
        self.spec, self.ports = spec, ports
        self.uid = secrets.token_hex(8)
        self.handle: Handle | None = None
        self.launched: str | None = specs.fingerprint(spec)
        self.stuck: Degraded | None = None  # it was killed and lives on
        if adopted:
            self.handle, self.launched = adopted
        self.nonce = self.handle.nonce if self.handle else secrets.token_hex(16)
        self.log_path = str(Path(settings.log_dir) / f"{spec.name}.log")
        self.started_at = world.now()
        self.spawned_at = asyncio.get_running_loop().time()
        self.readings = Readings(spec, ports, world, settings)
        self._log_offset = 0
        self._world, self._settings = world, settings
        self._is_unwanted = False  # `stop` came first: there is nothing to start any more
        self._settled = asyncio.Event()  # the start is decided: `handle` is final
        if adopted:
            self._settled.set()

    @property
    def is_outdated(self) -> bool:
        """It runs with another specification than the one it should."""
        return self.launched not in (None, specs.fingerprint(self.spec))

    @property
    def subject(self) -> Subject:
        return Subject(
            spec=self.spec,
            ports=self.ports,
            uid=self.uid,
            log_path=self.log_path,
            spawned_at=self.spawned_at,
            readings=self.readings,
        )

    async def spawn(self) -> None:
        """Start the process. Raises `NotStarted`. Never cancel this: use `stop`, which waits for it."""
        try:
            await self._spawn()
        finally:
            self._settled.set()

    async def _spawn(self) -> None:
        launch = await self._launch()
        for warning in launch.warnings:
            log.warning(warning, instance=self.spec.name)
        self._log_offset = await asyncio.to_thread(self._world.logs.size, self.log_path)
        own = {"TEI_MANAGER_INSTANCE_UID": self.uid, "TEI_MANAGER_NONCE": self.nonce}
        order = Order(
            name=self.spec.name,
            argv=launch.argv,
            env={**launch.env, **own},
            log_path=self.log_path,
            nonce=self.nonce,
        )
        if self._is_unwanted:
            raise NotStarted(ExitReason(ExitKind.ENDED, "stopped before it was started"))
        try:
            self.handle = await self._world.driver.start(order)
        except errors.DriverError as error:
            kind = ExitKind.MISSING if error.code == "ENGINE_NOT_FOUND" else ExitKind.CRASH
            raise NotStarted(ExitReason(kind, str(error))) from error
        self.started_at, self.spawned_at = self._world.now(), asyncio.get_running_loop().time()

    async def _launch(self) -> Launch:
        engine = self._world.engines[self.spec.engine]
        around = await surroundings.look(self.spec, self._world, self._settings)
        launch = engine.launch(self.spec, self.ports, around)
        if isinstance(launch, Refusal):
            text = "; ".join(f"{problem.path}: {problem.message}" for problem in launch.problems)
            raise NotStarted(ExitReason(ExitKind.USAGE, text))
        return launch

    async def ended(self, *, was_ready: Callable[[], bool]) -> ExitReason:
        """Wait until the process is gone, sweep what it left of its group, and say why it ended."""
        assert self.handle is not None
        exit_ = await self._world.driver.wait(self.handle)
        await self._end(self.handle, grace_secs=0.0)
        tail = await asyncio.to_thread(self._world.logs.tail, self.log_path, since_offset=self._log_offset)
        engine = self._world.engines[self.spec.engine]
        return engine.read_exit(exit_.code, exit_.signal, tail, was_ready=was_ready())

    async def stop(self, *, on_stuck: Callable[[], None]) -> None:
        """Return when no process of this run is left; as long as that takes."""
        self._is_unwanted = True
        await self._settled.wait()
        if self.handle is not None:
            grace_secs = self._settings.graceful_shutdown_timeout_secs
            await self._end(self.handle, grace_secs=grace_secs, on_stuck=on_stuck)

    async def kill(self) -> None:
        """End it at once, beside a `stop` that is still being patient."""
        self._is_unwanted = True
        await self._settled.wait()
        if self.handle is not None:
            await self._end(self.handle, grace_secs=0.0)

    async def _end(
        self, handle: Handle, *, grace_secs: float, on_stuck: Callable[[], None] = lambda: None
    ) -> None:
        pause, longest = STUCK_RETRY_SECS
        while True:
            try:
                await self._world.driver.stop(handle, grace_secs=grace_secs)
            except Exception as error:  # whatever it is: only a proof that the process is gone ends this
                log.error("Instance cannot be stopped", instance=self.spec.name, pid=handle.pid, error=str(error))
                since = self.stuck.since if self.stuck else self._world.now()
                text = f"process {handle.pid} of instance '{self.spec.name}' does not end: {error}"
                self.stuck = Degraded("stuck-instance", since, text)
                on_stuck()
            else:
                self.stuck = None
                return
            await asyncio.sleep(pause)
            pause, grace_secs = min(pause * 2, longest), 0.0

    def endpoint(self, protocol: Protocol) -> Endpoint:
        """Where this run can be called, now that it speaks `protocol`."""
        grpc = self.ports.grpc or (self.ports.main if protocol is Protocol.GRPC else None)
        return Endpoint(
            instance=self.spec.name,
            uid=self.uid,
            host=self._settings.instance_host,
            http_port=None if protocol is Protocol.GRPC else self.ports.main,
            grpc_port=None if protocol is Protocol.HTTP else grpc,
            protocol=protocol,
            engine=self.spec.engine,
            model_id=self.spec.model_id,
            revision=self.spec.revision,
            pooling=self.spec.pooling,
            aliases=self.spec.aliases,
            max_concurrent_requests=self.spec.max_concurrent_requests,
            key=catalog.api_key(self.spec),
        )
