"""One actor per instance: mailbox → lifecycle table → effects. It alone changes what it supervises.

Verbs and events arrive as messages and are handled one at a time. Whatever takes time (spawning, probing,
draining, stopping, waiting) runs beside it and comes back as an event. After every step the level is compared with
the state, so a verb that came at a bad moment is carried out later, never lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog

from tei_manager.control import watch
from tei_manager.control.process import NotStarted, Process
from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain import spec as specs
from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.domain.instance import Desired, Instance, Ports, Protocol, Status
from tei_manager.kits.nest import Nest
from tei_manager.policy import lifecycle, restart
from tei_manager.policy.lifecycle import Effect, Event, Fact, State
from tei_manager.ports.driver import Handle
from tei_manager.ports.store import Record

log = structlog.get_logger("tei_manager.control.supervisor")

MAILBOX_SIZE = 256


class Verb(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SHUT_DOWN = "shut_down"  # stop without touching what is desired


@dataclass(frozen=True, slots=True)
class _Told:
    verb: Verb
    heard: asyncio.Future[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happened:
    """An event from work that ran beside. It counts only for the process, or the stay in a state, it came from."""

    event: Event
    uid: str | None = None
    stay: int | None = None
    reason: ExitReason | None = None
    protocol: Protocol | None = None


class Hub:
    """What a supervisor may ask of the fleet."""

    def __init__(
        self,
        *,
        changed: Callable[[], None],
        save: Callable[[], Awaitable[None]],
        rebook: Callable[[Record], Ports],
        blocked: Callable[[Ports], int | None],
    ) -> None:
        self.changed, self.save, self.rebook, self.blocked = changed, save, rebook, blocked


class Supervisor:
    def __init__(self, record: Record, world: World, settings: Settings, hub: Hub) -> None:
        self.record = record
        self._world, self._settings, self._hub = world, settings, hub
        self._mailbox: asyncio.Queue[_Told | _Happened] = asyncio.Queue(MAILBOX_SIZE)
        self._nest = Nest(self._crashed)
        self._state = State.ABSENT
        self._stay = 0  # counts changes of state: tells a timer of this stay from an old one
        self._process: Process | None = None
        self._protocol = Protocol.UNKNOWN
        self._detail: str | None = None
        self._last_error: str | None = None
        self._last_check: float | None = None
        self._failures = 0
        self._fault: ExitReason | None = None  # why we are stopping it ourselves
        self._retry: restart.Retry | None = None
        self._wants_fresh_ports = False
        self._row = restart.Row()
        self._ready_since: float | None = None
        self._shutting_down = False
        self._spawns = 0
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    # -- reading ----------------------------------------------------------------------------------------------

    @property
    def instance(self) -> Instance:
        process = self._process if self._process and self._process.handle else None
        return Instance(
            spec=self.record.spec,
            ports=self.record.ports,
            created_at=self.record.created_at,
            desired=self.record.desired,
            origin=self.record.origin,
            status=lifecycle.STATUS[self._state],
            detail=self._detail,
            pid=process.handle.pid if process and process.handle else None,
            uid=process.uid if process else None,
            started_at=process.started_at if process else None,
            protocol=self._protocol,
            restarts=self.record.restarts,
            health_check_failures=self._failures,
            last_health_check=self._last_check,
            last_error=self._last_error,
        )

    @property
    def is_absent(self) -> bool:
        return self._state is State.ABSENT

    @property
    def is_down(self) -> bool:
        """No process runs, and none is on its way."""
        return self._state in (State.ABSENT, State.FAILED, State.BACKOFF)

    @property
    def spawns(self) -> int:
        """How often a process was started."""
        return self._spawns

    @property
    def _wanted(self) -> bool:
        return self.record.desired is Desired.RUNNING and not self._shutting_down

    async def log_tail(self) -> list[str]:
        return await self._process.log_tail() if self._process else []

    # -- being told -------------------------------------------------------------------------------------------

    async def tell(self, verb: Verb) -> None:
        """Hand over a verb; returns when its first step was taken."""
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._mailbox.put(_Told(verb, heard))
        await heard

    async def until(self, predicate: Callable[[], bool], *, timeout_secs: float) -> bool:
        """Wait until `predicate` holds after some step; False if the time is over first."""
        if predicate():
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (predicate, future)
        self._waiters.append(waiter)
        try:
            await asyncio.wait_for(future, timeout_secs)
        except TimeoutError:
            return predicate()
        finally:
            self._waiters.remove(waiter)
        return True

    async def kill(self) -> None:
        """Cut the patience of a stop that is under way."""
        if self._process is not None:
            await self._process.kill()

    def take_over(self, handle: Handle, *, outdated: bool) -> None:
        """Before `run`: a process of an earlier manager is alive. Adopt it if it is wanted, else bury it.

        `outdated`: it runs with an older specification, so it is ended and started anew.
        """
        process = self._process = Process(
            self.record.spec, self.record.ports, self._world, self._settings, adopted=handle
        )
        self._stay += 1
        self._spawns += 1
        if outdated:
            self._state = State.STOPPING
            self._nest.start("stop", self._stop(process))
            return
        self._state = State.STARTING
        if self._wanted:
            self._detail = "adopted"
            self._nest.start("exit", self._see_exit(process))
            self._nest.start("startup", self._see_ready(process))

    async def run(self) -> None:
        """Handle messages until cancelled."""
        self._feed(None)
        try:
            while True:
                message = await self._mailbox.get()
                try:
                    self._handle(message)
                except Exception as error:  # one bad step must not end the actor: it becomes a fact
                    log.exception("Step failed", instance=self.record.spec.name)
                    self._last_error = f"internal error: {error!r}"
                    self._show()
        finally:
            await self._nest.close()

    def _handle(self, message: _Told | _Happened) -> None:
        if isinstance(message, _Told):
            self._obey(message.verb)
            if not message.heard.done():
                message.heard.set_result(None)
            return
        if message.uid is not None and (self._process is None or message.uid != self._process.uid):
            return
        if message.stay is not None and message.stay != self._stay:
            return
        if message.protocol is not None:
            self._protocol = message.protocol
        self._feed(message.event, reason=message.reason)

    def _obey(self, verb: Verb) -> None:
        if verb is Verb.SHUT_DOWN:
            self._shutting_down = True
            self._feed(Event.UNWANTED)
            return
        desired = Desired.STOPPED if verb is Verb.STOP else Desired.RUNNING
        self.record = replace(self.record, desired=desired)
        self._row, self._fault = restart.Row(), None  # a person's word ends what went on by itself
        if verb is Verb.RESTART and self._state not in (State.DRAINING, State.STOPPING):
            self._count_restart()
        down = self._state in (State.ABSENT, State.FAILED, State.BACKOFF)
        event = Event.UNWANTED if verb is Verb.STOP or (verb is Verb.RESTART and not down) else Event.WANTED
        self._feed(event, facts=[Fact.BY_PERSON])
        self._save_soon()

    # -- the table --------------------------------------------------------------------------------------------

    def _feed(
        self, event: Event | None, *, facts: Collection[Fact] = (), reason: ExitReason | None = None
    ) -> None:
        """Take one step, the steps that follow from it, and then what the level asks for."""
        before = self.instance
        todo: deque[tuple[Event, Collection[Fact], ExitReason | None]] = deque()
        if event is not None:
            todo.append((event, facts, reason))
        while True:
            if not todo:
                pulled = lifecycle.pull(self._state, wanted=self._wanted)
                if pulled is None:
                    break
                todo.append((pulled, (), None))
            now, with_facts, why = todo.popleft()
            self._prepare(now, why)
            step = lifecycle.step(self._state, now, {*with_facts, *self._facts()})
            if step is None:
                continue
            left, self._state = self._state, step.next
            if left is not step.next:
                self._stay += 1
                self._nest.cancel("backoff")
                self._entered(left, now)
            for effect in step.effects:
                todo.extend(self._do(effect, step.effects))
        self._report(before, reason)
        self._show()

    def _facts(self) -> set[Fact]:
        facts = set()
        if self._process is None or (self._process.handle is None and "spawn" not in self._nest):
            facts.add(Fact.NO_PROCESS)
        if self._fault is not None:
            facts.add(Fact.AFTER_FAULT)
        if self._retry is None:
            facts.add(Fact.PERMANENT)
        return facts

    def _prepare(self, event: Event, reason: ExitReason | None) -> None:
        """Judge an ending before the table is asked: the verdict is one of its facts."""
        if event in (Event.UNHEALTHY, Event.DUE) and reason is not None:
            self._fault = reason
        if event is not Event.EXITED or self._state in (State.DRAINING, State.ABSENT):
            return
        if self._state is State.STOPPING:
            reason = self._fault
        if reason is None:
            return
        limits, loop = self._settings.restart, asyncio.get_running_loop()
        if self._ready_since is not None and (
            loop.time() - self._ready_since >= self._settings.restart_reset_after_secs
        ):
            self._row = restart.Row()
        verdict = restart.verdict(
            reason,
            self._row,
            limits,
            ever_ready=self.record.ever_ready,
            automatic_ports=self.record.spec.port is None,
            jitter=self._world.jitter(),
        )
        self._row = self._row.after(reason.kind)
        self._last_error = verdict.text if isinstance(verdict, restart.GiveUp) else reason.text
        self._detail = verdict.detail if isinstance(verdict, restart.GiveUp) else "backoff"
        self._retry = verdict if isinstance(verdict, restart.Retry) else None
        self._wants_fresh_ports = self._retry is not None and self._retry.fresh_ports

    def _entered(self, left: State, event: Event) -> None:
        if self._state is State.STARTING:
            self._last_error, self._failures, self._retry = None, 0, None
            self._detail = "reserving"
        elif self._state is State.READY:
            self._detail, self._failures = None, 0
            self._ready_since = asyncio.get_running_loop().time()
            self._last_check = self._world.now()
            if not self.record.ever_ready:
                self.record = replace(self.record, ever_ready=True)
        elif self._state is State.ABSENT:
            self._detail = None
            if left is State.BACKOFF and event is Event.DUE:
                self._count_restart()
        if left is State.READY and self._state is not State.READY:
            self._nest.cancel("liveness")
        if left in (State.STOPPING, State.STARTING) and self._state is not State.STOPPING:
            self._fault = None

    # -- effects ----------------------------------------------------------------------------------------------

    def _do(
        self, effect: Effect, among: Collection[Effect]
    ) -> list[tuple[Event, Collection[Fact], ExitReason | None]]:
        """Carry out an effect; returns events that are true at once."""
        match effect:
            case Effect.FETCH:  # always-on engines fetch their weights themselves
                return [(Event.FETCHED, (), None)]
            case Effect.RESERVE:
                reason = self._reserve()
                return [(Event.EXITED, (), reason)] if reason else [(Event.GRANTED, (), None)]
            case Effect.SPAWN:
                self._process = Process(self.record.spec, self.record.ports, self._world, self._settings)
                self._protocol, self._detail = Protocol.UNKNOWN, "spawning"
                self._nest.start("spawn", self._spawn(self._process))
            case Effect.ANNOUNCE:
                self._announce()
            case Effect.WITHDRAW if Effect.DRAIN not in among:
                self._nest.start("withdraw", self._withdraw(self._process))
            case Effect.DRAIN:
                self._detail = "draining"
                self._nest.start("drain", self._drain(self._process))
            case Effect.STOP:
                self._detail = None
                self._nest.cancel("startup", "liveness", "exit", "drain")
                self._nest.start("stop", self._stop(self._process))
            case Effect.RELEASE:
                self._release()
            case Effect.WAIT:
                self._nest.start("backoff", self._wait(self._retry.delay_secs if self._retry else 0.0))
            case _:
                pass  # WITHDRAW beside DRAIN: draining closes first
        return []

    def _reserve(self) -> ExitReason | None:
        """Make sure that the booked ports are free; automatic ones give way to foreign holders."""
        fresh, self._wants_fresh_ports = self._wants_fresh_ports, False
        blocked = self._hub.blocked(self.record.ports)
        if blocked is None and not fresh:
            return None
        spec = self.record.spec
        if blocked is not None and blocked in (spec.port, spec.prometheus_port):
            return ExitReason(ExitKind.PORT, f"port {blocked} is in use by another process")
        try:
            self.record = replace(self.record, ports=self._hub.rebook(self.record))
        except Exception as error:
            return ExitReason(ExitKind.PORT, str(error))
        return None

    def _announce(self) -> None:
        assert self._process is not None
        process = self._process
        seconds = asyncio.get_running_loop().time() - process.spawned_at
        self._world.metrics.became_ready(str(self.record.spec.engine), seconds)
        self._world.frontdoor.announce(process.endpoint(self._protocol))
        self._nest.start("liveness", self._check_liveness(process))
        self._save_soon()

    def _release(self) -> None:
        self._nest.cancel("startup", "liveness", "exit", "drain", "stop")
        self._process, self._protocol, self._ready_since = None, Protocol.UNKNOWN, None
        self._save_soon()

    # -- work beside the mailbox ------------------------------------------------------------------------------

    async def _spawn(self, process: Process) -> None:
        await self._hub.save()  # the intent first: a start whose answer is lost can be found by its nonce
        try:
            await process.spawn()
        except NotStarted as error:
            await self._post(_Happened(event=Event.EXITED, uid=process.uid, reason=error.reason))
            return
        assert process.handle is not None
        self._spawns += 1
        log.info(
            "TEI instance started",
            instance=process.spec.name,
            engine=str(process.spec.engine),
            model=process.spec.model_id,
            port=process.ports.main,
            pid=process.handle.pid,
            gpu_id=process.spec.gpu_id,
        )
        if self._process is process and self._state is State.STARTING:
            self._detail = "loading"
            self._nest.start("exit", self._see_exit(process))
            self._nest.start("startup", self._see_ready(process))
        self._show()
        await self._hub.save()

    async def _see_exit(self, process: Process) -> None:
        reason = await process.ended(was_ready=lambda: self._ready_since is not None)
        cause = "signal" if "killed by signal" in reason.text else "code"
        self._world.metrics.exited(process.spec.name, cause)
        await self._post(_Happened(event=Event.EXITED, uid=process.uid, reason=reason))

    async def _see_ready(self, process: Process) -> None:
        def on_detail(detail: str) -> None:
            if self._process is process and self._state is State.STARTING and self._detail != detail:
                self._detail = detail
                self._show()

        seen = await watch.until_ready(process.subject, self._world, self._settings, on_detail)
        if isinstance(seen, watch.Ready):
            await self._post(_Happened(event=Event.HEALTHY, uid=process.uid, protocol=seen.protocol))
        else:
            reason = ExitReason(ExitKind.TIMEOUT, seen.text)
            await self._post(_Happened(event=Event.DUE, uid=process.uid, stay=self._stay, reason=reason))

    async def _check_liveness(self, process: Process) -> None:
        loop, settings = asyncio.get_running_loop(), self._settings
        while True:
            asked_at = loop.time()
            await asyncio.sleep(settings.health_check_interval_secs)
            begun = loop.time()
            seen = await watch.ask_alive(process.subject, self._world, settings, self._protocol)
            self._world.metrics.probed(process.spec.name, loop.time() - begun)
            self._last_check = self._world.now()
            served = self._world.frontdoor.last_success(process.uid)
            if seen.ok or (served is not None and served > asked_at):
                # busy is not dead: an engine that finished a call since the last round is alive
                self._failures = 0
                self._show()
                continue
            self._failures += 1
            self._world.metrics.probe_failed(process.spec.name)
            log.warning(
                "Health check failed", instance=process.spec.name, failures=self._failures, reason=seen.text
            )
            self._show()
            limit = settings.max_failures_before_restart
            settled = loop.time() - process.spawned_at >= settings.health_check_initial_delay_secs
            if limit and self._failures >= limit and settled:
                reason = ExitReason(ExitKind.UNHEALTHY, f"failed {self._failures} health checks: {seen.text}")
                await self._post(_Happened(event=Event.UNHEALTHY, uid=process.uid, reason=reason))
                return

    async def _withdraw(self, process: Process | None) -> None:
        if process is not None:
            await self._world.frontdoor.withdraw(process.uid, drain_secs=0.0)

    async def _drain(self, process: Process | None) -> None:
        assert process is not None
        cut = await self._world.frontdoor.withdraw(process.uid, drain_secs=self._settings.drain_timeout_secs)
        if cut:
            log.warning("Calls were cut", instance=process.spec.name, calls=cut)
        await self._post(_Happened(event=Event.DRAINED, uid=process.uid))

    async def _stop(self, process: Process | None) -> None:
        assert process is not None
        await process.stop()
        await self._post(_Happened(event=Event.EXITED, uid=process.uid))

    async def _wait(self, delay_secs: float) -> None:
        stay = self._stay
        await asyncio.sleep(delay_secs)
        await self._post(_Happened(event=Event.DUE, stay=stay))

    async def _post(self, message: _Happened) -> None:
        await self._mailbox.put(message)

    # -- telling others ---------------------------------------------------------------------------------------

    def _count_restart(self) -> None:
        self.record = replace(self.record, restarts=self.record.restarts + 1)
        self._world.metrics.restarted(self.record.spec.name)

    def _save_soon(self) -> None:
        self._nest.start("save", self._save())

    async def _save(self) -> None:
        await self._hub.save()

    def state_record(self) -> Record:
        """This instance as the state file keeps it now."""
        process = self._process
        return replace(
            self.record,
            intent_nonce=process.nonce if process and process.handle is None else None,
            handle=process.handle if process else None,
            launched=specs.fingerprint(process.spec) if process and process.handle else None,
        )

    def _report(self, before: Instance, reason: ExitReason | None) -> None:
        now = self.instance
        if now.status is before.status:
            return
        why = now.last_error or (reason.text if reason else None)
        log.info(
            "Instance status changed",
            instance=now.name,
            **{"from": str(before.status), "to": str(now.status)},
            reason=why,
        )
        if now.status is Status.RUNNING:
            log.info("Instance is ready", instance=now.name, port=now.ports.main, protocol=str(now.protocol))

    def _show(self) -> None:
        self._hub.changed()
        for predicate, future in tuple(self._waiters):
            if not future.done() and predicate():
                future.set_result(None)

    def _crashed(self, name: str, error: BaseException) -> None:
        log.error("Background work failed", instance=self.record.spec.name, work=name, error=repr(error))
        self._last_error = f"internal error in {name}: {error!r}"
        if self._process is not None and name in ("spawn", "exit", "startup", "stop"):
            reason = ExitReason(ExitKind.CRASH, self._last_error)
            # the actor must not wait for work that died: what it waited for is taken as failed, and swept
            beside = Event.UNHEALTHY if self._state is State.READY else Event.DUE
            event = Event.EXITED if name in ("spawn", "stop") else beside
            self._mailbox.put_nowait(_Happened(event=event, uid=self._process.uid, reason=reason))
        self._show()
