"""The smallest form of the benchmarks, for real: two columns by two paths, and nothing left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MARK = "MARK_OF_BENCHMARK_TEST"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.fixture(scope="module")
def finished(folder: Path) -> Iterator[subprocess.CompletedProcess[str]]:
    command = [sys.executable, "-m", "benchmarks", "--calls", "20", "--engine", "testing"]
    yield subprocess.run(
        [*command, "--out", str(folder / "result.json")],
        cwd=ROOT,
        env={**os.environ, MARK: str(folder), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    for process in _left(folder):
        process.kill()


@pytest.fixture(scope="module")
def result(finished: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    return json.loads((folder / "result.json").read_text())


def test_says_on_what_was_measured(result: dict[str, Any]) -> None:
    assert result["machine"]["cores"] >= 1
    assert {"python", "tei-manager", "grpcio"} <= result["versions"].keys()
    assert [engine["name"] for engine in result["engines"]] == ["testing"]
    assert result["manager"]["rss_mib_after"] > 0


def test_has_a_row_for_every_case(result: dict[str, Any], finished: subprocess.CompletedProcess[str]) -> None:
    rows = [(row["kind"], row["label"]) for row in result["cases"]]
    assert len(set(rows)) == len(rows) == 4 + 3 + 3 + 8
    for row in result["cases"]:
        for column in (row["direct"], row["product"]):
            assert 0 < column["p50_us"] <= column["p99_us"]
            assert column["samples"] > 0
        assert row["overhead_us"] == pytest.approx(row["product"]["p50_us"] - row["direct"]["p50_us"], abs=0.1)
    for title in ("Unary RPCs", "Concurrent Requests", "Streaming RPCs", "HTTP"):
        assert f"### {title}" in finished.stdout


def test_only_the_columns_of_the_product_went_through_the_manager(result: dict[str, Any]) -> None:
    for row in result["cases"]:
        assert row["counted_by_manager"] == row["product"]["sent"] > 0
        assert row["direct"]["sent"] > 0


def test_leaves_nothing(result: dict[str, Any], folder: Path) -> None:
    assert [process.cmdline() for process in _left(folder)] == []
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def _left(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
