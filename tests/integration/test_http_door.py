"""The HTTP door on a real socket, real engines behind it, a real client in front."""

import asyncio
import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import numpy as np
import openai
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from tei_manager.adapters.telemetry.prometheus import PrometheusMetrics
from tei_manager.adapters.upstream.grpc import GrpcUpstreams
from tei_manager.adapters.upstream.http import HttpUpstreams
from tei_manager.domain.instance import EngineKind, InstanceSpec, Origin, Protocol
from tei_manager.serving.gateway import Gateway, GatewaySettings
from tei_manager.serving.router import Router
from tei_manager.surfaces.http.asgi import build_app
from tei_manager.surfaces.http.settings import HttpSettings
from tei_manager.testing.engine import vector
from tei_manager.testing.fleet import FakeFleet
from tei_manager.testing.journal import MemoryJournal

MODEL = "org/model"


class Engines:
    """Testing engines, each on a port of its own."""

    def __init__(self):
        self.processes = {}

    def start(self, *flags):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        argv = [
            sys.executable,
            "-m",
            "tei_manager.testing.engine",
            "--port",
            str(port),
            "--model-id",
            MODEL,
            *flags,
        ]
        self.processes[port] = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return port
            time.sleep(0.02)
        raise AssertionError("the testing engine did not come up")

    def kill(self, port):
        self.processes[port].send_signal(signal.SIGKILL)
        self.processes[port].wait()

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def engines():
    engines = Engines()
    yield engines
    engines.close()


@pytest.fixture(scope="module")
def plain(engines):
    """An engine without any misbehaviour that all tests share."""
    return engines.start("--dimensions", "16", "--max-client-batch-size", "4")


class House:
    """Everything a request passes, wired as the app wires it."""

    def __init__(self, **gateway):
        self.router = Router()
        self.fleet = FakeFleet(doors=[self.router], allows_command=True)
        self.metrics = PrometheusMetrics(CollectorRegistry(), version="0")
        self.metrics.watch(self.fleet.instances)
        self.http, self.grpc = HttpUpstreams(), GrpcUpstreams()
        self.gateway = Gateway(
            router=self.router,
            http=self.http,
            grpc=self.grpc,
            metrics=self.metrics,
            settings=GatewaySettings(**gateway),
        )
        self.app = build_app(self.fleet, self.gateway, self.metrics, MemoryJournal(), HttpSettings())

    async def close(self):
        await self.http.close()
        await self.grpc.close()

    async def run(self, name, port, engine=EngineKind.EMBEDDED, **fields):
        command = ("x", "{port}") if engine is EngineKind.COMMAND else None
        spec = InstanceSpec(name=name, model_id=MODEL, port=port, engine=engine, command=command, **fields)
        await self.fleet.create(spec, origin=Origin.API)
        await self.fleet.wait_running(name, timeout_secs=1)


@contextlib.asynccontextmanager
async def serving(app):
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, server_header=False, proxy_headers=False, access_log=False
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
async def house():
    house = House()
    async with serving(house.app) as house.url:
        house.client = openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0)
        async with aiohttp.ClientSession(house.url) as house.session:
            yield house
        await house.client.close()
    await house.close()


@pytest.mark.parametrize("engine", list(EngineKind))
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_every_engine_gives_the_vectors_it_computed_bit_for_bit(house, plain, engine, encoding):
    await house.run("bge", plain, engine)
    texts = ["one", "two", "three ✓", "four", "five", "six"]
    answer = await house.client.embeddings.create(model="bge", input=texts, encoding_format=encoding)
    for text, item in zip(texts, answer.data, strict=True):
        given = item.embedding
        if isinstance(given, str):
            given = np.frombuffer(base64.b64decode(given), "<f4")
        assert np.array_equal(np.array(given, dtype=np.float32), vector(text, 16))
    assert answer.model == "bge"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


async def test_the_client_as_it_comes_out_of_the_box(house, plain):
    await house.run("bge", plain, aliases=("small",))
    for name in ("bge", "small", MODEL):
        answer = await house.client.embeddings.create(model=name, input="hello", dimensions=8)
        assert np.array_equal(np.array(answer.data[0].embedding, dtype=np.float32), vector("hello", 8))
        assert answer.model == name


async def test_the_client_lists_models(house, plain):
    await house.run("bge", plain, aliases=("small",))
    assert [model.id async for model in house.client.models.list()] == ["bge", MODEL, "small"]
    assert (await house.client.models.retrieve(MODEL)).owned_by == "tei-manager"
    with pytest.raises(openai.NotFoundError):
        await house.client.models.retrieve("org/nope")


async def test_many_inputs_are_split_to_what_the_engine_takes(house, plain):
    await house.run("bge", plain)
    texts = [f"text {n}" for n in range(101)]
    answer = await house.client.embeddings.create(model="bge", input=texts)
    found = np.array([item.embedding for item in answer.data], dtype=np.float32)
    assert np.array_equal(found, np.stack([vector(text, 16) for text in texts]))


async def test_errors_as_the_client_sees_them(house, plain):
    await house.run("bge", plain)
    create = house.client.embeddings.create
    with pytest.raises(openai.NotFoundError) as unknown:
        await create(model="nope", input="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as empty:
        await create(model="bge", input="")
    assert empty.value.param == "input"
    with pytest.raises(openai.BadRequestError) as wide:
        await create(model="bge", input="x", dimensions=99)
    assert wide.value.param == "dimensions"
    await house.fleet.stop("bge")
    with pytest.raises(openai.InternalServerError) as stopped:
        await create(model="bge", input="x")
    assert (stopped.value.status_code, stopped.value.code) == (503, "no_healthy_upstream")


async def test_an_engines_own_errors(house, engines):
    port = engines.start("--error-inputs", "bad", "--max-input-length", "8")
    await house.run("bge", port, EngineKind.TEI)
    with pytest.raises(openai.BadRequestError) as refused:
        await house.client.embeddings.create(model="bge", input="a bad text")
    assert refused.value.code == "upstream_rejected"
    port = engines.start("--error-every", "1", "--error-status", "500")
    await house.run("broken", port, EngineKind.TEI)
    with pytest.raises(openai.InternalServerError) as broken:
        await house.client.embeddings.create(model="broken", input="x")
    assert (broken.value.status_code, broken.value.code) == (502, "upstream_error")
    assert str(port) not in str(broken.value)


async def test_an_overloaded_engine(house, engines):
    port = engines.start("--max-concurrent-requests", "1", "--max-client-batch-size", "1", "--answer-after", "0.5")
    await house.run("busy", port)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(house.client.embeddings.create(model="busy", input="x"))
        await asyncio.sleep(0.2)
        with pytest.raises(openai.RateLimitError) as busy:
            await house.client.embeddings.create(model="busy", input="x")
    assert busy.value.code == "upstream_rate_limited"
    assert busy.value.response.headers["retry-after"] == "1"
    assert first.result().data


async def test_a_reranker_does_not_embed(house, engines):
    await house.run("ranker", engines.start("--model-type", "reranker"), EngineKind.TEI)
    for texts in ("x", ["x", "y"]):
        with pytest.raises(openai.BadRequestError) as refused:
            await house.client.embeddings.create(model="ranker", input=texts)
        assert refused.value.code == "operation_not_supported"


async def test_an_engine_that_dies_under_a_call_is_replaced(house, engines, plain):
    fragile = engines.start("--dimensions", "16", "--answer-after", "30")
    await house.run("a", fragile)
    call = asyncio.create_task(house.client.embeddings.create(model=MODEL, input="x"))
    while not house.router.pool.in_flight(house.fleet.get("a").uid):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await house.run("b", plain)
    engines.kill(fragile)
    assert (await call).data
    # and one that is not there at all costs nobody an error
    for _ in range(4):
        assert (await house.client.embeddings.create(model=MODEL, input="x")).data
    engines.processes.pop(fragile)
    await house.fleet.stop("b")
    with pytest.raises(openai.InternalServerError) as gone:
        await house.client.embeddings.create(model=MODEL, input="x")
    assert (gone.value.status_code, gone.value.code) == (502, "upstream_error")


async def test_a_caller_who_hangs_up_ends_the_call_upstream(house, engines):
    await house.run("slow", engines.start("--answer-after", "30"))
    uid = house.fleet.get("slow").uid
    with pytest.raises(asyncio.TimeoutError):
        await house.session.post(
            "/v1/embeddings",
            json={"model": "slow", "input": "x"},
            timeout=aiohttp.ClientTimeout(total=0.3),
        )
    deadline = time.monotonic() + 1
    while house.router.pool.in_flight(uid) and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert house.router.pool.in_flight(uid) == 0
    assert b'http_requests_total{code="499",route="/v1/embeddings"} 1.0' in house.metrics.text()


async def test_a_call_that_takes_too_long(engines):
    house = House(request_timeout_secs=0.2)
    await house.run("slow", engines.start("--answer-after", "30"))
    async with serving(house.app) as url, aiohttp.ClientSession(url) as session:
        reply = await session.post("/v1/embeddings", json={"model": "slow", "input": "x"})
        assert (reply.status, (await reply.json())["error"]["code"]) == (504, "upstream_timeout")
    await house.close()


async def test_an_engine_that_speaks_grpc_only(house, engines):
    port = engines.start("--protocol", "grpc", "--dimensions", "16", "--error-inputs", "bad")
    await house.run("tei", port, EngineKind.TEI)
    house.fleet.become_ready("tei", protocol=Protocol.GRPC)
    for texts in (["one"], [f"text {n}" for n in range(300)]):
        answer = await house.client.embeddings.create(model="tei", input=texts)
        found = np.array([item.embedding for item in answer.data], dtype=np.float32)
        assert np.array_equal(found, np.stack([vector(text, 16) for text in texts]))
        assert answer.usage.prompt_tokens > len(texts)
    for texts in ("a bad text", ["fine", "a bad text", "fine"]):
        with pytest.raises(openai.BadRequestError) as refused:
            await house.client.embeddings.create(model="tei", input=texts)
        assert refused.value.code == "upstream_rejected"
    engines.kill(port)
    with pytest.raises(openai.InternalServerError) as gone:
        await house.client.embeddings.create(model="tei", input="x")
    assert gone.value.code == "upstream_error"


async def test_a_text_that_is_too_long(house, engines):
    await house.run("short", engines.start("--max-input-length", "8"))
    create = house.client.embeddings.create
    with pytest.raises(openai.BadRequestError) as refused:
        await create(model="short", input="word " * 50)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    assert (await create(model="short", input="word " * 50, extra_body={"truncate": "END"})).data


async def test_large_answers(house, engines):
    await house.run("wide", engines.start("--dimensions", "1024", "--max-client-batch-size", "16"))
    texts = [f"text {n}" for n in range(64)]
    for encoding in ("float", "base64"):
        answer = await house.client.embeddings.create(model="wide", input=texts, encoding_format=encoding)
        assert len(answer.data) == 64


async def test_control_over_the_socket(house):
    created = await house.session.post("/instances/?wait=true", json={"name": "a", "model_id": MODEL})
    assert created.status == 201
    assert created.headers["Location"] == "/instances/a"
    assert "Server" not in created.headers
    shown = await house.session.get("/instances/a/")
    assert (await shown.json())["status"] == "running"
    head = await house.session.head("/instances/a")
    assert (head.status, await head.read()) == (200, b"")
    deleted = await house.session.delete("/instances/a")
    assert (deleted.status, await deleted.read()) == (204, b"")
    wrong = await house.session.put("/instances")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "GET, HEAD, POST")
    for reply in (created, shown, deleted, wrong):
        assert reply.headers["X-Request-ID"]
        await reply.read()  # or its connection is open until somebody collects it


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /instances/../health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /instances/%2e%2e/health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET //health HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /v1/models/org%2Fmodel HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (
            b"POST /instances HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST /instances HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
    ],
)
async def test_raw_requests(house, head, status):
    await house.run("a", 1)
    port = int(house.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    line = await asyncio.wait_for(reader.readline(), 5)
    assert int(line.split()[1]) == status
    writer.close()


async def test_a_chunked_upload_and_expect_continue(house, plain):
    await house.run("bge", plain)

    async def body():
        yield b'{"model":"bge",'
        yield b'"input":"x"}'

    headers = {"content-type": "application/json"}
    reply = await house.session.post("/v1/embeddings", data=body(), headers=headers, expect100=True)
    assert reply.status == 200
    assert json.loads(await reply.read())["usage"]["prompt_tokens"] > 0
