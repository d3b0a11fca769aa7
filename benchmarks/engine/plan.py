"""What is measured of one set of texts, and for how long: plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORWARD, GEMM, NAIVE, IDEAL, TORCH = "forward", "gemm", "ort-naive", "ort-ideal", "sentence-transformers"
HTTP, BINARY, GRPC = "engine-http", "engine-binary", "engine-grpc"
SERVED = (HTTP, BINARY, GRPC)
BUDGETS = (128, 256, 512)  # padded tokens of a run, of which the offline ideal takes the best
MIXED = "mixed"  # the set of many lengths; others are named after their number of tokens
CLIENTS = (1, 8, 64)
MOST_CLIENTS = 64
BATCH = 8  # texts of a request, where it has more than one
GRACE_SECS = 240.0  # a figure that takes this much longer than its time hangs, or has a model that is too slow
LOAD, OFFLINE = "benchmarks.engine.load", "benchmarks.engine.offline"  # processes of their own


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. `secs` is the time of one figure in one round."""

    rounds: int
    secs: float
    cold_starts: int
    is_quick: bool

    @property
    def most_repeats(self) -> int:
        """How often a set's round is measured anew because others used the machine."""
        return self.rounds // 2


@dataclass(frozen=True, slots=True)
class Step:
    """One figure of one set: an offline subject, or a served one with so many clients."""

    subject: str
    clients: int | None = None
    texts: int | None = None  # of one request
    budget: int | None = None  # of the offline ideal

    @property
    def is_served(self) -> bool:
        return self.subject in SERVED

    def __str__(self) -> str:
        if self.is_served:
            return f"{self.subject} {self.clients} × {self.texts}"
        return self.subject if self.budget is None else f"{self.subject} {self.budget}"


def steps(effort: Effort, number: int, texts: str, *, has_gemm: bool, has_torch: bool) -> list[Step]:
    """The figures of round `number` for the set `texts`, in an order that puts what is compared side by side."""
    found = [*([Step(GEMM)] if has_gemm else []), Step(FORWARD)]
    for clients, budget in zip(CLIENTS, BUDGETS, strict=True):
        found += [*(Step(subject, clients, 1) for subject in SERVED), Step(IDEAL, budget=budget)]
    found += [Step(NAIVE), *([Step(TORCH)] if has_torch else [])]
    found += [Step(subject, MOST_CLIENTS, BATCH) for subject in _batched(effort, number, texts)]
    return found if number % 2 == 0 else found[::-1]


def _batched(effort: Effort, number: int, texts: str) -> Sequence[str]:
    """Whose large requests are measured: of long texts they take many seconds, whatever time was asked for."""
    if effort.is_quick:
        return SERVED[:1] if texts == MIXED else ()
    if effort.rounds < len(SERVED):
        return SERVED
    return (SERVED[number % len(SERVED)],)
