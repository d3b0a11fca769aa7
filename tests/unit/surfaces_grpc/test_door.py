"""The contract of the multiplexer, row by row, over real sockets: what passes, what is refused, time."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.unit.surfaces_grpc.calls import (
    EMBED,
    EMBED_STREAM,
    MUX,
    RERANK_STREAM,
    refused,
    streamed,
    to,
    unary,
    wrapped,
)

from tei_manager.adapters.upstream import grpc as upstream
from tei_manager.domain.instance import Desired, EngineKind, Status
from tei_manager.surfaces.grpc.methods import METHODS

# -- passing through --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", b"\xff\x00 not protobuf \x80", b"long" * 5000])
async def test_the_inner_request_and_the_answer_pass_byte_for_byte(world: Any, payload: bytes) -> None:
    engine = await world.engine("a")
    assert await unary(world, to("a", payload)) == payload
    assert engine.visits[0].received == [payload]
    assert await streamed(world, to("a", payload), to("a", b"2")) == ([payload, b"2"], "OK", "")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
async def test_every_method_reaches_the_engines_method_of_its_name(world: Any, method: Any) -> None:
    engine = await world.engine("a")
    message = to("a") if method.word else b"\x0a\x03\x0a\x01a"
    if method.is_stream:
        answers, code, _ = await streamed(world, message, path=method.multiplexer_path)
        assert (answers, code) == ([b"payload"], "OK")
    else:
        answer = await unary(world, message, path=method.multiplexer_path)
        assert answer == (b"payload" if method.word else b"")
    assert [visit.path for visit in engine.visits] == [method.path]


async def test_every_way_to_name_a_target(world: Any) -> None:
    engine = await world.engine("a", aliases=("text",))
    for target in (
        {"instance_name": "a"},
        {"instance_name": "text"},
        {"model_id": "org/m"},
        {"model_id": "text"},
        {"instance_index": 0},
    ):
        await unary(world, to(**target))
    early = b"\x0a\x02\x10\x00" + wrapped(b"index=0"), b"\x0a\x07\x1a\x05org/m" + wrapped(b"model")
    for message in early:
        await unary(world, message)
    assert len(engine.visits) == 7


async def test_split_and_repeated_fields_are_joined(world: Any) -> None:
    engine = await world.engine("a")
    message = wrapped(b"one") + b"\x0a\x00" + b"\x18\x01" + b"\x0a\x03\x0a\x01a" + wrapped(b"two")
    assert await unary(world, message) == b"onetwo"
    assert len(engine.visits) == 1


async def test_calls_of_a_model_rotate(world: Any) -> None:
    engines = [await world.engine(name) for name in "abc"]
    for _ in range(6):
        await unary(world, to(model_id="org/m"))
    assert [len(engine.visits) for engine in engines] == [2, 2, 2]


async def test_metadata_both_ways(world: Any) -> None:
    async def answer(visit: Any) -> None:
        await visit.read()
        await visit.context.send_initial_metadata(
            (("x-compute-time", "7"), ("x-tei-instance", "forged"), ("server", "s"))
        )
        await visit.context.write(b"ok")
        visit.context.set_trailing_metadata((("x-cost", "1"), ("grpc-status-details-bin", b"\x00\x01")))

    engine = await world.engine("a", answer)
    sent = (
        ("authorization", "Bearer K"),
        ("x-api-key", "K"),
        ("cookie", "c"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-tei-instance", "other"),
        ("proxy-x", "p"),
        ("traceparent", "00-1-2-01"),
        ("x-mine", "kept"),
        ("mine-bin", b"\xff\x00"),
    )
    for path in (EMBED, EMBED_STREAM):
        call = world.channel.stream_stream(path)(timeout=5, metadata=sent)
        await call.write(to("a"))
        await call.done_writing()
        assert await call.read() == b"ok"
        assert await call.read() is grpc.aio.EOF
        got = engine.visits[-1].metadata
        request_id = got.pop("x-request-id")
        got.pop("user-agent")
        assert got == {"traceparent": "00-1-2-01", "x-mine": "kept", "mine-bin": b"\xff\x00"}
        opening = list(await call.initial_metadata())
        assert ("x-compute-time", "7") in opening
        assert [value for key, value in opening if key == "x-tei-instance"] == ["a"]
        assert ("x-request-id", request_id) in opening
        assert re.fullmatch(r"[0-9a-f-]{14}7[0-9a-f-]{21}", request_id)
        assert set(await call.trailing_metadata()) == {("x-cost", "1"), ("grpc-status-details-bin", b"\x00\x01")}


async def test_a_well_formed_request_id_is_kept(world: Any) -> None:
    engine = await world.engine("a")
    await unary(world, to("a"), metadata=(("x-request-id", "abc-1"),))
    assert engine.visits[0].metadata["x-request-id"] == "abc-1"
    await unary(world, to("a"), metadata=(("x-request-id", "two words"),))
    assert engine.visits[1].metadata["x-request-id"] != "two words"


async def test_gzip_requests_are_understood_and_answered_as_identity(world: Any) -> None:
    await world.engine("a")
    payload = b"z" * 2000
    assert await unary(world, to("a", payload), compression=grpc.Compression.Gzip) == payload
    code, _ = await refused(unary(world, to("a", payload), compression=grpc.Compression.Deflate))
    assert code == "UNIMPLEMENTED"


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"", "Missing target"),
        (wrapped(b""), "Missing target"),
        (b"\x0a\x00" + wrapped(b""), "No routing specified"),
        (b"\x0a\x02\x08\x01" + wrapped(b""), "No routing specified"),
        (b"\x0a\x02\x0a\x00", "Instance name cannot be empty"),
        (b"\x0a\x02\x12\x00", "Model id cannot be empty"),
        (b"\x0a\x03\x0a\x01x", "Missing embed request"),
        (b"\x0a\x03\x0a\x01\xff" + wrapped(b""), "Malformed request"),
        (b"\xff\xff\xff", "Malformed request"),
    ],
)
async def test_a_bad_request_says_what_is_wrong(world: Any, message: bytes, text: str) -> None:
    assert await refused(unary(world, message)) == ("INVALID_ARGUMENT", text)
    assert await streamed(world, message) == ([], "INVALID_ARGUMENT", text)


@pytest.mark.parametrize("method", [method for method in METHODS if method.word], ids=lambda method: method.name)
async def test_a_missing_request_is_named(world: Any, method: Any) -> None:
    _, code, text = await streamed(world, b"\x0a\x03\x0a\x01x", path=method.multiplexer_path)
    assert (code, text) == ("INVALID_ARGUMENT", f"Missing {method.word} request")


async def test_targets_that_cannot_answer(world: Any) -> None:
    world.register("stopped", status=Status.STOPPED, desired=Desired.STOPPED, model="org/stopped")
    world.register("failed", status=Status.FAILED, last_error="exit code 1", model="org/n")
    world.register("starting", status=Status.STARTING, model="org/n")
    rows = {
        to("x"): ("NOT_FOUND", "Instance 'x' not found"),
        to(instance_index=9): ("NOT_FOUND", "Instance index 9 out of range (3 instances)"),
        to(model_id="X"): ("NOT_FOUND", "No running instance for model 'X'"),
        to(model_id="org/stopped"): ("NOT_FOUND", "No running instance for model 'org/stopped'"),
        to(model_id="org/n"): (
            "UNAVAILABLE",
            "No ready instance for model 'org/n' (failed: failed, starting: starting)",
        ),
        to("stopped"): ("UNAVAILABLE", "Instance 'stopped' is not running (status: stopped)"),
        to("failed"): ("UNAVAILABLE", "Instance 'failed' is not running (status: failed): exit code 1"),
        to("starting"): ("UNAVAILABLE", "Instance 'starting' is not running (status: starting)"),
    }
    for message, expected in rows.items():
        assert await refused(unary(world, message)) == expected
        assert await streamed(world, message) == ([], *expected)


async def test_a_starting_instance_says_when_to_come_back(world: Any) -> None:
    world.register("a", status=Status.STARTING)
    world.register("b", status=Status.STOPPED)
    for name, pause in (("a", "1000"), ("b", None)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(world, to(name))
        trailers = dict(caught.value.trailing_metadata() or ())
        assert trailers.get("grpc-retry-pushback-ms") == pause
        assert trailers["x-request-id"]


async def test_instances_that_do_not_speak_grpc(world: Any) -> None:
    world.announce("http", None, engine=EngineKind.TEI)
    world.announce("other", None, engine=EngineKind.COMMAND, model="org/other")
    code, text = await refused(unary(world, to("http")))
    assert (code, text.split(",")[0]) == ("FAILED_PRECONDITION", "Instance 'http' speaks HTTP only")
    assert await refused(unary(world, to("other"))) == (
        "FAILED_PRECONDITION",
        "Instance 'other' does not speak tei.v1",
    )
    await world.engine("grpc")
    assert await unary(world, to(model_id="org/m")) == b"payload"


async def test_messages_that_are_too_large(world: Any) -> None:
    async def large(visit: Any) -> None:
        await visit.read()
        await visit.context.write(b"x" * 300_000)

    await world.engine("a")
    await world.engine("large", large)
    code, text = await refused(unary(world, to("a", b"x" * 300_000)))
    assert (code, "larger than max (300009 vs. 200000)" in text) == ("RESOURCE_EXHAUSTED", True)
    expected = ("RESOURCE_EXHAUSTED", "Message larger than max (300000 vs. 200000 bytes)")
    assert await refused(unary(world, to("large"))) == expected
    assert await unary(world, to("a", b"x" * 100_000)) == b"x" * 100_000


async def test_unknown_methods_and_arrow_are_unimplemented(world: Any) -> None:
    for path in (MUX + "EmbedArrow", MUX + "Nothing", "/x.Y/Z"):
        assert (await refused(unary(world, to("a"), path=path)))[0] == "UNIMPLEMENTED"


# -- what engines do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]
)
async def test_an_engines_error_passes_unchanged(world: Any, code: grpc.StatusCode) -> None:
    async def fail(visit: Any) -> None:
        await visit.read()
        await visit.context.abort(code, "as the engine says", (("x-why", "because"),))

    await world.engine("a", fail)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await unary(world, to("a"))
    call = world.channel.stream_stream(EMBED)(timeout=5)
    await call.write(to("a"))
    await call.done_writing()
    assert await call.code() is code
    assert await call.details() == "as the engine says"
    assert ("x-why", "because") in list(await call.trailing_metadata())


async def test_an_engine_that_is_not_there_is_unreachable_and_its_address_stays_secret(world: Any) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        world.announce("a", held.getsockname()[1])
        expected = ("UNAVAILABLE", "Instance 'a' is unreachable")
        assert await refused(unary(world, to("a"))) == expected
        assert await streamed(world, to("a")) == ([], *expected)
        # a connection that is accepted and never answered
        held.listen(1)
        world.upstreams.forget("uid-a")
        assert await refused(unary(world, to("a"))) == expected


async def test_an_engine_that_breaks_off_is_unreachable(world: Any) -> None:
    came = asyncio.Event()

    async def hang(visit: Any) -> None:
        await visit.read()
        came.set()
        await asyncio.Event().wait()

    engine = await world.engine("a", hang)
    call = asyncio.create_task(unary(world, to("a")))
    await came.wait()
    await engine.server.stop(0)
    assert await refused(call) == ("UNAVAILABLE", "Instance 'a' is unreachable")


async def test_one_retry_on_another_candidate_when_nothing_was_answered(world: Any) -> None:
    async def busy(visit: Any) -> None:
        await visit.read()
        await visit.context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        world.announce("dead", held.getsockname()[1])
        good = await world.engine("good")
        assert await unary(world, to(model_id="org/m")) == b"payload"
        assert world.metric('tei_mux_retries_total{instance="dead"}') == 1
        answers, code, _ = await streamed(world, to(model_id="org/m"), to(model_id="org/m"))
        assert (answers, code, len(good.visits)) == ([b"payload"] * 2, "OK", 2)
        # named is meant: nobody else may answer
        assert (await refused(unary(world, to("dead"))))[1] == "Instance 'dead' is unreachable"
    await world.engine("x", busy, model="org/busy")
    await world.engine("y", busy, model="org/busy")
    await world.engine("z", model="org/busy")
    assert await refused(unary(world, to(model_id="org/busy"))) == ("UNAVAILABLE", "no")


async def test_no_retry_for_other_codes_or_after_the_answer_began(world: Any) -> None:
    async def wrong(visit: Any) -> None:
        await visit.read()
        await visit.context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")

    async def begun(visit: Any) -> None:
        await visit.read()
        await visit.context.send_initial_metadata((("x-begun", "1"),))
        await visit.context.abort(grpc.StatusCode.UNAVAILABLE, "too late")

    for model, behaviour, expected in (
        ("org/1", wrong, ("RESOURCE_EXHAUSTED", "overloaded")),
        ("org/2", begun, ("UNAVAILABLE", "too late")),
    ):
        await world.engine(f"{model[-1]}-a", behaviour, model=model)
        other = await world.engine(f"{model[-1]}-b", model=model)
        assert await refused(unary(world, to(model_id=model))) == expected
        assert other.visits == []


# -- time and leaving -------------------------------------------------------------------------------------------


async def hang_on(visit: Any) -> None:
    await visit.read()
    await asyncio.Event().wait()


async def test_our_own_time_limit(world: Any) -> None:
    await world.close()
    await world.open(request_timeout_secs=0.05)
    engine = await world.engine("a", hang_on)
    expected = ("DEADLINE_EXCEEDED", "Request timeout")
    assert await refused(unary(world, to("a"))) == expected
    assert await streamed(world, to("a")) == ([], *expected)
    assert await streamed(world, to("a"), path=RERANK_STREAM) == ([], *expected)
    await engine.visits[-1].cancelled.wait()


async def test_a_stream_may_take_longer_than_the_limit_of_silence(world: Any) -> None:
    await world.close()
    await world.open(request_timeout_secs=0.2)
    await world.engine("a")
    call = world.channel.stream_stream(EMBED_STREAM)(timeout=5)
    for _ in range(3):
        await call.write(to("a"))
        assert await call.read() == b"payload"
        await asyncio.sleep(0.12)  # nothing is owed meanwhile
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_the_callers_deadline_goes_on_to_the_engine(world: Any) -> None:
    left: list[float] = []

    async def see(visit: Any) -> None:
        left.append(visit.context.time_remaining())
        await echo(visit)

    async def echo(visit: Any) -> None:
        await visit.context.write(await visit.read())

    await world.engine("a", see)
    await unary(world, to("a"), timeout=3)
    await streamed(world, to("a"))
    await unary(world, to("a"), timeout=300)
    assert 2 < left[0] <= 3.1
    assert 4 < left[1] <= 5.1
    assert 29 < left[2] <= 30.1


@pytest.mark.parametrize("path", [EMBED, EMBED_STREAM, RERANK_STREAM])
async def test_a_caller_that_leaves_takes_its_engine_call_along(
    world: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = asyncio.Event()

    async def hang(visit: Any) -> None:
        await visit.read()
        came.set()
        await asyncio.Event().wait()

    async def half_close(stream: upstream._Stream) -> None:
        half_closed.append(path)

    half_closed: list[str] = []
    monkeypatch.setattr(upstream._Stream, "done_sending", half_close)
    engine = await world.engine("a", hang)
    call = world.channel.stream_stream(path)(timeout=5)
    await call.write(to("a"))
    if path == EMBED:
        await call.done_writing()
    await came.wait()
    began = asyncio.get_running_loop().time()
    call.cancel()
    await asyncio.wait_for(engine.visits[0].cancelled.wait(), 5)
    assert asyncio.get_running_loop().time() - began < 0.1
    assert half_closed == []  # a broken stream must not look like its end
    assert world.router.pool.in_flight("uid-a") == 0
    assert world.metric('tei_mux_in_flight_requests{instance="a"}') == 0


async def test_a_lost_connection_is_a_caller_that_leaves(world: Any) -> None:
    came = asyncio.Event()

    async def hang(visit: Any) -> None:
        await visit.read()
        came.set()
        await asyncio.Event().wait()

    engine = await world.engine("a", hang)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{world.port}", options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.stream_stream(EMBED_STREAM)(timeout=5)
    await call.write(to("a"))
    await came.wait()
    await channel.close()
    await asyncio.wait_for(engine.visits[0].cancelled.wait(), 5)
