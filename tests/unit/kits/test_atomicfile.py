"""A file's name always shows a whole version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tei_manager.kits import atomicfile


def test_the_previous_version_becomes_the_backup(tmp_path: Path) -> None:
    path, backup = tmp_path / "state", tmp_path / "state.bak"
    for version in (b"1", b"2", b"3"):
        atomicfile.replace(path, version, backup=backup)
    assert (path.read_bytes(), backup.read_bytes()) == (b"3", b"2")
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["state", "state.bak"]


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    atomicfile.replace(path, b"1")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomicfile.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomicfile.replace(path, b"2")
    assert path.read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
