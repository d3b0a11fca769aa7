"""Questions to an embedding model, all about a small pool of texts whose answers were asked for beforehand."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tests.soak import refusals
from tests.soak.questions import (
    FULL,
    Fault,
    HttpQuestion,
    RpcQuestion,
    StreamQuestion,
    Table,
    check_vectors,
    post,
    same,
    unit,
)
from tests.soak.texts import Pool

from tei_manager.grpc.proto.tei.v1 import tei_pb2

Ask = Callable[[str, Any], Any]
"""Posts JSON to a path and returns the answer's, once everything before it is answered."""

_GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden_minilm.json"
_ALIKE = 0.999
_NARROW = 64
_MESSAGES = 24


class EmbeddingQuestions:
    """Questions to all-MiniLM-L6-v2. `vectors` are those of the pool's texts, each embedded alone."""

    def __init__(self, pool: Pool, vectors: np.ndarray, ids: list[list[int]], decoded: list[str]) -> None:
        self._pool = pool
        self._vectors = vectors
        self._narrow = unit(vectors[:, :_NARROW])
        self._ids = ids
        self._decoded = decoded
        self._short_ids = [place for place, one in enumerate(ids) if len(one) <= 128]
        long = next(text for text in pool.texts if len(text.split()) > 300)
        self._http = Table(
            (30, self._embed),
            (8, self._embed_batch),
            (6, self._embed_binary),
            (6, self._openai),
            (3, self._by_ids),
            (4, self._embed_all),
            (8, self._tokenize),
            (6, self._decode),
            (4, self._similarity),
            (5, _look),
            (14, refusals.Refusals(long).http),
        )
        self._rpc = Table(
            (10, self._rpc_embed), (2, self._rpc_all), (4, self._rpc_tokenize), (2, self._rpc_refused)
        )
        self._stream = Table((8, self._embed_stream), (2, self._tokenize_stream), (2, self._broken_stream))

    def http(self, rng: random.Random) -> HttpQuestion:
        """A request to any of the routes."""
        return self._http.draw(rng)

    def large(self, rng: random.Random) -> HttpQuestion:
        """The vectors of all tokens of a long text: about a megabyte."""
        return self._embed_all(rng, self._pool.long(rng))

    def batch(self, rng: random.Random) -> HttpQuestion:
        """A full batch of short texts."""
        return self._embed_batch(rng, self._pool.short(rng, FULL))

    def rpc(self, rng: random.Random) -> RpcQuestion:
        """A unary call."""
        return self._rpc.draw(rng)

    def stream(self, rng: random.Random) -> StreamQuestion:
        """A stream of up to 24 messages."""
        return self._stream.draw(rng)

    def _texts(self, places: list[int]) -> list[str]:
        return [self._pool.texts[place] for place in places]

    def _embed(self, rng: random.Random) -> HttpQuestion:
        [place] = self._pool.draw(rng)
        wanted = self._vectors[[place]]
        body = {"inputs": self._pool.texts[place], "truncate": True}
        return post("embed", "/embed", body, lambda raw: check_vectors(orjson.loads(raw), wanted))

    def _embed_batch(self, rng: random.Random, places: list[int] | None = None) -> HttpQuestion:
        places = places or self._pool.some(rng)
        vectors, more = self._vectors, {}
        if rng.random() < 0.2:
            vectors, more = self._narrow, {"dimensions": _NARROW}
        body = {"inputs": self._texts(places), "truncate": True} | more
        wanted = vectors[places]
        return post(
            "embed-batch",
            "/embed",
            body,
            lambda raw: check_vectors(orjson.loads(raw), wanted),
            inputs=len(places),
        )

    def _embed_binary(self, rng: random.Random) -> HttpQuestion:
        places = self._pool.some(rng)
        wanted = self._vectors[places]

        def check(raw: bytes) -> None:
            check_vectors(np.frombuffer(raw, "<f4").reshape(len(places), -1), wanted)

        body = {"inputs": self._texts(places), "truncate": True}
        accept = "application/octet-stream"
        return post("embed-binary", "/embed", body, check, inputs=len(places), accept=accept)

    def _openai(self, rng: random.Random) -> HttpQuestion:
        places = self._pool.some(rng, most=8)
        wanted = self._vectors[places]
        encoding = rng.choice(("float", "base64"))

        def check(raw: bytes) -> None:
            data = orjson.loads(raw)["data"]
            same([item["index"] for item in data], list(range(len(places))), "indices")
            rows = [item["embedding"] for item in data]
            if encoding == "base64":
                rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
            check_vectors(rows, wanted)

        body = {"input": self._texts(places), "model": "any", "encoding_format": encoding}
        return post("openai", "/v1/embeddings", body, check, inputs=len(places))

    def _by_ids(self, rng: random.Random) -> HttpQuestion:
        places = [rng.choice(self._short_ids) for _ in range(rng.randint(1, 3))]
        wanted = self._vectors[places]
        body = {"inputs": [self._ids[place] for place in places]}
        return post(
            "embed-ids", "/embed", body, lambda raw: check_vectors(orjson.loads(raw), wanted), inputs=len(places)
        )

    def _embed_all(self, rng: random.Random, place: int | None = None) -> HttpQuestion:
        if place is None:
            [place] = self._pool.draw(rng)
        body = {"inputs": self._pool.texts[place], "truncate": True}
        check = partial(self._check_tokens, place)
        return post("embed-all", "/embed_all", body, lambda raw: check(orjson.loads(raw)[0]))

    def _check_tokens(self, place: int, tokens: Any) -> None:
        """The mean of all token vectors is the text's vector, which is how this model pools."""
        mean = np.asarray(tokens, dtype=np.float64).mean(axis=0, keepdims=True)
        check_vectors(unit(mean), self._vectors[[place]])

    def _tokenize(self, rng: random.Random) -> HttpQuestion:
        places = self._pool.some(rng, most=4)
        wanted = [self._ids[place] for place in places]

        def check(raw: bytes) -> None:
            same([[token["id"] for token in row] for row in orjson.loads(raw)], wanted, "ids")

        return post("tokenize", "/tokenize", {"inputs": self._texts(places)}, check, inputs=0)

    def _decode(self, rng: random.Random) -> HttpQuestion:
        places = self._pool.some(rng, most=4)
        wanted = [self._decoded[place] for place in places]
        body = {"ids": [self._ids[place] for place in places]}
        return post("decode", "/decode", body, lambda raw: same(orjson.loads(raw), wanted, "texts"), inputs=0)

    def _similarity(self, rng: random.Random) -> HttpQuestion:
        source, *others = self._pool.draw(rng, rng.randint(2, 6))
        wanted = self._vectors[others] @ self._vectors[source]

        def check(raw: bytes) -> None:
            if not np.allclose(orjson.loads(raw), wanted, rtol=0, atol=1e-3):
                raise Fault("cosines differ from those of the references")

        sentences = {"source_sentence": self._pool.texts[source], "sentences": self._texts(others)}
        return post("similarity", "/similarity", {"inputs": sentences}, check, inputs=1 + len(others))

    def _rpc_embed(self, rng: random.Random) -> RpcQuestion:
        [place] = self._pool.draw(rng)
        request = tei_pb2.EmbedRequest(inputs=self._pool.texts[place], truncate=True)
        return RpcQuestion("rpc-embed", "Embed.Embed", request, self._vector_check(place))

    def _vector_check(self, place: int) -> Callable[[Any], None]:
        wanted = self._vectors[[place]]
        return lambda response: check_vectors([response.embeddings], wanted)

    def _rpc_all(self, rng: random.Random) -> RpcQuestion:
        [place] = self._pool.draw(rng)
        request = tei_pb2.EmbedAllRequest(inputs=self._pool.texts[place], truncate=True)
        return RpcQuestion(
            "rpc-embed-all",
            "Embed.EmbedAll",
            request,
            lambda response: self._check_tokens(place, [one.embeddings for one in response.token_embeddings]),
        )

    def _rpc_tokenize(self, rng: random.Random) -> RpcQuestion:
        [place] = self._pool.draw(rng)
        request, check = self._encode(place)
        return RpcQuestion("rpc-tokenize", "Tokenize.Tokenize", request, check, inputs=0)

    def _encode(self, place: int) -> tuple[Any, Callable[[Any], None]]:
        wanted = self._ids[place]
        request = tei_pb2.EncodeRequest(inputs=self._pool.texts[place], add_special_tokens=True)
        return request, lambda response: same([token.id for token in response.tokens], wanted, "ids")

    def _rpc_refused(self, rng: random.Random) -> RpcQuestion:
        return refusals.rpc(rng, self._pool.texts[self._pool.long(rng)])

    def _embed_stream(self, rng: random.Random) -> StreamQuestion:
        places = self._pool.some(rng, most=_MESSAGES)
        requests = [tei_pb2.EmbedRequest(inputs=text, truncate=True) for text in self._texts(places)]
        return StreamQuestion("embed-stream", "Embed.EmbedStream", requests, list(map(self._vector_check, places)))

    def _tokenize_stream(self, rng: random.Random) -> StreamQuestion:
        encoded = [self._encode(place) for place in self._pool.some(rng, most=_MESSAGES)]
        requests, checks = zip(*encoded, strict=True)
        return StreamQuestion("tokenize-stream", "Tokenize.TokenizeStream", requests, checks)

    def _broken_stream(self, rng: random.Random) -> StreamQuestion:
        """One message in it cannot be answered: those before it are, and nothing after it."""
        whole = self._embed_stream(rng)
        place = rng.randrange(len(whole.requests))
        requests = [*whole.requests[:place], tei_pb2.EmbedRequest(inputs=""), *whole.requests[place:]]
        return StreamQuestion(
            "broken-stream", whole.method, requests, whole.checks[:place], code="INVALID_ARGUMENT"
        )


def _look(rng: random.Random) -> HttpQuestion:
    """Something that costs no inputs: health, metrics, information."""
    path, word = rng.choice(
        (("/health", b""), ("/metrics", b"te_request_count"), ("/info", b'"model_id"'), ("/v1/models", b'"data"'))
    )

    def check(raw: bytes) -> None:
        if word not in raw:
            raise Fault(f"{path} answered {raw[:200]!r}")

    return HttpQuestion(f"get{path}", path, b"", check, inputs=0, method="GET")


def learn(ask: Ask, seed: int) -> EmbeddingQuestions:
    """Ask an idle engine for every text of the pool, one by one. Raises Fault.

    Texts that the golden file knows must have its vectors, and no two texts vectors so alike that answers could be
    mixed up unnoticed.
    """
    items = [item for item in json.loads(_GOLDEN.read_text())["items"] if _is_of_use(item)]
    pool = Pool(seed, [item["text"] for item in items])
    vectors = np.asarray(
        [ask("/embed", {"inputs": text, "truncate": True})[0] for text in pool.texts], dtype=np.float32
    )
    check_vectors(vectors[: len(items)], unit(np.asarray([item["vec"] for item in items])))
    tokens = [ask("/tokenize", {"inputs": text})[0] for text in pool.texts]
    ids = [[token["id"] for token in row] for row in tokens]
    decoded = ask_each(ask, "/decode", [{"ids": one} for one in ids])
    check_distinct(vectors, [one[:256] for one in ids])
    return EmbeddingQuestions(pool, vectors, ids, decoded)


def _is_of_use(item: dict[str, Any]) -> bool:
    """Blank texts are all one to the model, and so are the longest, which begin alike."""
    return bool(item["text"].strip()) and item["n_tokens_untruncated"] <= 256


def ask_each(ask: Ask, path: str, bodies: list[Any]) -> list[Any]:
    """The first row of each answer."""
    return [ask(path, body)[0] for body in bodies]


def check_distinct(vectors: np.ndarray, ids: list[list[int]]) -> None:
    """Raise Fault if two inputs that differ to the model have vectors that `check_vectors` cannot tell apart."""
    close = np.argwhere(np.triu(vectors @ vectors.T, 1) > _ALIKE)
    for one, other in close.tolist():
        if ids[one] != ids[other]:
            raise Fault(f"texts {one} and {other} of the pool have nearly the same vector")
