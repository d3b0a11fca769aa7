"""The way of a request through the engine: permits → tokenizer threads → lanes → compute threads → answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tei_engine import errors
from tei_engine.batching.compute import ComputeThreads, Outcome
from tei_engine.batching.jobs import Ask, Entry, Job
from tei_engine.batching.packing import Limits
from tei_engine.batching.permits import Permits
from tei_engine.batching.tokenizing import Failed, TokenizerThreads
from tei_engine.models.model import Model
from tei_engine.tokenization.tokenizer import Tokenizer

Value = TypeVar("Value")


class Observer(Protocol):
    """Who counts. Called on the event loop only."""

    def saw_job(self, job: Job) -> None:
        """A job has begun."""

    def saw_run(self, outcome: Outcome) -> None:
        """A run has ended."""

    def saw_entry(self, entry: Entry) -> None:
        """An entry is done, without an error."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """How the pipeline is laid out; see the flags of the same names."""

    max_concurrent_requests: int
    run_tokens: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_input_length: int
    tokenization_workers: int
    compute_workers: int


class Pipeline:
    """Owns the threads and everything in flight. All methods belong to the event loop it was made on."""

    def __init__(self, model: Model, tokenizer: Tokenizer, sizing: Sizing, observer: Observer) -> None:
        self.permits = Permits(sizing.max_concurrent_requests)
        self.model = model
        self.tokenizer = tokenizer
        self.sizing = sizing
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._jobs: set[Job] = set()
        self._is_aborted = False
        self._compute = ComputeThreads(
            model,
            workers=sizing.compute_workers,
            limits=Limits(min(sizing.run_tokens, sizing.max_batch_tokens), sizing.max_batch_requests),
            done=self._from_thread(self._finish),
        )
        self._tokenizers = TokenizerThreads(
            tokenizer,
            threads=sizing.tokenization_workers,
            max_length=sizing.max_input_length,
            vocab_size=model.vocab_size,
            ready=self._compute.submit,
            failed=self._from_thread(self._reject),
        )

    @property
    def queue_size(self) -> int:
        """Entries waiting for a run."""
        return self._compute.queue_size

    @property
    def tokenizer_queue_size(self) -> int:
        """Entries waiting for a tokenizer thread."""
        return len(self._tokenizers)

    @property
    def is_healthy(self) -> bool:
        """Whether the model computes."""
        return self._compute.is_healthy()

    async def run(self, ask: Ask) -> Job:
        """Compute `ask`; the caller holds its permits. Returns the finished job.

        Raises RequestError with the row of the first failing input. Cancelling it drops what has not begun.
        """
        if self._is_aborted:
            raise errors.unhealthy("shutting down")
        job = Job(ask, width=self.model.dimension, loop=self._loop)
        self._jobs.add(job)
        self._observer.saw_job(job)
        try:
            self._tokenizers.submit(job.entries)
            await job.future
        except BaseException:
            job.entries.clear()  # they hold the job, and the job them and the texts: see `errors.let_go`
            raise
        finally:
            self._jobs.discard(job)
            if not job.is_over or job.future.cancelled():
                job.is_over = True
                self._drop(job)
        return job

    async def call(self, work: Callable[[], Value]) -> Value:
        """Run tokenizer work that needs no model."""
        return await self._tokenizers.call(work)

    def abort(self) -> None:
        """Fail everything in flight, and whatever still waits for permits, with "shutting down"."""
        self._is_aborted = True
        for job in self._jobs:
            if not job.is_over:
                job.fail(errors.unhealthy("shutting down"))
                self._drop(job)

    def close(self) -> None:
        """End the threads."""
        self._tokenizers.close()
        self._compute.close()

    def _from_thread(self, handle: Callable[[Value], None]) -> Callable[[Value], None]:
        def pass_on(value: Value) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(handle, value)

        return pass_on

    def _reject(self, failed: Failed) -> None:
        for entry, error in failed:
            self._settle(entry, error)

    def _finish(self, outcome: Outcome) -> None:
        self._observer.saw_run(outcome)
        for place, entry in enumerate(outcome.entries):
            self._settle(entry, outcome.errors.get(place))

    def _settle(self, entry: Entry, error: errors.RequestError | None) -> None:
        if entry.is_over:
            return
        if error is None:
            self._observer.saw_entry(entry)
        entry.job.settle(entry, error)
        if error is not None:
            self._drop(entry.job)

    def _drop(self, job: Job) -> None:
        """Forget what is queued for `job` and no longer wanted."""
        self._tokenizers.remove(job)
        self._compute.remove(job)
