"""The load generator, a process of its own: requests are built before the clock starts, answers measured."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.engine import rpc
from benchmarks.engine.meter import Meter
from benchmarks.engine.plan import BINARY, GRACE_SECS, GRPC
from benchmarks.engine.texts import Workload
from benchmarks.engine.wire import JSON, OCTETS, Client, Line, Request, embed_request
from benchmarks.stack import HOST
from benchmarks.worker import answer_jobs


def measure(workload: Workload, job: dict[str, Any]) -> dict[str, Any]:
    """`job`: subject, set, clients, texts, secs, port. Raises for a single answer that is not as expected."""
    clients, port = job["clients"], job["port"]
    accept = OCTETS if job["subject"] == BINARY else JSON
    make = rpc.embed_call if job["subject"] == GRPC else functools.partial(embed_request, accept=accept)
    requests = [make(texts, tokens, dimension=workload.dimension) for texts, tokens in _parts(workload, job)]
    meter: Meter[Any] = Meter(requests, clients=clients, secs=job["secs"], is_whole=job["texts"] > 1)
    gc.collect()
    gc.disable()
    try:
        if job["subject"] == GRPC:
            _run(rpc.run_clients(meter, clients=clients, port=port), job)
        elif clients == 1:
            one_by_one(meter, port)
        else:
            _run(_http_clients(meter, clients, port), job)
    finally:
        gc.enable()
    return meter.result()


def _parts(workload: Workload, job: dict[str, Any]) -> list[tuple[list[str], int]]:
    """The texts of each request, and their tokens."""
    found, size = workload.set(job["set"]), job["texts"]
    return [
        (found.texts[first : first + size], sum(map(len, found.ids[first : first + size])))
        for first in range(0, len(found.texts) - size + 1, size)
    ]


def one_by_one(meter: Meter[Request], port: int) -> None:
    line = Line(port)
    try:
        while (request := meter.next()) is not None:
            began = meter.now()
            line.exchange(request)
            meter.answered(request, began)
    finally:
        line.close()


def _run(clients: Coroutine[Any, Any, None], job: dict[str, Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(job["secs"] + GRACE_SECS):
            await clients

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())


async def _http_clients(meter: Meter[Request], count: int, port: int) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    opened = [await loop.create_connection(lambda: Client(meter, ended), HOST, port) for _ in range(count)]
    try:
        for _, client in opened:
            client.start()
        await ended
    finally:
        for transport, _ in opened:
            transport.close()


if __name__ == "__main__":
    answer_jobs(functools.partial(measure, Workload.read(Path(sys.argv[1]))))
