"""One run: cold starts, then the engine, the load generator and the offline subjects side by side."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import summary
from benchmarks.engine.plan import LOAD, OFFLINE, Effort
from benchmarks.engine.rounds import Bench, Measured, medians, say
from benchmarks.engine.served import Engine, forget_pages
from benchmarks.engine.texts import TextSet, Workload, make_sets
from benchmarks.machine import machine, versions
from benchmarks.worker import Worker
from tei_engine.models.configuration import Configuration
from tei_engine.server.settings import usable_cores
from tei_engine.tokenization.tokenizer import Tokenizer

_IDLE_SECS = 3.0
_LOADED_WITHIN_SECS = 120.0
# of NumPy's BLAS and of torch, which ask when they are imported
_THREADS_NAMES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be measured. `model` is the name under which it is reported."""

    model: str
    folder: Path
    configuration: Configuration
    tokens: Sequence[int]
    threads: int
    effort: Effort


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds from a process's start to `Ready`; `cold` with the model's files not in the page cache."""

    warm: list[float]
    cold: list[float]


def run(task: Task) -> dict[str, Any]:
    """Everything as it is written to JSON. Raises `NotStarted`, or `WorkerFailed` if a single request fails."""
    began, before = time.monotonic(), machine()
    with tempfile.TemporaryDirectory(prefix="tei-engine-benchmark-") as name:
        place = Path(name)
        starts = _starts(task, place)  # before anybody else maps the weights
        with Engine(task.folder, place, task.threads) as engine:
            starts.warm.append(engine.ready_secs)
            ready_mib = engine.rss_mib()
            workload = _workload(task, engine.dimension())
            file = place / "workload.json"
            workload.write(file)
            limited = dict.fromkeys(_THREADS_NAMES, str(task.threads))
            with (
                Worker(LOAD, str(file)) as generator,
                Worker(OFFLINE, str(file), env=limited) as alone,
            ):
                facts = alone.ask({"subject": None}, _LOADED_WITHIN_SECS)
                idle = engine.idle_cpu(_IDLE_SECS)
                say(f"everything is loaded after {time.monotonic() - began:.0f} s")
                bench = Bench(
                    engine,
                    generator,
                    alone,
                    workload,
                    task.effort,
                    usable_cores(),
                    facts["has_gemm"],
                    facts["has_torch"],
                )
                measured = bench.measure()
            peak_mib = engine.peak_rss_mib()
    weights_mib = round(facts["weights_bytes"] / 2**20, 1)
    cases = summary.cases(workload.sets, measured.rounds, facts["flops_per_token"])
    return {
        "machine": before,
        "versions": versions(),
        "model": task.model,
        "threads": task.threads,
        "rounds": 1 + max(each.number for each in measured.rounds),
        "texts": [_described(each) for each in workload.sets],
        "cases": cases,
        "probe": {name: round(value, 3) for name, value in medians(measured.probes).items()},
        "cold_start_secs": {"warm": _median(starts.warm), "cold": _median(starts.cold)},
        "rss": {"ready_mib": ready_mib, "peak_mib": peak_mib, "weights_mib": weights_mib},
        "idle_cores": round(idle, 4),
        "goals": summary.goals(
            cases,
            measured.probes,
            ready_secs=statistics.median(starts.warm),
            rss_mib=ready_mib,
            weights_mib=weights_mib,
            idle_cores=idle,
        ),
        "foreign": _foreign(measured),
        "took_secs": round(time.monotonic() - began, 1),
    }


def _starts(task: Task, place: Path) -> Starts:
    """Cold and warm starts in turn; the engine that is measured adds a warm one."""
    starts = Starts([], [])
    for number in range(task.effort.cold_starts):
        if forget_pages(task.folder):
            with Engine(task.folder, place, task.threads) as engine:
                starts.cold.append(engine.ready_secs)
        if number:
            with Engine(task.folder, place, task.threads) as engine:
                starts.warm.append(engine.ready_secs)
    return starts


def _workload(task: Task, dimension: int) -> Workload:
    sets = make_sets(Tokenizer(task.folder), task.tokens, longest=task.configuration.max_input_length)
    return Workload(str(task.folder), task.threads, dimension, sets)


def _described(texts: TextSet) -> dict[str, Any]:
    lengths = [len(ids) for ids in texts.ids]
    return {
        "tokens": texts.label,
        "texts": len(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "mean": round(texts.mean_tokens, 1),
    }


def _foreign(measured: Measured) -> dict[str, Any]:
    shares = [each.foreign for each in measured.rounds]
    return {
        "median": round(statistics.median(shares), 3),
        "worst": round(max(shares), 3),
        "repeats": measured.repeats,
    }


def _median(secs: Sequence[float]) -> float | None:
    return round(statistics.median(secs), 3) if secs else None
