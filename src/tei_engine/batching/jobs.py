"""A request inside the engine: a job, and one entry per input."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from tei_engine import errors
from tei_engine.graph.arrays import FloatArray, IntArray
from tei_engine.graph.outputs import Output
from tei_engine.tokenization.tokenizer import Piece

Sparse = tuple[IntArray, FloatArray]
"""A sparse vector: indices, ascending, and their values."""

_ROWS = (Output.POOLED, Output.LOGITS)
"""Outputs that are one row per input, all of the same size."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks of the model. `dimensions` cuts vectors before they are normalised.

    `deadline` is a time of `time.monotonic`; `bulk` keeps single inputs of a stream out of the priority lane.
    """

    pieces: tuple[Piece, ...]
    want: Output = Output.POOLED
    normalize: bool = True
    dimensions: int | None = None
    deadline: float | None = None
    bulk: bool = False


@dataclass(slots=True, eq=False)
class Entry:
    """One input on its way. Times are of `time.perf_counter`; durations in seconds."""

    job: Job
    row: int
    piece: Piece
    ids: list[int] = field(default_factory=list)
    types: list[int] | None = None
    arrived_at: float = 0.0
    queued_at: float = 0.0
    passed_over: int = 0
    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0

    @property
    def length(self) -> int:
        """Tokens, special ones included; 0 before tokenising."""
        return len(self.ids)

    @property
    def has_priority(self) -> bool:
        """Whether somebody is waiting for just this short text."""
        return not self.job.ask.bulk and len(self.job.entries) == 1 and len(self.ids) <= 64

    @property
    def is_over(self) -> bool:
        """Whether nobody wants its result any more."""
        return self.job.is_over or self.row > self.job.end

    def is_expired(self, now: float) -> bool:
        """Whether the caller's deadline lies before `now` (`time.monotonic`)."""
        return self.job.ask.deadline is not None and self.job.ask.deadline <= now


class Job:
    """One request's entries, and the future that its handler waits on. Belongs to the event loop.

    `end` is the place of the first failing input, as far as is known; the number of inputs while none has failed.
    Compute threads write finished rows before the loop hears of them: into `rows` [inputs, width] what is one row
    per input, into `tokens` the vectors of every token of an input, into `sparse` sparse vectors.
    """

    def __init__(self, ask: Ask, *, width: int, loop: asyncio.AbstractEventLoop) -> None:
        """`width` is the size of one row of what is wanted."""
        now = time.perf_counter()
        self.ask = ask
        self.entries = [Entry(self, row, piece, arrived_at=now) for row, piece in enumerate(ask.pieces)]
        self.future: asyncio.Future[None] = loop.create_future()
        self.is_over = False
        count = self.end = len(ask.pieces)
        self._next = 0
        self._settled = bytearray(count)
        self._error: errors.RequestError | None = None
        size = min(ask.dimensions or width, width)
        self.rows: FloatArray = np.empty((count if ask.want in _ROWS else 0, size), dtype=np.float32)
        self.tokens: dict[int, FloatArray] = {}
        self.sparse: dict[int, Sparse] = {}

    def settle(self, entry: Entry, error: errors.RequestError | None) -> None:
        """Note that `entry` is done, with an error or without.

        An error makes everything behind its input unwanted (`end` moves to it) and ends the job once every input
        before it is done: which row the caller hears of does not depend on the order of the runs.
        """
        if entry.is_over:
            return
        self._settled[entry.row] = True
        if error is not None:
            self.end, self._error = entry.row, error.at_row(entry.row)
        while self._next < self.end and self._settled[self._next]:
            self._next += 1
        if self._next < self.end:
            return
        if self._error is not None:
            self.fail(self._error)
            return
        self.is_over = True
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: errors.RequestError) -> None:
        """End the job with `error`; what still runs for it is discarded."""
        self.is_over = True
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # the handler may be gone already; that is no unretrieved error
