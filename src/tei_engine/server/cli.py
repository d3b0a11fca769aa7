"""The `tei-engine` command. Imports little, so that a busy port or a wrong flag is answered at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

import tei_engine
from tei_engine.errors import StartError
from tei_engine.server import flags, listening, logs, settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the engine; returns the exit code: 0 asked to stop, 1 could not start, 2 wrong arguments.

    Ends the process itself once anything was loaded: native threads do not survive the interpreter's own end.
    """
    began = time.perf_counter()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-V", "--version"} & set(arguments):
        _say(1, f"tei-engine {tei_engine.__version__} (text-embeddings-router {tei_engine.TEI_VERSION})")
        return 0
    if {"-h", "--help"} & set(arguments):
        _say(1, flags.help_text())
        return 0
    try:
        chosen = settings.read_settings(arguments, os.environ)
    except flags.UsageError as error:
        _say(2, f"error: {error}\n\nFor more information, try '--help'.")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):  # until the loop takes over
        signal.signal(number, lambda *_: os._exit(0))
    logs.set_up(json_output=chosen.json_output, level=os.environ.get("LOG_LEVEL"))
    code = 0
    try:
        _run(chosen, began)
    except StartError as error:
        _say(2, "\n".join([f"Error: {error}", *_causes(error)]))
        if logs.level_of(os.environ.get("LOG_LEVEL")) <= logs.DEBUG:
            logs.log_traceback(error)
        code = 1
    except Exception as error:
        logs.log_traceback(error)
        _say(2, f"Error: internal error: {error!r}")
        code = 1
    os._exit(code)


def _run(chosen: settings.Settings, began: float) -> None:
    sockets = None if chosen.dry_run else _bind(chosen)
    for warning in chosen.warnings:
        logs.LOG.warning("%s", warning)
    if chosen.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the hub client when it is imported
    import asyncio

    import uvloop

    from tei_engine.server import life

    work = life.dry_run(chosen, began) if sockets is None else life.serve(chosen, life.Sockets(*sockets), began)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def _bind(chosen: settings.Settings) -> tuple[socket.socket, socket.socket | None]:
    http = listening.bind(chosen.hostname, chosen.port)
    address = listening.address_of(chosen.hostname, http.getsockname()[1])
    if chosen.grpc_port:
        listening.check_free(chosen.hostname, chosen.grpc_port)
    prometheus = listening.bind(chosen.hostname, chosen.prometheus_port) if chosen.prometheus_port else None
    logs.LOG.info("Starting HTTP server: %s", address)
    return http, prometheus


def _causes(error: StartError) -> list[str]:
    """The chain below the error, in the shape of text-embeddings-router's own."""
    if not error.causes:
        return []
    return ["", "Caused by:"] + [f"    {number}: {cause}" for number, cause in enumerate(error.causes)]


def _say(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be reading
        os.write(descriptor, text.encode(errors="replace") + b"\n")


if __name__ == "__main__":
    sys.exit(main())
