"""Engines that speak OpenAI's dialect only: what they are asked, and what not."""

import orjson
import pytest

from tei_manager.domain.instance import EngineKind, Protocol
from tei_manager.domain.request import EmbedCall
from tei_manager.domain.target import Endpoint
from tei_manager.ports.http_upstream import Answer
from tei_manager.serving.caller import Caller
from tei_manager.serving.providers.instances import OPENAI_BATCH, Facts

VECTORS = orjson.dumps({"data": [{"index": 0, "embedding": [1.0, 2.0]}], "usage": {"prompt_tokens": 3}})


class Server:
    """Implements `ports.http_upstream.HttpUpstream`; refuses base64 as a server does that does not know it."""

    def __init__(self):
        self.sent, self.asked = [], 0

    async def send(self, endpoint, wire, *, timeout_secs):
        if wire.path == "/info":
            self.asked += 1
            return Answer(404, {}, b'{"detail":"Not Found"}')
        self.sent.append((wire.path, orjson.loads(wire.body) if wire.body else None))
        if b"encoding_format" in (wire.body or b""):
            return Answer(400, {}, b'{"error":{"message":"unknown field encoding_format"}}')
        return Answer(200, {"content-type": "application/json"}, VECTORS)

    def forget(self, uid):
        pass

    async def close(self):
        pass


@pytest.mark.parametrize("engine", [EngineKind.VLLM, EngineKind.LLAMACPP])
async def test_they_are_asked_once_what_they_can_and_then_for_vectors(engine):
    server = Server()
    caller = Caller(server, None)
    endpoint = Endpoint(
        instance="a",
        uid="u",
        host="127.0.0.1",
        http_port=1,
        grpc_port=None,
        protocol=Protocol.HTTP,
        engine=engine,
        model_id="org/m",
    )
    for _ in range(2):
        assert await caller.facts(endpoint) == Facts(max_batch=OPENAI_BATCH)
    assert server.asked == 1
    for _ in range(2):
        vectors = await caller.embed(endpoint, EmbedCall(target="m", inputs=["x"]), ["x"], timeout_secs=1)
        assert (vectors.rows.tolist(), vectors.tokens) == ([[1.0, 2.0]], 3)
    plain = {"model": "org/m", "input": "x"}
    # base64 is refused once, and not tried again
    assert server.sent == [
        ("/v1/embeddings", {**plain, "encoding_format": "base64"}),
        ("/v1/embeddings", plain),
        ("/v1/embeddings", plain),
    ]
