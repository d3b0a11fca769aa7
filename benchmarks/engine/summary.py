"""From rounds to what is reported: medians, ratios taken within each round, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.engine.plan import (
    BINARY,
    FORWARD,
    GEMM,
    GRPC,
    HTTP,
    IDEAL,
    MIXED,
    MOST_CLIENTS,
    NAIVE,
    TORCH,
    Step,
)
from benchmarks.engine.rounds import Figures, Round, medians
from benchmarks.engine.texts import TextSet

_ORDER = (GEMM, FORWARD, NAIVE, IDEAL, TORCH, HTTP, BINARY, GRPC)
_RATIO_OF_IDEAL, _SHARE_OF_GEMM = 0.9, 0.7
_ABOVE_FORWARD_MS, _WAITED_RUNS, _READY_SECS, _RSS_SPARE_MIB, _IDLE_CORES = 1.0, 2.0, 2.0, 200.0, 0.02


def cases(
    sets: Sequence[TextSet], rounds: Sequence[Round], flops_per_token: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """One record for each subject, set and number of clients."""
    found = []
    for texts in sets:
        mine = [each for each in rounds if each.set == texts.name]
        best = _best_budget(mine)
        shown = [step for step in _ordered(mine) if step.subject != IDEAL or step == best]
        found += [_case(texts, step, best, mine, flops_per_token[texts.name]) for step in shown]
        absent = [subject for subject in (GEMM, TORCH) if not any(step.subject == subject for step in shown)]
        found += [{"subject": subject, "tokens": texts.label} | dict.fromkeys(_NUMBERS) for subject in absent]
    return found


_NUMBERS = (
    *("clients", "texts_per_request", "p50_ms", "p99_ms", "texts_per_s", "tokens_per_s"),
    *("ratio_to_ideal", "ratio_net", "gflops", "share_of_gemm", "above_forward_ms", "budget"),
    *("generator_share", "engine_cores", "foreign_share"),
)


def _ordered(rounds: Sequence[Round]) -> list[Step]:
    """Every figure that some round has, as the tables show them."""
    found = {step for each in rounds for step in each.figures}
    return sorted(found, key=lambda step: (_ORDER.index(step.subject), step.texts or 0, step.clients or 0))


def _best_budget(rounds: Sequence[Round]) -> Step:
    ideals = [step for step in rounds[0].figures if step.subject == IDEAL]
    return max(ideals, key=lambda step: statistics.median(each.figures[step]["tokens_per_s"] for each in rounds))


def _case(texts: TextSet, step: Step, best: Step, rounds: Sequence[Round], flops: float | None) -> dict[str, Any]:
    mine = [each.figures for each in rounds if step in each.figures]
    record: dict[str, Any] = dict.fromkeys(_NUMBERS)
    middle = medians([figures[step] for figures in mine])
    record |= {name: middle[name] for name in _NUMBERS if name in middle}
    record |= {"clients": step.clients, "texts_per_request": step.texts, "budget": step.budget}
    if step.subject != GEMM:
        record |= _compared(step, best, mine, flops)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in record.items()}
    return {"subject": step.subject, "tokens": texts.label, **rounded}


def _compared(step: Step, best: Step, rounds: Sequence[Figures], flops: float | None) -> dict[str, float]:
    """Medians of what is compared within each round.

    Rates are of tokens and not of texts: a short window need not hold every length of a mixed set equally often.
    """

    def median(compare: Callable[[Figures], float]) -> float:
        return statistics.median(map(compare, rounds))

    def ratio(figures: Figures) -> float:
        return float(figures[step]["tokens_per_s"] / figures[best]["tokens_per_s"])

    found = {"ratio_to_ideal": median(ratio)}
    if flops is not None:

        def gflops(figures: Figures) -> float:
            return float(figures[step]["tokens_per_s"] * flops / 1e9)

        found["gflops"] = median(gflops)
        found["share_of_gemm"] = median(lambda figures: gflops(figures) / figures[Step(GEMM)]["gflops"])
    if step.is_served:
        found["ratio_net"] = median(lambda figures: ratio(figures) / (1 - figures[step]["generator_share"]))
    if step.clients == 1:
        found["above_forward_ms"] = median(lambda each: each[step]["p50_ms"] - each[Step(FORWARD)]["p50_ms"])
    return found


def goals(
    found: Sequence[Mapping[str, Any]],
    probes: Sequence[Mapping[str, Any]],
    *,
    ready_secs: float,
    rss_mib: float,
    weights_mib: float,
    idle_cores: float,
) -> list[dict[str, Any]]:
    """What was wanted, what was measured; `pass` is None where there is nothing to compare with."""
    return list(_goals(found, probes, ready_secs, rss_mib, weights_mib, idle_cores))


def _goals(
    found: Sequence[Mapping[str, Any]],
    probes: Sequence[Mapping[str, Any]],
    ready_secs: float,
    rss_mib: float,
    weights_mib: float,
    idle_cores: float,
) -> Iterator[dict[str, Any]]:
    served = pick(found, HTTP, MIXED, MOST_CLIENTS)
    yield _at_least("64 clients, mixed lengths: share of ort-ideal, net", _RATIO_OF_IDEAL, served["ratio_net"])
    for ideal in (each for each in found if each["subject"] == IDEAL):
        name = f"ort-ideal, {_lengths(ideal['tokens'])}: share of gemm"
        yield _at_least(name, _SHARE_OF_GEMM, ideal["share_of_gemm"])
    shortest = next(each for each in found if each["subject"] == FORWARD)
    alone = pick(found, HTTP, shortest["tokens"], 1)["above_forward_ms"]
    name = f"one idle client, {_lengths(shortest['tokens'])}: p50 above forward, ms"
    yield _at_most(name, _ABOVE_FORWARD_MS, alone)
    waited = statistics.median(each["waited_runs"] for each in probes)
    yield _at_most("one short text among 64 bulk clients: p99 of its waiting, runs", _WAITED_RUNS, waited)
    yield _at_most("start to Ready with a warm page cache, s", _READY_SECS, ready_secs)
    yield _at_most("resident memory when ready, MiB", 2 * weights_mib + _RSS_SPARE_MIB, rss_mib)
    yield _at_most("idle, cores", _IDLE_CORES, idle_cores)
    for peer in (NAIVE, TORCH):
        theirs = pick(found, peer, MIXED)["ratio_to_ideal"]
        ratio = None if theirs is None else served["ratio_to_ideal"] / theirs
        yield _at_least(f"64 clients, mixed lengths: of {peer}", 1.0, ratio)


def pick(
    found: Sequence[Mapping[str, Any]], subject: str, tokens: int | str, clients: int | None = None
) -> Mapping[str, Any]:
    """The record of a subject and set; of a served one that with so many clients and one text per request."""
    return next(
        each
        for each in found
        if each["subject"] == subject
        and each["tokens"] == tokens
        and each["clients"] == clients
        and each["texts_per_request"] in (None, 1)
    )


def _lengths(tokens: int | str) -> str:
    return "mixed lengths" if tokens == MIXED else f"{tokens} tokens"


def _at_least(name: str, target: float, value: float | None) -> dict[str, Any]:
    return _goal(name, f"≥ {target:g}", value, value is not None and value >= target)


def _at_most(name: str, target: float, value: float) -> dict[str, Any]:
    return _goal(name, f"≤ {target:.4g}", value, value <= target)


def _goal(name: str, target: str, value: float | None, passed: bool) -> dict[str, Any]:
    shown = None if value is None else round(value, 4)
    return {"name": name, "target": target, "value": shown, "pass": None if value is None else passed}
