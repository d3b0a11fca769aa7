"""The hub's cache on disk, in the layout that all its clients share.

models--ORG--NAME/blobs/<etag>                     contents, named by their checksum
models--ORG--NAME/blobs/<etag>.incomplete          the beginning of one, to be continued
models--ORG--NAME/snapshots/<commit>/<file>        links to blobs
models--ORG--NAME/refs/<branch>                    the commit a branch was at
models--ORG--NAME/.no_exist/<commit>/<file>        empty: the repository has no such file
.locks/models--ORG--NAME/<etag>.lock               held by whoever downloads that blob
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DiskError(Exception):
    """The cache cannot be written to: one line for a person."""

    def __init__(self, message: str, *, is_full: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full


def default_cache() -> Path:
    """The hub client's cache folder by its environment variables; an empty one counts as unset."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return expanded(os.environ[name])
    home = os.environ.get("HF_HOME")
    if home:
        return expanded(home) / "hub"
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def expanded(text: str) -> Path:
    """A path that somebody wrote, with `~` and `$NAME` filled in as the hub client does."""
    return Path(os.path.expandvars(text)).expanduser()


@dataclass(frozen=True, slots=True)
class ModelCache:
    """One model's part of the cache at `cache`. Writing methods raise DiskError."""

    cache: Path
    model_id: str

    @property
    def root(self) -> Path:
        """The model's own folder."""
        return self.cache / self._folder

    @property
    def _folder(self) -> str:
        return "models--" + self.model_id.replace("/", "--")

    def snapshot(self, revision: str) -> Path | None:
        """The snapshot folder of `revision`, complete or not; None if there is none."""
        commit = revision
        try:
            if not _COMMIT.fullmatch(revision):
                commit = (self.root / "refs" / revision).read_text().strip()
            folder = self.folder_of(commit)
            return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None
        except (OSError, ValueError):  # nothing there, or nothing that may be read
            return None

    def folder_of(self, commit: str) -> Path:
        """Where the snapshot of `commit` is or would be."""
        return self.root / "snapshots" / commit

    def blob(self, etag: str) -> Path:
        """Where the content with this etag is or would be."""
        return self.root / "blobs" / etag

    def partial(self, etag: str) -> Path:
        """The beginning of that content; written to only while its lock is held."""
        return self.root / "blobs" / f"{etag}.incomplete"

    def lock_file(self, etag: str) -> Path:
        """The file to lock while this content is downloaded, in a folder that exists."""
        path = self.cache / ".locks" / self._folder / f"{etag}.lock"
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def link(self, etag: str, commit: str, name: str) -> None:
        """Let the file `name` of `commit` be the blob `etag`; the file itself moves where there are no links."""
        pointer = self.folder_of(commit) / name
        blob = self.blob(etag)
        with self.writing():
            pointer.parent.mkdir(parents=True, exist_ok=True)
            spare = pointer.with_name(f"{pointer.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                spare.symlink_to(os.path.relpath(blob, pointer.parent))
            except OSError as error:
                if error.errno in _FULL | {errno.EACCES, errno.EROFS}:
                    raise
                blob.replace(pointer)
            else:
                spare.replace(pointer)

    def write_ref(self, revision: str, commit: str) -> None:
        """Remember that the branch or tag `revision` is `commit`, so that the next start needs no network."""
        path = self.root / "refs" / revision
        if _COMMIT.fullmatch(revision) or _reads(path, commit):
            return
        spare = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                spare.write_text(commit)
                spare.replace(path)
            finally:
                spare.unlink(missing_ok=True)

    def note_absent(self, commit: str, names: Collection[str]) -> None:
        """Remember files that the repository does not have; a cache that cannot be written to is asked again."""
        folder = self._noted(commit)
        with suppress(OSError):
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()

    def is_absent(self, commit: str, name: str) -> bool:
        """Whether that was noted, by us or the hub client."""
        return (self._noted(commit) / name).is_file()

    def _noted(self, commit: str) -> Path:
        return self.root / ".no_exist" / commit

    def free_bytes(self) -> int | None:
        """Room on the cache's disk; None where the file system does not tell."""
        for folder in (self.root, *self.root.parents):
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            return usage.free if usage.total else None
        return None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the disk's errors into one line that names the cache's folder."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in _FULL:
                raise DiskError(f"no room in the hub cache {self.cache}: {reason}", is_full=True) from error
            raise DiskError(f"cannot write to the hub cache {self.cache}: {reason}") from error


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text().strip() == text
    except (OSError, ValueError):
        return False
