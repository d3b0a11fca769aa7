"""The life of the process: arguments, dump, loading, listeners, Ready, the scripted ends, the stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from tei_manager.kits import atomicfile
from tei_manager.testing.engine import logs
from tei_manager.testing.engine.command_line import Options, UsageError, help_text, is_ip, parse
from tei_manager.testing.engine.conduct import Conduct
from tei_manager.testing.engine.http_door import HttpDoor, metrics_page
from tei_manager.testing.engine.http_protocol import HttpServer, Response
from tei_manager.testing.engine.imitation import Imitation

if TYPE_CHECKING:
    from tei_manager.testing.engine.grpc_door import GrpcDoor


class StartError(Exception):
    """A start that fails; printed as TEI prints its errors."""


def run(argv: list[str] | None = None) -> int:
    """Read the command line and live; the result is the exit code."""
    # what was inherited must be looked at before anything of our own is opened
    environ, descriptors = dict(os.environ), open_descriptors()
    try:
        options = parse(sys.argv[1:] if argv is None else argv, environ)
    except UsageError as error:
        logs.put(2, f"{error}\n".encode())
        return 2
    if options.wants != "serve":
        text = help_text() if options.wants == "help" else options.script.version_text
        logs.put(1, f"{text}\n".encode())
        return 0
    if options.script.dump:
        dump(Path(options.script.dump), sys.argv if argv is None else [sys.argv[0], *argv], environ, descriptors)
    # like TEI, which handles signals only once it serves: a signal while loading kills at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if options.script.ignore_sigterm else signal.SIG_DFL)
    life = Life(options)
    try:
        return asyncio.run(life.live())
    except StartError as error:
        logs.put(2, f"Error: {error}\n".encode())
        return end_code(options.script.exit_code) if life.failed_by_script else 1


class Life:
    """One process from loading to its end."""

    def __init__(self, options: Options) -> None:
        self.failed_by_script = False
        self._options = options
        self._script = options.script
        self._log = logs.Log(options.json_output, options.log_level)
        self._conduct = Conduct(options, self._crash)
        self._imitation = Imitation(options)
        self._http: list[HttpServer] = []
        self._grpc: GrpcDoor | None = None
        self._stopping = asyncio.Event()

    async def live(self) -> int:
        """Load, serve until a signal, stop; StartError if it never becomes ready."""
        if self._script.loading_answers:
            self._handle_signals()
            await self._open()
            if not await self._load():
                return await self._stop()
            self._conduct.ready = True
        else:
            await self._load()
            self._conduct.ready = True  # before anything listens: TEI never says that it is loading
            self._handle_signals()
            await self._open()
        self._log.info("Ready")
        loop = asyncio.get_running_loop()
        if self._script.crash_after is not None:
            loop.call_later(self._script.crash_after, self._crash, "scripted crash")
        if self._script.unhealthy_after is not None:
            loop.call_later(self._script.unhealthy_after, setattr, self._conduct, "healthy", False)
        await self._stopping.wait()
        return await self._stop()

    async def _load(self) -> bool:
        """What TEI does before it listens; False if a signal came first."""
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        pinned = devices not in ("", "-1") and not self._script.cpu_fallback
        self._log.info("Starting model backend")
        if self._script.cpu_fallback:
            self._log.warn("Using CPU instead", logs.ENGINE)
        device = "FlashBert model on Cuda(CudaDevice(DeviceId(1)))" if pinned else "Bert model on Cpu"
        self._log.info(f"Starting {device}", logs.ENGINE)
        for number in range(self._script.log_lines):
            self._log.info(f"noise {number}", logs.SELF)
        self._conduct.grow(self._script.grow_mib)
        self._log.info("Warming up model")
        if self._script.ready_after:
            try:
                await asyncio.wait_for(self._stopping.wait(), self._script.ready_after)
                return False
            except TimeoutError:
                pass
        if self._script.fail_with is not None:
            self.failed_by_script = True
            raise StartError(self._script.fail_with)
        return True

    async def _open(self) -> None:
        """Bind and serve every listener that the protocol asks for."""
        options, protocol = self._options, self._options.protocol
        host = self._host()
        if options.prometheus_port:
            metrics = _bind(host, options.prometheus_port, "Could not install the prometheus recorder")
            if protocol == "http":
                metrics.close()  # TEI's HTTP build binds it for an instant only
            else:
                await self._serve_http(HttpServer(metrics_page(self._conduct), body_limit=1 << 16), metrics)
        # HTTP is bound first but served last: who gets an answer there finds gRPC working too
        main = _bind(host, options.port) if protocol != "grpc" else None
        if protocol != "http":
            await self._serve_grpc(host, options.port if protocol == "grpc" else options.grpc_port or 0)
        if main:
            address = _address(host, main.getsockname()[1])
            door = HttpDoor(options, self._imitation, self._conduct)
            await self._serve_http(HttpServer(door.handle, body_limit=options.payload_limit), main)
            self._log.info(f"Starting HTTP server: {address}")

    async def _serve_http(self, server: HttpServer, sock: socket.socket) -> None:
        await server.listen(sock)
        self._http.append(server)

    async def _serve_grpc(self, host: str, port: int) -> None:
        # imported here: it costs as much as everything else together
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from tei_manager.testing.engine.grpc_door import GrpcDoor

        # gRPC takes no bound socket: this one finds the port and the reason why it cannot be had
        with _bind(host, port) as probe:
            address = _address(host, probe.getsockname()[1])
        self._grpc = GrpcDoor(self._options, self._imitation, self._conduct)
        try:
            await self._grpc.listen(address)
        except RuntimeError as error:
            raise StartError(_cannot_bind(address, f"Address already in use: {error}")) from None
        self._log.info(f"Starting gRPC server: {address}")

    def _host(self) -> str:
        """The address to bind. TEI's default is 0.0.0.0; a stand-in has no business outside its machine."""
        name = self._options.hostname
        if name is None:
            return "127.0.0.1"
        if is_ip(name):
            return name
        try:
            return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
        except OSError:
            self._log.warn("Invalid hostname, defaulting to 0.0.0.0")
            return "0.0.0.0"  # noqa: S104 - as TEI does

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        handled = [signal.SIGINT] if self._script.ignore_sigterm else [signal.SIGINT, signal.SIGTERM]
        for number in handled:
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            os._exit(0)  # a second signal ends at once
        self._stopping.set()

    async def _stop(self) -> int:
        """Finish what was accepted, take as long as the script says."""
        began = time.monotonic()
        self._conduct.draining = True
        within = self._options.drain_timeout
        last_words = Response(
            503,
            orjson.dumps({"error": "shutting down", "error_type": "Unhealthy"}),
            {"content-type": "application/json", "retry-after": "1"},
        )
        doors = [server.stop(within, last_words) for server in self._http]
        if self._grpc:
            doors.append(self._grpc.stop(within))
        await asyncio.gather(*doors)
        await asyncio.sleep(max(0.0, began + self._script.stop_takes - time.monotonic()))
        return 0

    def _crash(self, reason: str) -> None:
        self._log.error(reason)
        os._exit(end_code(self._script.exit_code))


def end_code(code: int) -> int:
    """The exit code; a negative one ends the process here, by that signal."""
    if code >= 0:
        return code
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a scripted end is no reason for a core file
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code  # a signal that does not end a process


def dump(path: Path, argv: list[str], environ: dict[str, str], descriptors: dict[str, str | None]) -> None:
    """Write how this process was started, whole or not at all."""
    facts = {
        "argv": argv,
        "env": environ,
        "pid": os.getpid(),
        "pgid": os.getpgid(0),
        "sid": os.getsid(0),
        "cwd": str(Path.cwd()),
        "fds": descriptors,
    }
    atomicfile.replace(path, orjson.dumps(facts, option=orjson.OPT_INDENT_2))


def open_descriptors() -> dict[str, str | None]:
    """Open descriptor -> what it leads to, None where the system does not tell (macOS)."""
    found: dict[str, str | None] = {}
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names, not paths
        try:
            os.fstat(int(name))
        except OSError:
            continue  # the descriptor of the listing itself, gone by now
        try:
            found[name] = os.readlink(f"/dev/fd/{name}")  # noqa: PTH115
        except OSError:
            found[name] = None
    return found


def _bind(host: str, port: int, what: str | None = None) -> socket.socket:
    """A bound socket; StartError in TEI's words."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(1024)  # SO_REUSEADDR lets two sockets bind; only one can listen
    except OSError as error:
        sock.close()
        reason = f"{os.strerror(error.errno or 0)} (os error {error.errno})"
        raise StartError(_cannot_bind(_address(host, port), reason, what)) from None
    return sock


def _cannot_bind(address: str, reason: str, what: str | None = None) -> str:
    return f"{what or f'Could not bind TCP Listener on {address}'}\n\nCaused by:\n    {reason}"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
