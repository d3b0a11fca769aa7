"""One short text among bulk: how long it waits while 64 clients keep the engine busy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.engine.plan import GRACE_SECS, HTTP, MOST_CLIENTS, Step
from benchmarks.engine.quantiles import quantile_ms
from benchmarks.engine.served import Engine
from benchmarks.engine.texts import Workload
from benchmarks.engine.wire import JSON, Line, embed_request
from benchmarks.worker import Worker

BULK_TEXTS = 4  # of a request: more than one, and 64 such requests leave permits for others
_SPACING_SECS = 0.015
_RAMP_SECS = 0.3
_SHARE = 0.8  # of the load's time: the short texts end before it does


def probe(
    engine: Engine, generator: Worker, workload: Workload, load_job: Callable[[Step, str], dict[str, Any]]
) -> dict[str, Any]:
    """Short texts one by one, spaced, beside 64 clients with requests of several texts of a middle length.

    `waited_runs` says by how many runs the 99th percentile is longer than a request that computes at once, a run
    being the engine's own mean during that time.
    """
    short, bulk = workload.sets[0], workload.sets[(len(workload.sets) - 1) // 2]
    requests = [
        embed_request([text], len(ids), accept=JSON, dimension=workload.dimension)
        for text, ids in zip(short.texts, short.ids, strict=True)
    ]
    job = load_job(Step(HTTP, MOST_CLIENTS, BULK_TEXTS), bulk.name)
    job["secs"] = max(1.0, job["secs"]) + _RAMP_SECS
    line = Line(engine.port)
    generator.begin(job)
    try:
        time.sleep(_RAMP_SECS)
        runs, secs = engine.runs()
        taken: list[float] = []
        until = time.monotonic() + (job["secs"] - _RAMP_SECS) * _SHARE
        while time.monotonic() < until or not taken:
            began = time.perf_counter()
            line.exchange(requests[len(taken) % len(requests)])
            taken.append(time.perf_counter() - began)
            time.sleep(_SPACING_SECS)
        runs_after, secs_after = engine.runs()
    finally:
        line.close()
        bulk_figure = generator.result(job["secs"] + 2 * GRACE_SECS)
    run_ms = 1e3 * (secs_after - secs) / max(1.0, runs_after - runs)
    p50, p99 = quantile_ms(taken, 0.5), quantile_ms(taken, 0.99)
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "run_ms": run_ms,
        "waited_runs_p50": p50 / run_ms - 1,
        "waited_runs": p99 / run_ms - 1,
        "samples": len(taken),
        "bulk_texts_per_s": bulk_figure["texts_per_s"],
    }
