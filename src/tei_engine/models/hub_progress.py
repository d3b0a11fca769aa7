"""How far a download is: bytes, and log lines that the manager reads as text-embeddings-router's own."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)

_TELL_SECONDS = 5.0


class Progress:
    """Bytes brought so far; one line at the start of each file, and one every `interval` seconds."""

    def __init__(self, *, interval: float = _TELL_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.total: int | None = None
        """Bytes of all files that are to come; None = the hub does not say."""
        self._interval = interval
        self._clock = clock
        self._name = ""
        self._settled = 0
        self._current = 0
        self._ended = threading.Event()

    @property
    def done(self) -> int:
        """Bytes of whole files and of the one that is coming, what earlier attempts left included."""
        return self._settled + self._current

    def begin(self, name: str, size: int) -> None:
        """The file `name` is next, of which `size` bytes are here already."""
        self._settled, self._current, self._name = self.done, size, name
        _log.info("Downloading `%s`: %s", name, self._amount())

    def reach(self, size: int) -> None:
        """`size` bytes of the file are here now."""
        self._current = size

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Log where it stands every few seconds, so that a long download does not look like a hang."""
        since = (self.done, self._clock())
        thread = threading.Thread(target=self._tell, args=since, name="download-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _tell(self, seen: int, at: float) -> None:
        while not self._ended.wait(self._interval):
            done, now = self.done, self._clock()
            rate = max(0, done - seen) / max(now - at, 1e-3)
            if self._name:
                _log.info("Downloading `%s`: %s, %s/s", self._name, self._amount(), in_words(round(rate)))
            seen, at = done, now

    def _amount(self) -> str:
        return in_words(self.done) if self.total is None else f"{in_words(self.done)} of {in_words(self.total)}"


def in_words(size: int) -> str:
    """A number of bytes for people: `812 B`, `4.2 kB`, `90.9 MB`, `1.3 GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
