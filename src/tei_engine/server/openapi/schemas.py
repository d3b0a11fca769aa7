"""JSON Schemas of requests and answers, as OpenAPI 3.1 components. Examples are real: tests send them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A reference to the component `name`."""
    return {"$ref": f"#/components/schemas/{name}"}


def _array(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    bounds = {"minItems": least} if least else {}
    return {"type": "array", "items": items} | bounds | ({} if most is None else {"maxItems": most})


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None, **more: Any) -> Schema:
    properties = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": properties} | more


def _flag(default: bool, meaning: str) -> Schema:
    return {"type": "boolean", "default": default, "description": meaning}


_LARGEST = 2**32 - 1
_UINT: Schema = {"type": "integer", "minimum": 0, "maximum": _LARGEST}
_FLOAT: Schema = {"type": "number", "format": "float"}
_TEXT: Schema = {"type": "string", "minLength": 1}
_ANY_TEXT: Schema = {"type": "string"}
_OR_NULL: Schema = {"type": ["string", "null"]}
_IDS = _array(_UINT, least=1)
_VECTOR = _array(_FLOAT)
_INPUTS: Schema = {
    "description": "A text; a list of token ids, used as given; or a list of texts and lists of ids: a batch.",
    "anyOf": [_TEXT, _IDS, _array({"anyOf": [_TEXT, _IDS]}, least=1)],
}

_TRUNCATION: dict[str, Schema] = {
    "truncate": {
        "type": ["boolean", "null"],
        "description": "Cut inputs that are too long instead of refusing them. Null: as the server was started.",
    },
    "truncation_direction": {
        "type": "string",
        "enum": ["left", "Left", "right", "Right"],
        "default": "right",
        "description": "The side that is cut off.",
    },
}
_TEXT_OPTIONS: dict[str, Schema] = _TRUNCATION | {
    "prompt_name": {
        "type": ["string", "null"],
        "description": "The name of the model's prompt that is put before every input.",
    },
}
_DIMENSIONS: Schema = {
    "type": ["integer", "null"],
    "minimum": 1,
    "maximum": _LARGEST,
    "description": "Cut vectors to so many numbers, then normalise. At most the model's own size.",
}
_RAW_SCORES = _flag(False, "Logits instead of probabilities.")
_IGNORED: Schema = {"type": ["string", "null"], "description": "Ignored."}

_REQUESTS: dict[str, Schema] = {
    "EmbedRequest": _object(
        {"inputs": _INPUTS},
        _TEXT_OPTIONS | {"normalize": _flag(True, "Make vectors unit length."), "dimensions": _DIMENSIONS},
        examples=[{"inputs": ["What is deep learning?", [5, 6, 7]], "truncate": True}],
    ),
    "EmbedTokensRequest": _object(
        {"inputs": _INPUTS}, _TEXT_OPTIONS, examples=[{"inputs": "What is deep learning?"}]
    ),
    "PredictRequest": _object(
        {
            "inputs": {
                "description": "A text; one text or a pair that is read together, in a list; or a batch of those.",
                "anyOf": [
                    _TEXT,
                    _array(_ANY_TEXT, least=1, most=2),
                    _array(_array(_ANY_TEXT, least=1, most=2), least=1),
                ],
            }
        },
        _TRUNCATION | {"raw_scores": _RAW_SCORES},
        examples=[{"inputs": [["I like you."], ["Paris", "is a city."]]}],
    ),
    "RerankRequest": _object(
        {"query": _ANY_TEXT, "texts": _array(_ANY_TEXT, least=1)},
        _TRUNCATION
        | {"raw_scores": _RAW_SCORES, "return_text": _flag(False, "Repeat each text beside its score.")},
        examples=[
            {
                "query": "What is deep learning?",
                "texts": ["Deep learning is a field.", "Cheese is made of milk."],
                "return_text": True,
            }
        ],
    ),
    "SimilarityRequest": _object(
        {"inputs": _object({"source_sentence": _TEXT, "sentences": _array(_TEXT, least=1)})},
        {"parameters": {"type": ["object", "null"], "properties": _TEXT_OPTIONS}},
        examples=[{"inputs": {"source_sentence": "a cat", "sentences": ["a dog", "a stone"]}}],
    ),
    "TokenizeRequest": _object(
        {"inputs": {"anyOf": [_TEXT, _array(_TEXT, least=1)]}},
        {
            "add_special_tokens": _flag(True, "Put the model's own marks around the text."),
            "prompt_name": _TEXT_OPTIONS["prompt_name"],
        },
        examples=[{"inputs": "What is deep learning?"}],
    ),
    "DecodeRequest": _object(
        {"ids": {"anyOf": [_IDS, _array(_IDS, least=1)]}},
        {"skip_special_tokens": _flag(True, "Leave the model's own marks out of the text.")},
        examples=[{"ids": [5, 6, 7]}],
    ),
    "OpenAIEmbedRequest": _object(
        {"input": _INPUTS},
        {
            "model": _IGNORED,
            "user": _IGNORED,
            "encoding_format": {
                "type": "string",
                "enum": ["float", "base64"],
                "default": "float",
                "description": "`base64`: little-endian float32 numbers.",
            },
            "dimensions": _DIMENSIONS,
        },
        examples=[{"input": ["What is deep learning?"], "encoding_format": "float"}],
    ),
    "DocumentsRequest": _object(
        {
            "query": _ANY_TEXT,
            "documents": _array({"anyOf": [_ANY_TEXT, _object({"text": _ANY_TEXT})]}, least=1),
        },
        {
            "top_n": {
                "type": "integer",
                "minimum": 1,
                "maximum": _LARGEST,
                "description": "Answer only the best.",
            },
            "return_documents": _flag(False, "Repeat each document beside its score."),
            "model": _IGNORED,
        },
        examples=[
            {
                "query": "What is deep learning?",
                "documents": ["Deep learning is a field.", {"text": "Cheese is made of milk."}],
                "top_n": 1,
            }
        ],
    ),
    "AnyRequest": {
        "description": "What the route of this model's kind takes.",
        "anyOf": [ref(f"{kind}Request") for kind in ("Embed", "EmbedTokens", "Predict", "Rerank", "Similarity")],
    },
    "VertexRequest": _object({"instances": _array(ref("AnyRequest"))}),
}

_PREDICTIONS = _array(_object({"score": _FLOAT, "label": _ANY_TEXT}), least=1)
_USAGE = _object({"prompt_tokens": _UINT, "total_tokens": _UINT})
_BYTES: Schema = {"type": "integer", "minimum": 0}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_LABELS: Schema = _object(
    {
        "id2label": {"type": "object", "additionalProperties": _ANY_TEXT},
        "label2id": {"type": "object", "additionalProperties": _UINT},
    }
)

_ANSWERS: dict[str, Schema] = {
    "Embeddings": _array(_VECTOR, least=1) | {"examples": [[[0.6, -0.8]]]},
    "TokenEmbeddings": _array(_array(_VECTOR, least=1), least=1) | {"examples": [[[[0.3, 1.7], [-0.2, 0.9]]]]},
    "SparseEmbeddings": _array(_array(_object({"index": _UINT, "value": _FLOAT})), least=1)
    | {"examples": [[[{"index": 2784, "value": 1.25}]]]},
    "Predictions": {
        "description": "By falling score; in a list for a batch.",
        "anyOf": [_PREDICTIONS, _array(_PREDICTIONS, least=1)],
        "examples": [[{"score": 0.9, "label": "positive"}, {"score": 0.1, "label": "negative"}]],
    },
    "Ranks": _array(_object({"index": _UINT, "score": _FLOAT}, {"text": _ANY_TEXT}), least=1)
    | {
        "description": "By falling score.",
        "examples": [[{"index": 0, "score": 0.98}, {"index": 1, "score": 0.02}]],
    },
    "Similarities": _array(_FLOAT, least=1) | {"description": "Cosines, in order.", "examples": [[0.71, 0.12]]},
    "Tokens": _array(
        _array(
            _object(
                {
                    "id": _UINT,
                    "text": _ANY_TEXT,
                    "special": {"type": "boolean"},
                    "start": {"type": ["integer", "null"], "minimum": 0},
                    "stop": {"type": ["integer", "null"], "minimum": 0},
                }
            )
        ),
        least=1,
    )
    | {
        "description": "`start` and `stop` are bytes of the text in UTF-8; null for the model's own marks.",
        "examples": [[[{"id": 2054, "text": "What", "special": False, "start": 0, "stop": 4}]]],
    },
    "Texts": _array(_ANY_TEXT, least=1) | {"examples": [["what is deep learning?"]]},
    "OpenAIEmbeddings": _object(
        {
            "object": {"const": "list"},
            "data": _array(
                _object(
                    {
                        "object": {"const": "embedding"},
                        "embedding": {
                            "anyOf": [_VECTOR, {"type": "string", "contentEncoding": "base64", "minLength": 4}]
                        },
                        "index": _UINT,
                    }
                ),
                least=1,
            ),
            "model": _ANY_TEXT,
            "usage": _USAGE,
        },
        examples=[
            {
                "object": "list",
                "data": [{"object": "embedding", "embedding": [0.6, -0.8], "index": 0}],
                "model": "acme/tiny",
                "usage": {"prompt_tokens": 7, "total_tokens": 7},
            }
        ],
    ),
    "RankedDocuments": _object(
        {
            "id": _TEXT,
            "model": _ANY_TEXT,
            "results": _array(
                _object({"index": _UINT, "relevance_score": _FLOAT}, {"document": _object({"text": _ANY_TEXT})}),
                least=1,
            ),
            "usage": _USAGE,
            "meta": _object(
                {
                    "api_version": _object({"version": {"enum": ["1", "2"]}}),
                    "billed_units": _object({"search_units": _UINT}),
                }
            ),
        },
        examples=[
            {
                "id": "8d6b3f0e-6c55-4a0e-9a51-1c3f0f2f4f55",
                "model": "acme/tiny",
                "results": [{"index": 0, "relevance_score": 0.98}],
                "usage": {"prompt_tokens": 19, "total_tokens": 19},
                "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
            }
        ],
    ),
    "AnyAnswer": {
        "anyOf": [
            ref(name) for name in ("Embeddings", "SparseEmbeddings", "Predictions", "Ranks", "Similarities")
        ],
    },
    "VertexAnswer": _object({"predictions": _array(ref("AnyAnswer"))}),
    "ModelCard": _object(
        {
            "id": _TEXT,
            "object": {"const": "model"},
            "created": {"type": "integer", "description": "Start of the process, seconds since 1970."},
            "owned_by": {"const": "tei-engine"},
            "root": _TEXT,
        }
    ),
    "ModelCards": _object({"object": {"const": "list"}, "data": _array(ref("ModelCard"), least=1)}),
    "ModelType": {
        "oneOf": [
            _object({"embedding": _object({"pooling": {"enum": ["cls", "mean", "splade", "last_token"]}})}),
            _object({"classifier": _LABELS}),
            _object({"reranker": _LABELS}),
        ]
    },
    "Info": _object(
        {
            "model_id": _TEXT,
            "model_sha": _OR_NULL,
            "model_dtype": _TEXT,
            "served_model_name": _TEXT,
            "model_type": ref("ModelType"),
            "max_concurrent_requests": _COUNT,
            "max_input_length": _COUNT,
            "max_batch_tokens": _COUNT,
            "max_batch_requests": {"type": ["integer", "null"], "minimum": 1},
            "max_client_batch_size": _COUNT,
            "auto_truncate": {"type": "boolean"},
            "tokenization_workers": _COUNT,
            "version": _TEXT | {"description": "The protocol's: that of text-embeddings-router."},
            "sha": _OR_NULL,
            "docker_label": _OR_NULL,
            "engine": ref("Engine"),
        }
    ),
    "Engine": _object(
        {
            "name": {"const": "tei-engine"},
            "version": _TEXT,
            "backend": _TEXT,
            "graph": {"enum": ["native", "onnx"]},
            "file": _OR_NULL,
            "quantize": {"enum": ["none", "int8"]},
            "quantize_cosine": {"anyOf": [{"type": "null"}, _object({"min": _FLOAT, "mean": _FLOAT})]},
            "embedding_dimension": {"type": ["integer", "null"], "minimum": 1},
            "vocab_size": _COUNT,
            "execution_providers": _array(_TEXT, least=1),
            "compute_workers": _COUNT,
            "intra_op_threads": _COUNT,
            "run_tokens": _COUNT,
            "grpc_port": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
            "footprint": _object(
                {"weights_bytes": _BYTES, "rss_bytes": _BYTES, "peak_rss_bytes": _BYTES},
            ),
            "load_seconds": {"type": "number", "minimum": 0},
        }
    ),
    "Document": {"type": "object", "description": "An OpenAPI document."},
}

COMPONENTS: dict[str, Schema] = _REQUESTS | _ANSWERS
"""Name → schema of everything but errors, which follow from the error table."""
