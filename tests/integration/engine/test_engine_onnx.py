"""Ready-made ONNX graphs through a real engine."""

import json

import numpy as np
from tests.unit.engine.exporting import exported, give, written


def expected(tiny_folder, name):
    items = json.loads((tiny_folder(name) / "expected.json").read_text())["items"]
    return [item["text"] for item in items], np.array([item["normalized"] for item in items])


def test_a_ready_made_graph_is_served(launch, tiny_folder, tmp_path):
    graph = give(exported(tiny_folder("bert-mean")), {"last_hidden_state": "token_embeddings"})
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", graph, model_type="gpt9-bert")
    engine = launch("--model-id", str(folder))
    engine.wait_for("Ready")
    texts, vectors = expected(tiny_folder, "bert-mean")
    reply = engine.post("/embed", {"inputs": texts})
    assert reply.status == 200
    assert np.abs(np.array(reply.json) - vectors).max() <= 5e-6
    shown = engine.get("/info").json["engine"]
    assert (shown["graph"], shown["file"]) == ("onnx", "onnx/model.onnx")
    assert shown["embedding_dimension"] == 32
    assert engine.post("/embed_all", {"inputs": texts[0]}).status == 200
    assert engine.stop() == 0


def test_a_graph_is_chosen_and_has_no_vectors_of_tokens(launch, tiny_folder, tmp_path):
    graph = give(exported(tiny_folder("bert-mean")), {"sentence_embedding": "pooled"})
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", graph, "onnx/model_O3.onnx")
    engine = launch("--model-id", str(folder), "--onnx-file", "onnx/model_O3.onnx")
    engine.wait_for("Ready")
    texts, vectors = expected(tiny_folder, "bert-mean")
    assert np.abs(np.array(engine.post("/embed", {"inputs": texts}).json) - vectors).max() <= 5e-6
    refused = engine.post("/embed_all", {"inputs": texts[0]})
    assert refused.status == 424
    assert refused.json["error"].endswith("`embed_all` is not available for this ONNX model")
    missing = launch("--model-id", str(folder), "--onnx-file", "onnx/model_O4.onnx")
    assert missing.wait() == 1
    assert missing.stderr() == f"Error: --onnx-file onnx/model_O4.onnx not found in {folder}\n"
