"""The fleet: all instances and the verbs on them. The face of the control plane (`ports.fleet.Fleet`)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from tei_manager.control import restore, surroundings
from tei_manager.control.keeper import Keeper
from tei_manager.control.portbook import PortBook
from tei_manager.control.settings import Settings
from tei_manager.control.supervisor import Hub, Supervisor, Verb
from tei_manager.control.world import World
from tei_manager.domain import errors
from tei_manager.domain import spec as specs
from tei_manager.domain.instance import Desired, EngineKind, Instance, InstanceSpec, Origin, Ports, Status
from tei_manager.kits.nest import Nest
from tei_manager.kits.parsing import Problem
from tei_manager.ports.fleet import LogSlice, Warning
from tei_manager.ports.store import Record, State

log = structlog.get_logger("tei_manager.control.fleet")


class Fleet:
    """Owns the registry. `open` restores what the state file says, `close` stops everything."""

    def __init__(self, world: World, settings: Settings, *, seeds: tuple[Mapping[str, object], ...] = ()) -> None:
        self._world, self._settings, self._seeds = world, settings, seeds
        self._supervisors: dict[str, Supervisor] = {}
        self._deleted_seeds: dict[str, dict[str, object]] = {}
        self._nest = Nest(self._crashed)
        self._keeper = Keeper(world.store, self._state)
        self._ports = PortBook(
            settings.range,
            settings.reserved_ports,
            lambda port: world.port_is_free(settings.instance_host, port),
        )
        self._warnings: list[Warning] = []
        self._restored: frozenset[str] = frozenset()
        self._reconciled = False
        self._draining = False
        self._snapshot: tuple[Instance, ...] = ()

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def default_engine(self) -> EngineKind:
        """`tei` where its binary is found, else `embedded`."""
        return EngineKind.TEI if shutil.which(self._settings.tei_program) else EngineKind.EMBEDDED

    @property
    def warnings(self) -> tuple[Warning, ...]:
        return tuple(self._warnings)

    @property
    def degraded(self) -> tuple[str, ...]:
        return ("state-save",) if self._keeper.is_failing else ()

    @property
    def is_reconciled(self) -> bool:
        return self._reconciled

    @property
    def is_draining(self) -> bool:
        return self._draining

    def instances(self) -> tuple[Instance, ...]:
        return self._snapshot

    def get(self, name: str) -> Instance:
        return self._supervisor(name).instance

    # -- life of the fleet ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Restore the saved instances, adopt or bury their processes, apply the seeds of the configuration.

        Never waits for an instance to become ready. Raises `errors.StateError`.
        """
        loaded = await self._world.store.load()
        self._warnings += [Warning(code, message) for code, message in loaded.warnings]
        if any(code == "STATE_RECOVERED" for code, _ in loaded.warnings):
            self._world.metrics.state_recovered()
        plan = restore.plan(
            loaded.state, self._seeds, default_engine=self.default_engine, auto_restore=self._settings.auto_restore
        )
        self._deleted_seeds = plan.deleted_seeds
        self._warnings += [Warning("CONFIG", text) for text in plan.warnings]
        for record in plan.records:
            self._ports.restore(record.spec.name, record.ports)
        for record in plan.records:
            await self._restore(record)
        for record in plan.buried:
            await self._bury(record)
        for values, spec in plan.created:
            await self._seed(values, spec)
        self._nest.start("keeper", self._keeper.run())
        await self._keeper.save()
        self._reconciled = True
        self._changed()

    def begin_draining(self) -> None:
        """From now on every changing verb is refused."""
        self._draining = True

    async def close(self, *, hurry: asyncio.Event | None = None) -> None:
        """Stop all instances in parallel without touching what is desired, and save.

        `hurry` cuts every grace short once it is set.
        """
        self.begin_draining()
        await asyncio.gather(*(supervisor.tell(Verb.SHUT_DOWN) for supervisor in self._supervisors.values()))
        stops = asyncio.create_task(self._all_down(), name="stops")
        if hurry is not None:
            await self._stop_or_hurry(stops, hurry)
        await stops
        await self._keeper.save()
        await self._nest.close()

    async def _all_down(self) -> None:
        await asyncio.gather(*(self._until_down(supervisor) for supervisor in self._supervisors.values()))

    async def _stop_or_hurry(self, stops: asyncio.Task[None], hurry: asyncio.Event) -> None:
        impatient = asyncio.create_task(hurry.wait(), name="hurry")
        try:
            await asyncio.wait({stops, impatient}, return_when=asyncio.FIRST_COMPLETED)
            if not stops.done():
                await asyncio.gather(*(supervisor.kill() for supervisor in self._supervisors.values()))
        finally:
            impatient.cancel()

    # -- verbs ------------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec, *, origin: Origin) -> Instance:
        self._refuse_while_draining()
        if origin is Origin.API:
            self._check_api_rights(spec)
        engine = self._world.engines[spec.engine]
        around = await surroundings.look(spec, self._world, self._settings)
        spec, problems = engine.check(spec, around)
        if problems:
            raise errors.InvalidSpec(problems)
        self._check_names(spec)
        self._ports.check_explicit(spec)
        limit = self._settings.max_instances
        if limit is not None and len(self._supervisors) >= limit:
            raise errors.CapacityError(f"Maximum instance count ({limit}) reached", code="MAX_INSTANCES_REACHED")
        ports = self._ports.book(spec, engine)
        record = Record(
            spec=spec,
            ports=ports,
            created_at=self._world.now(),
            desired=Desired.RUNNING if spec.autostart else Desired.STOPPED,
            origin=origin,
        )
        self._deleted_seeds.pop(spec.name, None)
        supervisor = self._register(record)
        log.info("Instance added to registry", instance=spec.name, total_instances=len(self._supervisors))
        self._world.metrics.created(spec.name, spec.model_id)
        await self._keeper.save()
        return supervisor.instance

    async def delete(self, name: str) -> None:
        self._refuse_while_draining()
        supervisor = self._supervisor(name)
        await supervisor.tell(Verb.STOP)
        await self._until_absent(supervisor)
        if self._supervisors.get(name) is not supervisor:
            return  # a second delete of the same instance finished first
        del self._supervisors[name]
        self._nest.cancel(f"instance {name}")
        self._ports.release(name)
        if supervisor.record.seed is not None:
            self._deleted_seeds[name] = dict(supervisor.record.seed)
        self._world.metrics.deleted(name)
        self._changed()
        log.info("Instance removed from registry", instance=name, total_instances=len(self._supervisors))
        await self._keeper.save()

    async def start(self, name: str) -> Instance:
        self._refuse_while_draining()
        return await self._run(self._supervisor(name), Verb.START)

    async def restart(self, name: str) -> Instance:
        self._refuse_while_draining()
        return await self._run(self._supervisor(name), Verb.RESTART)

    async def stop(self, name: str, *, wait: bool = True) -> Instance:
        self._refuse_while_draining()
        supervisor = self._supervisor(name)
        await supervisor.tell(Verb.STOP)
        await self._keeper.save()
        if wait:
            await self._until_absent(supervisor)
        return supervisor.instance

    async def _run(self, supervisor: Supervisor, verb: Verb) -> Instance:
        """Tell, and wait until a process was spawned or could not be."""
        spawns, running = supervisor.spawns, supervisor.instance
        await supervisor.tell(verb)
        await self._keeper.save()
        if verb is Verb.START and running.pid is not None and running.status is not Status.STOPPING:
            return supervisor.instance
        await supervisor.until(
            lambda: supervisor.spawns > spawns or supervisor.is_down, timeout_secs=self._stop_limit_secs + 60
        )
        return supervisor.instance

    async def wait_running(self, name: str, *, timeout_secs: float | None) -> Instance:
        supervisor = self._supervisor(name)
        limit = timeout_secs
        if limit is None:
            limit = supervisor.record.spec.startup_timeout_secs or self._settings.startup_timeout_secs

        def decided() -> bool:
            now = supervisor.instance
            return now.status in (Status.RUNNING, Status.FAILED, Status.STOPPED) or now.detail == "backoff"

        in_time = await supervisor.until(decided, timeout_secs=limit)
        now = supervisor.instance
        if now.status is Status.RUNNING:
            return now
        details = {
            "status": str(now.status),
            "last_error": now.last_error,
            "log_tail": list((await self.logs(name, tail=50)).lines),
        }
        if in_time:
            raise errors.InstanceFailed(
                f"Instance '{name}' did not start: {now.last_error or now.status}", details=details
            )
        raise errors.StartupTimeout(f"Instance '{name}' is not running after {limit:g}s", details=details)

    async def logs(
        self, name: str, *, start: int | None = None, end: int | None = None, tail: int | None = None
    ) -> LogSlice:
        spec = self._supervisor(name).record.spec
        path = str(Path(self._settings.log_dir) / f"{spec.name}.log")
        return await asyncio.to_thread(self._world.logs.read_slice, path, start=start, end=end, tail=tail)

    # -- within -----------------------------------------------------------------------------------------------

    @property
    def _stop_limit_secs(self) -> float:
        """Longer than any stop may take: drain, grace, kill."""
        return self._settings.drain_timeout_secs + self._settings.graceful_shutdown_timeout_secs + 10.0

    def _supervisor(self, name: str) -> Supervisor:
        if (supervisor := self._supervisors.get(name)) is None:
            raise errors.UnknownInstance(name)
        return supervisor

    async def _until_absent(self, supervisor: Supervisor) -> None:
        if not await supervisor.until(lambda: supervisor.is_absent, timeout_secs=self._stop_limit_secs):
            raise errors.DriverError(
                f"Instance '{supervisor.record.spec.name}' could not be stopped: "
                f"{supervisor.instance.last_error or 'its process does not end'}"
            )

    async def _until_down(self, supervisor: Supervisor) -> bool:
        return await supervisor.until(lambda: supervisor.is_down, timeout_secs=self._stop_limit_secs)

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise errors.NotReady("The manager is shutting down", code="SHUTTING_DOWN", retry_after=1.0)

    def _check_api_rights(self, spec: InstanceSpec) -> None:
        if spec.engine is EngineKind.COMMAND and not self._settings.api_allow_command:
            raise errors.Forbidden("Engine 'command' over REST needs api_allow_command = true")
        if spec.model_id.startswith("/"):
            folder = Path(spec.model_id).resolve()
            if not any(folder.is_relative_to(Path(root).resolve()) for root in self._settings.model_roots):
                text = "a local folder over REST must lie in one of model_roots"
                raise errors.InvalidSpec([Problem("model_id", "INVALID_MODEL_ID", text)])

    def _check_names(self, spec: InstanceSpec) -> None:
        if any(name.lower() == spec.name.lower() for name in self._supervisors):
            raise errors.Conflict(f"Instance '{spec.name}' already exists", code="INSTANCE_EXISTS")
        for other in self._supervisors.values():
            theirs = other.record.spec
            alike = (theirs.model_id, theirs.revision, theirs.pooling) == (
                spec.model_id,
                spec.revision,
                spec.pooling,
            )
            for alias in spec.aliases:
                if alias in (theirs.name, theirs.model_id) or (alias in theirs.aliases and not alike):
                    raise errors.Conflict(
                        f"Alias '{alias}' already belongs to instance '{theirs.name}'", code="ALIAS_CONFLICT"
                    )
            if spec.name in theirs.aliases or spec.model_id in theirs.aliases:
                raise errors.Conflict(
                    f"'{spec.name}' or its model id is an alias of instance '{theirs.name}'",
                    code="ALIAS_CONFLICT",
                )

    def _register(self, record: Record, supervisor: Supervisor | None = None) -> Supervisor:
        name = record.spec.name
        supervisor = supervisor or self._supervise(record)
        self._supervisors[name] = supervisor
        self._nest.start(f"instance {name}", supervisor.run())
        self._changed()
        return supervisor

    def _supervise(self, record: Record) -> Supervisor:
        hub = Hub(changed=self._changed, save=self._keeper.save, rebook=self._rebook, blocked=self._ports.blocked)
        return Supervisor(record, self._world, self._settings, hub)

    def _rebook(self, record: Record) -> Ports:
        name = record.spec.name
        self._ports.release(name)
        try:
            return self._ports.book(record.spec, self._world.engines[record.spec.engine])
        except errors.TeiManagerError:
            self._ports.restore(name, record.ports)
            raise

    async def _restore(self, record: Record) -> None:
        supervisor = self._supervise(record)
        found = await restore.recover(record, self._world.driver)
        if found.warning:
            self._warnings.append(found.warning)
        if found.handle is not None:
            outdated = record.launched is not None and record.launched != specs.fingerprint(record.spec)
            supervisor.take_over(found.handle, outdated=outdated)
            log.info("Process of an earlier run found", instance=record.spec.name, pid=found.handle.pid)
        self._register(record, supervisor)

    async def _bury(self, record: Record) -> None:
        """End what an instance left behind that the configuration no longer names."""
        found = await restore.recover(record, self._world.driver)
        if found.handle is not None:
            await self._world.driver.stop(found.handle, grace_secs=self._settings.graceful_shutdown_timeout_secs)

    async def _seed(self, values: Mapping[str, object], spec: InstanceSpec) -> None:
        try:
            await self.create(spec, origin=Origin.CONFIG)
        except errors.TeiManagerError as error:
            log.error("Configured instance not created", instance=spec.name, error=str(error))
            self._warnings.append(Warning("CONFIG", f"instance '{spec.name}' was not created: {error}"))
            return
        supervisor = self._supervisors[spec.name]
        supervisor.record = replace(supervisor.record, seed=dict(values))

    def _state(self) -> State:
        records = (supervisor.state_record() for supervisor in self._supervisors.values())
        return State(
            records=tuple(sorted(records, key=lambda record: (record.created_at, record.spec.name))),
            deleted_seeds=self._deleted_seeds,
        )

    def _changed(self) -> None:
        instances = (supervisor.instance for supervisor in self._supervisors.values())
        self._snapshot = tuple(sorted(instances, key=lambda each: (each.created_at, each.name)))
        self._world.frontdoor.publish(self._snapshot)

    def _crashed(self, name: str, error: BaseException) -> None:
        log.error("Background work failed", work=name, error=repr(error))
        self._warnings.append(Warning("INTERNAL_ERROR", f"{name} died: {error!r}"))
