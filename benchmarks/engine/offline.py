"""The subjects without a server, in a process of their own: the machine's limit, and other uses of the model."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine.flops import SETTLE_SECS, Gemm, encoder_flops, side_by_side
from benchmarks.engine.plan import BUDGETS, FORWARD, GEMM, IDEAL, NAIVE, TORCH
from benchmarks.engine.quantiles import quantile_ms
from benchmarks.engine.texts import Workload
from benchmarks.worker import answer_jobs
from tei_engine.graph.outputs import Output
from tei_engine.models.configuration import read_configuration
from tei_engine.models.model import Batch, Model, Threads

NAIVE_BATCH = TORCH_BATCH = 32
_WARM_UP_SHARE = 0.2
_FEWEST = 3  # runs or passes that make a figure
_WANTED = (Output.POOLED,)


class Run:
    """A padded batch, and how much of it is real."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.batch = Batch.of(texts)
        self.texts = len(texts)
        self.tokens = sum(map(len, texts))


class Offline:
    """Everything loaded once; `measure` is one figure."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        folder = Path(workload.folder)
        configuration = read_configuration(folder)
        self._model = Model(folder, configuration, Threads(workload.threads, workload.threads))
        self._gemm: Gemm | None = None
        self._flops: Callable[[Sequence[int]], float] | None = None
        # only graphs that are built from the weights have known sizes
        native: Any = configuration if hasattr(configuration, "sizes") else None
        if native is not None:
            self._gemm = Gemm(native.sizes.hidden, native.sizes.feed_forward, workload.threads)
            self._flops = functools.partial(
                encoder_flops,
                layers=native.sizes.layers,
                hidden=native.sizes.hidden,
                feed_forward=native.sizes.feed_forward,
                is_gated=native.family.is_rotary,
            )
        self._torch: Any = None
        self._subjects: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            GEMM: self._peak,
            FORWARD: self._forward,
            NAIVE: self._naive,
            IDEAL: self._ideal,
            TORCH: self._sentence_transformers,
        }

    def describe(self) -> dict[str, Any]:
        """What the driver has to know before it asks."""
        lengths = {each.name: list(map(len, each.ids)) for each in self._workload.sets}
        flops = self._flops
        return {
            "has_gemm": self._gemm is not None,
            "has_torch": has_torch(),
            "weights_bytes": self._model.weights_bytes,
            "flops_per_token": {name: flops and flops(each) / sum(each) for name, each in lengths.items()},
        }

    def measure(self, job: dict[str, Any]) -> dict[str, Any]:
        time.sleep(SETTLE_SECS)
        return self._subjects[job["subject"]](job)

    def _peak(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._gemm is not None
        return {"gflops": self._gemm.peak(job["secs"]) / 1e9}

    def _forward(self, job: dict[str, Any]) -> dict[str, Any]:
        return self._one_by_one([Run([ids]) for ids in self._ids(job)], job["secs"])

    def _naive(self, job: dict[str, Any]) -> dict[str, Any]:
        ids = self._ids(job)
        runs = [Run(ids[first : first + NAIVE_BATCH]) for first in range(0, len(ids), NAIVE_BATCH)]
        return self._one_by_one(runs, job["secs"])

    def _one_by_one(self, runs: Sequence[Run], secs: float) -> dict[str, Any]:
        """Wide runs, one after the other."""
        endless = itertools.cycle(runs)
        warm = time.perf_counter() + secs * _WARM_UP_SHARE
        while True:
            self._model.run(next(endless).batch, _WANTED, wide=True)
            if (began := time.perf_counter()) > warm:
                break
        done: list[Run] = []
        taken: list[float] = []
        before = began
        while before < began + secs or len(done) < _FEWEST:
            run = next(endless)
            self._model.run(run.batch, _WANTED, wide=True)
            now = time.perf_counter()
            taken.append(now - before)
            done.append(run)
            before = now
        return _rates(sum(run.texts for run in done), sum(run.tokens for run in done), before - began) | {
            "p50_ms": quantile_ms(taken, 0.5),
            "p99_ms": quantile_ms(taken, 0.99),
        }

    def _ideal(self, job: dict[str, Any]) -> dict[str, Any]:
        """Sorted by length, filled up to the budget, run by one-thread workers in an order of chance."""
        assert job["budget"] in BUDGETS
        runs = [Run(texts) for texts in packed(self._ids(job), job["budget"])]
        random.Random(1).shuffle(runs)
        endless = itertools.cycle(runs)  # its next() is atomic: threads share it
        texts, tokens = [], []

        def work(until: float) -> tuple[float, float]:
            self._model.run(next(endless).batch, _WANTED)
            began, my_texts, my_tokens = time.perf_counter(), 0, 0
            while (now := time.perf_counter()) < until or not my_texts:
                run = next(endless)
                self._model.run(run.batch, _WANTED)
                my_texts, my_tokens = my_texts + run.texts, my_tokens + run.tokens
            texts.append(my_texts)
            tokens.append(my_tokens)
            return my_tokens, now - began

        rate = side_by_side([work] * self._workload.threads, job["secs"])
        return {"tokens_per_s": rate, "texts_per_s": rate * sum(texts) / sum(tokens)}

    def _sentence_transformers(self, job: dict[str, Any]) -> dict[str, Any]:
        if self._torch is None:
            import torch  # type: ignore[import-not-found, unused-ignore]
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]

            torch.set_num_threads(self._workload.threads)
            self._torch = SentenceTransformer(self._workload.folder, device="cpu")
        found = self._workload.set(job["set"])
        part = found.texts[: 2 * TORCH_BATCH]
        self._torch.encode(part[:TORCH_BATCH], batch_size=TORCH_BATCH, show_progress_bar=False)
        began, passes = time.perf_counter(), 0
        while (now := time.perf_counter()) < began + job["secs"] or not passes:
            self._torch.encode(part, batch_size=TORCH_BATCH, show_progress_bar=False)
            passes += 1
        tokens = sum(map(len, found.ids[: len(part)]))
        return _rates(passes * len(part), passes * tokens, now - began)

    def _ids(self, job: dict[str, Any]) -> list[list[int]]:
        return self._workload.set(job["set"]).ids


def has_torch() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "sentence_transformers"))


def packed(texts: Sequence[Sequence[int]], budget: int) -> Iterator[list[Sequence[int]]]:
    """Runs of texts of like length, longest · count at most `budget`; a longer text is a run of its own."""
    run: list[Sequence[int]] = []
    for ids in sorted(texts, key=len):
        if run and len(ids) * (len(run) + 1) > budget:
            yield run
            run = []
        run.append(ids)
    yield run


def _rates(texts: int, tokens: int, secs: float) -> dict[str, Any]:
    return {"texts_per_s": texts / secs, "tokens_per_s": tokens / secs}


def main() -> None:
    offline = Offline(Workload.read(Path(sys.argv[1])))
    answer_jobs(lambda job: offline.describe() if job["subject"] is None else offline.measure(job))


if __name__ == "__main__":
    main()
