"""Health and figures of real engines: they move with real requests, and reading them waits for nobody."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc

from tei_manager.grpc import create_request
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2_grpc as mux_grpc

BIN = Path(sys.executable).parent
TINY = Path(__file__).parents[1] / "fixtures" / "tiny_models"
NOTHING = {"total_requests": 0, "avg_latency_ms": None, "error_rate": 0.0}


def figures(manager: Any, name: str) -> dict[str, Any]:
    return manager.get(f"/instances/{name}/info").body["metrics"]


def embed(manager: Any, name: str, text: str = "a text") -> int:
    return manager.post("/v1/embeddings", {"model": name, "input": text}).status


def embed_over_grpc(manager: Any, name: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{manager.grpc}") as channel:
        mux_grpc.TeiMultiplexerStub(channel).Embed(create_request("a text", target=name), timeout=30)


def test_figures_of_the_real_engine_move_with_the_requests_through_both_doors(manager: Any) -> None:
    manager.write(model_roots=[str(TINY)])
    manager.start()
    for name, model in (("vectors", "bert-mean"), ("ranks", "bert-reranker")):
        made = manager.post(
            "/instances?wait=true", {"name": name, "model_id": str(TINY / model), "engine": "embedded"}
        )
        assert made.status == 201, made.body
        # the manager's own warm-up is nobody's request; a reranker refused two kinds of it
        assert figures(manager, name) == NOTHING
    for _ in range(3):
        assert embed(manager, "vectors") == 200
    embed_over_grpc(manager, "vectors")
    told = manager.get("/instances/vectors/info").body
    assert told["metrics"]["total_requests"] == 4
    assert 0 < told["metrics"]["avg_latency_ms"] < 60_000
    assert told["metrics"]["error_rate"] == 0
    assert told["engine"] == {
        "kind": "embedded",
        "version": "0.1.0",
        "model_type": "embedding",
        "model_sha": None,
        "model_dtype": "float32",
        "max_input_length": 64,
    }
    assert told["health"]["healthy"] is True
    assert manager.get("/instances/ranks/info").body["engine"]["model_type"] == "reranker"
    # a call that the engine refuses counts as a failure
    assert embed(manager, "ranks") == 400
    assert figures(manager, "ranks") == {"total_requests": 1, "avg_latency_ms": None, "error_rate": 1.0}
    # figures are of the process: a new one begins anew
    manager.post("/instances/vectors/restart?wait=true")
    assert figures(manager, "vectors") == NOTHING


def test_an_adopted_engine_keeps_its_figures(manager: Any) -> None:
    manager.write(model_roots=[str(TINY)])
    manager.start()
    manager.post(
        "/instances?wait=true", {"name": "one", "model_id": str(TINY / "bert-mean"), "engine": "embedded"}
    )
    embed(manager, "one")
    embed(manager, "one")
    manager.kill()
    manager.start()
    manager.until("one", "running")
    # all that it counted, the first manager's warm-up included, but not the second one's
    assert figures(manager, "one")["total_requests"] == 3


def test_an_engine_of_grpc_is_read_on_its_metrics_port_or_counted_by_our_doors(manager: Any) -> None:
    manager.write(tei_binary_path=str(BIN / "tei-testing-engine"))
    manager.start()
    for name, port in (("told", None), ("counted", 0)):
        env = {"TESTING_ENGINE_PROTOCOL": "grpc", "TESTING_ENGINE_ERROR_INPUTS": "bad"}
        body = {"name": name, "model_id": "test/model", "engine": "tei", "env": env, "prometheus_port": port}
        made = manager.post("/instances?wait=true", body)
        assert made.status == 201, made.body
        assert figures(manager, name) == NOTHING
        embed_over_grpc(manager, name)
        assert embed(manager, name) == 200
        assert embed(manager, name, "bad") == 400
        now = figures(manager, name)
        assert (now["total_requests"], now["error_rate"]) == (3, 0.333333), name
        assert now["avg_latency_ms"] > 0
        engine = manager.get(f"/instances/{name}/info").body["engine"]
        assert (engine["kind"], engine["version"], engine["model_type"]) == ("tei", "1.9.3", "embedding")


def slowest(manager: Any, *paths: str, times: int = 20) -> float:
    """Seconds of the slowest but two: the machine may be busy, the manager must not be."""
    taken = []
    for _ in range(times):
        for path in paths:
            began = time.perf_counter()
            manager.get(path)
            taken.append(time.perf_counter() - began)
    return sorted(taken)[-3]


def test_reads_wait_for_no_stuck_engine_and_tell_that_it_is_ill(manager: Any) -> None:
    manager.write(
        model_roots=[str(TINY)],
        health_check_interval_secs=1,
        health_check_timeout_secs=2,
        max_failures_before_restart=0,
    )
    manager.start()
    made = manager.post(
        "/instances?wait=true", {"name": "one", "model_id": str(TINY / "bert-mean"), "engine": "embedded"}
    )
    manager.create("two")
    embed(manager, "one")
    assert figures(manager, "one")["total_requests"] == 1
    assert manager.get("/health/all?strict=true").status == 200
    os.kill(made.body["pid"], signal.SIGSTOP)
    try:
        # from the first moment, before any probe has noticed; without patience's end these would take 2 s each
        assert slowest(manager, "/instances/one/info", "/instances/one/health", "/health/all") < 0.5
        assert figures(manager, "one")["total_requests"] == 1  # what it told last
        until = time.monotonic() + 30
        while (now := manager.get("/instances/one/health").body)["healthy"]:
            assert time.monotonic() < until, "nobody noticed"
            time.sleep(0.1)
        assert now["error"] == "no answer within 2s"
        assert now["consecutive_failures"] >= 1
        assert slowest(manager, "/instances/one/info", "/instances/one/health", "/health/all") < 0.5
        strict = manager.get("/instances/one/health?strict=true")
        assert (strict.status, strict.body["code"]) == (503, "INSTANCE_UNHEALTHY")
        assert int(strict.headers["retry-after"]) >= 1
        # one of two is ill: half is not more than half
        assert manager.get("/health/all?strict=true").body["overall_status"] == "degraded"
        manager.post("/instances/two/stop")
        strict = manager.get("/health/all?strict=true")
        assert (strict.status, strict.body["code"]) == (503, "FLEET_UNHEALTHY")
        assert strict.body["details"]["overall_status"] == "down"
        assert strict.body["details"]["total_instances"] == 1
    finally:
        os.kill(made.body["pid"], signal.SIGCONT)
    until = time.monotonic() + 30
    while not manager.get("/instances/one/health").body["healthy"]:
        assert time.monotonic() < until, "it did not recover"
        time.sleep(0.1)
    assert manager.get("/health/all?strict=true").status == 200
