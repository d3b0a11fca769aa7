"""The multiplexer before engines of their own processes, called by the clients that people use."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tei_manager.adapters.telemetry.grpc_metrics import PrometheusGrpcMetrics
from tei_manager.adapters.upstream.grpc import GrpcUpstreams
from tei_manager.domain.instance import EngineKind, Instance, InstanceSpec, Ports, Protocol, Status
from tei_manager.domain.target import Endpoint
from tei_manager.grpc import Target, create_request
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux_pb2
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2_grpc as mux_grpc
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc.server import GrpcDoor, GrpcDoorSettings
from tei_manager.testing import engine as rules

TINY_MODELS = Path(__file__).parents[1] / "fixtures" / "tiny_models"

UNARY_EXAMPLE = """\
import grpc
from tei_manager.grpc.proto.multiplexer.v1 import (
    tei_multiplexer_pb2 as mux_pb2,
    tei_multiplexer_pb2_grpc as mux_grpc,
)
from tei_manager.grpc.proto.tei.v1 import tei_pb2

# Connect to multiplexer
channel = grpc.insecure_channel('localhost:9001')
stub = mux_grpc.TeiMultiplexerStub(channel)

# Create request with routing
request = mux_pb2.EmbedRequest(
    target=mux_pb2.Target(
        instance_name="bge-small"  # Route to specific instance
    ),
    request=tei_pb2.EmbedRequest(
        inputs="Hello world",
        truncate=True,
        normalize=True,
    )
)

# Generate embeddings
response = stub.Embed(request)
print(f"Embeddings: {response.embeddings}")
"""

STREAM_EXAMPLE = """\
import grpc
from tei_manager.grpc.proto.multiplexer.v1 import (
    tei_multiplexer_pb2 as mux_pb2,
    tei_multiplexer_pb2_grpc as mux_grpc,
)
from tei_manager.grpc.proto.tei.v1 import tei_pb2

channel = grpc.insecure_channel('localhost:9001')
stub = mux_grpc.TeiMultiplexerStub(channel)

# Create stream of requests
def request_stream():
    texts = ["Hello", "World", "Streaming", "Example"]
    for text in texts:
        yield mux_pb2.EmbedRequest(
            target=mux_pb2.Target(instance_name="bge-small"),
            request=tei_pb2.EmbedRequest(
                inputs=text,
                truncate=True,
                normalize=True,
            )
        )

# Stream embeddings
responses = stub.EmbedStream(request_stream())
for response in responses:
    print(f"Embeddings: {response.embeddings}")
"""


class Engine:
    """A process that listens on its port once it answers `Info`."""

    def __init__(self, argv: list[str], port: int, stack: contextlib.ExitStack) -> None:
        self.port = port
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TESTING_ENGINE_")}
        self.process = subprocess.Popen(
            [sys.executable, *argv], env=clean, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(self.process.wait, 10)
        stack.callback(self.process.kill)

    def wait_until_ready(self) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            while True:
                try:
                    tei_pb2_grpc.InfoStub(channel).Info(tei_pb2.InfoRequest(), wait_for_ready=True, timeout=30)
                    return
                except grpc.RpcError as error:  # it may listen while it loads
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or self.process.poll() is not None:
                        raise
                time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def launch(stack: contextlib.ExitStack, *flags: str) -> Engine:
    port = free_port()
    module = ["-m", "tei_manager.testing.engine"]
    engine = Engine([*module, "--port", str(port), "--protocol", "grpc", *flags], port, stack)
    engine.wait_until_ready()
    return engine


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    with contextlib.ExitStack() as stack:
        yield lambda *flags: launch(stack, *flags)


@pytest.fixture(scope="module")
def plain() -> Iterator[Engine]:
    with contextlib.ExitStack() as stack:
        yield launch(stack, "--error-inputs", "poison")


@pytest.fixture(scope="module")
def reranker() -> Iterator[Engine]:
    with contextlib.ExitStack() as stack:
        yield launch(stack, "--model-type", "reranker")


class Door:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        metrics = PrometheusGrpcMetrics(self.registry)
        self.router = Router()
        self.upstreams = GrpcUpstreams(metrics=metrics)
        self.door = GrpcDoor(self.router, self.upstreams, GrpcDoorSettings(), metrics)
        self.port = 0
        self._instances: list[Instance] = []

    def announce(self, name: str, engine: Engine, model: str = "org/model") -> None:
        spec = InstanceSpec(name=name, model_id=model)
        instance = Instance(
            spec=spec, ports=Ports(main=engine.port), created_at=len(self._instances), status=Status.RUNNING
        )
        self._instances.append(instance)
        self.router.publish(tuple(self._instances))
        self.router.announce(
            Endpoint(
                instance=name,
                uid=f"{name}-{engine.port}",
                host="127.0.0.1",
                http_port=None,
                grpc_port=engine.port,
                protocol=Protocol.GRPC,
                engine=EngineKind.TEI,
                model_id=model,
            )
        )

    def metric(self, series: str) -> str:
        lines = generate_latest(self.registry).decode().splitlines()
        return next((line.rsplit(" ", 1)[1] for line in lines if line.startswith(series + " ")), "none")


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    made = Door()
    made.port = await made.door.bind("127.0.0.1", 0)
    await made.door.start()
    yield made
    await made.door.stop(0)
    await made.upstreams.close()


@pytest.fixture
async def channel(door: Door) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{door.port}") as opened:
        yield opened


def floats(vector: Any) -> list[float]:
    return [float(value) for value in vector]


@pytest.mark.parametrize(
    ("example", "texts"),
    [(UNARY_EXAMPLE, ["Hello world"]), (STREAM_EXAMPLE, ["Hello", "World", "Streaming", "Example"])],
    ids=["unary", "streaming"],
)
async def test_the_published_python_examples_run_as_printed(
    door: Door, plain: Engine, example: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    door.announce("bge-small", plain)
    real = grpc.insecure_channel
    opened: list[grpc.Channel] = []

    def insecure_channel(target: str, *more: Any, **options: Any) -> grpc.Channel:
        assert target == "localhost:9001"
        opened.append(real(f"localhost:{door.port}", *more, **options))
        return opened[-1]

    monkeypatch.setattr(grpc, "insecure_channel", insecure_channel)
    printed = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(printed):
            exec(compile(example, "example", "exec"), {})

    await asyncio.to_thread(run)
    opened[0].close()
    lines = printed.getvalue().splitlines()
    assert len(lines) == len(texts)
    for line, text in zip(lines, texts, strict=True):
        printed_vector = [float(part) for part in line.removeprefix("Embeddings: [").rstrip("]").split(",")]
        assert printed_vector == pytest.approx(floats(rules.vector(text, 8)), abs=1e-6)


async def test_every_unary_call_answers_as_the_engine_does(
    door: Door, channel: grpc.aio.Channel, plain: Engine, reranker: Engine
) -> None:
    door.announce("a", plain)
    door.announce("r", reranker)
    stub = mux_grpc.TeiMultiplexerStub(channel)
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{plain.port}") as direct,
        grpc.aio.insecure_channel(f"127.0.0.1:{reranker.port}") as direct_r,
    ):
        a, r = Target("a"), Target("r")
        embed, tokenize = tei_pb2_grpc.EmbedStub(direct), tei_pb2_grpc.TokenizeStub(direct)
        rerank = tei_pb2_grpc.RerankStub(direct_r)
        text = tei_pb2.EmbedRequest(inputs="some words")
        every = tei_pb2.EmbedAllRequest(inputs="some words")
        encode = tei_pb2.EncodeRequest(inputs="some words", add_special_tokens=True)
        ranked = tei_pb2.RerankRequest(query="q", texts=["x", "y", "z"], return_text=True)
        assert (await stub.Info(mux_pb2.InfoRequest(target=a))).model_id
        assert (await stub.Embed(mux_pb2.EmbedRequest(target=a, request=text))).embeddings == (
            await embed.Embed(text)
        ).embeddings
        assert (await stub.EmbedAll(mux_pb2.EmbedAllRequest(target=a, request=every))).token_embeddings == (
            await embed.EmbedAll(every)
        ).token_embeddings
        tokens = (await stub.Tokenize(mux_pb2.EncodeRequest(target=a, request=encode))).tokens
        assert tokens == (await tokenize.Tokenize(encode)).tokens
        decode = tei_pb2.DecodeRequest(ids=[token.id for token in tokens], skip_special_tokens=True)
        decoded = await stub.Decode(mux_pb2.DecodeRequest(target=a, request=decode))
        assert decoded.text == (await tokenize.Decode(decode)).text
        answer = await stub.Rerank(mux_pb2.RerankRequest(target=r, request=ranked))
        assert answer.ranks == (await rerank.Rerank(ranked)).ranks

        def parts() -> Iterator[mux_pb2.RerankStreamRequest]:
            for each in ranked.texts:
                inner = tei_pb2.RerankStreamRequest(query="q", text=each, return_text=True)
                yield mux_pb2.RerankStreamRequest(target=r, request=inner)

        assert (await stub.RerankStream(parts())).ranks == answer.ranks


async def test_the_engines_own_errors_come_through(door: Door, channel: grpc.aio.Channel, plain: Engine) -> None:
    door.announce("a", plain)
    stub = mux_grpc.TeiMultiplexerStub(channel)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{plain.port}") as direct:
        with pytest.raises(grpc.aio.AioRpcError) as own:
            await tei_pb2_grpc.EmbedStub(direct).Embed(tei_pb2.EmbedRequest(inputs="poison"))
    with pytest.raises(grpc.aio.AioRpcError) as passed:
        await stub.Embed(create_request("poison", "a"))
    assert (passed.value.code(), passed.value.details()) == (own.value.code(), own.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as predict:
        await stub.Predict(mux_pb2.PredictRequest(target=Target("a"), request=tei_pb2.PredictRequest(inputs="x")))
    assert predict.value.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)


async def test_answers_before_the_engines_failure_arrive_first(
    door: Door, channel: grpc.aio.Channel, plain: Engine
) -> None:
    door.announce("a", plain)
    call = mux_grpc.TeiMultiplexerStub(channel).EmbedStream(
        create_request(text, "a") for text in ("one", "two", "poison", "four")
    )
    got: list[Any] = []

    async def collect() -> None:
        async for answer in call:
            got.append(answer)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [floats(answer.embeddings) for answer in got] == [
        pytest.approx(floats(rules.vector(text, 8)), abs=1e-6) for text in ("one", "two")
    ]


async def test_an_unmodified_tei_client_works(door: Door, channel: grpc.aio.Channel, plain: Engine) -> None:
    door.announce("a", plain)
    answer = await tei_pb2_grpc.EmbedStub(channel).Embed(tei_pb2.EmbedRequest(inputs="native"))
    assert floats(answer.embeddings) == pytest.approx(floats(rules.vector("native", 8)), abs=1e-6)
    info = await tei_pb2_grpc.InfoStub(channel).Info(tei_pb2.InfoRequest())
    assert info.model_type == tei_pb2.MODEL_TYPE_EMBEDDING


async def test_calls_survive_the_death_of_one_of_two_engines(
    door: Door, channel: grpc.aio.Channel, plain: Engine, start: Callable[..., Engine]
) -> None:
    dying = start("--answer-after", "30")
    door.announce("dying", dying)
    door.announce("good", plain)
    stub = mux_grpc.TeiMultiplexerStub(channel)
    call = asyncio.ensure_future(stub.Embed(create_request("x", Target(model="org/model"))))
    while not door.router.pool.in_flight(f"dying-{dying.port}"):
        await asyncio.sleep(0.01)
    dying.process.send_signal(signal.SIGKILL)
    assert floats((await call).embeddings) == pytest.approx(floats(rules.vector("x", 8)), abs=1e-6)
    assert door.metric('tei_mux_retries_total{instance="dying"}') == "1.0"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(create_request("x", "dying"))
    assert caught.value.details() == "Instance 'dying' is unreachable"


@pytest.mark.parametrize("exit_code", ["1", "-9"])
async def test_an_engine_that_dies_in_a_stream_is_unreachable_after_its_answers(
    door: Door, channel: grpc.aio.Channel, start: Callable[..., Engine], exit_code: str
) -> None:
    door.announce("dying", start("--crash-after-requests", "2", "--exit-code", exit_code))
    call = mux_grpc.TeiMultiplexerStub(channel).EmbedStream()
    for text in ("one", "two"):
        await call.write(create_request(text, "dying"))
        assert floats((await call.read()).embeddings) == pytest.approx(floats(rules.vector(text, 8)), abs=1e-6)
    await call.write(create_request("three", "dying"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "Instance 'dying' is unreachable"


async def test_a_caller_that_leaves_frees_the_engine(
    door: Door, channel: grpc.aio.Channel, start: Callable[..., Engine]
) -> None:
    slow = start("--answer-after", "30", "--max-concurrent-requests", "1")
    door.announce("slow", slow)
    stub = mux_grpc.TeiMultiplexerStub(channel)
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(create_request("x", "slow"), timeout=0.2)
        # not RESOURCE_EXHAUSTED: the permit of the one before is back
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_hundred_calls_at_once_from_plain_threads(door: Door, plain: Engine) -> None:
    door.announce("a", plain)

    def call(number: int) -> list[float]:
        return floats(stub.Embed(create_request(f"text {number}", "a"), timeout=10).embeddings)

    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as sync:
        stub = mux_grpc.TeiMultiplexerStub(sync)
        vectors = await asyncio.gather(*(asyncio.to_thread(call, number) for number in range(100)))
    for number, vector in enumerate(vectors):
        assert vector == pytest.approx(floats(rules.vector(f"text {number}", 8)), abs=1e-6)
    assert door.metric('tei_grpc_pool_connections_total{instance="a"}') == "1.0"
    assert door.metric('tei_grpc_pool_requests_total{instance="a",method="embed"}') == "100.0"


async def test_the_embedded_engine_behind_the_door(door: Door, channel: grpc.aio.Channel) -> None:
    with contextlib.ExitStack() as stack:
        port = free_port()
        program = ["-c", "import sys; from tei_engine.server.cli import main; sys.exit(main())"]
        flags = [
            "--model-id",
            str(TINY_MODELS / "bert-mean"),
            "--port",
            str(free_port()),
            "--grpc-port",
            str(port),
        ]
        engine = Engine([*program, *flags], port, stack)
        await asyncio.to_thread(engine.wait_until_ready)
        door.announce("real", engine)
        stub = mux_grpc.TeiMultiplexerStub(channel)
        answer = await stub.Embed(create_request("hello", "real"))
        assert sum(value * value for value in answer.embeddings) == pytest.approx(1.0, abs=1e-4)
        streamed = [each async for each in stub.EmbedStream(create_request("hello", "real") for _ in range(3))]
        for each in streamed:
            assert floats(each.embeddings) == pytest.approx(floats(answer.embeddings), abs=1e-5)
        assert len(streamed) == 3
