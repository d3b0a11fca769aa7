"""Which flags the programs have: text-embeddings-router 1.7 to 1.9, and our own engine, which adds to them."""

from __future__ import annotations

from tei_manager.engines.flags import Flag, Owner, Table, Takes
from tei_manager.engines.version import Version

_OWN, _LIFT, _ENV, _SECRET = Owner.OWN, Owner.LIFT, Owner.ENV, Owner.SECRET
_NUMBER, _NOTHING = Takes.NUMBER, Takes.NOTHING

_ROUTER_FLAGS = (
    Flag(name="model-id", owner=_OWN),
    Flag(name="port", owner=_OWN, short="p"),
    Flag(name="hostname", owner=_OWN),
    Flag(name="max-batch-tokens", owner=_OWN),
    Flag(name="max-concurrent-requests", owner=_OWN),
    Flag(name="json-output", owner=_OWN, takes=_NOTHING),
    Flag(name="uds-path", owner=_OWN),
    Flag(name="prometheus-port", owner=_LIFT, field="prometheus_port", since=Version(1, 7, 1)),
    Flag(name="revision", owner=_LIFT, field="revision"),
    Flag(name="pooling", owner=_LIFT, field="pooling"),
    Flag(name="dtype", owner=_LIFT, field="dtype"),
    Flag(name="max-client-batch-size", takes=_NUMBER),
    Flag(name="max-batch-requests", takes=_NUMBER),
    Flag(name="default-prompt-name"),
    Flag(name="default-prompt"),
    Flag(name="dense-path", since=Version(1, 8, 0)),
    Flag(name="served-model-name", since=Version(1, 9, 0)),
    Flag(name="disable-spans", takes=_NOTHING),
    Flag(name="huggingface-hub-cache"),
    Flag(name="otlp-endpoint"),
    Flag(name="otlp-service-name"),
    Flag(name="cors-allow-origin", repeatable=True),
    Flag(name="tokenization-workers", owner=_ENV, takes=_NUMBER),
    Flag(name="payload-limit", owner=_ENV, takes=_NUMBER),
    # its argv spellings mean different things in different releases; the variable works in all
    Flag(name="auto-truncate", owner=_ENV, takes=Takes.MAYBE_BOOLEAN),
    Flag(name="api-key", owner=_SECRET),
    Flag(name="hf-token", owner=_SECRET),
)

_ENGINE_FLAGS = (
    Flag(name="grpc-port", owner=_OWN),
    Flag(name="model-source", owner=_OWN),
    Flag(name="drain-timeout", owner=_OWN),
    Flag(name="dry-run", owner=_OWN, takes=_NOTHING),
    Flag(name="backend"),
    Flag(name="execution-providers"),
    Flag(name="cuda-allow-tf32", takes=_NOTHING),
    Flag(name="compute-workers", takes=_NUMBER),
    Flag(name="intra-op-threads", takes=_NUMBER),
    Flag(name="quantize"),
    Flag(name="onnx-file"),
    Flag(name="auto-split", takes=_NOTHING),
    Flag(name="run-tokens", takes=_NUMBER),
    Flag(name="offline", takes=_NOTHING),
)

_ALIASES = {"hf-api-token": "hf-token"}
_EXCLUSIVE = (("default-prompt-name", "default-prompt"),)

ROUTER = Table({flag.name: flag for flag in _ROUTER_FLAGS}, _ALIASES, _EXCLUSIVE)
ENGINE = Table({flag.name: flag for flag in (*_ROUTER_FLAGS, *_ENGINE_FLAGS)}, _ALIASES, _EXCLUSIVE, "tei-engine")

OPTION_VARIABLES = frozenset(flag.variable for flag in _ROUTER_FLAGS) | {"HF_API_TOKEN"}
"""Names that the programs read as options: whatever the manager inherited there was not meant for them."""
