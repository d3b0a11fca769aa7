"""One manager per state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from tei_manager.domain import errors

NAME = "tei-manager.lock"


class StateLock:
    """Holds `tei-manager.lock` in a folder from `acquire` to `release`, or to the end of the process.

    The lock is the kernel's, so it cannot outlive its holder, however that ends; the file stays and means nothing
    by itself. Children do not inherit it.
    """

    def __init__(self, folder: str | Path) -> None:
        self._path = Path(folder) / NAME
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock; the folder is made if it is missing.

        Raises `errors.StateError` naming the holder's pid, or why the file cannot be used.
        """
        if self._descriptor is not None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.StateError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise errors.StateError(
                f"another tei-manager (process {holder or 'unknown'}) uses {self._path.parent}: "
                "stop it, or give this one another state_file"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise errors.StateError(f"{self._path} cannot be locked: {error.strerror}") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Give it back. Releasing twice equals releasing once."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> StateLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
