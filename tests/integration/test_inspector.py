"""What engines tell of themselves, read from real processes, and from peers that behave oddly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from tei_manager.adapters.prober import EngineProber
from tei_manager.engines.base import Ask, Page, Probe
from tei_manager.engines.metrics_reading import EngineInfo, EngineMetrics, read_foreign_metrics, read_metrics

HOST = "127.0.0.1"
INFO = EngineInfo(
    version="1.9.3", model_type="embedding", model_sha=None, model_dtype="float32", max_input_length=512
)


@pytest.fixture
async def prober() -> AsyncIterator[EngineProber]:
    prober = EngineProber()
    yield prober
    await prober.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind((HOST, 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def engine(*flags: str) -> Iterator[tuple[int, int, subprocess.Popen[bytes]]]:
    """A running testing engine: its main port, its metrics port, its process."""
    port, metrics = free_ports(2)
    argv = [sys.executable, "-m", "tei_manager.testing.engine", "--port", str(port), "--hostname", HOST]
    argv += ["--prometheus-port", str(metrics), *flags]
    environment = {name: value for name, value in os.environ.items() if name == "PATH"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield port, metrics, process
        finally:
            process.kill()


async def answered(prober: EngineProber, probe: Probe, key: str | None = None) -> None:
    async with asyncio.timeout(20):
        while not (await prober.ask(HOST, probe, timeout_secs=5, key=key)).ok:
            await asyncio.sleep(0.02)


async def test_an_engine_of_http(prober: EngineProber) -> None:
    with engine("--api-key", "secret") as (port, _, _):
        warm_up, page = Probe(Ask.HTTP_WARM_UP, port), Page(port, "/metrics", read_metrics)
        await answered(prober, Probe(Ask.HTTP_HEALTH, port), "secret")
        before = await prober.metrics(HOST, page, timeout_secs=5)
        assert before is not None
        assert before.figures.requests == 0
        await answered(prober, warm_up, "secret")
        after = await prober.metrics("0.0.0.0", page, timeout_secs=5)
        assert after is not None
        assert (after.figures.requests, after.figures.failed) == (1, 0)
        info = Probe(Ask.HTTP_HEALTH, port, "/info")
        assert await prober.info(HOST, info, timeout_secs=5, key="secret") == INFO
        # whoever has not the key reads nothing, and a page that is not there is none
        assert await prober.info(HOST, info, timeout_secs=5) is None
        assert await prober.metrics(HOST, Page(port, "/nowhere", read_metrics), timeout_secs=5) is None
        assert await prober.info(HOST, Probe(Ask.GRPC_INFO, port), timeout_secs=5, key="secret") is None


@pytest.mark.parametrize(
    ("flags", "model_type"),
    [
        ((), "embedding"),
        (("--model-type", "classifier"), "classifier"),
        (("--model-type", "reranker"), "reranker"),
    ],
)
async def test_an_engine_of_grpc_counts_on_a_port_of_its_own(
    prober: EngineProber, flags: tuple[str, ...], model_type: str
) -> None:
    with engine("--protocol", "grpc", *flags) as (port, metrics_port, _):
        await answered(prober, Probe(Ask.GRPC_WARM_UP, port))
        metrics = await prober.metrics(HOST, Page(metrics_port, "/", read_metrics), timeout_secs=5)
        assert metrics is not None
        # what a model cannot do was asked and refused first: embed, embed sparse
        tried = 0 if model_type == "embedding" else 2
        assert (metrics.figures.failed, metrics.figures.timed) == (tried, 1)
        info = await prober.info(HOST, Probe(Ask.GRPC_INFO, port), timeout_secs=5)
        assert info is not None
        assert (info.model_type, info.version, info.model_dtype) == (model_type, "1.9.3", "float32")
        assert info.max_input_length == 512


async def test_a_stopped_process_tells_nothing_in_time(prober: EngineProber) -> None:
    with engine("--protocol", "both", "--grpc-port", str(free_ports(1)[0])) as (port, _, process):
        await answered(prober, Probe(Ask.HTTP_HEALTH, port))
        page, info = Page(port, "/metrics", read_metrics), Probe(Ask.HTTP_HEALTH, port, "/info")
        assert await prober.metrics(HOST, page, timeout_secs=5) == EngineMetrics(
            failures=dict.fromkeys(_failures(await prober.metrics(HOST, page, timeout_secs=5)), 0)
        )
        process.send_signal(signal.SIGSTOP)
        try:
            assert await prober.metrics(HOST, page, timeout_secs=0.1) is None
            assert await prober.info(HOST, info, timeout_secs=0.1) is None
        finally:
            process.send_signal(signal.SIGCONT)
        assert await prober.info(HOST, info, timeout_secs=10) == INFO


def _failures(metrics: EngineMetrics | None) -> list[str]:
    assert metrics is not None
    return list(metrics.failures)


@asynccontextmanager
async def peer(answer: bytes) -> AsyncIterator[int]:
    """Something that answers every connection with these bytes, and closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"not http at all\r\n\r\n",
        b"",
        HEAD % 100 + b"te_queue_size 1",  # broken off
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\ncontent-length: 15\r\n\r\nte_queue_size 1",
        HEAD % (5 << 20) + b"te_queue_size 1\n" * (5 << 16),  # larger than anybody reads
    ],
    ids=["nonsense", "nothing", "broken off", "redirect", "error", "huge"],
)
async def test_what_is_no_page_is_none(prober: EngineProber, answer: bytes) -> None:
    async with peer(answer) as port:
        assert await prober.metrics(HOST, Page(port, "/metrics", read_metrics), timeout_secs=10) is None
        assert await prober.info(HOST, Probe(Ask.HTTP_HEALTH, port, "/info"), timeout_secs=10) is None


async def test_a_page_of_odd_bytes_is_read_as_far_as_it_makes_sense(prober: EngineProber) -> None:
    page = b"\xff\xfe\nte_queue_size 3\n\xc3"
    async with peer(HEAD % len(page) + page) as port:
        metrics = await prober.metrics(HOST, Page(port, "/metrics", read_metrics), timeout_secs=10)
        assert metrics == EngineMetrics(queue_size=3)
        assert await prober.metrics(HOST, Page(port, "/", read_foreign_metrics), timeout_secs=10) is None
    [port] = free_ports(1)  # nobody listens there
    assert await prober.metrics(HOST, Page(port, "/metrics", read_metrics), timeout_secs=10) is None
    assert await prober.info(HOST, Probe(Ask.GRPC_INFO, port), timeout_secs=10) is None
