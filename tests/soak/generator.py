"""The load, a process of its own: `python -m tests.soak.generator`, with a job as JSON on standard input.

Prints one line of JSON when it is done: outcomes by kind, durations, faults.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import aiohttp
import uvloop
from tests.soak import embedding, scoring
from tests.soak.http_manners import HOST, Done, HttpManners
from tests.soak.questions import Fault, Questions
from tests.soak.readings import read_metrics
from tests.soak.rpc_manners import RpcManners
from tests.soak.tally import Tally

_ANSWER_WITHIN = 60.0
_HTTP_CALLERS = 20
_RPC_CALLERS = 10
_TOO_MANY_FAULTS = 50
_SAY_EVERY = 10.0

_LEARN: dict[str, Callable[[embedding.Ask, int], Questions]] = {
    "embedding": embedding.learn,
    "reranker": scoring.learn_reranker,
    "classifier": scoring.learn_classifier,
    "splade": scoring.learn_splade,
}


@dataclass(frozen=True, slots=True)
class Job:
    """What to do: `requests` of them or for `seconds`, whichever is over first. `permits` are the engine's."""

    kind: str
    http_port: int
    grpc_port: int
    permits: int
    requests: int
    seconds: float
    seed: int

    def to_json(self) -> bytes:
        """The job as the generator reads it."""
        return json.dumps(asdict(self)).encode()


class Load:
    """Callers that each send one request after the other until the job is done."""

    def __init__(self, job: Job, tally: Tally) -> None:
        self._job = job
        self._tally = tally
        self._left = job.requests
        self._until = time.monotonic() + job.seconds

    async def run(self, questions: Questions) -> None:
        """Send everything."""
        job = self._job
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        async with aiohttp.ClientSession(
            f"http://{HOST}:{job.http_port}", connector=connector, auto_decompress=False
        ) as session:
            http = HttpManners(job.http_port, session, questions, self._tally)
            rpc = RpcManners(job.grpc_port, questions, self._tally)
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(_HTTP_CALLERS):
                        group.create_task(self._call(f"http {number}", http.send))
                    for number in range(_RPC_CALLERS):
                        group.create_task(self._call(f"rpc {number}", rpc.send))
                    talking = asyncio.create_task(self._say())
                talking.cancel()
            finally:
                await rpc.close()

    async def _call(self, name: str, send: Callable[[random.Random], Awaitable[Done]]) -> None:
        rng = random.Random(f"{self._job.seed} {name}")
        while self._may_go_on():
            self._left -= 1
            began = time.perf_counter()
            try:
                async with asyncio.timeout(_ANSWER_WITHIN):
                    kind, outcome = await send(rng)
            except TimeoutError:
                self._tally.fault(name, Fault(f"no answer within {_ANSWER_WITHIN:.0f} s"))
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                self._tally.fault(name, error)  # a library's own: it must not end this caller unseen
            except Exception as error:  # whatever it is, it is not what should have happened
                self._tally.fault(name, error)
            else:
                self._tally.note(kind, outcome, began)

    def _may_go_on(self) -> bool:
        is_broken = self._tally.fault_count >= _TOO_MANY_FAULTS
        return self._left > 0 and time.monotonic() < self._until and not is_broken

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(_SAY_EVERY)
            print(f"{self._tally.total} requests, {self._tally.fault_count} faults", file=sys.stderr, flush=True)


def ask(port: int, path: str, body: Any) -> Any:
    """Post JSON and return the answer's. Raises OSError for anything but 200."""
    request = urllib.request.Request(
        f"http://{HOST}:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN) as response:
        return json.load(response)


def main() -> None:
    """Do the job on standard input."""
    job = Job(**json.load(sys.stdin))
    tally = Tally(job.permits)
    result: dict[str, Any] = {}
    try:
        questions = _LEARN[job.kind](partial(ask, job.http_port), job.seed)
    except (Fault, OSError) as error:
        tally.fault("references", error)
    else:
        result["learned"] = read_metrics(job.http_port)
        began = time.monotonic()
        result["began"] = began
        uvloop.run(Load(job, tally).run(questions))
        result["seconds_run"] = time.monotonic() - began
        result["total"] = tally.total
        result["cpu"] = time.process_time()
    print(json.dumps(tally.result() | result), flush=True)


if __name__ == "__main__":
    main()
