"""The OpenAI and rerank routes: /v1/embeddings, /v1/rerank, /v1/models, chat and text completions."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson

from tei_manager.testing.engine.answers import chat_words, little_endian
from tei_manager.testing.engine.command_line import Options
from tei_manager.testing.engine.conduct import Conduct, cost_headers
from tei_manager.testing.engine.faults import fault
from tei_manager.testing.engine.http_bodies import Body, json
from tei_manager.testing.engine.http_protocol import Request, Response
from tei_manager.testing.engine.imitation import Answer, Imitation

Route = Callable[[Request], Awaitable[Response]]


class OpenAI:
    """Routes that share the vectors and scores of the native ones."""

    def __init__(self, options: Options, imitation: Imitation, conduct: Conduct) -> None:
        self._options = options
        self._imitation = imitation
        self._conduct = conduct
        self._created = int(time.time())
        self._model = options.served_model_name or options.model_id

    def routes(self) -> dict[tuple[str, str], Route]:
        return {
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/embeddings"): self._embeddings,
            ("POST", "/v1/rerank"): self._rerank,
            ("POST", "/v2/rerank"): self._rerank,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/v1/completions"): self._completions,
        }

    async def _models(self, request: Request) -> Response:
        model = {
            "id": self._model,
            "object": "model",
            "created": self._created,
            "owned_by": "testing-engine",
            "root": self._options.model_id,
        }
        return json({"object": "list", "data": [model]})

    async def _embeddings(self, request: Request) -> Response:
        body = Body(request)
        inputs, batch = body.inputs("input")
        dimensions = body.count("dimensions")
        encoding = body.optional_text("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise fault("Validation", f"unknown encoding_format {encoding}")

        def work() -> Answer[list[list[float]]]:
            self._imitation.check_batch(len(inputs))
            truncate = self._options.auto_truncate
            rows = [self._imitation.embed(text, truncate=truncate, dimensions=dimensions) for text in inputs]
            vectors = [row.value for row in rows]
            return Answer(vectors, sum(row.characters for row in rows), sum(row.tokens for row in rows))

        method = "batch" if batch else "single"
        answer = await self._conduct.run(work, inputs=len(inputs), method=method, family="embed")
        data = [
            {
                "object": "embedding",
                "embedding": base64.b64encode(little_endian(row)).decode() if encoding == "base64" else row,
                "index": index,
            }
            for index, row in enumerate(answer.value)
        ]
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        body_out = {"object": "list", "data": data, "model": self._model, "usage": usage}
        return json(body_out, cost_headers(answer))

    async def _rerank(self, request: Request) -> Response:
        body = Body(request)
        query, documents = body.text("query"), _documents(body.required("documents"))
        top = body.count("top_n") or len(documents)
        with_text = body.flag("return_documents", False)
        answer = await self._conduct.run(
            lambda: self._imitation.rerank(
                query, documents, truncate=self._options.auto_truncate, raw_scores=False
            ),
            inputs=len(documents),
            method="batch",
            family="predict",
        )
        results = [
            {"index": index, "relevance_score": score}
            | ({"document": {"text": documents[index]}} if with_text else {})
            for index, score in answer.value[:top]
        ]
        version = "2" if request.path.startswith("/v2") else "1"
        body_out = {
            "id": f"rerank-{self._conduct.arrived}",
            "model": self._model,
            "results": results,
            "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
            "meta": {"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        }
        return json(body_out, cost_headers(answer))

    async def _chat(self, request: Request) -> Response:
        body = Body(request)
        prompt = _last_message(body.required("messages"))
        words, limited = await self._words(body, prompt)
        finish = "length" if limited else "stop"
        usage = _usage(prompt, words)
        if body.flag("stream", False):
            options = body.get("stream_options")
            with_usage = isinstance(options, dict) and options.get("include_usage") is True
            stream = self._stream(words, finish, usage if with_usage else None)
            return Response(200, stream, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return json(self._completion("chat.completion", choice) | {"usage": usage})

    async def _completions(self, request: Request) -> Response:
        body = Body(request)
        prompt = body.text("prompt")
        words, limited = await self._words(body, prompt)
        choice = {"index": 0, "text": " ".join(words), "finish_reason": "length" if limited else "stop"}
        return json(self._completion("text_completion", choice) | {"usage": _usage(prompt, words)})

    async def _words(self, body: Body, prompt: str) -> tuple[list[str], bool]:
        """The words of the answer, and whether `max_tokens` cut them short."""
        count = self._options.script.chat_chunks
        wanted = body.count("max_completion_tokens") or body.count("max_tokens")
        limit = count if wanted is None else min(count, wanted)
        marker = self._options.script.error_inputs

        def work() -> Answer[list[str]]:
            if marker and marker in prompt:
                raise fault("Validation", f"scripted error: the prompt contains {marker}")
            return Answer(chat_words(prompt, limit), len(prompt), len(prompt.split()))

        return (await self._conduct.run(work)).value, limit < count

    def _completion(self, kind: str, choice: dict[str, object]) -> dict[str, object]:
        return {
            "id": f"chatcmpl-{self._conduct.arrived}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": [choice],
        }

    async def _stream(self, words: list[str], finish: str, usage: dict[str, int] | None) -> AsyncIterator[bytes]:
        """One event per word, the end of the choice, the usage if asked for, `[DONE]`."""
        script = self._options.script
        for index, word in enumerate(words):
            if script.chat_die_after is not None and index >= script.chat_die_after:
                # the handler's exception closes the connection before the end mark
                raise ConnectionAbortedError("scripted end of a stream")
            if script.chat_chunk_every:
                await asyncio.sleep(script.chat_chunk_every)
            role = {"role": "assistant"} if index == 0 else {}
            yield self._event(role | {"content": word if index == 0 else f" {word}"}, None)
        yield self._event({}, finish)
        if usage:
            last = self._completion("chat.completion.chunk", {}) | {"choices": [], "usage": usage}
            yield b"data: " + orjson.dumps(last) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _event(self, delta: dict[str, str], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + orjson.dumps(self._completion("chat.completion.chunk", choice)) + b"\n\n"


def _documents(value: object) -> list[str]:
    """Texts, or objects with a `text`."""
    texts: list[str] = []
    for item in value if isinstance(value, list) else [None]:
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise fault("Validation", "`documents` must be texts or objects with a `text`")
        texts.append(text)
    return texts


def _last_message(messages: object) -> str:
    """The content of the last message: a text, or the text parts of a list."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        raise fault("Empty", "`messages` cannot be empty")
    content = messages[-1].get("content")
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def _usage(prompt: str, words: list[str]) -> dict[str, int]:
    asked = len(prompt.split())
    return {"prompt_tokens": asked, "completion_tokens": len(words), "total_tokens": asked + len(words)}
