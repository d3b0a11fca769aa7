"""A request inside the engine: a job, and one entry per input."""

from __future__ import annotations

import asyncio
import enum
import time
from dataclasses import dataclass, field

import numpy as np

from tei_engine import errors
from tei_engine.graph.arrays import FloatArray
from tei_engine.tokenization.tokenizer import Piece


class Want(enum.Enum):
    """What an entry needs from its run."""

    POOLED = "pooled"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request asks of the model. `dimensions` cuts vectors before they are normalised.

    `deadline` is a time of `time.monotonic`; `bulk` keeps single inputs of a stream out of the priority lane.
    """

    pieces: tuple[Piece, ...]
    want: Want = Want.POOLED
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

    def is_expired(self, now: float) -> bool:
        """Whether the caller's deadline lies before `now` (`time.monotonic`)."""
        return self.job.ask.deadline is not None and self.job.ask.deadline <= now


class Job:
    """One request's entries, and the future that its handler waits on. Belongs to the event loop.

    Compute threads write finished rows into `vectors` (or `tokens`) before the loop hears of them.
    """

    def __init__(self, ask: Ask, *, dimension: int, loop: asyncio.AbstractEventLoop) -> None:
        now = time.perf_counter()
        self.ask = ask
        self.entries = [Entry(self, row, piece, arrived_at=now) for row, piece in enumerate(ask.pieces)]
        self.future: asyncio.Future[None] = loop.create_future()
        self.is_over = False
        size = min(ask.dimensions or dimension, dimension)
        rows = len(ask.pieces)
        self.vectors: FloatArray = np.empty((rows if ask.want is Want.POOLED else 0, size), dtype=np.float32)
        self.tokens: list[FloatArray | None] = [None] * (rows if ask.want is Want.TOKENS else 0)
        self._open = rows

    def settle(self, entry: Entry, error: errors.RequestError | None) -> bool:
        """Note that `entry` is done; the first error ends the whole job. True if the job ended with this call."""
        if self.is_over:
            return False
        self._open -= 1
        if error is not None:
            self.fail(error.at_row(entry.row))
            return True
        if self._open == 0:
            self.is_over = True
            if not self.future.done():
                self.future.set_result(None)
            return True
        return False

    def fail(self, error: errors.RequestError) -> None:
        """End the job with `error`; what still runs for it is discarded."""
        self.is_over = True
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # the handler may be gone already; that is no unretrieved error
