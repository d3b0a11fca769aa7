"""Replace a file so that its name always shows a whole version, through crashes and full disks."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def replace(path: Path, content: bytes, *, backup: Path | None = None, mode: int = 0o600) -> None:
    """Write `content` to `path`: temporary file in the same folder, fsync, rename, fsync of the folder.

    The previous version is hard-linked to `backup` first. Blocks; raises OSError, and then `path` is unchanged
    and no temporary file is left.
    """
    folder = path.parent
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)  # noqa: PTH101 - a path text from mkstemp
        if backup is not None and path.exists():
            # a link under a temporary name, then a rename: the backup's name is never absent either
            link = folder / f".{backup.name}.{os.getpid()}"
            link.unlink(missing_ok=True)
            os.link(path, link)
            link.replace(backup)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
