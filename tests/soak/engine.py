"""A `tei-engine` process whose output goes to files, so that hours of it cannot fill a pipe."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ENGINE = (str(Path(sys.executable).parent / "tei-engine"),)
_READY_WITHIN = 60.0
DRAIN = 30
"""Seconds that requests get after SIGTERM."""


def free_ports(count: int) -> list[int]:
    """Ports nobody holds now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Engine:
    """One engine with an HTTP and a gRPC port. Raises AssertionError if it does not become ready."""

    def __init__(self, folder: Path, *arguments: str, permits: int, command: tuple[str, ...] = ENGINE) -> None:
        self.http_port, self.grpc_port = free_ports(2)
        self._out, self._err = folder / "stdout", folder / "stderr"
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TEI_ENGINE_"))}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    *command,
                    *("--hostname", "127.0.0.1", "--port", str(self.http_port)),
                    *("--grpc-port", str(self.grpc_port), "--max-concurrent-requests", str(permits)),
                    *("--drain-timeout", str(DRAIN), "--json-output", *arguments),
                ],
                stdout=out,
                stderr=err,
                env=own,
            )
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not self.is_healthy():
            assert self.process.poll() is None, f"ended at once: {self.stderr()}"
            assert time.monotonic() < deadline, f"not ready within {_READY_WITHIN} s"
            time.sleep(0.05)

    def is_healthy(self) -> bool:
        """Whether `/health` answers 200."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/health", timeout=10) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def complaints(self) -> list[str]:
        """Lines of the log above INFO since the start, and whatever was written to stderr."""
        lines: list[dict[str, Any]] = [json.loads(line) for line in self._out.read_text().splitlines()]
        return [line["message"] for line in lines if line["level"] != "INFO"] + self.stderr().splitlines()

    def stderr(self) -> str:
        """What was written to stderr."""
        return self._err.read_text()

    def stop(self) -> int:
        """SIGTERM; returns the exit code. Raises TimeoutExpired if it takes longer than it may."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DRAIN + 5)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
