"""The life of the process as two lists: what starts, in order, and what ends, in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import structlog
import uvicorn

from tei_manager.app.wiring import App, build
from tei_manager.config.load import Loaded
from tei_manager.config.schema import Config
from tei_manager.domain import errors
from tei_manager.surfaces.http.connection import GuardedConnection

log = structlog.get_logger("tei_manager.app.lifespan")

OK, FAILED = 0, 1
BACKLOG = 2048


class CannotListen(Exception):
    """A listener's address is taken or not ours."""


async def serve(loaded: Loaded) -> int:
    """Run the manager until a signal or until a listener dies; returns the exit code."""
    try:
        return await _serve(loaded)
    except (CannotListen, errors.StateError) as error:
        # one line that a person at a terminal sees, whatever the log format
        sys.stderr.write(f"tei-manager: {error}\n")
        return FAILED


async def _serve(loaded: Loaded) -> int:
    config = loaded.config
    signals = Signals()
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.caught())
        log.info("Starting TEI Manager", pid=os.getpid(), host=config.host, api_port=config.api_port)
        log.info("Configuration loaded", file=str(loaded.path) if loaded.path else None)
        for notice in loaded.warnings:
            log.warning(notice.message, code=notice.code)
        app = build(loaded)
        stack.enter_context(app.lock)
        # listeners are bound before anything is started: a busy port must start no instance
        listener = stack.enter_context(bind(config.host, config.api_port, "api_port"))
        if app.grpc_door is not None:
            await _bind_grpc(app, config)
        await app.journal.open()
        await app.fleet.open()
        if app.grpc_door is not None:
            await app.grpc_door.start()
        http = HttpServer(app, config)
        serving = asyncio.create_task(http.serve(sockets=[listener]), name="http listener")
        try:
            log.info(
                "Listening",
                http=f"http://{config.host}:{config.api_port}",
                grpc=f"{config.grpc_host}:{config.grpc_port}" if app.grpc_door else None,
            )
            died = await _until_asked(signals, serving)
            log.info("Shutting down...")
            await _shut_down(app, config, signals)
        finally:
            http.should_exit = True
            await serving
            await app.close()
    return FAILED if died or signals.hurry.is_set() else OK


async def _until_asked(signals: Signals, serving: asyncio.Task[None]) -> bool:
    """Wait for a signal; True if the HTTP listener died instead."""
    asked = asyncio.create_task(signals.stop.wait(), name="stop signal")
    await asyncio.wait({asked, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not asked.done():
        asked.cancel()
        log.error("HTTP listener died", error=repr(serving.exception()) if serving.done() else None)
        return True
    return False


async def _shut_down(app: App, config: Config, signals: Signals) -> None:
    """New work is refused first; what runs may finish; the listeners close last."""
    app.fleet.begin_draining()
    drain_secs = 0.0 if signals.hurry.is_set() else config.drain_timeout_secs
    async with asyncio.TaskGroup() as closing:
        closing.create_task(app.fleet.close(hurry=signals.hurry), name="close fleet")
        if app.grpc_door is not None:
            closing.create_task(app.grpc_door.stop(drain_secs), name="close gRPC door")
    app.journal.finish()  # who follows it hears the last stop, and then the end


async def _bind_grpc(app: App, config: Config) -> None:
    assert app.grpc_door is not None
    with bind(config.grpc_host, config.grpc_port, "grpc_port"):
        pass  # says precisely why the address cannot be had; gRPC's own error does not
    try:
        await app.grpc_door.bind(config.grpc_host, config.grpc_port)
    except errors.TeiManagerError as error:
        raise CannotListen(f"{error} (grpc_port)") from error


@contextlib.contextmanager
def bind(host: str, port: int, key: str) -> Iterator[socket.socket]:
    """A listening socket. Raises `CannotListen` naming address and key."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise CannotListen(_cannot_listen(host, port, key, error)) from error
    with listener:
        try:
            # without SO_REUSEADDR a restart would wait for connections in TIME_WAIT; it never shares a live port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise CannotListen(_cannot_listen(host, port, key, error)) from error
        listener.setblocking(False)
        yield listener


def _cannot_listen(host: str, port: int, key: str, error: OSError) -> str:
    return f"cannot listen on {host}:{port} ({key}): {error.strerror or error}"


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the life of the process is decided here."""

    def __init__(self, app: App, config: Config) -> None:
        super().__init__(
            uvicorn.Config(
                app.http_app,
                lifespan="off",
                http=GuardedConnection,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                date_header=True,
                ws="none",
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,
                backlog=BACKLOG,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Signals:
    """The first SIGTERM or SIGINT asks to end, a second one not to wait for anything."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self._asked,
            signal.SIGINT: self._asked,
            signal.SIGHUP: self._hung_up,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _asked(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()

    def _hung_up(self) -> None:
        # a lost terminal must not take the fleet down; reading the configuration again comes with reload
        log.warning("SIGHUP ignored: restart to apply a changed configuration")
