"""Routes in the shapes of other APIs: OpenAI's embeddings and models, Cohere's and Jina's rerank."""

from __future__ import annotations

import base64
import uuid
from functools import partial
from typing import Any

import orjson

from tei_engine.server import http_requests
from tei_engine.server.asking import Manner, Options
from tei_engine.server.http_reply import JSON, Call, Handler, Reply, json_reply
from tei_engine.server.service import Service


class CompatibleRoutes:
    """`/v1/embeddings` and `/embeddings`, `/v1/models`, `/v1/rerank` and `/v2/rerank`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings

    def table(self) -> dict[str, dict[str, Handler]]:
        """Path → method → handler; `model`, whose path holds a name, is not in it."""
        embeddings = self._embeddings
        return {
            "/embeddings": {"POST": embeddings},
            "/v1/embeddings": {"POST": embeddings},
            "/v1/models": {"GET": self._models},
            "/v1/rerank": {"POST": partial(self._rerank, version="1")},
            "/v2/rerank": {"POST": partial(self._rerank, version="2")},
        }

    async def model(self, call: Call) -> Reply:
        """`GET /v1/models/{id}`."""
        name = call.path.removeprefix("/v1/models/")
        if name in (self._settings.served_model_name, self._settings.model_id):
            return json_reply(self._model_object())
        body = {"message": f"model {name} is not served here", "code": 404, "type": "NotFound"}
        return Reply(404, orjson.dumps(body), [JSON])

    async def _models(self, call: Call) -> Reply:
        return json_reply({"object": "list", "data": [self._model_object()]})

    def _model_object(self) -> dict[str, Any]:
        return {
            "id": self._settings.served_model_name,
            "object": "model",
            "created": self._service.started,
            "owned_by": "tei-engine",
            "root": self._settings.model_id,
        }

    async def _embeddings(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        inputs, batch = http_requests.read_inputs(body, "input")
        encoding = http_requests.read_encoding_format(body)
        http_requests.check_unused_texts(body, "model", "user")
        options = Options(dimensions=http_requests.read_dimensions(body))
        answer = await self._service.embed(inputs, options, Manner(batch=batch))
        rows: Any = answer.rows
        if encoding == "base64":
            rows = [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in answer.rows]
        used = answer.timings.tokens
        shown = {
            "object": "list",
            "data": [{"object": "embedding", "embedding": row, "index": index} for index, row in enumerate(rows)],
            "model": self._settings.served_model_name,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }
        return json_reply(shown, answer.timings)

    async def _rerank(self, call: Call, version: str) -> Reply:
        asked = http_requests.read_documents(http_requests.read_object(call.body))
        ranks, timings = await self._service.rerank(
            asked.query, asked.texts, Options(), Manner(batch=True), raw=False
        )
        results = []
        for rank in ranks[: asked.top_n]:
            result: dict[str, Any] = {"index": rank.index, "relevance_score": http_requests.f32(rank.score)}
            if asked.return_documents:
                result["document"] = {"text": asked.texts[rank.index]}
            results.append(result)
        shown = {
            "id": str(uuid.uuid4()),
            "model": self._settings.served_model_name,
            "results": results,
            "usage": {"prompt_tokens": timings.tokens, "total_tokens": timings.tokens},
            "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        }
        return json_reply(shown, timings)
