"""The product as its users run it: a real `tei-manager serve` per test, on free ports, in a folder of its own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

BIN = Path(sys.executable).parent
ENGINE = [sys.executable, "-m", "tei_manager.testing.engine", "--hostname", "{host}", "--port", "{port}"]


def free_ports(count: int) -> list[int]:
    """Ports nobody holds now; bound together, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def free_range(size: int) -> int:
    """The start of `size` ports in a row that nobody holds now, away from the ports the system hands out."""
    for start in range(20000, 30000, size):
        with ExitStack() as stack:
            try:
                for port in range(start, start + size):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return start
    raise AssertionError("no free range of ports")


def eventually(probe: Callable[[], Any], *, within: float = 15.0, what: str = "") -> Any:
    """Ask until the answer is true; returns it."""
    deadline = time.monotonic() + within
    while not (seen := probe()):
        assert time.monotonic() < deadline, f"not within {within} s: {what or probe}"
        time.sleep(0.02)
    return seen


@dataclass
class Answer:
    status: int
    body: Any
    headers: dict[str, str]


@dataclass
class Manager:
    folder: Path
    api: int = 0
    grpc: int = 0
    first_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    config: str = ""
    environ: dict[str, str] = field(default_factory=dict)

    def write(self, config: str = "", **keys: object) -> None:
        """The configuration file: fast and private defaults, then `keys`, then tables in `config`."""
        defaults: dict[str, object] = {
            "api_port": self.api,
            "grpc_port": self.grpc,
            "state_file": str(self.folder / "state.toml"),
            "log_dir": str(self.folder / "logs"),
            "instance_port_start": self.first_port,
            "instance_port_end": self.first_port + 40,
            "prometheus_port_start": self.first_port + 40,
            "api_allow_command": True,
            "health_check_interval_secs": 0.5,
            "health_check_initial_delay_secs": 0.5,
            "restart_backoff_base_secs": 0.2,
            "graceful_shutdown_timeout_secs": 5,
            "drain_timeout_secs": 5,
            "tei_binary_path": "no-such-tei-binary",
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in (defaults | keys).items()]
        self.config = "\n".join(lines) + "\n" + config
        (self.folder / "config.toml").write_text(self.config)

    def start(self, *, wait: bool = True, flags: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        if not self.config:
            self.write()
        with (self.folder / "manager.log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "tei-manager", "serve", "-c", self.folder / "config.toml", *flags],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environ},
            )
        if wait:
            eventually(lambda: self._is_up(), what="the manager listens")
        return self.process

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/ready").status == 200
        except OSError:
            return False

    def log(self) -> str:
        return (self.folder / "manager.log").read_text(errors="replace")

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.api, timeout=timeout)
        try:
            content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            given = {"content-type": "application/json"} if content is not None else {}
            connection.request(method, path, content, given | (headers or {}))
            answer = connection.getresponse()
            text = answer.read()
            kind = answer.getheader("content-type") or ""
            parsed = json.loads(text) if "json" in kind else text
            return Answer(answer.status, parsed, {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: object = None, **more: Any) -> Answer:
        return self.call("POST", path, body, **more)

    def delete(self, path: str) -> Answer:
        return self.call("DELETE", path)

    def create(self, name: str, *script: str, wait: bool = True, **fields: object) -> Answer:
        """Create an instance of the pretend engine with this script."""
        body = {"name": name, "model_id": "test/model", "engine": "command", "command": [*ENGINE, *script]}
        return self.post(f"/instances?wait={'true' if wait else 'false'}", body | fields)

    def instance(self, name: str) -> dict[str, Any]:
        answer = self.get(f"/instances/{name}")
        assert answer.status == 200, answer.body
        return answer.body

    def until(self, name: str, status: str, *, within: float = 15.0) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            now = self.instance(name)
            return now if now["status"] == status else None

        return eventually(reached, within=within, what=f"{name} is {status}")

    def stop(self, *, within: float = 20.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def engines(self) -> list[psutil.Process]:
        """Every live process that a manager with this folder started, found by its log file's folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.environ().get("MARK_OF_TEST_FOLDER") == str(self.folder)
                    and "TEI_MANAGER_NONCE" in process.environ()
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    api, grpc = free_ports(2)
    product = Manager(tmp_path, api, grpc, free_range(80))
    # engines inherit it, and it tells engines of this test from all others
    product.environ["MARK_OF_TEST_FOLDER"] = str(tmp_path)
    yield product
    if product.process is not None and product.process.poll() is None:
        product.process.send_signal(signal.SIGTERM)
        try:
            product.process.wait(15)
        except subprocess.TimeoutExpired:
            product.process.kill()
            product.process.wait()
    for engine in product.engines():
        engine.kill()
