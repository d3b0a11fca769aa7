"""What a request held is free when it is answered: a body may be megabytes, a garbage collection far off."""

import asyncio
import gc
import json
import time
import types

import pytest

from tei_engine.batching.jobs import Entry, Job
from tei_engine.errors import RequestError
from tei_engine.server import life
from tei_engine.server.http_app import HttpApp
from tei_engine.server.service import Service
from tei_engine.server.settings import read_settings


@pytest.fixture
async def app(tiny_folder):
    arguments = ("--model-id", str(tiny_folder("bert-mean")), "--compute-workers", "1")
    settings = read_settings(arguments, {})
    service = Service(settings)
    await life._become_ready(service, await life._load(settings), time.perf_counter())
    app = HttpApp(service)
    await post(app, "/embed", {"inputs": "a"})  # a thread holds its last run until the next: no longer the warm-up
    yield app
    service.loaded.pipeline.close()


async def post(app, path, body):
    """The status of one request."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    statuses = []

    async def receive():
        if messages:
            return messages.pop()
        return await asyncio.Future()  # a client that waits for its answer

    async def send(message):
        statuses.append(message.get("status"))

    headers = [(b"content-type", b"application/json")]
    await app({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)
    return statuses[0]


def is_ours(one):
    if isinstance(one, types.FrameType):
        return "tei_engine" in one.f_code.co_filename
    return isinstance(one, Job | Entry | RequestError)


@pytest.fixture
def circles(app):
    """Objects that only a garbage collection finds; it stands still meanwhile."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def found():
        gc.collect()
        return list(filter(is_ours, gc.garbage))

    yield found
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/embed", {"inputs": ["hello", "a longer text"]}, 200),
        ("/embed_all", {"inputs": "hello"}, 200),
        ("/embed", {"inputs": "a " * 100, "truncate": False}, 422),
        ("/embed", {"inputs": ["fine", "x" * 20_000], "truncate": False}, 422),
        ("/embed", {"inputs": [[5], [9999]]}, 422),
        ("/embed", {"inputs": ""}, 400),
        ("/embed", {"inputs": 5}, 422),
        ("/tokenize", {"inputs": "x" * 20_000}, 422),
        ("/decode", {"ids": [5] * 20_000}, 422),
        ("/predict", {"inputs": "a"}, 424),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
async def test_a_request_leaves_no_circles(app, circles, path, body, status):
    for _ in range(3):
        assert await post(app, path, body) == status
    await asyncio.sleep(0.01)  # threads and callbacks let go of the last one
    assert not circles()
