"""The fleet: all instances and the verbs on them. The face of the control plane (`ports.fleet.Fleet`)."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from tei_manager.control import restore, surroundings
from tei_manager.control.keeper import Keeper
from tei_manager.control.messages import Hub, Verb
from tei_manager.control.portbook import PortBook
from tei_manager.control.settings import Settings
from tei_manager.control.supervisor import Supervisor
from tei_manager.control.world import World
from tei_manager.domain import errors
from tei_manager.domain.event import EventType
from tei_manager.domain.instance import Desired, EngineKind, Instance, InstanceSpec, Origin, Ports, Status
from tei_manager.engines import catalog, environment, log_reading
from tei_manager.kits.nest import Nest
from tei_manager.kits.parsing import Problem
from tei_manager.policy import names
from tei_manager.ports.fleet import Degraded, Inspection, LogSlice, Warning
from tei_manager.ports.store import Record, State

log = structlog.get_logger("tei_manager.control.fleet")

BURY_SECS = 2.0
KILL_LIMIT_SECS = 8.0  # a kill is proven within 5 s, or not at all


class Fleet:
    """Owns the registry. `open` restores what the state file says, `close` stops everything."""

    def __init__(self, world: World, settings: Settings, *, seeds: tuple[Mapping[str, object], ...] = ()) -> None:
        self._world, self._settings, self._seeds = world, settings, seeds
        self._supervisors: dict[str, Supervisor] = {}
        self._deleted_seeds: dict[str, dict[str, object]] = {}
        self._nest = Nest(self._crashed)
        self._keeper = Keeper(world.store, self._state, world.now)
        self._ports = PortBook(
            settings.range,
            settings.reserved_ports,
            lambda port: world.port_is_free(settings.instance_host, port),
        )
        self._warnings: list[Warning] = []
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
    def degraded(self) -> tuple[Degraded, ...]:
        found = (self._keeper.failing, *(supervisor.stuck for supervisor in self._all))
        return tuple(sorted((each for each in found if each), key=lambda each: each.reason))

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

    async def inspect(self, name: str) -> Inspection:
        return await self._supervisor(name).inspect()

    # -- life of the fleet ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Restore the saved instances, adopt or bury their processes, apply the seeds of the configuration.

        Never waits for an instance to become ready. Raises `errors.StateError`.
        """
        loaded = await self._world.store.load()
        self._warnings += [Warning(code, message) for code, message in loaded.warnings]
        if any(code == "STATE_RECOVERED" for code, _ in loaded.warnings):
            self._world.metrics.state_recovered()
            self._world.journal.note(EventType.STATE_RECOVERED, reason=self._warnings[-1].message)
        plan = restore.plan(
            loaded.state, self._seeds, default_engine=self.default_engine, auto_restore=self._settings.auto_restore
        )
        self._deleted_seeds = plan.deleted_seeds
        self._warnings += [Warning("CONFIG", text) for text in plan.warnings]
        await self._restore(plan.records)
        await self._bury(plan.buried)
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
        stops = asyncio.create_task(self._stop_all(), name="stops")
        if hurry is not None:
            await self._stop_or_hurry(stops, hurry)
        await asyncio.wait({stops})
        for supervisor in self._all:
            if not supervisor.is_down:
                log.error(
                    "Instance left behind", instance=supervisor.record.spec.name, pid=supervisor.instance.pid
                )
        await self._nest.close()
        await self._keeper.save()

    async def _stop_all(self) -> None:
        await asyncio.gather(*(self._shut_down(supervisor) for supervisor in self._all))

    async def _shut_down(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.tell(Verb.SHUT_DOWN)
        except errors.UnknownInstance:
            return  # it was deleted meanwhile
        await supervisor.until(lambda: supervisor.is_down, timeout_secs=self._stop_limit_secs)

    async def _stop_or_hurry(self, stops: asyncio.Task[None], hurry: asyncio.Event) -> None:
        impatient = asyncio.create_task(hurry.wait(), name="hurry")
        try:
            await asyncio.wait({stops, impatient}, return_when=asyncio.FIRST_COMPLETED)
            if stops.done():
                return
            for supervisor in self._all:
                self._nest.start(f"kill {supervisor.record.spec.name}", supervisor.kill())
            await asyncio.wait({stops}, timeout=KILL_LIMIT_SECS)
            stops.cancel()
        finally:
            impatient.cancel()

    # -- verbs ------------------------------------------------------------------------------------------------

    async def create(self, spec: InstanceSpec, *, origin: Origin) -> Instance:
        self._refuse_while_draining()
        if origin is Origin.API:
            self._check_api_rights(spec)
        around = await surroundings.look(spec, self._world, self._settings)
        if spec.engine is EngineKind.TEI and catalog.kind_of(around.version) is EngineKind.EMBEDDED:
            # the configured router binary is our own engine: it is driven as what it is
            spec = spec.with_(engine=EngineKind.EMBEDDED)
            around = await surroundings.look(spec, self._world, self._settings)
        engine = self._world.engines[spec.engine]
        self._refuse_while_draining()  # nothing below waits: what is checked still holds when it is registered
        spec, problems = engine.check(spec, around)
        if problems:
            raise errors.InvalidSpec(problems)
        names.check(spec, (other.record.spec for other in self._all))
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
        self._world.journal.note(
            EventType.CREATED, instance=spec.name, data={"model_id": spec.model_id, "origin": str(origin)}
        )
        supervisor = self._register(record)
        log.info("Instance added to registry", instance=spec.name, total_instances=len(self._supervisors))
        self._world.metrics.created(spec.name, spec.model_id)
        await self._keeper.save()
        return supervisor.instance

    async def delete(self, name: str) -> None:
        self._refuse_while_draining()
        supervisor = self._supervisor(name)
        with contextlib.suppress(errors.UnknownInstance):  # it was deleted while we told it
            while self._supervisors.get(name) is supervisor:
                await supervisor.tell(Verb.STOP)
                await self._until_stopped(supervisor)
                # else somebody started it again, or a second delete was quicker
                if supervisor.is_absent and self._supervisors.get(name) is supervisor:
                    self._forget(supervisor)
        await self._keeper.save()

    def _forget(self, supervisor: Supervisor) -> None:
        """Take an instance without a process out of the registry. Nothing comes between the look and this."""
        name, seed = supervisor.record.spec.name, supervisor.record.seed
        supervisor.retire()
        del self._supervisors[name]
        self._nest.cancel(f"instance {name}")
        self._ports.release(name)
        if seed is not None:
            self._deleted_seeds[name] = dict(seed)
        self._world.metrics.deleted(name)
        self._world.journal.note(EventType.DELETED, instance=name)
        self._changed()
        log.info("Instance removed from registry", instance=name, total_instances=len(self._supervisors))

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
            await self._until_stopped(supervisor)
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
            stays_down = now.status is Status.STOPPED and not supervisor.is_wanted
            return now.status in (Status.RUNNING, Status.FAILED) or stays_down or supervisor.is_waiting

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
        read = await asyncio.to_thread(self._world.logs.read_slice, path, start=start, end=end, tail=tail)
        # an engine may print what it was given, the credentials that it inherits from us included
        hidden = environment.secrets_in({**self._world.environ, **spec.env})
        return replace(read, lines=tuple(log_reading.mask(line, hidden) for line in read.lines))

    # -- within -----------------------------------------------------------------------------------------------

    @property
    def _all(self) -> tuple[Supervisor, ...]:
        return tuple(self._supervisors.values())

    @property
    def _stop_limit_secs(self) -> float:
        """Longer than any stop may take: drain, grace, kill."""
        return self._settings.drain_timeout_secs + self._settings.graceful_shutdown_timeout_secs + 10.0

    def _supervisor(self, name: str) -> Supervisor:
        if (supervisor := self._supervisors.get(name)) is None:
            raise errors.UnknownInstance(name)
        return supervisor

    async def _until_stopped(self, supervisor: Supervisor) -> None:
        """Wait until it is absent, or somebody wants it again. Raises `errors.DriverError`."""
        in_time = await supervisor.until(
            lambda: supervisor.is_absent or supervisor.is_wanted, timeout_secs=self._stop_limit_secs
        )
        if not in_time:
            raise errors.DriverError(
                f"Instance '{supervisor.record.spec.name}' could not be stopped: "
                f"{supervisor.instance.last_error or 'its process does not end'}"
            )

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

    def _register(self, record: Record, supervisor: Supervisor | None = None) -> Supervisor:
        name = record.spec.name
        supervisor = supervisor or self._supervise(record)
        self._supervisors[name] = supervisor
        supervisor.begin()
        self._nest.start(f"instance {name}", supervisor.run())
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

    async def _restore(self, records: Sequence[Record]) -> None:
        """Register saved instances, with their processes where those are alive."""
        for record in records:
            self._ports.restore(record.spec.name, record.ports)
        found = await asyncio.gather(*(restore.recover(record, self._world.driver) for record in records))
        for record, process in zip(records, found, strict=True):
            if process.warning:
                self._warnings.append(process.warning)
            record = replace(record, ports=self._completed(record))
            supervisor = self._supervise(record)
            if process.handle is not None:
                supervisor.take_over(process.handle, launched=record.launched)
                log.info("Process of an earlier run found", instance=record.spec.name, pid=process.handle.pid)
            self._register(record, supervisor)

    def _completed(self, record: Record) -> Ports:
        """Its ports; a change of the file may have given it an engine that needs others."""
        engine = self._world.engines[record.spec.engine]
        try:
            return self._ports.complete(record.spec, record.ports, engine)
        except errors.CapacityError as error:
            self._warnings.append(Warning("CONFIG", f"instance '{record.spec.name}': {error}"))
            return record.ports

    async def _bury(self, records: Sequence[Record]) -> None:
        """End what instances left behind that the configuration no longer names.

        Those that replace them may need their ports, so this waits a little; what takes longer ends beside.
        """
        burials = [asyncio.create_task(self._end(record), name=f"bury {record.spec.name}") for record in records]
        if burials:
            _, slow = await asyncio.wait(burials, timeout=BURY_SECS)
            for burial in slow:
                self._nest.start(burial.get_name(), _result(burial))

    async def _end(self, record: Record) -> None:
        found = await restore.recover(record, self._world.driver)
        if found.warning:
            self._warnings.append(found.warning)
        if found.handle is None:
            return
        try:
            await self._world.driver.stop(found.handle, grace_secs=self._settings.graceful_shutdown_timeout_secs)
            self._world.journal.note(EventType.BURIED, instance=record.spec.name, data={"pid": found.handle.pid})
        except errors.DriverError as error:
            text = f"process {found.handle.pid} of removed instance '{record.spec.name}' lives on: {error}"
            log.error(text)
            self._warnings.append(Warning("ORPHAN_UNVERIFIED", text))

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


async def _result(task: asyncio.Task[None]) -> None:
    await task
