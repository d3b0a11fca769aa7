"""The HTTP door without a socket: an in-memory fleet behind it, a caller in front."""

import asyncio
import json
from urllib.parse import unquote

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from tei_manager.adapters.telemetry.prometheus import PrometheusMetrics
from tei_manager.serving.providers.instances import Vectors
from tei_manager.surfaces.http.asgi import build_app
from tei_manager.surfaces.http.settings import HttpSettings
from tei_manager.testing.fleet import FakeFleet
from tei_manager.testing.journal import MemoryJournal


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.body = status, body
        self.headers = {name.decode(): value.decode() for name, value in headers}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """The code of an error, in whichever dialect."""
        error = self.json.get("error")
        return error["code"] if isinstance(error, dict) else self.json["code"]


class StubGateway:
    """Answers the n-th input with [n, 0.1], or with the error it was given."""

    def __init__(self):
        self.calls, self.error, self.tokens, self.hangs = [], None, 7, False
        self.was_cancelled = False

    async def embed(self, call):
        self.calls.append(call)
        if self.hangs:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.was_cancelled = True
                raise
        if self.error is not None:
            raise self.error
        rows = np.array([[n, 0.1] for n in range(len(call.inputs))], dtype=np.float32)
        return Vectors(rows, self.tokens)


class Door:
    def __init__(self, fleet=None, **settings):
        self.fleet = fleet or FakeFleet()
        self.gateway = StubGateway()
        self.metrics = PrometheusMetrics(CollectorRegistry(), version="1.2.3")
        self.metrics.watch(self.fleet.instances)
        self.journal = MemoryJournal()
        self.app = build_app(self.fleet, self.gateway, self.metrics, self.journal, HttpSettings(**settings))

    async def __call__(self, method, path, *, json_body=None, body=b"", headers=None, hang_up_after=None):
        sent = []
        headers = {"host": "localhost", **(headers or {})}
        if json_body is not None:
            body = json.dumps(json_body).encode()
            headers.setdefault("content-type", "application/json")
        chunks = list(body) if isinstance(body, list) else [body]
        path, _, query = path.partition("?")

        async def receive():
            if chunks:
                chunk = chunks.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
            await asyncio.sleep(60 if hang_up_after is None else hang_up_after)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        await self.app(scope, receive, send)
        if not sent:
            return None
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Reply(sent[0]["status"], sent[0]["headers"], body)


@pytest.fixture
def make_door():
    return Door


@pytest.fixture
def door():
    return Door()
