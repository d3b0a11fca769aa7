"""Engines `vllm` and `llamacpp` through the real manager, with a program that pretends to be them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PRETEND = [sys.executable, str(Path(__file__).with_name("pretend_llm.py"))]


@pytest.fixture
def notes(manager: Any) -> Path:
    """Where the pretended engines write how they were started."""
    folder = manager.folder / "notes"
    folder.mkdir()
    manager.environ |= {"PRETEND_NOTES": str(folder), "VLLM_PORT": "1", "LLAMA_ARG_PORT": "1"}
    return folder


def program(folder: Path, name: str) -> str:
    """The pretended engine as one program of this name."""
    script = folder / name
    script.write_text(f'#!/bin/sh\nexec "{PRETEND[0]}" "{PRETEND[1]}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_a_vllm_instance_starts_embeds_and_is_restarted_after_a_kill(manager: Any, notes: Path) -> None:
    manager.write(vllm_command=[program(manager.folder, "vllm"), "serve"])
    manager.start()
    made = manager.post(
        "/instances?wait=true",
        {
            "name": "llm",
            "model_id": "org/model",
            "engine": "vllm",
            "max_concurrent_requests": 8,
            "pooling": "mean",
            "extra_args": ["--api-key", "swordfish", "--dtype", "half", "--max-model-len", "512"],
            "aliases": ["text-embedding-3-small"],
        },
    )
    assert (made.status, made.body["status"]) == (201, "running"), made.body
    assert (made.body["protocol"], made.body["grpc_port"], made.body["dtype"]) == ("http", None, "float16")
    started = json.loads((notes / "org_model.json").read_text())
    assert started["argv"] == [
        *("serve", "org/model", "--host", "127.0.0.1", "--port", str(made.body["port"])),
        *("--served-model-name", "org/model", "--max-num-batched-tokens", "16384", "--max-num-seqs", "8"),
        *("--dtype", "float16", "--runner", "pooling", "--override-pooler-config", '{"pooling_type": "MEAN"}'),
        *("--uvicorn-log-level", "warning", "--max-model-len", "512"),
    ]
    assert "VLLM_API_KEY" in started["env"]
    assert "VLLM_PORT" not in started["env"]

    check_embeddings(manager, "llm", "text-embedding-3-small", "org/model")
    os.kill(made.body["pid"], signal.SIGKILL)
    assert restarted(manager, "llm", made.body["pid"])["restarts"] == 1
    check_embeddings(manager, "llm")


def restarted(manager: Any, name: str, pid: int) -> dict[str, Any]:
    """The instance, once another process of it runs."""
    deadline = time.monotonic() + 20
    while (now := manager.instance(name))["status"] != "running" or now["pid"] == pid:
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    return now


def check_embeddings(manager: Any, *names: str) -> None:
    for name in names:
        answer = manager.post("/v1/embeddings", {"model": name, "input": ["four", "sixsix"]})
        assert answer.status == 200, answer.body
        assert [item["embedding"] for item in answer.body["data"]] == [[4.0, 1.0, 0.0], [6.0, 1.0, 0.0]]
        assert answer.body["usage"]["prompt_tokens"] == 2


def test_a_llamacpp_instance_loads_the_file_of_its_folder_and_embeds(manager: Any, notes: Path) -> None:
    models = manager.folder / "models"
    models.mkdir()
    for name in ("model-Q4_K_M.gguf", "model-Q8_0.gguf", "mmproj-model.gguf"):
        (models / name).touch()
    manager.write(
        f'[model_sources]\n"org/model-GGUF" = "{models}"\n',
        llamacpp_binary_path=program(manager.folder, "llama-server"),
    )
    manager.start()
    wanted = {"name": "gguf", "engine": "llamacpp", "pooling": "last-token", "max_concurrent_requests": 4}
    vague = manager.post("/instances", wanted | {"model_id": "org/model-GGUF"})
    assert (vague.status, vague.body["code"]) == (400, "INVALID_MODEL_ID")
    assert "model-Q4_K_M.gguf, model-Q8_0.gguf" in vague.body["error"]
    made = manager.post(
        "/instances?wait=true", wanted | {"model_id": "org/model-GGUF:q8_0", "env": {"LLAMA_API_KEY": "x"}}
    )
    assert (made.status, made.body.get("status")) == (201, "running"), made.body
    started = json.loads((notes / "org_model-GGUF:q8_0.json").read_text())
    assert started["argv"] == [
        *("--model", str(models / "model-Q8_0.gguf"), "--host", "127.0.0.1", "--port", str(made.body["port"])),
        *("--alias", "org/model-GGUF:q8_0", "--batch-size", "16384", "--ubatch-size", "16384"),
        *("--parallel", "4", "--embedding", "--pooling", "last"),
    ]
    assert "LLAMA_ARG_PORT" not in started["env"]
    check_embeddings(manager, "gguf", "org/model-GGUF:q8_0")
    os.kill(made.body["pid"], signal.SIGKILL)
    restarted(manager, "gguf", made.body["pid"])
    check_embeddings(manager, "gguf")


def test_what_an_engine_refuses_is_refused_before_anything_starts(manager: Any, notes: Path) -> None:
    manager.write(vllm_command=[*PRETEND, "serve"])
    manager.start()
    wanted = {"name": "llm", "model_id": "org/model", "engine": "vllm"}
    for flags in (["--port", "1"], ["--por=1"], ["--max_num_seqs", "1"], ["--config", "x.yaml"]):
        answer = manager.post("/instances", wanted | {"extra_args": flags})
        assert (answer.status, answer.body["code"]) == (400, "INVALID_CONFIG"), answer.body
        assert [each["code"] for each in answer.body["details"]["problems"]] == ["MANAGED_FLAG"]
    quant = manager.post("/instances", wanted | {"model_id": "org/model:Q4_0"})
    assert (quant.status, quant.body["code"]) == (400, "INVALID_MODEL_ID")
    assert manager.get("/instances").body == []


def test_ends_of_vllm_are_told_in_its_own_words(manager: Any, notes: Path) -> None:
    manager.write(vllm_command=[*PRETEND, "serve"])
    manager.start()
    usage = manager.post(
        "/instances?wait=true",
        {"name": "usage", "model_id": "org/model", "engine": "vllm", "extra_args": ["--no-such-flag", "1"]},
    )
    assert usage.status == 502, usage.body
    assert manager.instance("usage")["last_error"] == (
        "exited during startup: process exited with code 2: "
        "vllm serve: error: unrecognized arguments: --no-such-flag 1"
    )
    broken = manager.post("/instances?wait=true", {"name": "broken", "model_id": "org/broken", "engine": "vllm"})
    assert broken.status == 502, broken.body
    failed = manager.until("broken", "failed")
    assert (
        failed["last_error"] == "exited during startup: process exited with code 1: ValueError: weights are torn"
    )
    assert failed["restarts"] == 1  # once more, then never again


def test_check_validates_them(manager: Any, tmp_path: Path) -> None:
    manager.write(
        '[[instances]]\nname = "a"\nmodel_id = "org/a-GGUF:Q4_K_M"\nengine = "llamacpp"\n'
        'extra_args = ["-np", "4"]\ndtype = "float16"\n'
    )
    done = subprocess.run(
        [Path(sys.executable).parent / "tei-manager", "check", "-c", tmp_path / "config.toml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "instances[0].extra_args[0]: --parallel is set by the manager" in done.stderr
    assert "instances[0].dtype: a GGUF file has its numbers in one format" in done.stderr
