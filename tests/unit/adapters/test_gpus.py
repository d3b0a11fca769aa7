"""GPUs as `nvidia-smi` tells of them: a program of that name stands in for the driver's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tei_manager.adapters import gpus


def driver(folder: Path, script: str) -> None:
    program = folder / gpus.PROGRAM
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "AMD_DEVICE", tmp_path / "kfd")
    return tmp_path


def test_devices_come_in_the_order_of_the_driver(path: Path) -> None:
    driver(path, '[ "$1" = --query-gpu=uuid ] && echo GPU-a && echo GPU-b')
    assert gpus.uuids() == ("GPU-a", "GPU-b")


def test_a_machine_without_the_driver_has_none(path: Path) -> None:
    assert gpus.uuids() == ()


def test_a_driver_that_fails_or_devices_of_another_maker_are_unknown_not_none(path: Path) -> None:
    driver(path, "echo broken >&2; exit 9")
    assert gpus.uuids() is None
    (path / gpus.PROGRAM).unlink()
    (path / "kfd").touch()
    assert gpus.uuids() is None
