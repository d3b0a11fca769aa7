"""The OpenAPI document: which routes there are, what they take, what they answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import tei_engine
from tei_engine.errors import ErrorKind
from tei_engine.server import error_table, http_reply
from tei_engine.server.openapi.schemas import COMPONENTS, Schema, ref

Content = dict[str, Any]

_TEXT_PLAIN: Content = {"text/plain": {"schema": {"type": "string"}}}
_TOKENIZING = (ErrorKind.EMPTY, ErrorKind.VALIDATION, ErrorKind.TOKENIZER, ErrorKind.BACKEND, ErrorKind.UNHEALTHY)
_COMPUTING = (*_TOKENIZING, ErrorKind.OVERLOADED)
_DESCRIBING = (ErrorKind.UNHEALTHY, ErrorKind.BACKEND)

_ERROR_MEANINGS = {
    400: "Nothing was given, or (plain text) the body is not JSON",
    422: "An input cannot be taken, or (plain text) the JSON has another shape",
    424: "The model cannot answer this",
    429: "More inputs are in flight than the server takes",
    503: "Loading, shutting down or unhealthy",
}

_COST = {
    "x-compute-type": ({"type": "string"}, "What computed the answer."),
    "x-compute-time": ({"type": "integer", "minimum": 0}, "Milliseconds since the request was read."),
    "x-total-time": ({"type": "integer", "minimum": 0}, "The same."),
    "x-compute-characters": ({"type": "integer", "minimum": 0}, "Characters of all inputs; an id counts as one."),
    "x-compute-tokens": ({"type": "integer", "minimum": 0}, "Tokens of all inputs, after they were cut."),
    "x-tokenization-time": ({"type": "integer", "minimum": 0}, "Milliseconds, mean over the inputs."),
    "x-queue-time": ({"type": "integer", "minimum": 0}, "Milliseconds, mean over the inputs."),
    "x-inference-time": ({"type": "integer", "minimum": 0}, "Milliseconds, mean over the inputs."),
}
_EMBEDDING_ROWS = {
    "x-embedding-shape": ({"type": "string", "pattern": "^[0-9]+,[0-9]+$"}, "Rows, columns; of bytes only."),
    "x-embedding-dtype": ({"const": "f32"}, "Little-endian; of bytes only."),
}


@dataclass(frozen=True, slots=True)
class _Route:
    """One method of one or several paths that mean the same. `answer`: a component's name, or a content type."""

    method: str
    paths: tuple[str, ...]
    tag: str
    summary: str
    answer: str | None = None
    request: str | None = None
    description: str = ""
    failures: tuple[ErrorKind, ...] = ()
    is_open: bool = False
    """Whether it asks for no key."""
    has_cost: bool = False
    has_bytes: bool = False
    """Whether vectors also come as bytes."""
    parameters: tuple[Schema, ...] = ()


def _computed(path: str, summary: str, *, request: str, answer: str, **more: Any) -> _Route:
    """A route of a model's own."""
    return _Route(
        "post",
        (path,),
        _MODELS,
        summary,
        answer=answer,
        request=request,
        failures=_COMPUTING,
        has_cost=True,
        **more,
    )


def _compatible(paths: tuple[str, ...], summary: str, *, request: str, answer: str, **more: Any) -> _Route:
    """A route in the shape of another API."""
    return _Route(
        "post", paths, _OTHERS, summary, answer=answer, request=request, failures=_COMPUTING, has_cost=True, **more
    )


def _described(path: str, tag: str, summary: str, *, answer: str, **more: Any) -> _Route:
    """A route that tells what is served."""
    return _Route("get", (path,), tag, summary, answer=answer, failures=_DESCRIBING, **more)


_MODELS = "Models"
_TOKENIZER = "Tokenizer"
_OTHERS = "Other APIs"
_OPERATIONS = "Operations"
_MODEL_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}

_ROUTES = (
    _computed(
        "/embed",
        "One vector per input",
        request="EmbedRequest",
        answer="Embeddings",
        description="With `Accept: application/octet-stream`: rows of little-endian float32 numbers.",
        has_bytes=True,
    ),
    _computed("/embed_all", "Vectors of every token", request="EmbedTokensRequest", answer="TokenEmbeddings"),
    _computed("/embed_sparse", "Weighted words", request="EmbedTokensRequest", answer="SparseEmbeddings"),
    _computed("/predict", "Labels of texts or pairs", request="PredictRequest", answer="Predictions"),
    _computed("/rerank", "Texts ranked against a query", request="RerankRequest", answer="Ranks"),
    _computed("/similarity", "Cosines with a sentence", request="SimilarityRequest", answer="Similarities"),
    _Route(
        "post",
        ("/", "/invocations"),
        _MODELS,
        "The route that fits the model",
        answer="AnyAnswer",
        request="AnyRequest",
        description="`/embed`, `/embed_sparse`, `/predict` or `/rerank`; or `/similarity`, where told so.",
        failures=_COMPUTING,
        has_cost=True,
        has_bytes=True,
    ),
    _Route(
        "post",
        ("/vertex",),
        _MODELS,
        "Several requests in one",
        answer="VertexAnswer",
        request="VertexRequest",
        description="Each of the route that fits the model.",
        failures=_COMPUTING,
    ),
    _Route(
        "post",
        ("/tokenize",),
        _TOKENIZER,
        "Tokens and their places",
        answer="Tokens",
        request="TokenizeRequest",
        description="Texts are never cut.",
        failures=_TOKENIZING,
    ),
    _Route(
        "post",
        ("/decode",),
        _TOKENIZER,
        "Texts of token ids",
        answer="Texts",
        request="DecodeRequest",
        failures=_TOKENIZING,
    ),
    _compatible(
        ("/v1/embeddings", "/embeddings"),
        "Embeddings in OpenAI's shape",
        request="OpenAIEmbedRequest",
        answer="OpenAIEmbeddings",
    ),
    _compatible(
        ("/v1/rerank", "/v2/rerank"),
        "Ranks in Cohere's and Jina's shape",
        request="DocumentsRequest",
        answer="RankedDocuments",
        description="Scores are probabilities. Further keys of those services are ignored.",
    ),
    _described("/v1/models", _OTHERS, "The served model, in a list", answer="ModelCards"),
    _described(
        "/v1/models/{id}",
        _OTHERS,
        "The served model",
        answer="ModelCard",
        description="Slashes in the id may be written as they are.",
        parameters=(_MODEL_ID,),
    ),
    _described("/info", _OPERATIONS, "What is served, and by what", answer="Info"),
    _Route(
        "get",
        ("/health", "/", "/ping"),
        _OPERATIONS,
        "Whether requests are welcome",
        description="200 with an empty body when the model is loaded and computes.",
        failures=(ErrorKind.UNHEALTHY,),
        is_open=True,
    ),
    _Route("get", ("/metrics",), _OPERATIONS, "Metrics for Prometheus", answer="text/plain", is_open=True),
    _Route("get", ("/api-doc/openapi.json",), _OPERATIONS, "This document", answer="Document", is_open=True),
    _Route("get", ("/docs",), _OPERATIONS, "This document as a page", answer="text/html", is_open=True),
)

_DESCRIPTION = """\
Embeddings, token vectors, sparse vectors, labels and ranks, in the protocol of text-embeddings-router and in the
shapes of other APIs.

An unknown path is answered 404, another method of a known path 405, both with an empty body. `GET` routes also
answer `HEAD`. A body must be called JSON: `application/json` or `application/*+json`. Unknown keys are ignored.

Errors that come before a request is understood are plain text, all others JSON. In a batch, errors name the `row`
of the first failing input.
"""


@cache
def document(*, guarded: bool) -> dict[str, Any]:
    """The whole document; `guarded` = a key is asked for. It is shared: not to be changed."""
    components: dict[str, Any] = {"schemas": COMPONENTS | _error_schemas(), "headers": _headers()}
    if guarded:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    paths: dict[str, Any] = {}
    for route in _ROUTES:
        for path in route.paths:
            paths.setdefault(path, {})[route.method] = _operation(route, path, guarded=guarded)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tei-engine",
            "version": tei_engine.__version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }


def _operation(route: _Route, path: str, *, guarded: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "tags": [route.tag],
        "summary": route.summary,
        "operationId": _operation_id(route.method, path),
    }
    if route.description:
        shown["description"] = route.description
    if route.parameters:
        shown["parameters"] = list(route.parameters)
    if guarded and not route.is_open:
        shown["security"] = [{"bearer": []}]
    if route.request is not None:
        shown["requestBody"] = {"required": True, "content": _json(route.request)}
    return shown | {"responses": dict(sorted(_responses(route, guarded=guarded)))}


def _operation_id(method: str, path: str) -> str:
    words = path.translate(str.maketrans("/-.", "   ", "{}")).split()
    return "_".join([method, *words])


def _responses(route: _Route, *, guarded: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    good: dict[str, Any] = {"description": "The answer"}
    if content := _answer(route):
        good["content"] = content
    names = [*(_COST if route.has_cost else ()), *(_EMBEDDING_ROWS if route.has_bytes else ())]
    if names:
        good["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    yield "200", good
    for status, content in _failures(route).items():
        bad: dict[str, Any] = {"description": _ERROR_MEANINGS[status], "content": content}
        if status in error_table.RETRY_AFTER:
            bad["headers"] = {"retry-after": {"$ref": "#/components/headers/retry-after"}}
        yield str(status), bad
    if guarded and not route.is_open:
        yield "401", {"description": "The key is missing or another; the body is empty"}
    if route.method == "post":
        yield "413", {"description": "The body is too large", "content": _TEXT_PLAIN}
        yield "415", {"description": "The body is not called JSON", "content": _TEXT_PLAIN}
    if route.parameters:
        yield (
            "404",
            {"description": "Not this model", "content": {"application/json": {"schema": ref("NotFound")}}},
        )


def _answer(route: _Route) -> Content:
    if route.answer is None:
        return {}
    if "/" in route.answer:
        return {route.answer: {"schema": {"type": "string"}}}
    # of bytes there is no schema: an empty media type is OpenAPI's way to say so
    return _json(route.answer) | ({"application/octet-stream": {}} if route.has_bytes else {})


def _failures(route: _Route) -> dict[int, Content]:
    """Status → content. Errors of the framework share a status with ours, as plain text."""
    is_openai = route.paths[0].startswith(http_reply.OPENAI_PREFIXES)
    shown: dict[int, Content] = {}
    for kind in route.failures:
        status = error_table.HTTP_STATUS[kind]
        shown[status] = {"application/json": {"schema": ref(_error_name(status, is_openai=is_openai))}}
    if route.method == "post":
        for status in (400, 422):
            shown[status] = shown.get(status, {}) | _TEXT_PLAIN
    return shown


def _json(component: str) -> Content:
    content: dict[str, Any] = {"schema": ref(component)}
    if examples := COMPONENTS[component].get("examples"):
        content["example"] = examples[0]
    return {"application/json": content}


def _error_name(status: int, *, is_openai: bool) -> str:
    return f"{'OpenAI' if is_openai else ''}Error{status}"


def _error_schemas() -> dict[str, Schema]:
    """A schema per status and shape; the kinds of error that share a status share its schema."""
    schemas: dict[str, Schema] = {
        "NotFound": _closed({"message": {"type": "string"}, "code": {"const": 404}, "type": {"const": "NotFound"}})
    }
    for status in sorted(set(error_table.HTTP_STATUS.values())):
        kinds = [
            kind.value
            for kind, found in error_table.HTTP_STATUS.items()
            if found == status and kind is not ErrorKind.DEADLINE  # that is gRPC's
        ]
        message: Schema = {"type": "string", "minLength": 1}
        kind: Schema = {"enum": kinds}
        schemas[_error_name(status, is_openai=False)] = _closed({"error": message, "error_type": kind})
        schemas[_error_name(status, is_openai=True)] = _closed(
            {"message": message, "code": {"const": status}, "type": kind}
        )
    return schemas


def _closed(properties: dict[str, Schema]) -> Schema:
    row: Schema = {"type": "integer", "minimum": 0, "description": "The first failing input of a batch."}
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties | {"row": row},
        "additionalProperties": False,
    }


def _headers() -> dict[str, Any]:
    seconds = ({"type": "integer", "minimum": 0}, "Seconds to wait before the next try.")
    known = _COST | _EMBEDDING_ROWS | {"retry-after": seconds}
    return {
        name: {"description": meaning, "schema": schema, "required": name not in _EMBEDDING_ROWS}
        for name, (schema, meaning) in known.items()
    }
