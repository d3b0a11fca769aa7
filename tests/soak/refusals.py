"""Questions that must be refused, each with exactly one status."""

from __future__ import annotations

import random
from typing import Any

import orjson
from tests.soak.questions import JSON, HttpQuestion, RpcQuestion, anything, same

from tei_manager.grpc.proto.tei.v1 import tei_pb2

_JSON_ROWS: tuple[tuple[str, str, Any, int, int | None], ...] = (
    # name, path, body, status, row in error
    ("no-inputs", "/embed", {}, 422, None),
    ("number", "/embed", {"inputs": 3}, 422, None),
    ("empty", "/embed", {"inputs": ""}, 400, None),
    ("empty-row", "/embed", {"inputs": ["a", "b", "", "c"]}, 400, 2),
    ("no-dimensions", "/embed", {"inputs": "a", "dimensions": 0}, 422, None),
    ("dimensions", "/embed", {"inputs": "a", "dimensions": 99_999}, 422, None),
    ("prompt", "/embed", {"inputs": "a", "prompt_name": "no such prompt"}, 422, None),
    ("direction", "/embed", {"inputs": "a", "truncation_direction": "up"}, 422, None),
    ("too-many", "/embed", {"inputs": ["a"] * 33}, 422, None),
    ("foreign-id", "/embed", {"inputs": [[5, 99_999_999]]}, 422, 0),
    ("openai-empty", "/v1/embeddings", {"input": ["a", ""]}, 400, 1),
    ("wrong-kind", "/rerank", {"query": "a", "texts": ["b"]}, 424, None),
    ("wrong-kind", "/embed_sparse", {"inputs": "a"}, 424, None),
    ("tokenize-empty", "/tokenize", {"inputs": ["a", ""]}, 400, 1),
    ("similarity-empty", "/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 400, None),
)


class Refusals:
    """Requests to an embedding model that it must refuse. `long` is a text of more tokens than it takes."""

    def __init__(self, long: str) -> None:
        self._made = [_row(*row) for row in _JSON_ROWS]
        bodies = (({"inputs": long, "truncate": False}, None), ({"inputs": ["a", long], "truncate": False}, 1))
        self._made += [_row("too-long", "/embed", body, 422, row) for body, row in bodies]
        self._made += [
            HttpQuestion("refused:not-json", "/embed", b'{"inputs": "a"', anything, inputs=0, status=400),
            HttpQuestion("refused:not-utf8", "/embed", b'{"inputs": "\xff"}', anything, inputs=0, status=400),
            HttpQuestion(
                "refused:content-type", "/embed", b"a", anything, inputs=0, status=415, content_type="text/plain"
            ),
            HttpQuestion("refused:path", "/nowhere", b"{}", anything, inputs=0, status=404),
            HttpQuestion("refused:method", "/embed", b"", anything, inputs=0, status=405, method="GET"),
        ]

    def http(self, rng: random.Random) -> HttpQuestion:
        """One of them."""
        return rng.choice(self._made)


def _row(name: str, path: str, body: Any, status: int, row: int | None) -> HttpQuestion:
    def check(raw: bytes) -> None:
        if not (raw.startswith(b"Failed") and row is None):  # the framework's own refusals are plain text
            same(orjson.loads(raw).get("row"), row, "row of the error")

    inputs = 2 if name == "too-long" or name == "foreign-id" else 0  # found by the tokenizer, under permits
    return HttpQuestion(f"refused:{name}", path, orjson.dumps(body), check, inputs, status, content_type=JSON)


def rpc(rng: random.Random, long: str) -> RpcQuestion:
    """A unary call that must fail. `long` is a text of more tokens than the model takes."""
    method, request, code = rng.choice(
        (
            ("Embed.Embed", tei_pb2.EmbedRequest(inputs=""), "INVALID_ARGUMENT"),
            ("Embed.Embed", tei_pb2.EmbedRequest(inputs=long * 5), "INVALID_ARGUMENT"),
            ("Embed.Embed", tei_pb2.EmbedRequest(inputs="a", dimensions=99_999), "INVALID_ARGUMENT"),
            ("Embed.EmbedSparse", tei_pb2.EmbedSparseRequest(inputs="a"), "FAILED_PRECONDITION"),
            ("Rerank.Rerank", tei_pb2.RerankRequest(query="a", texts=["b"]), "FAILED_PRECONDITION"),
        )
    )
    return RpcQuestion("rpc-refused", method, request, anything, code=code)
