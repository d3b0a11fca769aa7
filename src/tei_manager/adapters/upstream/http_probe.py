"""Questions to an engine over HTTP."""

from __future__ import annotations

import asyncio
import json
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from http import HTTPStatus

import aiohttp
import yarl

from tei_manager.adapters.upstream import refusals
from tei_manager.ports.prober import Seen

IDLE_SECS = 75.0  # longer than usual pauses between liveness rounds, so that the connection is kept
_BODY_BYTES = 1 << 20
_PAGE_BYTES = 4 << 20
_WORD = "hello"
# one tiny request per kind of model: the first that fits is the warm-up
WARM_UPS: tuple[tuple[str, object], ...] = (
    ("/embed", {"inputs": _WORD}),
    ("/embed_sparse", {"inputs": _WORD}),
    ("/predict", {"inputs": _WORD}),
    ("/rerank", {"query": _WORD, "texts": [_WORD]}),
)
# what says in OpenAI's dialect that a model is of another kind, or that this server has no such route
_OTHER_KIND = {400, 404, 405, 422, 501}


class HttpProbe:
    """One kept-open connection per address. Raises nothing for what the engine does, and sets no time limit."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, int], aiohttp.ClientSession] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def get(self, host: str, port: int, path: str, *, key: str | None) -> Seen:
        """Whether `path` answers 2xx."""
        return (await self._ask(host, port, "GET", path, None, key))[1]

    async def page(self, host: str, port: int, path: str, *, key: str | None) -> bytes | None:
        """What `path` answers, whole; None if that is not 200, larger than 4 MiB, or no answer."""
        try:
            async with self._request(host, port, "GET", path, None, key) as response:
                if response.status != 200:
                    return None
                body = await _read(response, _PAGE_BYTES)
        except (aiohttp.ClientError, OSError, ValueError):
            return None
        return body if len(body) <= _PAGE_BYTES else None

    async def warm_up(self, host: str, port: int, *, key: str | None) -> Seen:
        """One real request, of whichever kind fits the model."""
        seen = Seen(False)
        for path, body in WARM_UPS:
            status, seen = await self._ask(host, port, "POST", path, body, key)
            if status != 424 or not seen.caller_fault:
                break
        return seen

    async def openai_warm_up(self, host: str, port: int, model: str | None, *, key: str | None) -> Seen:
        """One real request: a vector, else one token. A server that offers neither (a reranker) is warm, too."""
        status, seen = await self._ask(host, port, "POST", "/v1/embeddings", {"model": model, "input": _WORD}, key)
        if status in _OTHER_KIND:
            body = {"model": model, "prompt": _WORD, "max_tokens": 1}
            status, seen = await self._ask(host, port, "POST", "/v1/completions", body, key)
        return replace(seen, caller_fault=seen.caller_fault or status == HTTPStatus.NOT_IMPLEMENTED)

    def forget(self, host: str, port: int) -> None:
        """Close the connection to an address that is not asked any more."""
        if (session := self._sessions.pop((host, port), None)) is not None:
            task = asyncio.get_running_loop().create_task(session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for host, port in tuple(self._sessions):
            self.forget(host, port)
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _ask(
        self, host: str, port: int, method: str, path: str, values: object, key: str | None
    ) -> tuple[int | None, Seen]:
        """Status, None without one, and what it means."""
        try:
            async with self._request(host, port, method, path, values, key) as response:
                text = refusals.text_of(await _read(response, _BODY_BYTES))
                return response.status, _meaning(response.status, text)
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, ConnectionRefusedError)
            return None, Seen(False, _reason(error.os_error, "cannot connect"), refused=refused)
        except (aiohttp.ServerDisconnectedError, ConnectionError):
            return None, Seen(False, "closed the connection without an answer")
        except (aiohttp.ClientOSError, aiohttp.ClientPayloadError):
            return None, Seen(False, "broke off its answer")
        except (aiohttp.ClientError, ValueError):
            return None, Seen(False, "does not speak HTTP")

    def _request(
        self, host: str, port: int, method: str, path: str, values: object, key: str | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        headers = {"Accept": "*/*"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        body = None
        if values is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(values).encode()
        url = yarl.URL(f"http://{address}{path}", encoded=True)
        return self._session(host, port).request(method, url, data=body, headers=headers, allow_redirects=False)

    def _session(self, host: str, port: int) -> aiohttp.ClientSession:
        if (session := self._sessions.get((host, port))) is None:
            session = self._sessions[host, port] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECS),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # an engine is next door: no proxy
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            )
        return session


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body; of one that is larger than `most` bytes, a little more than that."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            response.close()  # not kept open: the rest would have to be read first
            break
    return b"".join(chunks)


def _meaning(status: int, text: str) -> Seen:
    if 200 <= status < 300:
        return Seen(True)
    # 424 is TEI's Backend error: our fault only if the model is of another kind
    caller_fault = 400 <= status < 500 and (status != 424 or refusals.is_wrong_kind(text))
    shown = text if status == 503 and text else f"HTTP {status}" + (f": {text}" if text else "")
    return Seen(False, shown, caller_fault=caller_fault)


def _reason(error: OSError, otherwise: str) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or otherwise
