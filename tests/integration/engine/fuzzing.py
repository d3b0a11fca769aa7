"""What the fuzzing tests share: whether an engine is still well, and copies of models with damaged weights."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

SLOWER = 20
"""How many times more examples the slow variants try."""


def bounded(examples: int) -> settings:
    """The same `examples` every time, without the search for a smaller one after a failure."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


def permits(engine: Any) -> float:
    text = engine.get("/metrics").body.decode()
    return float(
        next(line.split()[1] for line in text.splitlines() if line.startswith("tei_engine_permits_in_use "))
    )


def rss(engine: Any) -> int:
    """Resident memory in MiB."""
    status = Path(f"/proc/{engine.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) // 1024


def assert_well(engine: Any, item: Mapping[str, Any] | None = None) -> None:
    """The process lives, holds no permits, says nothing of faults, and still answers `item` as PyTorch does."""
    assert engine.process.poll() is None
    assert engine.get("/health").status == 200
    deadline = time.monotonic() + 20  # who hangs up is noticed when the loop comes to it
    while permits(engine):
        assert time.monotonic() < deadline, "permits are still held"
        time.sleep(0.01)
    faults = [
        line["message"] for line in engine.lines if line["message"].startswith(("internal error", "Exception"))
    ]
    assert not faults, faults[0]
    if item is not None:
        [row] = engine.post("/embed", {"inputs": item["text"]}).json
        assert row == pytest.approx(item["normalized"], abs=5e-6)


def damaged(source: Path, target: Path, edits: Mapping[str, Callable[[np.ndarray], None]]) -> Path:
    """A copy of a model in which each tensor whose name ends so was edited in place."""
    folder = Path(shutil.copytree(source, target))
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    for ending, edit in edits.items():
        tensor = next(value for name, value in header.items() if name.endswith(ending))
        first, last = (start + offset for offset in tensor["data_offsets"])
        values = np.frombuffer(bytes(raw[first:last]), dtype="<f4").reshape(tensor["shape"]).copy()
        edit(values)
        raw[first:last] = values.tobytes()
    path.write_bytes(raw)
    return folder
