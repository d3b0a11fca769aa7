"""The contract of the multiplexer, row by row, over real sockets: streams, withdrawal, native calls, health."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.unit.surfaces_grpc.calls import (
    EMBED,
    EMBED_STREAM,
    RERANK_STREAM,
    refused,
    streamed,
    to,
    unary,
    wrapped,
)

from tei_manager.domain.instance import Status
from tei_manager.surfaces.grpc import server

# -- streams ----------------------------------------------------------------------------------------------------


async def test_later_messages_may_omit_or_repeat_the_target(world: Any) -> None:
    await world.engine("a", aliases=("text",))
    messages = to("a", b"1"), wrapped(b"2"), to("a", b"3")
    assert await streamed(world, *messages) == ([b"1", b"2", b"3"], "OK", "")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (to("b"), "Target changed within the stream"),
        (to(model_id="a"), "Target changed within the stream"),
        (b"\x0a\x03\x0a\x01a", "Missing embed request"),
        (b"\xff", "Malformed request"),
    ],
)
async def test_a_bad_later_message_ends_the_stream_after_the_earlier_answers(
    world: Any, message: bytes, text: str
) -> None:
    await world.engine("a")
    other = await world.engine("b")
    found = await streamed(world, to("a", b"1"), to("a", b"2"), message, to("a", b"3"))
    assert found == ([b"1", b"2"], "INVALID_ARGUMENT", text)
    assert other.visits == []


async def test_a_stream_without_messages_is_refused(world: Any) -> None:
    await world.engine("a")
    assert await streamed(world) == ([], "INVALID_ARGUMENT", "Empty stream")


async def test_answers_before_a_failure_are_delivered(world: Any) -> None:
    async def fail_third(visit: Any) -> None:
        for _ in range(2):
            await visit.context.write(await visit.read())
        await visit.read()
        await visit.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "third")

    await world.engine("a", fail_third)
    messages = [to("a", bytes((number,))) for number in range(1, 6)]
    assert await streamed(world, *messages) == ([b"\x01", b"\x02"], "RESOURCE_EXHAUSTED", "third")


async def test_an_engine_that_ends_a_stream_amid_the_flow_keeps_its_status(world: Any) -> None:
    async def fail(visit: Any) -> None:
        await visit.read()
        await visit.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")

    await world.engine("a", fail)
    messages = [to("a", b"x" * 1000)] * 100
    for _ in range(10):
        assert await streamed(world, *messages) == ([], "RESOURCE_EXHAUSTED", "enough")


async def test_many_messages_and_one_answer(world: Any) -> None:
    async def join(visit: Any) -> None:
        while await visit.read() is not None:
            pass
        await visit.context.write(b"+".join(visit.received))

    await world.engine("a", join)
    call = world.channel.stream_unary(RERANK_STREAM)(timeout=5)
    for part in (b"1", b"2", b"3"):
        await call.write(to("a", part))
    await call.done_writing()
    assert await call == b"1+2+3"


async def test_a_slow_reader_makes_the_engine_wait(world: Any) -> None:
    written = 0

    async def flood(visit: Any) -> None:
        nonlocal written
        await visit.read()
        for _ in range(400):
            await visit.context.write(b"x" * 50_000)
            written += 1

    await world.engine("a", flood)
    call = world.channel.stream_stream(EMBED_STREAM)(timeout=20)
    await call.write(to("a"))
    await call.read()
    before = -1
    while before != written:
        before = written
        await asyncio.sleep(0.05)
    assert written < 300  # windows of two connections and a few messages, not all twenty megabytes
    await call.done_writing()
    for _ in range(399):
        assert len(await call.read()) == 50_000
    assert await call.read() is grpc.aio.EOF


async def test_a_thousand_messages_keep_their_order(world: Any) -> None:
    await world.engine("a")
    call = world.channel.stream_stream(EMBED_STREAM)(timeout=20)

    async def send() -> None:
        for number in range(1000):
            await call.write(to("a", str(number).encode()))
        await call.done_writing()

    sending = asyncio.create_task(send())
    got = [await call.read() for _ in range(1000)]
    await sending
    assert got == [str(number).encode() for number in range(1000)]


# -- withdrawal and the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [EMBED, EMBED_STREAM])
async def test_a_withdrawn_instance_keeps_its_calls_until_time_is_over(world: Any, path: str) -> None:
    came, go = asyncio.Event(), asyncio.Event()

    async def wait(visit: Any) -> None:
        message = await visit.read()
        came.set()
        await go.wait()
        await visit.context.write(message)

    engine = await world.engine("a", wait)
    first = asyncio.create_task(streamed(world, to("a"), path=path))
    await came.wait()
    withdrawal = asyncio.create_task(world.router.withdraw("uid-a", drain_secs=5))
    await asyncio.sleep(0)
    assert (await refused(unary(world, to("a"))))[0] == "UNAVAILABLE"
    go.set()
    assert await withdrawal == 0
    assert await first == ([b"payload"], "OK", "")

    world.announce("a", engine.port)
    came.clear()
    go.clear()
    second = asyncio.create_task(streamed(world, to("a"), path=path))
    await came.wait()
    assert await world.router.withdraw("uid-a", drain_secs=0.02) == 1
    assert await second == ([], "UNAVAILABLE", "Instance 'a' was stopped")


async def test_a_restarted_instance_meets_no_old_connection(world: Any) -> None:
    first = await world.engine("a")
    await unary(world, to("a"))
    await world.router.withdraw("uid-a", drain_secs=0)
    await first.server.stop(0)
    second = await world.engine("a")
    assert await unary(world, to("a")) == b"payload"
    assert len(second.visits) == 1
    assert world.metric('tei_grpc_pool_connections_total{instance="a"}') == 2


async def test_stopping_the_door(world: Any) -> None:
    came, go = asyncio.Event(), asyncio.Event()

    async def wait(visit: Any) -> None:
        message = await visit.read()
        came.set()
        await go.wait()
        await visit.context.write(message)

    async def hang(visit: Any) -> None:
        await visit.read()
        came.set()
        await asyncio.Event().wait()

    await world.engine("a", wait)
    engine = await world.engine("b", hang)
    finishing = asyncio.create_task(unary(world, to("a")))
    await came.wait()
    came.clear()
    stuck = asyncio.create_task(unary(world, to("b")))
    await came.wait()
    stopping = asyncio.create_task(world.door.stop(0.3))
    await asyncio.sleep(0.05)
    go.set()
    assert await finishing == b"payload"
    late = grpc.aio.insecure_channel(f"127.0.0.1:{world.port}", options=[("grpc.use_local_subchannel_pool", 1)])
    assert (await refused(late.unary_unary(EMBED)(to("a"), timeout=2)))[0] == "UNAVAILABLE"
    await late.close()
    assert await stopping == 1
    assert await refused(stuck) == ("UNAVAILABLE", "Server is shutting down")
    await engine.visits[0].cancelled.wait()


async def test_a_port_in_use_is_an_error_that_names_it(world: Any) -> None:
    other = server.GrpcDoor(world.router, world.upstreams)
    with pytest.raises(server.CannotListen, match=f":{world.port} "):
        await other.bind("127.0.0.1", world.port)


async def test_an_idle_connection_is_closed(world: Any) -> None:
    await world.engine("a")
    world.upstreams._idle_secs = 0.05
    await unary(world, to("a"))
    for _ in range(100):
        if not world.upstreams._lines:
            break
        await asyncio.sleep(0.01)
    assert not world.upstreams._lines
    await unary(world, to("a"))
    assert world.metric('tei_grpc_pool_connections_total{instance="a"}') == 2


# -- tei.v1 without a wrapper -----------------------------------------------------------------------------------


async def test_native_calls_go_where_metadata_says(world: Any) -> None:
    a, b = await world.engine("a"), await world.engine("b", model="org/n")
    path = "/tei.v1.Embed/Embed"
    assert await unary(world, b"raw", path=path, metadata=(("x-tei-instance", "b"),)) == b"raw"
    assert await unary(world, b"raw", path=path, metadata=(("x-tei-model", "org/m"),)) == b"raw"
    both = (("x-tei-instance", "a"), ("x-tei-model", "org/m"))
    assert await unary(world, b"raw", path=path, metadata=both) == b"raw"
    assert (len(a.visits), len(b.visits)) == (2, 1)
    disagree = (("x-tei-instance", "a"), ("x-tei-model", "org/n"))
    assert (await refused(unary(world, b"", path=path, metadata=disagree)))[0] == "INVALID_ARGUMENT"
    empty = (("x-tei-instance", ""),)
    assert (await refused(unary(world, b"", path=path, metadata=empty)))[0] == "INVALID_ARGUMENT"
    assert await refused(unary(world, b"", path=path)) == (
        "INVALID_ARGUMENT",
        "Several instances are running: set metadata x-tei-instance or x-tei-model",
    )


async def test_native_calls_without_metadata(world: Any) -> None:
    path = "/tei.v1.Embed/EmbedStream"
    assert await streamed(world, b"1", path=path) == ([], "UNAVAILABLE", "No running instance")
    await world.engine("a")
    assert await streamed(world, b"1", b"2", path=path) == ([b"1", b"2"], "OK", "")
    await world.engine("b", model="org/n")
    await world.close()
    await world.open(default_target="org/n")
    await world.engine("a")
    second = await world.engine("b", model="org/n")
    assert await unary(world, b"x", path="/tei.v1.Info/Info") == b"x"
    assert len(second.visits) == 1


# -- health and metrics -----------------------------------------------------------------------------------------


async def test_health_by_name(world: Any) -> None:
    stub = health_pb2_grpc.HealthStub(world.channel)

    async def check(name: str) -> str:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    world.register("down", status=Status.STOPPED, model="org/down")
    assert await check("") == await check("tei_multiplexer.v1.TeiMultiplexer") == "SERVING"
    assert await check("tei.v1.Embed") == "NOT_SERVING"
    await world.engine("a")
    for name in ("tei.v1.Embed", "instance/a", "model/org/m"):
        assert await check(name) == "SERVING"
    for name in ("instance/down", "model/org/down"):
        assert await check(name) == "NOT_SERVING"
    assert (await refused(check("instance/x")))[0] == "NOT_FOUND"


async def test_watchers_hear_of_changes(world: Any) -> None:
    stub = health_pb2_grpc.HealthStub(world.channel)
    seen = stub.Watch(health_pb2.HealthCheckRequest(service="instance/a"), timeout=5)
    status = health_pb2.HealthCheckResponse
    assert (await seen.read()).status == status.SERVICE_UNKNOWN
    await world.engine("a")
    got = (await seen.read()).status
    if got == status.NOT_SERVING:  # registered and not announced yet
        got = (await seen.read()).status
    assert got == status.SERVING
    await world.router.withdraw("uid-a", drain_secs=0)
    assert (await seen.read()).status == status.NOT_SERVING
    seen.cancel()
    whole = stub.Watch(health_pb2.HealthCheckRequest(), timeout=5)
    assert (await whole.read()).status == status.SERVING
    stopping = asyncio.create_task(world.door.stop(1))
    assert (await whole.read()).status == status.NOT_SERVING
    assert await whole.read() is grpc.aio.EOF
    await stopping


async def test_what_is_counted(world: Any) -> None:
    await world.engine("a")
    await unary(world, to("a"))
    await streamed(world, to("a"), to("a"))
    await refused(unary(world, to("somebody's secret")))
    expected = {
        'tei_mux_requests_total{instance="a",method="embed",status="ok"}': 1,
        'tei_mux_requests_total{instance="a",method="embed_stream",status="ok"}': 1,
        'tei_mux_requests_total{instance="unknown",method="embed",status="error"}': 1,
        'tei_mux_errors_total{code="NOT_FOUND",method="embed"}': 1,
        'tei_grpc_pool_connections_total{instance="a"}': 1,
        'tei_grpc_pool_requests_total{instance="a",method="embed"}': 1,
        'tei_grpc_pool_requests_total{instance="a",method="embed_stream"}': 1,
        'tei_mux_request_duration_seconds_count{instance="a",method="embed"}': 1,
        'tei_grpc_multiplexer_request_duration_seconds_count{method="embed"}': 2,
        'tei_grpc_multiplexer_request_duration_seconds_count{method="embed_stream"}': 1,
        'tei_mux_overhead_seconds_count{method="embed"}': 2,
        'tei_mux_in_flight_requests{instance="a"}': 0,
        'tei_mux_open_streams{instance="a"}': 0,
    }
    for _ in range(50):  # a status reaches the caller before it is counted
        if {series: world.metric(series) for series in expected} == expected:
            break
        await asyncio.sleep(0.01)
    assert {series: world.metric(series) for series in expected} == expected
    assert world.router.last_success("uid-a") is not None
