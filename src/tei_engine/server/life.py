"""The life of the process: listen, load, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
import uvicorn

from tei_engine.server import describe, listening
from tei_engine.server.http_app import HttpApp, MetricsApp
from tei_engine.server.http_heads import BoundedHeads
from tei_engine.server.service import Loaded, Service
from tei_engine.server.settings import Settings

if TYPE_CHECKING:
    from tei_engine.server.grpc_app import GrpcListener
    from tei_engine.server.loading import LoadedFiles

_log = logging.getLogger("text_embeddings_router")

Value = TypeVar("Value")

_HEALTH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sockets:
    """The listeners' sockets, bound before anything else happened."""

    http: socket.socket
    prometheus: socket.socket | None


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: stopping is decided here, for all listeners at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, sockets: Sockets, began: float) -> None:
    """Run until told to stop. `began` is the process's start by `time.perf_counter`.

    Raises StartError if the engine cannot start.
    """
    service = Service(settings)
    describe.add_gauges(service)
    stop = _stop_event()
    servers = [_uvicorn(HttpApp(service), settings)]
    tasks = [asyncio.create_task(servers[0].serve(sockets=[sockets.http]), name="http")]
    if sockets.prometheus is not None:
        servers.append(_uvicorn(MetricsApp(service), settings))
        tasks.append(asyncio.create_task(servers[1].serve(sockets=[sockets.prometheus]), name="prometheus"))
    started = await _until(stop, asyncio.gather(_load(settings), _start_grpc(service, settings)))
    files, listener = started or (None, None)
    telling: asyncio.Task[None] | None = None
    if files is not None:
        await _become_ready(service, files, began)
        if listener is not None:
            await listener.show(ready=True, kind=service.kind)
            telling = asyncio.create_task(_tell_health(service, listener), name="grpc-health")
        _log.info("Ready")
        await stop.wait()
    if telling is not None:
        telling.cancel()
    await _drain(service, servers, tasks, listener)


async def dry_run(settings: Settings, began: float) -> None:
    """Load the model, print the `engine` object of `/info` and return. Raises StartError."""
    service = Service(settings)
    await _become_ready(service, await _load(settings), began)
    os.write(1, orjson.dumps(describe.engine(service)) + b"\n")


async def _load(settings: Settings) -> LoadedFiles:
    def work() -> LoadedFiles:
        from tei_engine.server import loading

        return loading.load(settings)

    return await _on_thread("load", work)


async def _become_ready(service: Service, files: LoadedFiles, began: float) -> None:
    from tei_engine.batching.pipeline import Pipeline, Sizing

    settings = service.settings
    sizing = Sizing(
        max_concurrent_requests=settings.max_concurrent_requests,
        run_tokens=settings.run_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_batch_requests=settings.max_batch_requests,
        max_input_length=files.configuration.max_input_length,
        tokenization_workers=settings.tokenization_workers,
        compute_workers=settings.compute_workers,
    )
    pipeline = Pipeline(files.model, files.tokenizer, sizing, service.metrics)
    loaded = Loaded(pipeline, files.configuration, files.model_sha, time.perf_counter() - began)
    service.prepare(loaded)
    describe.fill_gauges(service)
    await service.rehearse()
    service.become_ready()


async def _start_grpc(service: Service, settings: Settings) -> GrpcListener | None:
    if not settings.grpc_port:
        return None
    grpc_app = await _on_thread("grpc-import", _import_grpc)
    address = listening.address_of(settings.hostname, settings.grpc_port)
    parallel = os.environ.get("GRPC_MAX_PARALLEL_STREAM_REQUESTS", "")
    listener: GrpcListener = await grpc_app.start(
        service, address, int(parallel) if parallel.isdigit() and int(parallel) else 1024
    )
    _log.info("Starting gRPC server: %s", address)
    return listener


async def _tell_health(service: Service, listener: GrpcListener) -> None:
    """Let gRPC's health, which callers may watch, follow ours until cancelled."""
    while True:
        await asyncio.sleep(_HEALTH_SECONDS)
        await listener.show(ready=service.is_healthy, kind=service.kind)


def _import_grpc() -> Any:
    from tei_engine.server import grpc_app

    return grpc_app


def _uvicorn(app: Any, settings: Settings) -> _Server:
    config = uvicorn.Config(
        app,
        http=BoundedHeads,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.drain_timeout + 2,
    )
    return _Server(config)


def _stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            os._exit(0)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked)
    return stop


async def _on_thread(name: str, work: Callable[[], Value]) -> Value:
    """Run `work` on a thread that the process does not wait for when it ends (a download may be long)."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def finish(value: Value | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]  # a Value whenever there is no error

    def run() -> None:
        value: Value | None = None
        failure: BaseException | None = None
        try:
            value = work()
        except BaseException as error:  # carried to the loop, whatever it is
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(finish, value, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await future


async def _until(stop: asyncio.Event, work: Awaitable[Value]) -> Value | None:
    """The result of `work`, or None as soon as `stop` is set."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        stopping.cancel()
        task.cancel()


async def _drain(
    service: Service, servers: list[_Server], tasks: list[asyncio.Task[None]], listener: GrpcListener | None
) -> None:
    """Close the listeners, let accepted requests finish within --drain-timeout, cut off the rest."""
    service.drain()
    _log.info("Shutting down: %d requests in flight", service.active)
    for server in servers:
        server.should_exit = True
    grace = service.settings.drain_timeout
    draining = asyncio.create_task(listener.drain(grace + 1), name="grpc-drain") if listener else None
    try:
        async with asyncio.timeout(grace):
            await asyncio.wait(tasks)  # each ends when the last of its requests is answered, to the last byte
            await service.wait_calm()  # and these are the gRPC listener's
    except TimeoutError:
        _log.warning("%d requests were cut off after %d s", service.active, grace)
        service.abort()
    if listener is not None:
        # what is still open now waits for nothing we compute: health watches, silent streams
        tasks = [*tasks, asyncio.create_task(listener.drain(0.5), name="grpc-stop")]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            await asyncio.gather(*tasks, *([draining] if draining else []), return_exceptions=True)
