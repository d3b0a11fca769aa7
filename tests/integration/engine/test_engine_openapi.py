"""The served document says what the server does: its routes, its examples, and whatever a generator thinks up."""

import json
import re
from html.parser import HTMLParser

import pytest
import requests
import schemathesis
from hypothesis import given
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.integration.engine.fuzzing import SLOWER, assert_well, bounded

from tei_engine.server import error_table
from tei_engine.server.http_app import HttpApp
from tei_engine.server.openapi.document import document
from tei_engine.server.service import Service
from tei_engine.server.settings import read_settings

MODELS = {
    "embedding": "bert-mean",
    "reranker": "bert-reranker",
    "classifier": "bert-classifier",
    "splade": "bert-splade",
}
ANSWERING = {
    "embedding": {"/embed", "/embed_all", "/similarity", "/v1/embeddings", "/embeddings"},
    "reranker": {"/predict", "/rerank", "/v1/rerank", "/v2/rerank"},
    "classifier": {"/predict"},
    "splade": {"/embed_sparse"},
}
"""Kind of model → the routes that it answers; others say 424."""

BY_KIND = {"/", "/invocations", "/vertex"}
"""Routes whose bodies are another route's, by the kind of model: their examples fit one kind only."""

EXAMPLES = 6
KEY = {"authorization": "Bearer s3cret"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
CONFIG = {
    "generation": {"with-security-parameters": False},
    # 424: not this kind of model, which is said before texts are looked at
    "checks": {"negative_data_rejection": {"expected-statuses": ["400", "404", "413", "415", "422", "424"]}},
}


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def engine(kind, launch, tiny_folder):
    process = launch("--model-id", str(tiny_folder(MODELS[kind])), "--api-key", "s3cret")
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def schema(engine):
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_dict(engine.get("/api-doc/openapi.json").json, config=config)


@pytest.fixture(scope="module")
def send(engine):
    """Send a case on a connection that is kept, and check the answer against the document."""
    with requests.Session() as session:
        yield lambda case: case.call_and_validate(
            base_url=f"http://127.0.0.1:{engine.port}", session=session, headers=KEY, checks=CHECKS
        )


def operations(schema):
    return [found.ok() for found in schema.get_all_operations()]


async def test_the_document_names_every_route_and_no_other():
    app = HttpApp(Service(read_settings(["--model-id", "x"], {})))
    routes = {(path, method) for path, handlers in app._routes.items() for method in handlers}
    routes.add(("/v1/models/{id}", "GET"))  # its path holds a name, so no table has it
    documented = {
        (path, method.upper()) for path, methods in document(guarded=False)["paths"].items() for method in methods
    }
    assert documented == routes


def test_every_status_of_the_error_table_is_in_the_document():
    whole = document(guarded=True)
    ours = set(error_table.HTTP_STATUS.values())
    assert {int(status) for status in whole["paths"]["/embed"]["post"]["responses"]} == ours | {200, 401, 413, 415}
    assert ours < {int(status) for status in whole["paths"]["/v1/embeddings"]["post"]["responses"]}
    assert "401" not in document(guarded=False)["paths"]["/embed"]["post"]["responses"]
    kinds = whole["components"]["schemas"]["Error422"]["properties"]["error_type"]["enum"]
    assert kinds == ["Validation", "Tokenizer"]


def test_operation_ids_are_names_and_references_lead_somewhere():
    whole = document(guarded=True)
    ids = [operation["operationId"] for methods in whole["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    assert all(name.isidentifier() for name in ids)
    for target in re.findall(r'"\$ref": "#/components/([^"]+)"', json.dumps(whole)):
        part, name = target.split("/")
        assert name in whole["components"][part]


class Page(HTMLParser):
    """Which elements are open, what is linked, and whether anything would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.targets, self.fetched = [], set(), set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag not in ("meta", "html"):  # that of the document itself needs no end
            self.open.append(tag)
        self.links |= {named["href"]} if "href" in named else set()
        self.targets |= {f"#{named['id']}"} if "id" in named else set()
        self.fetched += [tag] * (tag in ("script", "link", "img", "iframe") or "src" in named)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_shows_every_route_and_fetches_nothing(engine):
    reply = engine.get("/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = Page(reply.body.decode())
    assert (page.open, page.fetched) == ([], [])
    assert page.links - {"api-doc/openapi.json"} <= page.targets
    for path in document(guarded=True)["paths"]:
        assert f"<code>{path}</code>" in reply.body.decode()


def test_the_document_is_open_to_everybody(engine):
    assert engine.get("/info").status == 401
    served = engine.get("/api-doc/openapi.json")
    assert served.headers["content-type"] == "application/json"
    assert served.json == document(guarded=True)


def test_the_document_is_there_while_the_model_is_not(launch, hub, tmp_path):
    hub.is_closed = True
    process = launch(
        *("--model-id", "acme/tiny", "--huggingface-hub-cache", str(tmp_path)), env={"HF_ENDPOINT": hub.url}
    )
    process.wait_for("Starting HTTP server")
    assert process.get("/health").status == 503
    assert process.get("/docs").status == 200
    assert process.get("/api-doc/openapi.json").json == document(guarded=False)
    assert process.stop() == 0


def test_examples_work(engine, kind, schema, send):
    for operation in operations(schema):
        body = operation.definition.raw.get("requestBody")
        if body is None or operation.path in BY_KIND:
            continue
        example = body["content"]["application/json"]["example"]
        reply = send(operation.Case(body=example, media_type="application/json"))
        answers = operation.path in ANSWERING[kind] | {"/tokenize", "/decode"}
        assert reply.status_code == (200 if answers else 424), (operation.label, reply.text)


def whole_numbers(value):
    """JSON Schema takes 1.0 for an integer; the protocol does not."""
    if isinstance(value, dict):
        return {key: whole_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole_numbers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_operation(operation, send, mode, examples):
    """How many requests were sent."""
    sent = 0

    @bounded(examples)
    @given(operation.as_strategy(mode))
    def check(case):
        nonlocal sent
        sent += 1
        if mode is GenerationMode.POSITIVE:
            case.body = whole_numbers(case.body)
        reply = send(case)
        if mode is GenerationMode.POSITIVE and operation.path not in BY_KIND:
            is_framework = reply.headers.get("content-type", [""])[0].startswith("text/plain")
            assert reply.status_code == 200 or not is_framework, reply.text

    check()
    return sent


def check_everything(schema, send, mode, examples):
    return sum(
        check_operation(operation, send, mode, examples)
        for operation in operations(schema)
        # of what takes nothing, nothing can be wrong; and what is wrong for one kind of model is right for another
        if mode is GenerationMode.POSITIVE or (operation.body and operation.path not in BY_KIND)
    )


@pytest.mark.parametrize("mode", GenerationMode)
def test_generated_requests(engine, schema, send, mode):
    assert check_everything(schema, send, mode, EXAMPLES) > 50
    assert_well(engine)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", GenerationMode)
def test_many_generated_requests(engine, schema, send, mode):
    check_everything(schema, send, mode, EXAMPLES * SLOWER)
    assert_well(engine)
