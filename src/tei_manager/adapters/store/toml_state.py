"""State in one TOML file, replaced whole, with the version before it as `<file>.bak`."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import threading
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from tei_manager.adapters.store import document
from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind
from tei_manager.kits import atomicfile
from tei_manager.ports.store import Loaded, State

MISSING, RECOVERED = "STATE_MISSING", "STATE_RECOVERED"


@dataclass(slots=True)
class _Queued:
    """A save that has not begun: a later one replaces its state, and both end together."""

    state: State
    done: Future[None]


class TomlStore:
    """Implements `ports.store.Store`.

    One thread does all reading and writing, so saves never overlap and never stop the loop. `default_engine` is
    that of entries which name none: those of the peer, whose engine is TEI.
    """

    def __init__(self, path: str | Path, *, default_engine: EngineKind = EngineKind.EMBEDDED) -> None:
        self._path = Path(path)
        self._backup = self._path.with_name(self._path.name + ".bak")
        self._default_engine = default_engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._lock = threading.Lock()  # guards `_queued`, between the loop and the thread
        self._queued: _Queued | None = None

    async def load(self) -> Loaded:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def save(self, state: State) -> None:
        with self._lock:
            if self._queued is not None:
                self._queued.state = state
            else:
                self._thread.submit(self._save_queued)  # waits for the lock
                self._queued = _Queued(state, Future())
            done = self._queued.done
        # a caller who goes away takes nothing from the others
        await asyncio.shield(asyncio.wrap_future(done))

    async def close(self) -> None:
        """Finish what is queued."""
        await asyncio.to_thread(self._thread.shutdown)

    # -- in the thread ----------------------------------------------------------------------------------------

    def _save_queued(self) -> None:
        with self._lock:
            queued, self._queued = self._queued, None
        assert queued is not None
        try:
            self._save(queued.state)
        except BaseException as error:
            queued.done.set_exception(error)
        else:
            queued.done.set_result(None)

    def _save(self, state: State) -> None:
        text = tomli_w.dumps(document.encode(state, datetime.now(UTC)))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # a text that is no Unicode would make the whole file unreadable: it loses that character instead
        atomicfile.replace(self._path, text.encode(errors="replace"), backup=self._backup)

    def _load(self) -> Loaded:
        self._sweep()
        try:
            return self._kept_aside(self._read(self._path))
        except FileNotFoundError:
            return self._missing()
        except OSError as error:
            raise errors.StateError(f"state file {self._path} cannot be read: {error.strerror}") from error
        except document.TooNew as error:
            raise self._too_new(self._path, error) from error
        except document.Unreadable as error:
            return self._recovered(str(error))

    def _read(self, path: Path) -> Loaded:
        content = path.read_bytes()
        if not content.strip() and self._backup.exists():
            # we never write nothing: a disk lost it
            raise document.Unreadable("it is empty")
        try:
            values = tomllib.loads(content.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise document.Unreadable(str(error)) from error
        return document.decode(values, default_engine=self._default_engine)

    def _sweep(self) -> None:
        """Remove the temporary files of saves that a crash cut short."""
        for left in self._path.parent.glob(f".{glob.escape(self._path.name)}.*"):
            with contextlib.suppress(OSError):
                left.unlink()

    def _missing(self) -> Loaded:
        if not self._backup.exists():
            return Loaded(State())
        try:
            # the next saves make a backup of their own, over this one
            kept: Path = self._link("kept", self._backup)
        except OSError:
            kept = self._backup
        message = (
            f"state file {self._path} is missing, its backup was there and is kept as {kept}: starting afresh; "
            "to go back, stop the manager and copy that file over it"
        )
        return Loaded(State(), ((MISSING, message),))

    def _recovered(self, why: str) -> Loaded:
        try:
            loaded = self._read(self._backup)
            content = self._backup.read_bytes()
        except document.TooNew as error:
            raise self._too_new(self._backup, error) from error
        except (OSError, document.Unreadable) as error:
            raise errors.StateError(
                f"state file {self._path} is unreadable ({why}) and so is its backup {self._backup} ({error}): "
                "repair it, or move it away to start afresh"
            ) from error
        try:
            aside = self._link("corrupt")
            # the name must never be absent: until the next save a crash would find nothing to load
            atomicfile.replace(self._path, content)
        except OSError as error:
            raise errors.StateError(
                f"state file {self._path} is unreadable ({why}) and cannot be moved away: {error}"
            ) from error
        message = f"state file was unreadable ({why}): its backup is used, the bad file is kept as {aside}"
        return replace(loaded, warnings=((RECOVERED, message), *loaded.warnings))

    def _kept_aside(self, loaded: Loaded) -> Loaded:
        """Keep a copy of a file with entries that the next save will not contain."""
        if all(code != document.ENTRY_SKIPPED for code, _ in loaded.warnings):
            return loaded
        try:
            aside = self._link("skipped")
        except OSError:
            return loaded
        told = tuple(
            (code, f"{message}; the file is kept as {aside}" if code == document.ENTRY_SKIPPED else message)
            for code, message in loaded.warnings
        )
        return replace(loaded, warnings=told)

    def _link(self, why: str, source: Path | None = None) -> Path:
        """A second name, with the time in it, for a file that is to be kept. Raises OSError."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        for number in range(1, 1000):
            suffix = f"-{number}" if number > 1 else ""
            target = self._path.with_name(f"{self._path.name}.{why}-{stamp}{suffix}")
            try:
                os.link(source or self._path, target)
            except FileExistsError:
                continue
            return target
        raise OSError(f"too many files {self._path}.{why}-{stamp}")

    def _too_new(self, path: Path, error: Exception) -> errors.StateError:
        return errors.StateError(
            f"state file {path} was written by a later release ({error}, this one reads {document.VERSION}): "
            "use that release, or move the file away to start afresh"
        )
