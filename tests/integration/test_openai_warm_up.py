"""The first real request to servers that speak OpenAI's dialect, and what of their answers counts as warm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tei_manager.adapters.prober import EngineProber
from tei_manager.engines.base import Ask, Probe

HOST = "127.0.0.1"
VECTORS, TOKENS = "/v1/embeddings", "/v1/completions"


@asynccontextmanager
async def server(answers: Mapping[str, int]) -> AsyncIterator[tuple[int, list[tuple[str, Any, str | None]]]]:
    """A server with these statuses by path, 404 elsewhere; what it was asked: (path, body, authorization)."""
    asked: list[tuple[str, Any, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, await request.json(), request.headers.get("authorization")))
        status = answers.get(request.path, 404)
        return web.json_response({"error": {"message": f"status {status}"}}, status=status)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answers", "paths", "ok", "caller_fault"),
    [
        ({VECTORS: 200}, [VECTORS], True, False),
        ({VECTORS: 404, TOKENS: 200}, [VECTORS, TOKENS], True, False),  # vLLM with a model that generates
        ({VECTORS: 501, TOKENS: 200}, [VECTORS, TOKENS], True, False),  # llama-server with one
        ({VECTORS: 400, TOKENS: 400}, [VECTORS, TOKENS], False, True),  # a reranker of vLLM
        ({VECTORS: 501, TOKENS: 501}, [VECTORS, TOKENS], False, True),  # a reranker of llama-server
        ({VECTORS: 500}, [VECTORS], False, False),
        ({VECTORS: 503}, [VECTORS], False, False),
        ({VECTORS: 404, TOKENS: 500}, [VECTORS, TOKENS], False, False),
        ({VECTORS: 401}, [VECTORS], False, True),
    ],
)
async def test_what_is_asked_and_what_counts(
    answers: dict[str, int], paths: list[str], ok: bool, caller_fault: bool
) -> None:
    prober = EngineProber()
    async with server(answers) as (port, asked):
        probe = Probe(Ask.OPENAI_WARM_UP, port, VECTORS, "org/model")
        seen = await prober.ask(HOST, probe, timeout_secs=5, key="secret")
        await prober.close()
    assert [path for path, _, _ in asked] == paths
    assert (seen.ok, seen.caller_fault) == (ok, caller_fault)
    assert all(body["model"] == "org/model" and key == "Bearer secret" for _, body, key in asked)
