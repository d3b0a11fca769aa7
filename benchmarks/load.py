"""The load generator, a process of its own: a job a line on standard input, a result a line on standard output.

A job is a `Case` with the two addresses; a result has both columns. Blocks of the columns alternate, and so does
which of them goes first.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from benchmarks.callers import Column, GrpcColumn, HttpColumn, Vectors
from benchmarks.cases import Case

BLOCKS, FEWEST_BLOCKS = 10, 3  # of each column
WARM_UP_SHARE = 0.25  # of a row's time
TOLERANCE = 1e-4
# a job that takes this much longer than its budget hangs
GRACE_SECS = 60.0


class Disagreement(Exception):
    """The columns did not give the same vectors, so that they do not measure the same work."""


async def measure(case: Case, direct_address: str, product_address: str, target: str) -> dict[str, Any]:
    make = HttpColumn if case.kind == "http" else GrpcColumn
    direct: Column = make(case, direct_address, None)
    product: Column = make(case, product_address, target)
    columns = (direct, product)
    taken: tuple[list[list[float]], ...] = ([], [])
    rates: tuple[list[float], ...] = ([], [])
    try:
        _compare(await direct.vectors(), await product.vectors(), case)
        blocks, size = _plan(case, await _warmed_up(case, columns))
        for block in range(blocks):
            for index in (0, 1) if block % 2 == 0 else (1, 0):
                samples = await _undisturbed(columns[index], size)
                taken[index].append(samples)
                # closed loops: every client always has one request under way
                rates[index].append(case.width * len(samples) / sum(samples))
    finally:
        for column in columns:
            await column.close()
    return {
        "blocks": blocks,
        "direct": _column(taken[0], rates[0], direct.sent),
        "product": _column(taken[1], rates[1], product.sent),
    }


async def _warmed_up(case: Case, columns: Sequence[Column]) -> float:
    """Make calls until everything has its usual speed. Returns the seconds of a sample at the end of that."""
    until = time.perf_counter() + WARM_UP_SHARE * case.budget_secs
    made, step = 0, 1
    while True:
        last = [statistics.median(await column.block(step)) for column in columns]
        made += step
        if made >= case.warm_up or time.perf_counter() > until:
            return statistics.mean(last)
        step = min(2 * step, case.warm_up - made)


def _plan(case: Case, sample_secs: float) -> tuple[int, int]:
    """Blocks of each column, and samples of a block: what is wanted, or as much as the time allows."""
    clients = case.width if case.kind == "http" else 1
    rounds = int(case.budget_secs / (2 * sample_secs))  # every client makes one request in a round
    if rounds < 2 * BLOCKS:  # each block has a round that is not counted
        return max(FEWEST_BLOCKS, rounds // 2), clients
    return BLOCKS, max(1, min(case.samples // BLOCKS, clients * (rounds // BLOCKS - 1)))


async def _undisturbed(column: Column, samples: int) -> list[float]:
    gc.collect()
    gc.disable()
    try:
        return await column.block(samples)
    finally:
        gc.enable()


def _column(blocks: Sequence[Sequence[float]], rates: Sequence[float], sent: int) -> dict[str, Any]:
    """p50 is the median of the blocks' medians: a disturbed block does not count. p99 is of all samples."""
    everything = sorted(secs for block in blocks for secs in block)
    return {
        "p50_us": round(1e6 * statistics.median(statistics.median(block) for block in blocks), 1),
        "p99_us": round(1e6 * everything[min(len(everything) - 1, int(len(everything) * 0.99))], 1),
        "per_sec": round(statistics.median(rates), 1),
        "samples": len(everything),
        "sent": sent,
    }


def _compare(direct: Vectors, product: Vectors, case: Case) -> None:
    same = len(direct) == len(product) and all(
        len(mine) == len(theirs) and all(abs(a - b) < TOLERANCE for a, b in zip(mine, theirs, strict=True))
        for mine, theirs in zip(direct, product, strict=True)
    )
    if not same or not direct or not direct[0]:
        raise Disagreement(f"{case.kind} {case.label}: the columns gave different vectors")


async def serve() -> None:
    while line := sys.stdin.readline():  # nothing else runs between two jobs
        job = json.loads(line)
        case = Case(**job["case"])
        async with asyncio.timeout(case.budget_secs + GRACE_SECS):
            result = await measure(case, job["direct"], job["product"], job["target"])
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
