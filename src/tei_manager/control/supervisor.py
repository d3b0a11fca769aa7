"""One actor per instance: mailbox → lifecycle table → effects. It alone changes what it supervises.

Verbs and events arrive as messages and are handled one at a time. Whatever takes time (spawning, probing,
draining, stopping, waiting) runs beside it and comes back as an event. After every step the level is compared with
the state, so a verb that came at a bad moment is carried out later, never lost.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace

import structlog

from tei_manager.control.endings import Endings
from tei_manager.control.liveness import Liveness
from tei_manager.control.messages import Happened, Hub, Told, Verb
from tei_manager.control.process import NotStarted, Process
from tei_manager.control.settings import Settings
from tei_manager.control.waiters import Waiters
from tei_manager.control.work import Work
from tei_manager.control.world import World
from tei_manager.domain import errors
from tei_manager.domain.event import EventType
from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.domain.instance import Desired, Instance, Protocol, Status
from tei_manager.kits.nest import Nest
from tei_manager.policy import lifecycle
from tei_manager.policy.lifecycle import Effect, Event, Fact, State
from tei_manager.ports.driver import Handle
from tei_manager.ports.fleet import Degraded, Inspection
from tei_manager.ports.store import Record

log = structlog.get_logger("tei_manager.control.supervisor")

REPAIR_PAUSE_SECS = 1.0  # before work that died is tried again

# an event that is to be handled, the facts only its sender knows, and why it happened
_Todo = tuple[Event, Collection[Fact], ExitReason | None]


class Supervisor:
    def __init__(self, record: Record, world: World, settings: Settings, hub: Hub) -> None:
        self.record = record
        self._world, self._settings, self._hub = world, settings, hub
        # unbounded, and small: a sender of verbs waits for its answer, and each work beside sends one event
        self._mailbox: asyncio.Queue[Told | Happened] = asyncio.Queue()
        self._nest = Nest(self._crashed)
        self._work = Work(world, settings, self._post)
        self._waiters = Waiters()
        self._state = State.ABSENT
        self._stay = 0  # counts changes of state: tells a timer of this stay from an old one
        self._process: Process | None = None
        self._protocol = Protocol.UNKNOWN
        self._detail: str | None = None
        self._last_error: str | None = None
        self._liveness = Liveness(world, settings)
        self._endings = Endings(settings, world.jitter)
        self._fault: ExitReason | None = None  # why we are stopping it ourselves
        self._ready_since: float | None = None
        self._is_restarting = False  # a person's restart is under way: from the verb to the spawn
        self._is_shutting_down = False
        self._is_retired = False
        self._spawns = 0

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
            health_check_failures=self._liveness.failures,
            last_health_check=self._liveness.last_check,
            probe_error=self._liveness.error,
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
    def is_waiting(self) -> bool:
        """It ended, and its next start is some time away."""
        retry = self._endings.retry
        return self._state is State.BACKOFF and retry is not None and retry.delay_secs > 0

    @property
    def stuck(self) -> Degraded | None:
        """It was killed and its process lives on."""
        return self._process.stuck if self._process is not None else None

    @property
    def is_wanted(self) -> bool:
        return self.record.desired is Desired.RUNNING and not self._is_shutting_down

    @property
    def spawns(self) -> int:
        """How often a process was started that was still wanted then."""
        return self._spawns

    def state_record(self) -> Record:
        """This instance as the state file keeps it now."""
        process = self._process
        return replace(
            self.record,
            intent_nonce=process.nonce if process and process.handle is None else None,
            handle=process.handle if process else None,
            launched=process.launched if process else None,
        )

    async def inspect(self) -> Inspection:
        """What is known of the process and its work; one that does not answer is hardly waited for."""
        process = self._process
        if process is None or process.handle is None:
            return Inspection()
        readings = process.readings
        if self._state is State.READY:
            await readings.look(self._protocol, lambda reading: self._nest.start("reading", reading))
        figures = readings.figures
        return Inspection(
            readings.info, self._world.frontdoor.figures(process.uid) if figures is None else figures
        )

    # -- being told -------------------------------------------------------------------------------------------

    async def tell(self, verb: Verb) -> None:
        """Hand over a verb; returns when its first step was taken. Raises `errors.UnknownInstance` if deleted."""
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        told = Told(verb, heard)
        if self._is_retired:
            self._refuse(told)
        else:
            self._mailbox.put_nowait(told)
        await heard

    async def until(self, predicate: Callable[[], bool], *, timeout_secs: float) -> bool:
        """Wait until `predicate` held after some step; False if the time is over first."""
        return await self._waiters.until(predicate, timeout_secs=timeout_secs)

    async def kill(self) -> None:
        """Cut the patience of a stop that is under way."""
        if self._process is not None:
            await self._process.kill()

    def retire(self) -> None:
        """It is deleted: whoever comes too late is refused, also those whose verb lies in the mailbox."""
        self._is_retired = True
        while not self._mailbox.empty():
            if isinstance(message := self._mailbox.get_nowait(), Told):
                self._refuse(message)

    def take_over(self, handle: Handle, *, launched: str | None) -> None:
        """Before `begin`: a process of an earlier manager is alive. Adopt it if it is wanted, else bury it.

        `launched` is what it was started with; if that is not what is wanted now, it is ended and started anew.
        """
        process = self._process = Process(
            self.record.spec, self.record.ports, self._world, self._settings, adopted=(handle, launched)
        )
        self._stay += 1
        if process.is_outdated:
            self._state = State.STOPPING
            self._nest.start("stop", self._work.stop(process, self._show))
            return
        self._state = State.STARTING
        if self.is_wanted:
            self._detail = "adopted"
            self._world.journal.note(EventType.ADOPTED, instance=self.record.spec.name, data={"pid": handle.pid})
            self._watch(process)

    def begin(self) -> None:
        """Take the first step towards what is wanted. Before `run`, so that nobody sees the moment before."""
        self._guarded(lambda: self._feed(None))

    async def run(self) -> None:
        """Handle messages until cancelled."""
        try:
            while True:
                message = await self._mailbox.get()
                self._guarded(lambda: self._handle(message))  # noqa: B023 - called at once
        finally:
            self.retire()
            await self._nest.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        """One bad step must not end the actor: it becomes a fact."""
        try:
            step()
        except Exception as error:
            self._note("a step", error)
            self._waiters.wake()

    def _handle(self, message: Told | Happened) -> None:
        if isinstance(message, Told):
            try:
                self._obey(message.verb)
            finally:
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

    def _refuse(self, told: Told) -> None:
        if not told.heard.done():
            told.heard.set_exception(errors.UnknownInstance(self.record.spec.name))

    def _obey(self, verb: Verb) -> None:
        if verb is Verb.SHUT_DOWN:
            self._is_shutting_down = True
            self._feed(Event.UNWANTED)
            return
        self.record = replace(self.record, desired=Desired.STOPPED if verb is Verb.STOP else Desired.RUNNING)
        self._save_soon()
        if self._is_shutting_down:
            return
        self._endings.begin_anew()
        self._fault = None  # a person's word ends what went on by itself
        if verb is Verb.STOP:
            self._is_restarting = False
        elif verb is Verb.RESTART:
            if self._is_restarting:
                return  # two at once act as one
            self._is_restarting = True
            self._count_restart()
        unwanted = verb is Verb.STOP or (verb is Verb.RESTART and not self.is_down)
        self._feed(Event.UNWANTED if unwanted else Event.WANTED, facts=[Fact.BY_PERSON])

    # -- the table --------------------------------------------------------------------------------------------

    def _feed(
        self, event: Event | None, *, facts: Collection[Fact] = (), reason: ExitReason | None = None
    ) -> None:
        """Take one step, the steps that follow from it, and then what the level asks for."""
        before = self.instance
        todo: deque[_Todo] = deque()
        if event is not None:
            todo.append((event, facts, reason))
        while True:
            if not todo:
                pulled = lifecycle.pull(self._state, wanted=self.is_wanted)
                if pulled is None:
                    break
                todo.append((pulled, (), None))
            now, with_facts, why = todo.popleft()
            self._judge(now, why)
            step = lifecycle.step(self._state, now, {*with_facts, *self._facts()})
            if step is None:
                continue
            left, self._state = self._state, step.next
            if left is not step.next:
                self._stay += 1
                self._nest.cancel("backoff")
                self._entered(left, now)
            for effect in step.effects:
                todo.extend(self._tried(effect, step.effects))
        self._report(before, reason)
        self._show()

    def _facts(self) -> set[Fact]:
        facts = set()
        if self._process is None or (self._process.handle is None and "spawn" not in self._nest):
            facts.add(Fact.NO_PROCESS)
        if self._fault is not None:
            facts.add(Fact.AFTER_FAULT)
        if self._endings.retry is None:
            facts.add(Fact.PERMANENT)
        return facts

    def _judge(self, event: Event, reason: ExitReason | None) -> None:
        """Judge an ending before the table is asked: the verdict is one of its facts."""
        if (self._state, event) in ((State.STARTING, Event.DUE), (State.READY, Event.UNHEALTHY)):
            self._fault = reason
        if event is not Event.EXITED or self._state not in (State.STARTING, State.READY, State.STOPPING):
            return
        if self._state is State.STOPPING:
            reason = self._fault
        if reason is None:
            return
        now = asyncio.get_running_loop().time()
        ran_secs = 0.0 if self._ready_since is None else now - self._ready_since
        self._endings.judge(reason, self.record, ran_secs=ran_secs)
        self._last_error, self._detail = self._endings.last_error, self._endings.detail

    def _entered(self, left: State, event: Event) -> None:
        if self._state is State.STARTING:
            self._endings.begin_start()
            self._liveness.begin()
            self._last_error, self._detail = None, "reserving"
        elif self._state is State.READY:
            self._detail = None
            self._liveness.passed()
            self._ready_since = asyncio.get_running_loop().time()
            if not self.record.ever_ready:
                self.record = replace(self.record, ever_ready=True)
        elif self._state is State.ABSENT:
            self._detail = None
            if left is State.BACKOFF and event is Event.DUE:
                self._count_restart()
        if self._state in (State.READY, State.BACKOFF, State.FAILED):
            self._is_restarting = False
        if left in (State.STOPPING, State.STARTING) and self._state is not State.STOPPING:
            self._fault = None

    # -- effects ----------------------------------------------------------------------------------------------

    def _tried(self, effect: Effect, among: Collection[Effect]) -> list[_Todo]:
        """Carry out an effect; one that cannot be carried out is an event, too."""
        try:
            return self._do(effect, among)
        except Exception as error:
            reason = self._note(str(effect), error)
            event = self._after_fall()
            return [(event, (), reason)] if event else []

    def _do(self, effect: Effect, among: Collection[Effect]) -> list[_Todo]:
        """Carry out an effect; returns events that are true at once."""
        process = self._process
        match effect:
            case Effect.FETCH:  # always-on engines fetch their weights themselves
                return [(Event.FETCHED, (), None)]
            case Effect.RESERVE:
                reason = self._reserve()
                return [(Event.EXITED, (), reason)] if reason else [(Event.GRANTED, (), None)]
            case Effect.SPAWN:
                process = Process(self.record.spec, self.record.ports, self._world, self._settings)
                self._process, self._protocol, self._detail = process, Protocol.UNKNOWN, "spawning"
                self._nest.start("spawn", self._spawn(process))
            case Effect.ANNOUNCE if process:
                self._announce(process)
            case Effect.WITHDRAW if process and Effect.DRAIN not in among:  # draining closes first by itself
                self._nest.start("withdraw", self._work.withdraw(process))
            case Effect.DRAIN if process:
                self._detail = "draining"
                self._nest.start("drain", self._work.drain(process))
            case Effect.STOP if process:
                self._detail = None
                self._nest.cancel("startup", "liveness", "exit", "drain")
                self._nest.start("stop", self._work.stop(process, self._show))
            case Effect.RELEASE:
                self._nest.cancel("startup", "liveness", "exit", "drain", "stop", "reading")
                self._process, self._protocol, self._ready_since = None, Protocol.UNKNOWN, None
                self._save_soon()
            case Effect.WAIT:
                retry = self._endings.retry
                self._nest.start("backoff", self._work.wait(retry.delay_secs if retry else 0.0, self._stay))
        return []

    def _reserve(self) -> ExitReason | None:
        """Make sure that the booked ports are free; automatic ones give way to foreign holders."""
        fresh, blocked = self._endings.take_fresh_ports(), self._hub.blocked(self.record.ports)
        if blocked is None and not fresh:
            return None
        spec = self.record.spec
        if blocked is not None and blocked in (spec.port, spec.prometheus_port):
            return ExitReason(ExitKind.PORT, f"port {blocked} is in use by another process")
        try:
            self.record = replace(self.record, ports=self._hub.rebook(self.record))
        except errors.TeiManagerError as error:
            return ExitReason(ExitKind.PORT, str(error))
        return None

    def _announce(self, process: Process) -> None:
        seconds = asyncio.get_running_loop().time() - process.spawned_at
        self._world.metrics.became_ready(str(self.record.spec.engine), seconds)
        self._world.frontdoor.announce(process.endpoint(self._protocol))
        self._nest.start("liveness", self._check_liveness(process))
        self._save_soon()

    # -- work beside the mailbox ------------------------------------------------------------------------------

    async def _spawn(self, process: Process) -> None:
        await self._hub.save()  # the intent first: a start whose answer is lost can be found by its nonce
        try:
            await process.spawn()
        except NotStarted as error:
            self._post(Happened(event=Event.EXITED, uid=process.uid, reason=error.reason))
            return
        assert process.handle is not None
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
            self._spawns += 1
            self._detail, self._is_restarting = "loading", False
            self._watch(process)
        self._show()
        await self._hub.save()

    def _watch(self, process: Process) -> None:
        """From now on its end is seen, and that it becomes ready."""
        stay = self._stay

        def on_detail(detail: str) -> None:
            if self._stay != stay or self._detail == detail:
                return
            if self._detail == "adopted" and detail != "warming":
                return  # until its first probe passes
            self._detail = detail
            self._show()

        self._nest.start("exit", self._work.see_exit(process, was_ready=lambda: self._ready_since is not None))
        self._nest.start("startup", self._work.see_ready(process, stay, on_detail))

    async def _check_liveness(self, process: Process) -> None:
        reason = await self._liveness.until_dead(process, self._protocol, self._show)
        self._post(Happened(event=Event.UNHEALTHY, uid=process.uid, reason=reason))

    def _post(self, message: Happened) -> None:
        self._mailbox.put_nowait(message)

    def _crashed(self, name: str, error: BaseException) -> None:
        """The actor must not wait for work that died: what it waited for is taken as failed, and swept."""
        reason, process = self._note(name, error), self._process
        if process is not None and name == "liveness":
            self._nest.start("liveness", self._check_liveness(process))
        elif process is not None and name == "stop":
            self._nest.start("stop", self._work.stop(process, self._show, after_secs=REPAIR_PAUSE_SECS))
        elif (
            process is not None and name in ("spawn", "exit", "startup", "drain") and (event := self._after_fall())
        ):
            self._post(Happened(event=event, uid=process.uid, reason=reason))
        self._guarded(self._show)

    def _after_fall(self) -> Event | None:
        """What leads on from here when something that should have done it broke."""
        has_process = self._process is not None and self._process.handle is not None
        match self._state:
            case State.STARTING:
                return Event.DUE if has_process else Event.EXITED
            case State.READY:
                return Event.UNHEALTHY
            case State.DRAINING:
                return Event.DRAINED
            case State.STOPPING:
                return None if has_process else Event.EXITED
            case _:
                return None

    # -- telling others ---------------------------------------------------------------------------------------

    def _note(self, what: str, error: BaseException) -> ExitReason:
        self._last_error = f"internal error in {what}: {error!r}"
        log.error("Internal error", instance=self.record.spec.name, work=what, exc_info=error)
        return ExitReason(ExitKind.CRASH, self._last_error)

    def _count_restart(self) -> None:
        self.record = replace(self.record, restarts=self.record.restarts + 1)
        self._world.metrics.restarted(self.record.spec.name)
        self._world.journal.note(
            EventType.RESTARTED,
            instance=self.record.spec.name,
            reason=self._last_error,
            data={"restarts": self.record.restarts},
        )

    def _save_soon(self) -> None:
        self._nest.start("save", self._hub.save())

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
        self._world.journal.note(
            EventType.STATUS,
            instance=now.name,
            before=str(before.status),
            after=str(now.status),
            reason=why,
            data={"detail": now.detail, "pid": now.pid or before.pid},
        )
        if now.status is Status.RUNNING:
            log.info("Instance is ready", instance=now.name, port=now.ports.main, protocol=str(now.protocol))

    def _show(self) -> None:
        try:
            self._hub.changed()
        finally:
            self._waiters.wake()
