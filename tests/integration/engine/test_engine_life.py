"""Start, refusal to start, loading, drain: the process as its supervisor sees it."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

ENGINE = Path(sys.executable).parent / "tei-engine"


def run(*arguments, env=None, timeout=30):
    """A start that is expected to end by itself."""
    return subprocess.run(
        [ENGINE, *arguments], capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )


@pytest.fixture
def copy(tiny_folder, tmp_path):
    """A tiny model that may be damaged."""
    return Path(shutil.copytree(tiny_folder("bert-mean"), tmp_path / "model"))


def test_version():
    assert run("--version").stdout == "tei-engine 0.1.0 (text-embeddings-router 1.9.3)\n"


def test_help_names_every_flag():
    text = run("--help").stdout
    assert "--model-id <MODEL_ID>" in text
    assert "--grpc-port <GRPC_PORT>" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: the following required arguments were not provided:\n  --model-id <MODEL_ID>"),
        (("--port", "1", "-p", "2"), "error: the argument '--port <PORT>' cannot be used multiple times"),
        (("--wrong",), "error: unexpected argument '--wrong' found"),
        (("--port", "x"), "error: invalid value 'x' for '--port <PORT>': invalid digit found in string"),
    ],
)
def test_wrong_arguments_exit_2(arguments, message):
    ended = run(*arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith(message)


def test_an_empty_key_in_the_environment_exits_2():
    assert run("--model-id", "x", env={"API_KEY": ""}).returncode == 2


def test_a_busy_port_is_known_at_once(tiny_folder):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        for flag in ("--port", "--grpc-port", "--prometheus-port"):
            others = () if flag == "--port" else ("--port", "0")
            began = time.monotonic()
            ended = run(
                "--model-id", str(tiny_folder("bert-mean")), "--hostname", "127.0.0.1", flag, str(port), *others
            )
            took = time.monotonic() - began
            assert ended.returncode == 1
            assert ended.stderr == f"Error: could not bind 127.0.0.1:{port}: Address already in use\n"
            assert took < 1.5  # 0.2 s on a machine of its own


def test_a_running_engine_keeps_its_grpc_port(launch, tiny_folder, a_free_port):
    first = launch("--model-id", str(tiny_folder("bert-mean")))
    first.wait_for("Ready")
    second = launch("--model-id", str(tiny_folder("bert-mean")), ports={"grpc_port": first.grpc_port})
    assert second.wait() == 1
    assert f":{first.grpc_port}: Address already in use" in second.stderr()
    assert first.stop(signal.SIGKILL) == -9
    third = launch(
        "--model-id", str(tiny_folder("bert-mean")), ports={"port": first.port, "grpc_port": first.grpc_port}
    )
    third.wait_for("Ready")  # a killed engine leaves nothing behind that blocks the next
    assert third.stop(signal.SIGINT) == 0


def refusal(model, *arguments):
    ended = run("--model-id", str(model), "--hostname", "127.0.0.1", "--port", "0", "--offline", *arguments)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_models_that_are_not_there(tmp_path):
    missing = tmp_path / "nowhere"
    assert refusal(missing) == f"Error: model directory not found: {missing}\n"
    assert "package no_such_package is not installed" in refusal("python:no_such_package/model")
    assert "package json has no folder nothing" in refusal("python:json/nothing")
    assert "missing config.json, tokenizer.json, model.safetensors" in refusal(
        "some/model", "--huggingface-hub-cache", str(tmp_path)
    )
    assert "neither a directory nor a hub id" in refusal("not a model")


def test_missing_files_are_named(copy):
    (copy / "tokenizer.json").unlink()
    assert refusal(copy) == f"Error: tokenizer.json not found in {copy}\n"
    (copy / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(copy)
    (copy / "config.json").unlink()
    assert refusal(copy) == f"Error: config.json not found in {copy}\n"


def test_damaged_weights_are_named(copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert "is truncated: tensor " in refusal(copy)
    path.write_bytes(b"\xff" * 64)
    assert "is not a safetensors file" in refusal(copy)
    path.write_bytes(b"")
    assert "is not a safetensors file" in refusal(copy)
    path.write_bytes(
        whole.replace(b"encoder.layer.1.output.dense.bias", b"encoder.layer.1.output.dense.bias"[::-1])
    )
    assert "weights lack encoder.layer.1.output.dense.bias" in refusal(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 65}))
    path.write_bytes(whole)
    assert "intermediate.dense.weight has shape [64, 32], expected [65, 32]" in refusal(copy)


def test_weights_that_are_not_numbers(copy):
    path = copy / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-2000:] = b"\xff" * 2000
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[start : start + 256] = b"\xff" * 256
    path.write_bytes(whole)
    assert "its weights are damaged" in refusal(copy)


def test_unknown_architectures_are_refused(copy):
    config = copy / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "deberta-v2"}))
    text = refusal(copy)
    assert text.startswith(
        "Error: model type 'deberta-v2' is not supported; supported are albert, bert, camembert, "
    )
    assert text.count("\n") == 1


def test_options_that_cannot_be_honoured(copy):
    folder = str(copy)
    assert "it has " in refusal(folder, "--execution-providers", "TensorrtExecutionProvider")
    assert "no prompts" not in refusal(folder, "--default-prompt-name", "other")
    text = refusal(folder, "--max-batch-tokens", "10", "--auto-truncate", "false")
    assert "`--max-batch-tokens` cannot be < `max_input_length` 64" in text


def test_dry_run(tiny_folder):
    ended = run("--model-id", str(tiny_folder("bert-dense")), "--dry-run", "--json-output")
    assert ended.returncode == 0
    shown = json.loads(ended.stdout.splitlines()[-1])
    assert (shown["embedding_dimension"], shown["graph"]) == (24, "native")


def test_a_metrics_port_of_its_own(launch, tiny_folder, a_free_port):
    port = a_free_port()
    engine = launch("--model-id", str(tiny_folder("bert-mean")), "--prometheus-port", str(port))
    engine.wait_for("Ready")
    assert engine.request("GET", "/health", port=port).body == b"OK"
    assert b"te_request_count" in engine.request("GET", "/", port=port).body
    assert engine.stop() == 0


def test_an_open_health_watch_does_not_hold_the_process(launch, tiny_folder):
    engine = launch("--model-id", str(tiny_folder("bert-mean")))
    engine.wait_for("Ready")
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="tei.v1.Embed"))
        assert next(watch).status == 1
        began = time.monotonic()
        assert engine.stop() == 0
        assert time.monotonic() - began < 5
        statuses = []
        with pytest.raises(grpc.RpcError):
            statuses.extend(answer.status for answer in watch)
        assert 1 not in statuses


def test_while_loading_everybody_is_told_so(launch, hub, tmp_path):
    hub.is_closed = True
    engine = launch(
        *("--model-id", "acme/tiny", "--huggingface-hub-cache", str(tmp_path)), env={"HF_ENDPOINT": hub.url}
    )
    engine.wait_for("Starting gRPC server")
    loading = {"error": "model is loading", "error_type": "Unhealthy"}
    for path in ("/health", "/", "/ping", "/info"):
        reply = engine.get(path)
        assert (reply.status, reply.json, reply.headers["retry-after"]) == (503, loading, "1")
    assert engine.post("/embed", {"inputs": "a"}).json == loading
    reply = engine.post("/v1/embeddings", {"input": "a"})
    assert reply.json == {"message": "model is loading", "code": 503, "type": "Unhealthy"}
    assert engine.get("/metrics").status == 200
    assert engine.get("/nowhere").status == 404
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            tei_pb2_grpc.InfoStub(channel).Info(tei_pb2.InfoRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(service="tei.v1.Embed"), timeout=10).status == 2
    began = time.monotonic()
    assert engine.stop() == 0
    assert time.monotonic() - began < 5


def test_accepted_requests_are_answered_during_drain(launch, minilm_arguments, golden):
    engine = launch(*minilm_arguments)
    engine.wait_for("Ready")
    text = next(item["text"] for item in golden["items"] if item["n_tokens_untruncated"] > 200)
    statuses, failures = [], []
    answered = threading.Event()

    def client():
        while True:
            try:
                reply = engine.post("/embed", {"inputs": [text] * 8})
            except (ConnectionError, http.client.HTTPException) as error:
                failures.append(error)
                return  # the listener is closed: that is how a client learns of the end
            statuses.append(reply.status)
            answered.set()

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert answered.wait(30)
    assert engine.stop() == 0
    for thread in threads:
        thread.join(20)
    assert set(statuses) == {200}
    assert all(isinstance(error, ConnectionRefusedError | ConnectionResetError) for error in failures)
    assert not any(line["level"] == "WARN" for line in engine.lines)


def test_a_request_whose_body_is_still_coming_is_answered_during_drain(launch, tiny_folder):
    engine = launch("--model-id", str(tiny_folder("bert-mean")))
    engine.wait_for("Ready")
    body = b'{"inputs": "hello"}'
    head = (
        f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        connection.sendall(head.encode() + body[:5])
        deadline = time.monotonic() + 10
        engine.get("/health")  # the bytes before it have been read
        engine.process.send_signal(signal.SIGTERM)
        engine.wait_for("Shutting down: 1 requests in flight")
        time.sleep(3.5)  # longer than anybody waits for what was cut off
        connection.sendall(body[5:])
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    assert engine.wait() == 0
    assert time.monotonic() < deadline
    assert not any(line["level"] == "WARN" for line in engine.lines)


def test_what_takes_longer_than_the_drain_timeout_is_cut_off(launch, minilm_arguments, golden):
    engine = launch(
        *minilm_arguments, "--drain-timeout", "0", "--max-client-batch-size", "512", "--compute-workers", "1"
    )
    engine.wait_for("Ready")
    text = "word " * 240
    replies = []
    body = {"inputs": [text] * 400}
    thread = threading.Thread(target=lambda: replies.append(engine.post("/embed", body)))
    thread.start()
    while not _permits(engine):
        assert thread.is_alive()
    assert engine.stop() == 0
    thread.join(20)
    assert (replies[0].status, replies[0].json["error"]) == (503, "shutting down")
    assert replies[0].headers["connection"] == "close"
    assert any(line["level"] == "WARN" and "1 requests were cut off" in line["message"] for line in engine.lines)


def _permits(engine):
    text = engine.get("/metrics").body.decode()
    return float(
        next(line.split()[1] for line in text.splitlines() if line.startswith("tei_engine_permits_in_use "))
    )


def test_more_inputs_than_permits_are_refused_not_queued(launch, minilm_arguments, golden):
    engine = launch(*minilm_arguments, "--max-concurrent-requests", "40", "--compute-workers", "1")
    engine.wait_for("Ready")
    text = "word " * 240
    thread = threading.Thread(target=lambda: engine.post("/embed", {"inputs": [text] * 32}))
    thread.start()
    while not _permits(engine):
        assert thread.is_alive()
    reply = engine.post("/embed", {"inputs": ["short"] * 20})
    assert (reply.status, reply.json) == (429, {"error": "Model is overloaded", "error_type": "Overloaded"})
    assert reply.headers["retry-after"] == "1"
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        stream = tei_pb2_grpc.EmbedStub(channel).EmbedStream(
            iter([tei_pb2.EmbedRequest(inputs="waits")] * 20), timeout=30
        )
        assert len(list(stream)) == 20
    thread.join(30)
    assert _permits(engine) == 0
    assert engine.stop() == 0


def test_a_client_that_leaves_frees_its_permits(launch, minilm_arguments, golden):
    engine = launch(*minilm_arguments, "--max-client-batch-size", "512", "--compute-workers", "1")
    engine.wait_for("Ready")
    text = "word " * 240
    body = json.dumps({"inputs": [text] * 400}).encode()
    head = (
        f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        deadline = time.monotonic() + 20
        while not _permits(engine):
            assert time.monotonic() < deadline
    while _permits(engine):
        assert time.monotonic() < deadline
    text = engine.get("/metrics").body.decode()
    assert 'te_request_failure{err="dropped"} 1' in text
    assert engine.stop() == 0


def test_closed_standard_output_ends_nothing(tiny_folder, a_free_port):
    port = a_free_port()
    process = subprocess.Popen(
        [ENGINE, "--model-id", str(tiny_folder("bert-mean")), "--hostname", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.close()
    try:
        deadline = time.monotonic() + 20
        while _health(port) != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()


def _health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    except ConnectionError:
        return 0
    finally:
        connection.close()


def test_the_runtime_beneath_collects_nothing(launch, tiny_folder, tmp_path):
    """ONNX Runtime leaves a session file in the temporary folder as soon as its telemetry is on."""
    engine = launch("--model-id", str(tiny_folder("bert-mean")), env={"TMPDIR": str(tmp_path)})
    engine.wait_for("Ready")
    assert list(tmp_path.iterdir()) == []
