"""Rerankers, classifiers and splade models as instances: real weights, through the multiplexer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux_pb2
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2_grpc as mux_grpc
from tei_manager.grpc.proto.tei.v1 import tei_pb2

TINY = Path(__file__).parents[1] / "fixtures" / "tiny_models"
KINDS = {"ranker": "bert-reranker", "labels": "bert-classifier", "words": "bert-splade"}


def items(name: str) -> list[dict[str, Any]]:
    """The reference's items, but for those that it cut shorter than the engine does."""
    expected = json.loads((TINY / KINDS[name] / "expected.json").read_text())
    return [item for item in expected["items"] if item["n_tokens_untruncated"] <= expected["max_length"]]


def test_every_kind_of_model_becomes_an_instance_and_agrees_with_its_reference(manager: Any) -> None:
    manager.write(model_roots=[str(TINY)])
    manager.start()
    for name, folder in KINDS.items():
        made = manager.post(
            "/instances?wait=true", {"name": name, "model_id": str(TINY / folder), "engine": "embedded"}
        )
        assert (made.status, made.body.get("status")) == (201, "running"), made.body
    with grpc.insecure_channel(f"127.0.0.1:{manager.grpc}") as channel:
        stub = mux_grpc.TeiMultiplexerStub(channel)
        check_ranks(stub)
        check_labels(stub)
        check_words(stub)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Embed(
                mux_pb2.EmbedRequest(target=at("ranker"), request=tei_pb2.EmbedRequest(inputs="x")), timeout=10
            )
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "Model is not an embedding model" in refused.value.details()


def at(name: str) -> mux_pb2.Target:
    return mux_pb2.Target(instance_name=name)


def check_ranks(stub: Any) -> None:
    for item in items("ranker"):
        query, text = item["pair"]
        request = tei_pb2.RerankRequest(query=query, texts=[text, text], raw_scores=True, return_text=True)
        answer = stub.Rerank(mux_pb2.RerankRequest(target=at("ranker"), request=request), timeout=10)
        assert [rank.index for rank in answer.ranks] == [1, 0]
        assert {rank.text for rank in answer.ranks} == {text}
        assert [rank.score for rank in answer.ranks] == pytest.approx(item["logits"] * 2, abs=2e-5)


def check_labels(stub: Any) -> None:
    for item in items("labels"):
        request = tei_pb2.PredictRequest(inputs=item["text"])
        answer = stub.Predict(mux_pb2.PredictRequest(target=at("labels"), request=request), timeout=10)
        scores = [one.score for one in answer.predictions]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx(sorted(item["scores"], reverse=True), abs=1e-5)


def check_words(stub: Any) -> None:
    for item in items("words"):
        request = tei_pb2.EmbedSparseRequest(inputs=item["text"])
        answer = stub.EmbedSparse(mux_pb2.EmbedSparseRequest(target=at("words"), request=request), timeout=10)
        got = {word.index: word.value for word in answer.sparse_embeddings}
        for index, value in item["sparse"]:
            assert got.pop(index, 0.0) == pytest.approx(value, abs=2e-5)
        assert all(value <= 2e-5 for value in got.values())
