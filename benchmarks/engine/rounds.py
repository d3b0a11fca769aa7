"""The rounds: every figure of every set in each of them, and a set's round anew while others use the machine."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.engine.plan import GRACE_SECS, GRPC, Effort, Step, steps
from benchmarks.engine.probe import probe
from benchmarks.engine.served import Engine
from benchmarks.engine.texts import TextSet, Workload
from benchmarks.machine import Usage
from benchmarks.report import FOREIGN_LIMIT
from benchmarks.worker import Worker

LAST_ROUND_WITHIN_SECS = 600.0  # a later one does not begin: a slow model gets fewer rounds

Figures = dict[Step, dict[str, Any]]


@dataclass(slots=True)
class Round:
    """The figures of one set in one round; `foreign` is the share of the machine that others used meanwhile."""

    set: str
    number: int
    figures: Figures
    foreign: float


@dataclass(slots=True)
class Measured:
    """Everything, before it is summed up."""

    rounds: list[Round] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class Bench:
    """The processes of a run, and what they measure."""

    engine: Engine
    generator: Worker
    offline: Worker
    workload: Workload
    effort: Effort
    cores: int
    has_gemm: bool
    has_torch: bool

    def measure(self) -> Measured:
        """Raises `WorkerFailed` if a single request fails."""
        began = time.monotonic()
        measured = Measured()
        repeats = dict.fromkeys((each.name for each in self.workload.sets), self.effort.most_repeats)
        for number in range(self.effort.rounds):
            if number and time.monotonic() - began > LAST_ROUND_WITHIN_SECS:
                break
            for texts in self.workload.sets:
                measured.rounds.append(self._quiet_round(texts, number, repeats))
            measured.probes.append(self._probe(number))
        measured.repeats = sum(self.effort.most_repeats - left for left in repeats.values())
        return measured

    def _quiet_round(self, texts: TextSet, number: int, repeats: dict[str, int]) -> Round:
        """The first one in which others left the machine alone; failing that, the quietest of those allowed."""
        tried = [self._round(texts, number)]
        while tried[-1].foreign > FOREIGN_LIMIT and repeats[texts.name] > 0:
            repeats[texts.name] -= 1
            tried.append(self._round(texts, number))
        return min(tried, key=lambda each: each.foreign)

    def _round(self, texts: TextSet, number: int) -> Round:
        usage = self._usage()
        order = steps(self.effort, number, texts.name, has_gemm=self.has_gemm, has_torch=self.has_torch)
        figures = {step: self._figure(step, texts) for step in order}
        foreign = usage.foreign_share()
        say(f"round {number + 1}  {texts.name:>5} tokens  {100 * foreign:3.0f} % of the machine used by others")
        return Round(texts.name, number, figures, foreign)

    def _figure(self, step: Step, texts: TextSet) -> dict[str, Any]:
        self.engine.check()
        usage, began = self._usage(), time.monotonic()
        if step.is_served:
            figure = self.generator.ask(self.load_job(step, texts.name), self.effort.secs + 2 * GRACE_SECS)
            figure["generator_share"] = figure["generator_cores"] / self.cores
        else:
            job = {"subject": step.subject, "set": texts.name, "secs": self.effort.secs, "budget": step.budget}
            figure = self.offline.ask(job, self.effort.secs + GRACE_SECS)
        figure["engine_cores"] = usage.of(self.engine.pid) / (time.monotonic() - began)
        return figure | {"foreign_share": usage.foreign_share()}

    def load_job(self, step: Step, texts: str) -> dict[str, Any]:
        """What the load generator is asked to do."""
        port = self.engine.grpc_port if step.subject == GRPC else self.engine.port
        return {
            "subject": step.subject,
            "set": texts,
            "clients": step.clients,
            "texts": step.texts,
            "secs": self.effort.secs,
            "port": port,
        }

    def _probe(self, number: int) -> dict[str, Any]:
        usage = self._usage()
        found = probe(self.engine, self.generator, self.workload, self.load_job)
        found["foreign_share"] = usage.foreign_share()
        say(f"round {number + 1}  a short text among bulk: {found['p50_ms']:.1f} ms, run {found['run_ms']:.1f} ms")
        return found

    def _usage(self) -> Usage:
        return Usage([os.getpid(), self.engine.pid, self.generator.pid, self.offline.pid])


def medians(figures: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median of every number that the figures have."""
    names: Iterator[str] = (name for name in figures[0] if all(name in each for each in figures))
    return {name: statistics.median(each[name] for each in figures) for name in names}


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)
