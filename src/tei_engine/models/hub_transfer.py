"""Bringing files from the hub into its cache: continued where they stopped, checked, then renamed into place."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import TypeVar

from tei_engine.models.hub_cache import DiskError, ModelCache
from tei_engine.models.hub_client import HubClient, HubError, Listing, RemoteFile
from tei_engine.models.hub_progress import Progress, in_words

_log = logging.getLogger(__name__)

Value = TypeVar("Value")

_WAITS = (0.5, 1.0, 2.0)
"""Seconds before each further attempt, as long as none of them brings anything."""
_LOCK_SECONDS = 5.0
_STALLED_SECONDS = 120.0
"""How long another process may hold a file's lock while nothing in the cache grows."""


class Transfer:
    """Brings files of one commit into the cache. Raises HubError and DiskError."""

    def __init__(self, client: HubClient, place: ModelCache, listing: Listing, progress: Progress) -> None:
        self._client = client
        self._place = place
        self._listing = listing
        self._progress = progress
        self.folder = place.folder_of(listing.commit)

    def bring(self, names: Iterable[str]) -> None:
        """Let the snapshot hold `names`, fetched in that order; what it holds already is kept."""
        files = [self._listing.files[name] for name in names if not (self.folder / name).is_file()]
        self._sum_up(files)
        for file in files:
            self._bring(file)

    def _sum_up(self, files: list[RemoteFile]) -> None:
        """Add to the progress what is to come, and refuse at once what the disk cannot hold."""
        total = sum(file.size or 0 for file in files)
        is_told = all(file.size is not None for file in files)
        self._progress.total = self._progress.done + total if is_told else None
        needed = total - sum(self._bytes_here(file) for file in files)
        free = self._place.free_bytes()
        if free is not None and needed > free:
            raise DiskError(
                f"no room in the hub cache {self._place.cache}: "
                f"{in_words(needed)} are needed, {in_words(free)} are free",
                is_full=True,
            )

    def _bytes_here(self, file: RemoteFile) -> int:
        if file.etag is None or file.size is None:
            return 0
        here = max(_size(self._place.blob(file.etag)), _size(self._place.partial(file.etag)))
        return min(here, file.size)

    def _bring(self, file: RemoteFile) -> None:
        etag = file.etag
        if etag is None or file.size is None:
            file = _tried(lambda: self._client.describe(file.name, self._listing.commit), lambda: 0)
            etag = file.etag
        assert etag is not None
        with self._locked(etag, file.name):
            blob = self._place.blob(etag)
            # a machine that lost its power may leave a blob with nothing in it
            if not blob.is_file() or (file.size is not None and _size(blob) != file.size):
                self._fill(file, etag)
            else:
                self._progress.begin(file.name, _size(blob))
            self._place.link(etag, self._listing.commit, file.name)

    @contextlib.contextmanager
    def _locked(self, etag: str, name: str) -> Iterator[None]:
        """Hold the lock of `etag`; whoever has it is waited for as long as the cache grows."""
        path = self._place.lock_file(etag)
        seen, since = -1, time.monotonic()
        while True:
            with contextlib.ExitStack() as stack:
                with self._place.writing():
                    is_ours = self._client.enter_lock(stack, path, timeout=_LOCK_SECONDS)
                if is_ours:
                    yield
                    return
            size = sum(_size(one) for one in self._place.blob(etag).parent.glob("*"))
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > _STALLED_SECONDS:
                raise HubError(f"another process holds {path} and brings nothing")
            _log.info("Downloading `%s`: another process is at it", name)

    def _fill(self, file: RemoteFile, etag: str) -> None:
        """Make the blob `etag`: add to what an earlier attempt left, check, rename. Its lock is held."""
        partial = self._place.partial(etag)
        found = _size(partial)
        try:
            with self._place.writing():
                partial.parent.mkdir(parents=True, exist_ok=True)
            self._progress.begin(file.name, min(found, file.size or 0))
            _tried(lambda: self._append(file, partial), lambda: _size(partial))
            if not _is_right(partial, etag):
                with self._place.writing():
                    partial.unlink()
                if not found:
                    raise HubError(f"what the hub sent as {file.name} is not that file: its checksum differs")
                _log.warning(
                    "Downloading `%s`: what an earlier attempt left is damaged, beginning anew", file.name
                )
                self._fill(file, etag)
                return
            with self._place.writing():
                partial.replace(self._place.blob(etag))
        except DiskError as error:
            if error.is_full:  # everybody on this disk needs the room more than the next attempt needs this
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
            raise

    def _append(self, file: RemoteFile, partial: Path) -> None:
        """Read on from where `partial` ends, until it is whole and on the disk."""
        with contextlib.ExitStack() as stack:
            with self._place.writing():
                out = stack.enter_context(partial.open("ab", buffering=0))
                end = out.tell()
                # where the size is not known, neither is whether it is whole already
                if file.size is None or end > file.size:
                    end = out.truncate(0)
            if end != file.size:
                self._read_into(out, file, end)
            with self._place.writing():
                os.fsync(out.fileno())

    def _read_into(self, out: FileIO, file: RemoteFile, end: int) -> None:
        chunks = self._client.chunks(file.name, self._listing.commit, start=end)
        with contextlib.closing(chunks):
            for offset, chunk in chunks:
                with self._place.writing():
                    if offset < end:  # a hub that cannot begin in the middle
                        end = out.truncate(offset)
                    if offset > end or (file.size is not None and end + len(chunk) > file.size):
                        raise HubError(f"the hub sent more or other parts of {file.name} than there are")
                    end += _write(out, chunk)
                self._progress.reach(end)
        if file.size is not None and end < file.size:
            raise HubError(f"{file.name} ended after {end} of {file.size} bytes", is_passing=True)


def _tried(work: Callable[[], Value], reached: Callable[[], int]) -> Value:
    """`work`, again after a failure that may pass, until `_WAITS` are used up without `reached` growing."""
    failures = 0
    while True:
        before = reached()
        try:
            return work()
        except HubError as error:
            failures = 1 if reached() > before else failures + 1
            if not error.is_passing or failures > len(_WAITS):
                raise
            wait = _WAITS[failures - 1]
            _log.warning("%s; trying again in %.1f s", error, wait)
            time.sleep(wait)


def _write(out: FileIO, data: bytes) -> int:
    """Write all of `data`: a raw file may take less, last of all on a disk that is just full."""
    rest = memoryview(data)
    while rest:
        rest = rest[out.write(rest) :]
    return len(data)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_right(path: Path, etag: str) -> bool:
    """Whether the content is what `etag` names: its SHA-256, git's SHA-1 of it, or (mirrors) a plain SHA-1."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        digests = [hashlib.sha256()]
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        header = f"blob {_size(path)}\0".encode()
        digests = [hashlib.sha1(header, usedforsecurity=False), hashlib.sha1(usedforsecurity=False)]
    else:
        return True  # a mirror's own etag; the size was right
    with path.open("rb") as stream:
        while block := stream.read(1024 * 1024):
            for digest in digests:
                digest.update(block)
    return etag in {digest.hexdigest() for digest in digests}
