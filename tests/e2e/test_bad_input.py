"""One clear error each, and the process lives on, or ends at the start with one line that names what to change."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent


def run_serve(manager: Any, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "tei-manager", "serve", "-c", manager.folder / "config.toml", *flags],
        capture_output=True,
        text=True,
        timeout=20,
    )


def test_every_configuration_problem_is_reported_at_once_with_its_line(manager: Any) -> None:
    manager.write('[[instances]]\nname = "a"\nmodel_id = "org/m"\nprot = 8080\n', api_prt=1, log_level="loud")
    run = run_serve(manager)
    assert run.returncode == 2
    lines = run.stderr.splitlines()
    assert len(lines) == 3
    assert any("api_prt: unknown key, did you mean 'api_port'?" in line for line in lines)
    assert any("instances[0].prot: unknown key, did you mean 'port'?" in line for line in lines)
    assert all(line.startswith("file:") for line in lines)


@pytest.mark.parametrize("key", ["api_port", "grpc_port"])
def test_a_busy_port_ends_the_start_with_its_name_and_starts_nothing(manager: Any, key: str) -> None:
    seed = [sys.executable, "-m", "tei_manager.testing.engine", "--port", "{port}"]
    entry = '[[instances]]\nname = "seed"\nmodel_id = "m"\nengine = "command"\n'
    manager.write(entry + f"command = {json.dumps(seed)}\n")
    port = manager.api if key == "api_port" else manager.grpc
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        run = run_serve(manager)
    assert run.returncode == 1
    assert f"tei-manager: cannot listen on 127.0.0.1:{port} ({key}): Address already in use" in run.stderr
    assert "Traceback" not in run.stderr
    assert manager.engines() == []


def test_a_second_manager_on_the_same_state_names_the_first(manager: Any) -> None:
    manager.start()
    run = run_serve(manager)
    assert run.returncode == 1
    assert str(manager.process.pid) in run.stderr
    assert manager.get("/health").status == 200


def test_a_public_address_without_authentication_is_refused(manager: Any) -> None:
    manager.write(host="0.0.0.0")
    run = run_serve(manager)
    assert run.returncode == 2
    assert "insecure" in run.stderr


def test_a_missing_model_folder_fails_the_instance_with_its_name(manager: Any) -> None:
    missing = str(manager.folder / "no-model")
    manager.write(model_roots=[str(manager.folder)])
    manager.start()
    made = manager.post("/instances?wait=true", {"name": "gone", "model_id": missing, "engine": "embedded"})
    assert made.status == 502, made.body
    now = manager.until("gone", "failed")
    assert "model directory not found" in now["last_error"]
    assert missing in now["last_error"]
    assert manager.get("/health").status == 200


def test_a_corrupt_weight_file_fails_the_instance_and_says_so(manager: Any) -> None:
    source = Path(__file__).parents[1] / "fixtures" / "tiny_models" / "bert-mean"
    folder = manager.folder / "model"
    folder.mkdir()
    for path in source.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    weights = folder / "model.safetensors"
    header = struct.pack("<Q", 1 << 40)
    weights.write_bytes(header + weights.read_bytes()[8:])
    manager.write(model_roots=[str(manager.folder)])
    manager.start()
    made = manager.post("/instances?wait=true", {"name": "bad", "model_id": str(folder), "engine": "embedded"})
    assert (made.status, made.body["code"]) == (502, "INSTANCE_FAILED"), made.body
    assert "model.safetensors" in made.body["details"]["last_error"]


def test_a_local_folder_outside_model_roots_is_refused(manager: Any) -> None:
    manager.start()
    made = manager.post("/instances", {"name": "x", "model_id": "/etc", "engine": "embedded"})
    assert (made.status, made.body["code"]) == (400, "INVALID_MODEL_ID")
    assert manager.get("/instances").body == []


def test_wrong_json_and_wrong_fields_are_told_all_at_once(manager: Any) -> None:
    manager.start()
    broken = manager.post("/instances", b"{")
    assert (broken.status, broken.body["code"]) == (400, "INVALID_JSON")
    wrong = manager.post("/instances", {"name": "bad name", "modelid": "x", "port": "8080"})
    problems = {problem["path"]: problem["code"] for problem in wrong.body["details"]["problems"]}
    assert problems["modelid"] == "UNKNOWN_FIELD"
    assert problems["model_id"] == "MISSING_FIELD"
    assert problems["port"] == "INVALID_TYPE"
    assert problems["name"] == "INVALID_INSTANCE_NAME"
    assert manager.get("/instances").body == []


def test_unknown_instances_and_taken_names_and_ports(manager: Any) -> None:
    manager.start()
    assert manager.get("/instances/nobody").body["code"] == "INSTANCE_NOT_FOUND"
    assert manager.post("/instances/nobody/start").status == 404
    made = manager.create("one", port=manager.first_port + 3)
    assert made.status == 201, made.body
    again = manager.create("ONE", wait=False)
    assert (again.status, again.body["code"]) == (409, "INSTANCE_EXISTS")
    taken = manager.create("two", wait=False, port=manager.first_port + 3)
    assert (taken.status, taken.body["code"]) == (409, "PORT_CONFLICT")
    assert "instance 'one'" in taken.body["error"]
    reserved = manager.create("two", wait=False, port=manager.api)
    assert (reserved.status, reserved.body["code"]) == (409, "PORT_CONFLICT")
    assert [each["name"] for each in manager.get("/instances").body] == ["one"]


def test_a_text_that_is_too_long_and_a_managed_flag(manager: Any) -> None:
    source = Path(__file__).parents[1] / "fixtures" / "tiny_models" / "bert-mean"
    manager.write(model_roots=[str(source)])
    manager.start()
    managed = manager.post(
        "/instances",
        {"name": "x", "model_id": str(source), "engine": "embedded", "extra_args": ["--port=1"]},
    )
    assert (managed.status, managed.body["code"]) == (400, "INVALID_CONFIG")
    assert managed.body["details"]["problems"][0]["code"] == "MANAGED_FLAG"
    made = manager.post("/instances?wait=true", {"name": "x", "model_id": str(source), "engine": "embedded"})
    assert made.status == 201, made.body
    long = manager.post("/v1/embeddings", {"model": "x", "input": "the cat " * 500})
    assert (long.status, long.body["error"]["code"]) == (400, "context_length_exceeded")
    assert manager.post("/v1/embeddings", {"model": "x", "input": "the cat"}).status == 200


def test_a_program_that_is_not_there_fails_with_its_name(manager: Any) -> None:
    manager.start()
    made = manager.post(
        "/instances?wait=true",
        {"name": "x", "model_id": "m", "engine": "command", "command": ["no-such-program", "{port}"]},
    )
    assert made.status == 502
    assert "no-such-program" in made.body["details"]["last_error"]


def test_a_web_page_of_another_site_cannot_drive_a_local_manager(manager: Any) -> None:
    manager.start()
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        answer = manager.call("POST", "/instances", {"name": "x", "model_id": "m"}, headers)
        assert answer.status == 403
    assert manager.get("/instances").body == []


def test_a_gpu_that_is_not_there_is_refused_by_name(manager: Any, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho GPU-11111111-aaaa\necho GPU-22222222-bbbb\n")
    (folder / "nvidia-smi").chmod(0o755)
    manager.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    manager.write(tei_binary_path=str(BIN / "tei-testing-engine"))
    manager.start()
    refused = manager.post("/instances", {"name": "x", "model_id": "m", "engine": "tei", "gpu_id": 99})
    assert (refused.status, refused.body["code"]) == (400, "INVALID_GPU_ID")
    assert refused.body["error"] == "Invalid GPU ID 99: Available GPUs: [0, 1]"
    dump = tmp_path / "dump.json"
    env = {"TESTING_ENGINE_DUMP": str(dump)}
    made = manager.post(
        "/instances?wait=true", {"name": "x", "model_id": "m", "engine": "tei", "gpu_id": 1, "env": env}
    )
    assert (made.status, made.body["gpu_id"]) == (201, 1), made.body
    assert json.loads(dump.read_text())["env"]["CUDA_VISIBLE_DEVICES"] == "GPU-22222222-bbbb"


def test_secret_values_are_not_repeated(manager: Any) -> None:
    manager.write(
        '[[instances]]\nname = "a"\nmodel_id = "m"\nengine = "embedded"\nautostart = false\n'
        'extra_args = ["--hf-token=hush-hush"]\n'
    )
    manager.start()
    body = {"name": "s", "model_id": "m", "env": {"HF_TOKEN": "hush-hush", "lower": "z"}}
    refused = manager.post("/instances", body)
    assert refused.body["details"]["problems"][0]["path"] == "env.lower"
    assert "hush" not in json.dumps(refused.body)
    show = subprocess.run(
        [BIN / "tei-manager", "config", "show", "-c", manager.folder / "config.toml"],
        capture_output=True,
        text=True,
    )
    assert show.returncode == 0
    assert "hush" not in show.stdout
    assert "--hf-token=***" in show.stdout


def test_a_huge_request_keeps_nobody_waiting(manager: Any) -> None:
    import threading
    import time

    manager.start()
    manager.create("one")
    huge = {"model": "one", "input": [1] * 4_000_000}
    sender = threading.Thread(target=lambda: manager.post("/v1/embeddings", huge))
    started = time.monotonic()
    sender.start()
    slowest = 0.0
    while sender.is_alive():
        begun = time.monotonic()
        assert manager.get("/instances").status == 200
        slowest = max(slowest, time.monotonic() - begun)
    sender.join()
    # in shares, so that a busy machine does not matter: on the event loop the check was most of the time
    assert slowest < 0.5 * (time.monotonic() - started)
