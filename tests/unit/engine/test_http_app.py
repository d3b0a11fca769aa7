"""What surrounds the routes, without a socket: faults of ours, and who hears of them."""

import json
import logging
import re

import pytest

from tei_engine.server.http_app import HttpApp
from tei_engine.server.service import Phase, Service
from tei_engine.server.settings import read_settings


@pytest.fixture
def service():
    one = Service(read_settings(["--model-id", "x"], {}))
    one.phase = Phase.READY
    return one


async def post(service, path, body):
    """Status and body of one request."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent = []

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await HttpApp(service)(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


class Broken:
    """A model that cannot even be asked."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name} here")


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
async def test_a_fault_of_ours_costs_one_answer(service, monkeypatch, caplog, path):
    monkeypatch.setattr(service, "_loaded", Broken())
    with caplog.at_level(logging.ERROR):
        status, body = await post(service, path, {"inputs": "a", "input": "a"})
    message = body["error"] if path == "/embed" else body["message"]
    assert status == 424
    assert (body.get("error_type") or body["type"]) == "Backend"
    number = re.fullmatch(r"internal error ([0-9a-f]{12})", message)[1]
    [record] = [one for one in caplog.records if number in one.getMessage()]
    assert "no pipeline here" in str(record.exc_info[1])
    assert 'te_request_failure{err="inference"} 1' in service.metrics.render().decode()


async def test_a_fault_outside_of_a_request_to_the_model_too(service, monkeypatch):
    monkeypatch.setattr(service, "_loaded", Broken())
    status, body = await post(service, "/tokenize", {"inputs": "a"})
    assert (status, body["error_type"]) == (424, "Backend")
    assert body["error"].startswith("internal error ")
