"""Permits never leak, and a withdrawal returns when, and only when, nothing is in flight or its time is over."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind, Protocol
from tei_manager.domain.target import Endpoint
from tei_manager.serving.pool import Pool

LONG = 3600.0


def endpoint(number: int) -> Endpoint:
    return Endpoint(
        instance=f"i{number % 3}",
        uid=f"u{number}",
        host="h",
        http_port=None,
        grpc_port=1,
        protocol=Protocol.GRPC,
        engine=EngineKind.TEI,
        model_id="m",
    )


@dataclass
class Caller:
    task: asyncio.Task[str]
    uid: str
    leave: asyncio.Event
    is_cancelled: bool = False
    is_cut: bool = False


@dataclass
class Model:
    announced: dict[str, Endpoint] = field(default_factory=dict)
    withdrawing: dict[str, asyncio.Task[int]] = field(default_factory=dict)
    callers: list[Caller] = field(default_factory=list)

    def of(self, uid: str) -> list[Caller]:
        return [caller for caller in self.callers if caller.uid == uid]


class PoolMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.pool = Pool()
        self.gone: list[str] = []
        self.pool.on_gone(self.gone.append)
        self.model = Model()
        self.number = 0

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.close()

    def settle(self) -> None:
        async def turns() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.runner.run(turns())
        for caller in [each for each in self.model.callers if each.task.done()]:
            self.model.callers.remove(caller)
            if caller.is_cut and not caller.is_cancelled:
                assert isinstance(caller.task.exception(), errors.Withdrawn)
            elif caller.is_cancelled:
                assert caller.task.cancelled()
            else:
                assert caller.task.result() == "done"

    @rule()
    def announce(self) -> None:
        self.number += 1
        new = endpoint(self.number)
        self.model.announced[new.uid] = new
        self.pool.announce(new)

    @precondition(lambda self: self.model.announced)
    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        candidates = data.draw(st.lists(st.sampled_from(sorted(self.model.announced)), min_size=1, unique=True))
        picked = self.pool.pick([self.model.announced[uid] for uid in candidates])
        least = min(len(self.model.of(uid)) for uid in candidates)
        assert len(self.model.of(picked.uid)) == least
        leave = asyncio.Event()

        async def use() -> str:
            with self.pool.permit(picked):
                await leave.wait()
                return "done"

        self.model.callers.append(Caller(self.loop.create_task(use()), picked.uid, leave))
        self.settle()

    @precondition(lambda self: self.model.callers)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.model.callers)).leave.set()
        self.settle()

    @precondition(lambda self: self.model.callers)
    @rule(data=st.data(), how_many=st.integers(1, 3))
    def cancel(self, data: st.DataObject, how_many: int) -> None:
        caller = data.draw(st.sampled_from(self.model.callers))
        caller.is_cancelled = True
        for _ in range(how_many):
            caller.task.cancel()
        self.settle()

    @precondition(lambda self: self.model.announced)
    @rule(data=st.data())
    def withdraw_patiently(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.model.announced)))
        del self.model.announced[uid]
        self.model.withdrawing[uid] = self.loop.create_task(self.pool.withdraw(uid, drain_secs=LONG))
        self.settle()

    @rule(data=st.data(), leaves_too=st.booleans())
    def withdraw_now(self, data: st.DataObject, leaves_too: bool) -> None:
        known = sorted(self.model.announced) + sorted(self.model.withdrawing)
        uid = data.draw(st.sampled_from([*known, "unknown"]))
        self.model.announced.pop(uid, None)
        left = self.model.of(uid)
        for caller in left:
            caller.is_cut = True

        async def withdraw() -> int:
            if leaves_too and left:
                left[0].is_cancelled = True
                left[0].task.cancel()
            return await self.pool.withdraw(uid, drain_secs=0)

        assert self.runner.run(withdraw()) == len(left)
        self.settle()
        assert self.model.of(uid) == []

    @invariant()
    def what_is_in_flight_is_what_runs(self) -> None:
        if not hasattr(self, "model"):
            return
        for uid in {*self.model.announced, *self.model.withdrawing}:
            assert self.pool.in_flight(uid) == len(self.model.of(uid))

    @invariant()
    def a_withdrawal_waits_exactly_as_long_as_something_is_in_flight(self) -> None:
        if not hasattr(self, "model"):
            return
        for uid, withdrawal in list(self.model.withdrawing.items()):
            assert withdrawal.done() == (not self.model.of(uid))
            if withdrawal.done():
                assert withdrawal.result() == 0
                del self.model.withdrawing[uid]
                assert self.gone.count(uid) == 1


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestPool = PoolMachine.TestCase
