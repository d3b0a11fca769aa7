"""The engine under test: a real `tei-engine` on free ports, with the defaults of its flags."""

from __future__ import annotations

import ctypes
import http.client
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.machine import rss_mib
from benchmarks.stack import HOST, NotStarted, free_ports

READY_WITHIN_SECS = 120.0
STOP_WITHIN_SECS = 15.0
_POLL_SECS = 0.002
_ASK_WITHIN_SECS = 10.0
_READY = b'"message":"Ready"'
_MOSTLY = 0.05  # of a file may stay in the page cache of one that counts as cold


class Engine:
    """Started by `with`, writing its log into `folder`; at the end it does not run any more."""

    def __init__(self, model: Path, folder: Path, threads: int) -> None:
        self._model, self._threads = model, threads
        self._log = folder / "engine.log"
        self.port, self.grpc_port = free_ports(2)
        self.ready_secs = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TEI_", "LOG_LEVEL"))}
        began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean
            )
        try:
            self._wait_until_ready(began)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def check(self) -> None:
        """Raises `NotStarted`, with the end of its log, if it has ended."""
        if self._process.poll() is not None:
            raise NotStarted(f"tei-engine ended with code {self._process.returncode}\n{self._log_end()}")

    def rss_mib(self) -> float:
        return rss_mib(self.pid)

    def peak_rss_mib(self) -> float | None:
        """The most it ever had; None where the system does not say."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return None
        found = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return next((round(kib / 1024, 1) for kib in found), None)

    def idle_cpu(self, secs: float) -> float:
        """Cores used while nobody asks for anything."""
        process = psutil.Process(self.pid)
        before, began = process.cpu_times(), time.monotonic()
        time.sleep(secs)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return max(0.0, used) / (time.monotonic() - began)

    def runs(self) -> tuple[float, float]:
        """How many runs of the model there have been, and their seconds, by the engine's own histogram."""
        families = text_string_to_metric_families(self._get("/metrics").decode())
        samples = {each.name: each.value for family in families for each in family.samples}
        return samples["tei_engine_run_seconds_count"], samples["tei_engine_run_seconds_sum"]

    def dimension(self) -> int:
        """The length of its vectors."""
        return int(json.loads(self._get("/info"))["engine"]["embedding_dimension"])

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_ASK_WITHIN_SECS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise NotStarted(f"GET {path}: {answer.status}")
            return answer.read()
        finally:
            connection.close()

    def _command(self) -> list[str]:
        return [
            str(Path(sys.executable).with_name("tei-engine")),
            *("--model-id", str(self._model), "--hostname", HOST, "--json-output"),
            *("--port", str(self.port), "--grpc-port", str(self.grpc_port)),
            *("--compute-workers", str(self._threads), "--intra-op-threads", str(self._threads)),
        ]

    def _wait_until_ready(self, began: float) -> None:
        while _READY not in self._log.read_bytes():
            self.check()
            if time.monotonic() - began > READY_WITHIN_SECS:
                raise NotStarted(f"tei-engine was not ready within {READY_WITHIN_SECS:.0f} s\n{self._log_end()}")
            time.sleep(_POLL_SECS)
        self.ready_secs = time.monotonic() - began

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_WITHIN_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def forget_pages(folder: Path) -> bool:
    """Drop a model's files from the page cache. False where that cannot be done, or did not happen.

    Nobody may have them mapped. The programs themselves stay in the cache.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_share(max(files, key=lambda path: path.stat().st_size)) < _MOSTLY


def cached_share(path: Path) -> float:
    """Share of a file's pages that are in the page cache, by mincore(2); 1 where it cannot be asked."""
    size = path.stat().st_size
    if not size:
        return 1.0
    # a private writable mapping, which needs no right to write and is the kind whose address ctypes gives away
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        held = (ctypes.c_ubyte * ((size + mmap.PAGESIZE - 1) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(mapped)
        try:
            address = ctypes.c_void_p(ctypes.addressof(first))
            if ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(size), held):
                return 1.0
        finally:
            del first  # the mapping cannot be closed while this refers to it
    return sum(each & 1 for each in held) / len(held)
