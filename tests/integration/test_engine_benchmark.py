"""The engine's benchmark on a tiny model: every figure for real, and nothing left behind whatever happens."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny_models"
MARK = "MARK_OF_ENGINE_BENCHMARK_TEST"
SETS = (8, "mixed")
SERVED = ("engine-http", "engine-binary", "engine-grpc")


def command(model: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.engine", "--model", str(TINY / model), "--tokens", "8", *more]


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, MARK: str(folder), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("engine-benchmark")
    yield folder
    for process in left(folder):
        process.kill()


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = command("bert-mean", "--quick", "--secs", "0.05", "--threads", "1")
    process = started(folder, *arguments, "--out", str(folder / "result.json"))
    stdout, stderr = process.communicate(timeout=100)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def result(finished: subprocess.CompletedProcess[str], folder: Path) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    return json.loads((folder / "result.json").read_text())


def test_says_on_what_was_measured(result: dict[str, Any]) -> None:
    assert result["machine"]["cores"] >= 1
    assert {"python", "onnxruntime", "numpy"} <= result["versions"].keys()
    assert result["model"].endswith("bert-mean")
    assert result["threads"] == 1
    for texts, tokens in zip(result["texts"], SETS, strict=True):
        assert texts["tokens"] == tokens
        assert 6 <= texts["shortest"] <= texts["mean"] <= texts["longest"] <= 10


def test_has_every_figure(result: dict[str, Any], finished: subprocess.CompletedProcess[str]) -> None:
    found = {
        (each["subject"], each["tokens"], each["clients"], each["texts_per_request"]): each
        for each in result["cases"]
    }
    wanted = {
        *((subject, tokens, clients, 1) for subject in SERVED for tokens in SETS for clients in (1, 8, 64)),
        ("engine-http", "mixed", 64, 8),
        *(
            (subject, tokens, None, None)
            for subject in ("gemm", "forward", "ort-naive", "ort-ideal", "sentence-transformers")
            for tokens in SETS
        ),
    }
    assert found.keys() == wanted
    for (subject, _, clients, _), each in found.items():
        if clients:
            assert 0 < each["p50_ms"] <= each["p99_ms"]
            assert 0 < each["texts_per_s"] < each["tokens_per_s"]
            assert each["ratio_net"] > each["ratio_to_ideal"] > 0
            assert 0 < each["generator_share"] < 1
            assert subject in finished.stdout


def test_offline_subjects_are_compared_by_the_work_they_do(result: dict[str, Any]) -> None:
    for tokens in SETS:
        cases = {each["subject"]: each for each in result["cases"] if each["tokens"] == tokens}
        assert cases["gemm"]["gflops"] > cases["ort-ideal"]["gflops"] > 0
        assert cases["ort-ideal"]["ratio_to_ideal"] == 1
        assert cases["ort-ideal"]["budget"] in (128, 256, 512)
        # one text at a time costs a call for each; full runs do not
        assert cases["forward"]["ratio_to_ideal"] < 1


def test_judges_every_goal(result: dict[str, Any], finished: subprocess.CompletedProcess[str]) -> None:
    for goal in result["goals"]:
        assert (goal["value"] is None) == (goal["pass"] is None)
        assert goal["name"] in finished.stdout
    for part in (
        "net",
        "gemm",
        "forward",
        "bulk",
        "Ready",
        "memory",
        "idle",
        "ort-naive",
        "sentence-transformers",
    ):
        assert any(part in goal["name"] for goal in result["goals"]), part


def test_measures_the_process_itself(result: dict[str, Any]) -> None:
    assert 0 < result["cold_start_secs"]["warm"] < 60
    assert 0 < result["rss"]["ready_mib"] <= result["rss"]["peak_mib"]
    assert result["probe"]["samples"] > 0
    assert result["probe"]["run_ms"] > 0


def test_leaves_nothing(result: dict[str, Any], folder: Path) -> None:
    assert [process.cmdline() for process in left(folder)] == []
    assert files(folder) == ["result.json"]


def test_an_engine_that_ends_makes_the_run_invalid(tmp_path: Path) -> None:
    process = started(tmp_path, *command("bert-mean", "--secs", "1"), "--out", str(tmp_path / "result.json"))
    try:
        for line in process.stderr:
            if "everything is loaded" in line:
                break
        [engine] = [
            each for each in left(tmp_path) if any(part.endswith("/tei-engine") for part in each.cmdline())
        ]
        time.sleep(0.5)  # into the first figure, whichever it is
        engine.kill()
        stdout, stderr = process.communicate(timeout=60)
    finally:
        still = left(tmp_path)
        for each in still:
            each.kill()
        process.communicate()
    assert process.returncode == 1
    assert "benchmarks.engine: tei-engine ended with code -9" in stderr
    assert stdout == ""
    assert files(tmp_path) == []
    assert still == []


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("bert-reranker", (), "only embedding models"),
        ("bert-mean", ("--tokens", "8,5000"), "at most 64"),
        ("bert-mean", ("--tokens", "1"), "invalid"),
        ("bert-mean", ("--rounds", "0"), "invalid"),
    ],
)
def test_says_what_cannot_be_measured(tmp_path: Path, model: str, more: tuple[str, ...], said: str) -> None:
    process = started(tmp_path, *command(model, *more))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said in stderr


def test_a_model_that_is_not_there_is_no_measurement(tmp_path: Path) -> None:
    process = started(tmp_path, *command("no-such-model"))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "model directory not found" in stderr


def files(folder: Path) -> list[str]:
    """What a run left; ONNX Runtime's own file is its habit wherever it is imported."""
    return [path.name for path in folder.iterdir() if path.name != ".ses"]


def left(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
