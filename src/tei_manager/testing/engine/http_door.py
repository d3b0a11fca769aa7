"""TEI's HTTP: which route answers what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TypeVar

from tei_manager.testing.engine.answers import little_endian
from tei_manager.testing.engine.command_line import Options
from tei_manager.testing.engine.conduct import Conduct, Timed, cost_headers
from tei_manager.testing.engine.faults import Fault
from tei_manager.testing.engine.http_bodies import Body, Unreadable, authorized, json, refusal
from tei_manager.testing.engine.http_openai import OpenAI
from tei_manager.testing.engine.http_protocol import Handler, Request, Response
from tei_manager.testing.engine.imitation import Answer, Imitation, Input

T = TypeVar("T")
U = TypeVar("U")
Route = Callable[[Request], Awaitable[Response]]
_OPEN = ("/health", "/", "/ping", "/metrics")  # no key needed


class HttpDoor:
    """The handler of the main port."""

    def __init__(self, options: Options, imitation: Imitation, conduct: Conduct) -> None:
        self._options = options
        self._imitation = imitation
        self._conduct = conduct
        openai = OpenAI(options, imitation, conduct)
        health = {("GET", path): self._health for path in ("/health", "/", "/ping")}
        self._routes: dict[tuple[str, str], Route] = health | {
            ("GET", "/info"): self._info,
            ("GET", "/metrics"): metrics_page(conduct),
            ("POST", "/embed"): self._embed,
            ("POST", "/embed_all"): self._embed_all,
            ("POST", "/embed_sparse"): self._embed_sparse,
            ("POST", "/predict"): self._predict,
            ("POST", "/rerank"): self._rerank,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/decode"): self._decode,
            **openai.routes(),
        }
        self._paths = {path for _, path in self._routes}

    async def handle(self, request: Request) -> Response:
        """Answer one request; HEAD is GET without the body, which the server leaves away."""
        method = "GET" if request.method == "HEAD" else request.method
        route = self._routes.get((method, request.path))
        if route is None:
            return Response(405 if request.path in self._paths else 404)
        if request.path not in _OPEN and not authorized(request, self._options.api_key):
            return Response(401)
        openai = request.path.startswith(("/v1/", "/v2/")) or request.path == "/embeddings"
        try:
            if request.path != "/metrics" and (error := self._conduct.refusal()):
                raise error
            return await route(request)
        except Fault as error:
            return refusal(error, openai=openai)
        except Unreadable as error:
            return Response(error.status, str(error).encode(), {"content-type": "text/plain; charset=utf-8"})

    async def _health(self, request: Request) -> Response:
        if error := self._conduct.ill():
            raise error
        if self._conduct.hangs:  # TEI's health queues behind the running batches
            await asyncio.Event().wait()
        return Response()

    async def _info(self, request: Request) -> Response:
        if error := self._conduct.ill():
            raise error
        return json(info(self._options, self._imitation.kind))

    async def _embed(self, request: Request) -> Response:
        body = Body(request)
        inputs, batch = body.inputs("inputs")
        truncate = body.truncate(self._options.auto_truncate)
        normalize, dimensions = body.flag("normalize", True), body.count("dimensions")
        prompt = body.optional_text("prompt_name")

        def one(text: Input) -> Answer[list[float]]:
            return self._imitation.embed(
                text, truncate=truncate, normalize=normalize, dimensions=dimensions, prompt_name=prompt
            )

        answer = await self._serve(one, inputs, batch, "embed")
        if _wants_binary(request.headers.get("accept", "")):
            return _binary(answer)
        return json(answer.value, cost_headers(answer))

    async def _embed_all(self, request: Request) -> Response:
        body = Body(request)
        inputs, batch = body.inputs("inputs")
        truncate, prompt = body.truncate(self._options.auto_truncate), body.optional_text("prompt_name")
        answer = await self._serve(
            lambda text: self._imitation.embed_all(text, truncate=truncate, prompt_name=prompt),
            inputs,
            batch,
            "embed",
        )
        return json(answer.value, cost_headers(answer))

    async def _embed_sparse(self, request: Request) -> Response:
        body = Body(request)
        inputs, batch = body.inputs("inputs")
        truncate, prompt = body.truncate(self._options.auto_truncate), body.optional_text("prompt_name")
        answer = await self._serve(
            lambda text: self._imitation.embed_sparse(text, truncate=truncate, prompt_name=prompt),
            inputs,
            batch,
            "embed",
        )
        rows = [[{"index": index, "value": value} for index, value in row] for row in answer.value]
        return json(rows, cost_headers(answer))

    async def _predict(self, request: Request) -> Response:
        body = Body(request)
        inputs, batch = body.pairs()
        truncate, raw = body.truncate(self._options.auto_truncate), body.flag("raw_scores", False)
        answer = await self._serve(
            lambda pair: self._imitation.predict(pair, truncate=truncate, raw_scores=raw),
            inputs,
            batch,
            "predict",
        )
        rows = [[{"score": score, "label": label} for score, label in row] for row in answer.value]
        return json(rows if batch else rows[0], cost_headers(answer))

    async def _rerank(self, request: Request) -> Response:
        body = Body(request)
        query, texts = body.text("query"), body.texts("texts")
        truncate, raw = body.truncate(self._options.auto_truncate), body.flag("raw_scores", False)
        with_text = body.flag("return_text", False)
        answer = await self._conduct.run(
            lambda: self._imitation.rerank(query, texts, truncate=truncate, raw_scores=raw),
            inputs=len(texts),
            method="batch",
            family="predict",
        )
        ranks = [
            {"index": index, "score": score} | ({"text": texts[index]} if with_text else {})
            for index, score in answer.value
        ]
        return json(ranks, cost_headers(answer))

    async def _tokenize(self, request: Request) -> Response:
        body = Body(request)
        value = body.required("inputs")
        texts = [value] if isinstance(value, str) else body.texts("inputs")
        specials, prompt = body.flag("add_special_tokens", True), body.optional_text("prompt_name")
        rows = [self._imitation.tokenize(text, specials=specials, prompt_name=prompt).value for text in texts]
        return json([[asdict(token) for token in row] for row in rows])

    async def _decode(self, request: Request) -> Response:
        body = Body(request)
        ids, _ = _id_lists(body)
        skip = body.flag("skip_special_tokens", True)
        return json([self._imitation.decode(row, skip_specials=skip).value for row in ids])

    async def _serve(
        self, one: Callable[[T], Answer[U]], inputs: Sequence[T], batch: bool, family: str
    ) -> Timed[list[U]]:
        """Answer every input of a request by `one`."""

        def work() -> Answer[list[U]]:
            self._imitation.check_batch(len(inputs))
            rows = [one(text) for text in inputs]
            return Answer(
                [row.value for row in rows],
                sum(row.characters for row in rows),
                sum(row.tokens for row in rows),
            )

        method = "batch" if batch else "single"
        return await self._conduct.run(work, inputs=len(inputs), method=method, family=family)


def metrics_page(conduct: Conduct) -> Handler:
    """A handler that answers every request with the metrics."""

    async def handle(request: Request) -> Response:
        if request.path == "/health":
            return Response(200, b"OK")
        return Response(200, conduct.metrics.text().encode(), {"content-type": "text/plain; version=0.0.4"})

    return handle


def info(options: Options, kind: str) -> dict[str, object]:
    """The body of /info."""
    labels = ["LABEL_0"] if kind == "reranker" else [f"LABEL_{i}" for i in range(3)]
    model_type: dict[str, object]
    if kind in ("embedding", "splade"):
        model_type = {"embedding": {"pooling": options.pooling.replace("-", "_")}}
    else:
        names = {str(i): label for i, label in enumerate(labels)}
        model_type = {kind: {"id2label": names, "label2id": {label: i for i, label in enumerate(labels)}}}
    return {
        "model_id": options.model_id,
        "model_sha": options.model_sha,
        "model_dtype": options.dtype,
        "served_model_name": options.served_model_name or options.model_id,
        "model_type": model_type,
        "max_concurrent_requests": options.max_concurrent_requests,
        "max_input_length": options.script.max_input_length,
        "max_batch_tokens": options.max_batch_tokens,
        "max_batch_requests": options.max_batch_requests,
        "max_client_batch_size": options.max_client_batch_size,
        "auto_truncate": options.auto_truncate,
        "tokenization_workers": options.tokenization_workers,
        "version": options.version,
        "sha": None,
        "docker_label": "testing-engine",
    }


def _id_lists(body: Body) -> tuple[list[list[int]], bool]:
    rows, batch = body.inputs("ids")
    if not all(isinstance(row, list) for row in rows):
        raise Unreadable(422, "Failed to deserialize the JSON body into the target type: ids: expected integers")
    return [row for row in rows if isinstance(row, list)], batch


def _wants_binary(accept: str) -> bool:
    """Whether rows of float32 are preferred to JSON: by q, `*/*` counting as JSON."""
    weights = {"application/octet-stream": 0.0, "application/json": 0.0, "*/*": 0.0}
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind in weights:
            weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
            weights[kind] = float(weight) if weight.replace(".", "", 1).isdigit() else 0.0
    return weights["application/octet-stream"] > max(weights["application/json"], weights["*/*"])


def _binary(answer: Timed[list[list[float]]]) -> Response:
    rows = answer.value
    headers = cost_headers(answer) | {
        "content-type": "application/octet-stream",
        "x-embedding-shape": f"{len(rows)},{len(rows[0])}",
        "x-embedding-dtype": "f32",
    }
    return Response(200, b"".join(little_endian(row) for row in rows), headers)
