"""text-embeddings-router's own routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tei_engine import errors
from tei_engine.batching.jobs import Sparse
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.models.kinds import Kind
from tei_engine.server import http_requests, splitting
from tei_engine.server.asking import Manner, Prediction, Timings
from tei_engine.server.http_reply import Call, Handler, Reply, cost, json_reply
from tei_engine.server.service import Service

Shown = tuple[Any, Timings]
"""What is written as JSON, and what it cost to compute."""


class NativeRoutes:
    """What a model computes, and what its tokenizer does."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def table(self) -> dict[str, dict[str, Handler]]:
        """Path → method → handler."""
        posts: dict[str, Handler] = {
            "/": self._by_kind,
            "/invocations": self._by_kind,
            "/embed": self._embed,
            "/embed_all": self._embed_all,
            "/embed_sparse": self._embed_sparse,
            "/predict": self._predict,
            "/rerank": self._rerank,
            "/similarity": self._similarity,
            "/vertex": self._vertex,
            "/tokenize": self._tokenize,
            "/decode": self._decode,
        }
        return {path: {"POST": handler} for path, handler in posts.items()}

    async def _by_kind(self, call: Call) -> Reply:
        """The route that fits the model, for hosts that know only one path."""
        kind = self._service.kind
        if kind is Kind.EMBEDDING and self._service.settings.is_similarity:
            return await self._similarity(call)
        fitting = {
            Kind.EMBEDDING: self._embed,
            Kind.SPLADE: self._embed_sparse,
            Kind.CLASSIFIER: self._predict,
            Kind.RERANKER: self._rerank,
        }
        return await fitting[kind](call)

    async def _vertex(self, call: Call) -> Reply:
        """Many bodies in one, of the route that fits the model; each of them is counted as a request."""
        instances = http_requests.read_instances(http_requests.read_object(call.body))
        try:
            self._service.check_batch(len(instances))
        except errors.RequestError as error:
            self._service.count_refused(error.label)
            raise
        answers = await splitting.all_of(map(self._instance, range(len(instances)), instances))
        return json_reply({"predictions": answers})

    async def _instance(self, row: int, body: Any) -> Any:
        compute = {
            Kind.EMBEDDING: self._vectors,
            Kind.SPLADE: self._sparse_vectors,
            Kind.CLASSIFIER: self._predictions,
            Kind.RERANKER: self._ranks,
        }[self._service.kind]
        try:
            shown, _ = await compute(http_requests.as_object(body))
        except http_requests.BodyError as error:
            self._service.count_refused("validation")
            raise errors.invalid(error.message).at_row(row) from None
        except errors.RequestError as error:
            raise error.at_row(row) from None
        return shown

    async def _embed(self, call: Call) -> Reply:
        rows, timings = await self._vectors(http_requests.read_object(call.body))
        if not _prefers_binary(call.headers.get(b"accept", b"")):
            return json_reply(rows, timings)
        count, size = rows.shape
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"x-embedding-shape", f"{count},{size}".encode()),
            (b"x-embedding-dtype", b"f32"),
        ]
        return Reply(200, rows.astype("<f4", copy=False).tobytes(), headers + cost(timings))

    async def _vectors(self, body: Mapping[str, Any]) -> tuple[FloatArray, Timings]:
        inputs, batch = http_requests.read_inputs(body, "inputs")
        answer = await self._service.embed(inputs, http_requests.read_options(body), Manner(batch=batch))
        return answer.rows, answer.timings

    async def _embed_all(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        inputs, batch = http_requests.read_inputs(body, "inputs")
        options = http_requests.read_text_options(body)
        answer = await self._service.embed(inputs, options, Manner(batch=batch), Output.TOKENS)
        return json_reply(list(answer.tokens), answer.timings)

    async def _embed_sparse(self, call: Call) -> Reply:
        return json_reply(*await self._sparse_vectors(http_requests.read_object(call.body)))

    async def _sparse_vectors(self, body: Mapping[str, Any]) -> Shown:
        inputs, batch = http_requests.read_inputs(body, "inputs")
        options = http_requests.read_text_options(body)
        answer = await self._service.embed(inputs, options, Manner(batch=batch), Output.SPARSE)
        return [_words(vector) for vector in answer.sparse], answer.timings

    async def _predict(self, call: Call) -> Reply:
        return json_reply(*await self._predictions(http_requests.read_object(call.body)))

    async def _predictions(self, body: Mapping[str, Any]) -> Shown:
        inputs, batch = http_requests.read_predict_inputs(body)
        raw = http_requests.read_flag(body, "raw_scores", default=False)
        options = http_requests.read_truncation(body)
        rows, timings = await self._service.predict(inputs, options, Manner(batch=batch), raw=raw)
        shown = [_labels(row) for row in rows]
        return shown if batch else shown[0], timings

    async def _rerank(self, call: Call) -> Reply:
        return json_reply(*await self._ranks(http_requests.read_object(call.body)))

    async def _ranks(self, body: Mapping[str, Any]) -> Shown:
        query = http_requests.read_text(body, "query")
        texts = http_requests.read_list_of_texts(body, "texts")
        raw = http_requests.read_flag(body, "raw_scores", default=False)
        with_text = http_requests.read_flag(body, "return_text", default=False)
        options = http_requests.read_truncation(body)
        ranks, timings = await self._service.rerank(query, texts, options, Manner(batch=True), raw=raw)
        shown = []
        for rank in ranks:
            one: dict[str, Any] = {"index": rank.index}
            if with_text:
                one["text"] = texts[rank.index]
            shown.append(one | {"score": http_requests.f32(rank.score)})
        return shown, timings

    async def _similarity(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        source, sentences, options = http_requests.read_similarity(body)
        cosines, timings = await self._service.similarity(source, sentences, options, Manner(batch=True))
        return json_reply(cosines, timings)

    async def _tokenize(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        texts, batch = http_requests.read_texts(body, "inputs")
        name = http_requests.read_prompt_name(body)
        special = http_requests.read_flag(body, "add_special_tokens", default=True)
        return json_reply(
            await self._service.tokenize(texts, batch=batch, add_special_tokens=special, prompt_name=name)
        )

    async def _decode(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        ids, batch = http_requests.read_id_lists(body, "ids")
        skip = http_requests.read_flag(body, "skip_special_tokens", default=True)
        return json_reply(await self._service.decode(ids, batch=batch, skip_special_tokens=skip))


def _words(vector: Sparse) -> list[dict[str, Any]]:
    indices, values = vector
    # values stay float32 until they are written: their shortest decimals are not those of a double
    return [{"index": index, "value": value} for index, value in zip(indices.tolist(), values, strict=True)]


def _labels(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [{"score": http_requests.f32(one.score), "label": one.label} for one in predictions]


def _prefers_binary(accept: bytes) -> bool:
    """Whether `application/octet-stream` is named and liked better than JSON; `*/*` means JSON."""
    if b"application/octet-stream" not in accept:
        return False
    liking = {}
    for part in accept.decode("latin-1").lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            liking[kind] = float(quality)
        except ValueError:
            liking[kind] = 0.0
    json = max(
        liking.get("application/json", 0.0), liking.get("application/*", 0.0) / 2, liking.get("*/*", 0.0) / 2
    )
    return liking.get("application/octet-stream", 0.0) > json
