"""A process of ours that does one job at a time: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
_FAILED = "failed"


class WorkerFailed(Exception):
    """A worker ended, hung, or said that what it saw makes its measurement worthless."""


class Worker:
    """Started by `with` as `python -m MODULE ARGUMENTS`; it is gone at the end, whatever it was doing."""

    def __init__(self, module: str, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._module, self._arguments, self._env = module, arguments, dict(env or {})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module, *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self._env,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, job: Mapping[str, Any]) -> None:
        """Hand over a job; `result` must follow before the next one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(f"{self._module} has ended") from None

    def result(self, within_secs: float) -> dict[str, Any]:
        """What became of the job. Raises `WorkerFailed`, and ends a worker that takes longer."""
        assert self._process.stdout is not None
        # workers have deadlines of their own; this one is for a process that cannot keep it
        watchdog = threading.Timer(within_secs, self._process.kill)
        watchdog.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line:
            raise WorkerFailed(f"{self._module} ended, or did not answer within {within_secs:.0f} s")
        result: dict[str, Any] = json.loads(line)
        if _FAILED in result:
            raise WorkerFailed(f"{self._module}: {result[_FAILED]}")
        return result

    def ask(self, job: Mapping[str, Any], within_secs: float) -> dict[str, Any]:
        self.begin(job)
        return self.result(within_secs)


def answer_jobs(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The worker's side: do jobs until standard input ends; an exception fails its own job only."""
    while line := sys.stdin.readline():
        try:
            result = work(json.loads(line))
        except Exception as error:  # whoever asked decides what it means
            result = {_FAILED: f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)
