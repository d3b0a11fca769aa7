"""Instances live, die and come back, as a user of REST sees it."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil


def eventually(probe: Any, within: float = 15.0) -> Any:
    import time

    deadline = time.monotonic() + within
    while not (seen := probe()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return seen


def test_an_instance_is_created_runs_is_stopped_started_and_deleted(manager: Any) -> None:
    manager.start()
    created = manager.create("one")
    assert created.status == 201, created.body
    assert created.headers["location"] == "/instances/one"
    assert created.body["status"] == "running"
    pid = created.body["pid"]
    assert psutil.pid_exists(pid)

    stopped = manager.post("/instances/one/stop")
    assert (stopped.status, stopped.body["status"], stopped.body["pid"]) == (200, "stopped", None)
    assert not psutil.pid_exists(pid)

    started = manager.post("/instances/one/start?wait=true")
    assert started.body["status"] == "running"
    assert started.body["pid"] != pid
    assert started.body["restarts"] == 0

    restarted = manager.post("/instances/one/restart?wait=true")
    assert restarted.body["restarts"] == 1

    assert manager.delete("/instances/one").status == 204
    assert manager.get("/instances/one").status == 404
    assert manager.get("/instances").body == []
    assert manager.engines() == []


def test_create_without_wait_answers_at_once_while_the_model_loads(manager: Any) -> None:
    manager.start()
    created = manager.create("slow", "--ready-after", "1.5", wait=False)
    assert (created.status, created.body["status"]) == (201, "starting")
    assert manager.until("slow", "running")["pid"]


def test_kill_minus_9_of_an_instance_is_noticed_and_it_comes_back(manager: Any) -> None:
    manager.start()
    pid = manager.create("one").body["pid"]
    os.kill(pid, signal.SIGKILL)
    back = eventually(
        lambda: (now := manager.instance("one"))["status"] == "running" and now["pid"] != pid and now
    )
    assert back["restarts"] == 1
    assert "Instance status changed" in manager.log()
    metrics = manager.get("/metrics").body.decode()
    assert 'tei_manager_instance_exits_total{cause="signal",instance="one"} 1.0' in metrics


def test_kill_minus_9_of_the_manager_and_a_new_start_adopts_without_a_reload(manager: Any) -> None:
    manager.start()
    pids = {name: manager.create(name).body["pid"] for name in ("one", "two")}
    manager.kill()
    assert {each.pid for each in manager.engines()} == set(pids.values())
    manager.start()
    for name, pid in pids.items():
        now = manager.until(name, "running")
        assert now["pid"] == pid
        assert now["restarts"] == 0
    assert len(manager.engines()) == 2
    assert manager.stop() == 0
    assert manager.engines() == []


def test_what_died_while_the_manager_was_away_is_started_again(manager: Any) -> None:
    manager.start()
    pid = manager.create("one").body["pid"]
    manager.kill()
    os.kill(pid, signal.SIGKILL)
    manager.start()
    assert manager.until("one", "running")["pid"] != pid
    assert len(manager.engines()) == 1


def test_an_instance_stopped_by_a_person_stays_stopped_through_a_restart_of_the_manager(manager: Any) -> None:
    manager.start()
    manager.create("on")
    manager.create("off")
    manager.post("/instances/off/stop")
    assert manager.stop() == 0
    manager.start()
    assert manager.until("on", "running")["desired"] == "running"
    off = manager.instance("off")
    assert (off["status"], off["desired"], off["pid"]) == ("stopped", "stopped", None)


def test_a_graceful_stop_ends_every_instance_in_parallel_and_exits_0(manager: Any) -> None:
    manager.write(graceful_shutdown_timeout_secs=3)
    manager.start()
    for name in ("a", "b", "c"):
        manager.create(name, "--ignore-sigterm")
    import time

    begun = time.monotonic()
    assert manager.stop() == 0
    assert time.monotonic() - begun < 8  # three graces of 3 s one after the other would be 9 s
    assert manager.engines() == []


def test_a_second_signal_ends_at_once_with_1(manager: Any) -> None:
    manager.write(graceful_shutdown_timeout_secs=30)
    manager.start()
    manager.create("stubborn", "--ignore-sigterm")
    manager.process.send_signal(signal.SIGTERM)
    eventually(lambda: manager.get("/ready").status == 503)
    manager.process.send_signal(signal.SIGTERM)
    assert manager.process.wait(10) == 1
    assert manager.engines() == []


def test_reads_answer_while_an_instance_ignores_its_stop(manager: Any) -> None:
    import threading
    import time

    manager.write(graceful_shutdown_timeout_secs=2)
    manager.start()
    manager.create("stubborn", "--ignore-sigterm")
    manager.create("other")
    stopping = threading.Thread(target=lambda: manager.post("/instances/stubborn/stop"))
    stopping.start()
    eventually(lambda: manager.instance("stubborn")["status"] == "stopping")
    slowest = 0.0
    while manager.instance("stubborn")["status"] == "stopping":
        begun = time.monotonic()
        assert manager.get("/instances").status == 200
        slowest = max(slowest, time.monotonic() - begun)
    stopping.join()
    assert slowest < 1.0  # the peer hung for the whole grace of 2 s


def test_an_engine_that_dies_at_start_fails_with_its_last_words(manager: Any) -> None:
    manager.start()
    answer = manager.create("broken", "--fail-with", "no such tensor", "--exit-code", "3")
    assert (answer.status, answer.body["code"]) == (502, "INSTANCE_FAILED")
    assert "no such tensor" in answer.body["details"]["last_error"]
    now = manager.instance("broken")
    assert now["status"] == "failed"
    assert "process exited with code 3" in now["last_error"]
    assert manager.engines() == []


def test_an_engine_that_never_becomes_ready_fails_after_its_limit(manager: Any) -> None:
    manager.start()
    answer = manager.create("silent", "--ready-after", "600", startup_timeout_secs=1.0)
    assert answer.status in (502, 504), answer.body
    failed = manager.until("silent", "failed")
    assert "did not become ready within 1s" in failed["last_error"]
    assert failed["detail"] == "timed_out"
    assert manager.engines() == []


def test_an_instance_that_stops_answering_is_restarted(manager: Any) -> None:
    manager.write(max_failures_before_restart=2)
    manager.start()
    pid = manager.create("ill", "--unhealthy-after", "1").body["pid"]
    back = eventually(
        lambda: (now := manager.instance("ill"))["status"] == "running" and now["pid"] != pid and now
    )
    assert back["restarts"] >= 1
    assert "Health check failed" in manager.log()


def test_a_seed_of_the_configuration_starts_by_itself_and_its_deletion_is_remembered(manager: Any) -> None:
    import json
    import sys

    command = [sys.executable, "-m", "tei_manager.testing.engine", "--port", "{port}"]
    seed = f"""
[[instances]]
name = "seed"
model_id = "test/model"
engine = "command"
command = {json.dumps(command)}
"""
    manager.write(seed)
    manager.start()
    assert manager.until("seed", "running")["origin"] == "config"
    assert manager.delete("/instances/seed").status == 204
    manager.stop()
    manager.start()
    assert manager.get("/instances").body == []
    manager.stop()
    manager.write(seed + 'aliases = ["new"]\n')
    manager.start()
    assert manager.until("seed", "running")["aliases"] == ["new"]


def test_a_changed_seed_restarts_its_instance_with_the_new_values(manager: Any) -> None:
    import json
    import sys

    def seed(dimensions: int) -> str:
        command = [sys.executable, "-m", "tei_manager.testing.engine", "--port", "{port}"]
        command += ["--dimensions", str(dimensions)]
        entry = '[[instances]]\nname = "seed"\nmodel_id = "test/model"\nengine = "command"\n'
        return entry + f"command = {json.dumps(command)}\n"

    manager.write(seed(4))
    manager.start()
    pid = manager.until("seed", "running")["pid"]
    manager.kill()
    manager.write(seed(6))
    manager.start()
    now = eventually(lambda: (i := manager.instance("seed"))["status"] == "running" and i["pid"] != pid and i)
    assert now["command"][-1] == "6"
    answer = manager.post("/v1/embeddings", {"model": "seed", "input": "x"})
    assert len(answer.body["data"][0]["embedding"]) == 6
    assert len(manager.engines()) == 1
