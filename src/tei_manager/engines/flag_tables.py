"""Which flags the programs have: text-embeddings-router 1.7 to 1.9, and our own engine, which adds to them; of
vLLM and llama.cpp's server, which have hundreds, those that mean something to us.
"""

from __future__ import annotations

from tei_manager.engines.flags import Flag, Owner, Style, Table, Takes
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

_VLLM_FLAGS = (
    Flag(name="model", owner=_OWN),
    Flag(name="host", owner=_OWN),
    Flag(name="port", owner=_OWN),
    Flag(name="served-model-name", owner=_OWN, takes=Takes.MANY),
    Flag(name="max-num-batched-tokens", owner=_OWN),
    Flag(name="max-num-seqs", owner=_OWN),
    Flag(name="device", owner=_OWN),
    Flag(name="enable-sleep-mode", owner=_OWN, takes=_NOTHING),
    # each would make another server of it than the one that is probed, or bring flags past this table
    Flag(name="config", owner=_OWN),
    Flag(name="uds", owner=_OWN),
    Flag(name="ssl-keyfile", owner=_OWN),
    Flag(name="ssl-certfile", owner=_OWN),
    Flag(name="headless", owner=_OWN, takes=_NOTHING),
    Flag(name="omni", owner=_OWN, takes=_NOTHING),
    Flag(name="revision", owner=_LIFT, field="revision"),
    Flag(
        name="dtype",
        owner=_LIFT,
        field="dtype",
        words=(("auto", None), ("half", "float16"), ("float", "float32")),
    ),
    Flag(name="api-key", owner=_SECRET, env="VLLM_API_KEY"),
    Flag(name="hf-token", owner=_SECRET),
    Flag(name="runner"),
    Flag(name="task"),
    Flag(name="pooler-config"),
    Flag(name="override-pooler-config"),
    Flag(name="uvicorn-log-level"),
    Flag(name="disable-uvicorn-access-log", takes=_NOTHING),
    Flag(name="middleware", repeatable=True),
)

_VLLM_ALIASES = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-q": "quantization",
}

VLLM = Table({flag.name: flag for flag in _VLLM_FLAGS}, _VLLM_ALIASES, (), "vllm", Style.ARGPARSE)

VLLM_VARIABLES = frozenset(
    {
        *("VLLM_API_KEY", "VLLM_PORT", "VLLM_HOST_IP"),
        # these configure a gateway in front of it; to vLLM they are unknown
        *("VLLM_GPU_MEMORY_UTILIZATION", "VLLM_INACTIVITY_TIMEOUT", "VLLM_IMAGE", "VLLM_CONTAINER_PREFIX"),
        *("VLLM_MAX_MODEL_LEN_GLOBAL", "VLLM_MAX_NUM_SEQS", "VLLM_TENSOR_PARALLEL_SIZE"),
    }
)
"""Names that vLLM reads as options of one server, or must not see: the manager inherited them for itself."""

_LLAMACPP_FLAGS = (
    Flag(name="model", owner=_OWN, short="m"),
    Flag(name="model-url", owner=_OWN, short="mu"),
    Flag(name="hf-repo", owner=_OWN, short="hf"),
    Flag(name="hf-file", owner=_OWN, short="hff"),
    Flag(name="docker-repo", owner=_OWN, short="dr"),
    Flag(name="host", owner=_OWN),
    Flag(name="port", owner=_OWN),
    Flag(name="alias", owner=_OWN, short="a"),
    Flag(name="parallel", owner=_OWN, short="np"),
    Flag(name="batch-size", owner=_OWN, short="b"),
    Flag(name="ubatch-size", owner=_OWN, short="ub"),
    Flag(name="device", owner=_OWN, short="dev"),
    Flag(name="sleep-idle-seconds", owner=_OWN),
    # each would make another server of it than the one that is probed, or none
    Flag(name="api-prefix", owner=_OWN),
    Flag(name="api-key-file", owner=_OWN),
    Flag(name="ssl-key-file", owner=_OWN),
    Flag(name="ssl-cert-file", owner=_OWN),
    Flag(name="reuse-port", owner=_OWN, takes=_NOTHING),
    Flag(name="models-dir", owner=_OWN),
    Flag(name="models-preset", owner=_OWN),
    Flag(name="log-disable", owner=_OWN, takes=_NOTHING),
    Flag(name="list-devices", owner=_OWN, takes=_NOTHING),
    Flag(name="cache-list", owner=_OWN, takes=_NOTHING, short="cl"),
    Flag(name="completion-bash", owner=_OWN, takes=_NOTHING),
    Flag(name="pooling", owner=_LIFT, field="pooling", words=(("last", "last-token"),)),
    Flag(name="api-key", owner=_SECRET, env="LLAMA_API_KEY"),
    Flag(name="hf-token", owner=_SECRET, short="hft"),
    Flag(name="embedding", takes=_NOTHING),
    Flag(name="reranking", takes=_NOTHING),
    Flag(name="offline", takes=_NOTHING),
    Flag(name="log-verbosity", short="lv"),
    Flag(name="lora", repeatable=True),
    Flag(name="lora-scaled", takes=Takes.MANY, repeatable=True),
    Flag(name="control-vector", repeatable=True),
    Flag(name="control-vector-scaled", takes=Takes.MANY, repeatable=True),
    Flag(name="override-kv", repeatable=True),
    Flag(name="override-tensor", short="ot", repeatable=True),
)

_LLAMACPP_ALIASES = {
    "embeddings": "embedding",
    "rerank": "reranking",
    "verbosity": "log-verbosity",
    "gpu-layers": "n-gpu-layers",
    "-hfr": "hf-repo",
    "-ngl": "n-gpu-layers",
    "-c": "ctx-size",
    "-t": "threads",
    "-tb": "threads-batch",
    "-fa": "flash-attn",
}

LLAMACPP = Table({flag.name: flag for flag in _LLAMACPP_FLAGS}, _LLAMACPP_ALIASES, (), "llama-server", Style.PLAIN)
