"""The journal in a file of JSON lines beside the state: append-only, two files of bounded size."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import structlog

from tei_manager.domain.event import Event, EventType
from tei_manager.kits.eventlog import EventLog

log = structlog.get_logger("tei_manager.adapters.store.journal")

KEEP = 10_000  # events in memory, for those who follow; and lines that wait for the disk
TAIL_BYTES = 4 * 1024 * 1024
ROTATE_BYTES = 16 * 1024 * 1024


class FileJournal:
    """Implements `ports.journal.Journal`.

    One thread writes and reads. Lines are not fsynced one by one: a power cut may cost the last second, a crash of
    the manager costs nothing that was noted a moment before. Beyond `rotate_bytes` the file becomes `<name>.1`.
    """

    def __init__(
        self, path: Path, *, now: Callable[[], float] = time.time, rotate_bytes: int = ROTATE_BYTES
    ) -> None:
        self._path, self._older = path, path.with_name(path.name + ".1")
        self._now, self._rotate_bytes = now, rotate_bytes
        self._log: EventLog[Event] = EventLog(keep=KEEP)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._lock = threading.Lock()  # guards `_waiting`, between the loop and the thread
        self._waiting: list[Event] = []
        self._is_failing = False
        self._is_closing = False

    @property
    def last_seq(self) -> int:
        return self._log.last_seq

    @property
    def is_closed(self) -> bool:
        return self._log.is_closed

    async def open(self) -> None:
        """Read the newest events of earlier runs. A file that cannot be read is left alone, with a warning."""
        self._log = EventLog(keep=KEEP)
        events = await asyncio.get_running_loop().run_in_executor(self._thread, self._newest)
        if events:
            self._log.last_seq = events[0].seq - 1
        for event in events:
            self._log.add(event)

    def note(
        self,
        kind: EventType,
        *,
        instance: str | None = None,
        before: str | None = None,
        after: str | None = None,
        reason: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Add an event; it is on disk a moment later."""
        event = Event(
            seq=self._log.last_seq + 1,
            timestamp=self._now(),
            type=kind,
            instance=instance,
            before=before,
            after=after,
            reason=reason,
            data=dict(data or {}),
        )
        self._log.add(event)
        with self._lock:
            is_first = not self._waiting
            self._waiting.append(event)
            if len(self._waiting) > KEEP:  # the disk is full for long: the oldest are lost
                del self._waiting[0]
            if (is_first or self._is_failing) and not self._is_closing:
                self._thread.submit(self._write)

    def since(self, seq: int) -> tuple[Event, ...] | None:
        return self._log.since(seq)

    async def newer(self, seq: int, *, timeout_secs: float) -> bool:
        return await self._log.newer(seq, timeout_secs=timeout_secs)

    async def story(self, instance: str, *, limit: int) -> list[Event]:
        """From the files; what waits for the disk comes from memory."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._story, instance, limit)

    def finish(self) -> None:
        """Tell those who follow that nothing more will come."""
        self._log.close()

    async def close(self) -> None:
        """Write what waits, end the thread."""
        self.finish()
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._thread.submit(self._write)
        await asyncio.to_thread(self._thread.shutdown)

    # -- in the thread ----------------------------------------------------------------------------------------

    def _write(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            self._append(b"".join(map(_line, waiting)))
        except OSError as error:
            if not self._is_failing:
                log.error("Journal could not be written", error=str(error))
            self._is_failing = True
            with self._lock:
                self._waiting = [*waiting, *self._waiting][-KEEP:]
        else:
            self._is_failing = False

    def _append(self, lines: bytes) -> None:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size and size + len(lines) > self._rotate_bytes:
            self._path.replace(self._older)
            size = 0
        with self._path.open("ab+") as stream:
            if size:
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":  # a crash cut the last line short: the next must not lengthen it
                    lines = b"\n" + lines
            stream.write(lines)

    def _newest(self) -> list[Event]:
        try:
            events = list(_events(_tail(self._path, TAIL_BYTES)))
            if not events and self._older.exists():
                events = list(_events(_tail(self._older, TAIL_BYTES)))
        except OSError as error:
            log.warning("Journal could not be read", error=str(error))
            return []
        return _without_gaps(events)[-KEEP:]

    def _story(self, instance: str, limit: int) -> list[Event]:
        self._write()
        found: list[Event] = []
        mark = orjson.dumps(instance)
        for path in (self._older, self._path):
            with contextlib.suppress(OSError), path.open("rb") as stream:  # mostly: there is none yet
                lines = (line for line in stream if mark in line)
                found += [event for event in _events(lines) if event.instance == instance]
        with self._lock:  # a disk that cannot be written to
            found += [event for event in self._waiting if event.instance == instance]
        return found[-limit:]


def _line(event: Event) -> bytes:
    return orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)


def _tail(path: Path, size: int) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(0, end - size))
        if end > size:
            stream.readline()  # the rest of a line
        yield from stream


def _events(lines: Iterator[bytes]) -> Iterator[Event]:
    """What can be read; a torn line, or one of a later version, is passed over."""
    for line in lines:
        try:
            yield Event(**orjson.loads(line))
        except (ValueError, TypeError):
            continue


def _without_gaps(events: list[Event]) -> list[Event]:
    """The longest run of consecutive numbers at the end."""
    start = len(events)
    while start > 0 and (start == len(events) or events[start - 1].seq == events[start].seq - 1):
        start -= 1
    return events[start:]
