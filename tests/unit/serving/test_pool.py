"""Permits: who gets one, and what a withdrawal does to those who hold one."""

import asyncio

import pytest

from tei_manager.domain import errors
from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import EngineKind, Protocol
from tei_manager.domain.target import Endpoint
from tei_manager.serving.pool import Pool


def endpoint(name: str) -> Endpoint:
    return Endpoint(
        instance=name,
        uid=f"uid-{name}",
        host="127.0.0.1",
        http_port=None,
        grpc_port=1,
        protocol=Protocol.GRPC,
        engine=EngineKind.TEI,
        model_id="m",
    )


A, B, C = endpoint("a"), endpoint("b"), endpoint("c")


@pytest.fixture
def pool() -> Pool:
    made = Pool()
    for each in (A, B, C):
        made.announce(each)
    return made


async def hold(pool: Pool, where: Endpoint, got: asyncio.Event | None = None) -> None:
    with pool.permit(where):
        if got:
            got.set()
        await asyncio.Event().wait()


def test_equal_load_gives_strict_rotation(pool: Pool) -> None:
    picked = [pool.pick((A, B, C)).instance for _ in range(7)]
    assert picked == ["a", "b", "c", "a", "b", "c", "a"]


async def test_fewest_calls_in_flight_win(pool: Pool) -> None:
    with pool.permit(A), pool.permit(A), pool.permit(B):
        assert pool.pick((A, B)) is B
        assert (pool.in_flight(A.uid), pool.in_flight(B.uid)) == (2, 1)
    assert pool.in_flight(A.uid) == 0


async def test_both_forms_of_with_hold_a_permit(pool: Pool) -> None:
    async with pool.permit(A):
        assert pool.in_flight(A.uid) == 1
    assert pool.in_flight(A.uid) == 0


async def test_a_withdrawn_endpoint_gives_no_permits(pool: Pool) -> None:
    held = pool.permit(A)
    assert await pool.withdraw(A.uid, drain_secs=5) == 0
    for take in (lambda: pool.permit(A), held.__enter__, lambda: pool.pick((A,))):
        with pytest.raises(errors.NotReady):
            take()
    assert pool.pick((A, B)) is B
    assert await pool.withdraw(A.uid, drain_secs=5) == 0


async def test_a_withdrawal_waits_for_the_last_call(pool: Pool) -> None:
    gone: list[str] = []
    pool.on_gone(gone.append)
    leave = asyncio.Event()

    async def call() -> str:
        with pool.permit(A):
            await leave.wait()
            return "done"

    running = asyncio.create_task(call())
    await asyncio.sleep(0)
    withdrawal = asyncio.create_task(pool.withdraw(A.uid, drain_secs=5))
    await asyncio.sleep(0.01)
    assert not withdrawal.done()
    assert gone == []
    leave.set()
    assert await withdrawal == 0
    assert await running == "done"
    assert gone == [A.uid]


async def test_what_is_left_when_time_is_over_is_cut(pool: Pool) -> None:
    got = asyncio.Event()
    running = asyncio.create_task(hold(pool, A, got))
    await got.wait()
    assert await pool.withdraw(A.uid, drain_secs=0.01) == 1
    with pytest.raises(errors.Withdrawn, match=r"^Instance 'a' was stopped$"):
        await running
    assert not running.cancelled()


async def test_an_impatient_withdrawal_ends_a_patient_one(pool: Pool) -> None:
    got = asyncio.Event()
    running = asyncio.create_task(hold(pool, A, got))
    await got.wait()
    patient = asyncio.create_task(pool.withdraw(A.uid, drain_secs=60))
    await asyncio.sleep(0)
    assert await pool.withdraw(A.uid, drain_secs=0) == 1
    with pytest.raises(errors.Withdrawn):
        await running
    assert await patient == 0


async def test_a_caller_that_leaves_is_cancelled_and_not_cut(pool: Pool) -> None:
    got = asyncio.Event()
    running = asyncio.create_task(hold(pool, A, got))
    await got.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert pool.in_flight(A.uid) == 0


async def test_leaving_while_being_cut_stays_a_cancellation(pool: Pool) -> None:
    got = asyncio.Event()
    running = asyncio.create_task(hold(pool, A, got))
    await got.wait()
    running.cancel()
    assert await pool.withdraw(A.uid, drain_secs=0) == 1
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_the_last_success_is_remembered_while_the_endpoint_lives() -> None:
    now = 7.0
    pool = Pool(clock=lambda: now)
    pool.announce(A)
    assert pool.last_success(A.uid) is None
    with pool.permit(A):
        pass
    assert pool.last_success(A.uid) is None
    with pool.permit(A) as permit:
        permit.succeeded()
    assert pool.last_success(A.uid) == 7.0
    await pool.withdraw(A.uid, drain_secs=0)
    assert pool.last_success(A.uid) is None
    pool.announce(A)  # the same process again, found alive after all
    assert pool.in_flight(A.uid) == 0


async def test_what_ended_is_counted_and_what_was_answered_is_timed() -> None:
    now = 0.0
    pool = Pool(clock=lambda: now)
    pool.announce(A)
    assert pool.figures(A.uid) == pool.figures("nobody") == Figures()
    for secs in (0.5, 1.5):
        with pool.permit(A) as permit:
            now += secs
            permit.succeeded()
    permit = pool.permit(A)
    with pytest.raises(errors.UpstreamError), permit:
        raise errors.UpstreamError("broke off")
    with pool.permit(A):
        assert pool.figures(A.uid).requests == 3  # one that runs is not counted yet
    figures = pool.figures(A.uid)
    assert figures == Figures(requests=4, failed=2, timed=2, seconds=2.0)
    assert (figures.avg_latency_secs, figures.error_rate) == (1.0, 0.5)
    await pool.withdraw(A.uid, drain_secs=0)
    assert pool.figures(A.uid) == Figures()
