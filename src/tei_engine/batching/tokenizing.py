"""The tokenizer threads: they drain their queue in batches, so that the loop never tokenises."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from tei_engine import errors
from tei_engine.batching.jobs import Entry, Job
from tei_engine.tokenization.tokenizer import Tokenizer

Value = TypeVar("Value")

_AT_ONCE = 64

Failed = list[tuple[Entry, errors.RequestError]]


class TokenizerThreads:
    """Turns entries into ids and hands them on. `submit` and `call` belong to the event loop."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        threads: int,
        max_length: int,
        vocab_size: int,
        ready: Callable[[list[Entry]], None],
        failed: Callable[[Failed], None],
    ) -> None:
        """`ready` and `failed` are called from a tokenizer thread."""
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._ready = ready
        self._failed = failed
        self._changed = threading.Condition()
        self._entries: deque[Entry] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"tokenizer-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._entries)

    def submit(self, entries: list[Entry]) -> None:
        """Queue entries for tokenising."""
        with self._changed:
            self._entries.extend(entries)
            self._changed.notify()

    async def call(self, work: Callable[[], Value]) -> Value:
        """Run `work` on a tokenizer thread and return its result, or raise its exception."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Value] = loop.create_future()

        def finish(value: Value | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)  # type: ignore[arg-type]  # a Value whenever there is no error

        def task() -> None:
            if future.cancelled():
                return
            try:
                value = work()
            except BaseException as error:  # carried to the caller, whatever it is
                loop.call_soon_threadsafe(finish, None, error)
            else:
                loop.call_soon_threadsafe(finish, value, None)

        with self._changed:
            self._calls.append(task)
            self._changed.notify()
        return await future

    def remove(self, job: Job) -> None:
        """Forget entries of `job` that no thread has taken yet and nobody wants any more."""
        with self._changed:
            self._entries = deque(entry for entry in self._entries if entry.job is not job or not entry.is_over)

    def close(self) -> None:
        """Let the threads end; what is queued is forgotten."""
        with self._changed:
            self._closing = True
            self._entries.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._entries and not self._calls and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                call = self._calls.popleft() if self._calls else None
                taken = [self._entries.popleft() for _ in range(min(_AT_ONCE, len(self._entries)))]
                if self._entries or self._calls:
                    self._changed.notify()
            if taken:
                self._tokenize(taken)
            if call is not None:
                call()

    def _tokenize(self, entries: list[Entry]) -> None:
        began = time.perf_counter()
        try:
            answers = self._tokenizer.encode_typed(
                [entry.piece for entry in entries], max_length=self._max_length, vocab_size=self._vocab_size
            )
        except Exception as error:  # nothing one text holds may end this thread, or fail other texts
            if len(entries) == 1:
                self._failed([(entries[0], errors.tokenizer(error))])
            else:
                for entry in entries:
                    self._tokenize([entry])
            return
        now = time.perf_counter()
        good: list[Entry] = []
        bad: Failed = []
        for entry, answer in zip(entries, answers, strict=True):
            entry.tokenization = now - began
            entry.queued_at = now
            if isinstance(answer, errors.RequestError):
                bad.append((entry, answer))
            elif not answer.ids:
                bad.append((entry, errors.empty(errors.EMPTY_INPUTS)))
            else:
                entry.ids, entry.types = answer.ids, answer.types
                good.append(entry)
        if bad:
            first: dict[Job, int] = {}
            for entry, _ in bad:
                first[entry.job] = min(entry.row, first.get(entry.job, entry.row))
            good = [entry for entry in good if entry.row < first.get(entry.job, entry.job.end)]
            self._failed(bad)
        if good:
            self._ready(good)
