"""The environment of a child: what it inherits, what it must not, what we set.

Names that an engine reads as options are deleted, never blanked: an empty `PORT` fails to parse and an empty
`API_KEY` locks every route.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from tei_manager.engines.base import Surroundings
from tei_manager.engines.flag_tables import OPTION_VARIABLES, VLLM_VARIABLES

_PROVIDERS = (
    *("OPENAI", "AZURE_OPENAI", "COHERE", "CO", "GOOGLE", "GEMINI", "MISTRAL"),
    *("VOYAGE", "JINA", "HUGGINGFACE", "NVIDIA"),
)
MANAGER_ONLY = frozenset(f"{name}_API_KEY" for name in _PROVIDERS) | {"JWT_SECRET_KEY", "SINGLE_USER_API_KEY"}
"""Credentials of the manager itself. The hub's is not one of them: engines download with it."""

_ENGINE_ONLY = (OPTION_VARIABLES - {"HF_TOKEN"}) | {
    "TASK",
    "LOG_LEVEL",
    "GRPC_MAX_PARALLEL_STREAM_REQUESTS",
    "AIP_HTTP_PORT",
    "AIP_PREDICT_ROUTE",
    "AIP_HEALTH_ROUTE",
}
HUB_CACHE = "HUGGINGFACE_HUB_CACHE"
PAYLOAD_LIMIT = 64 * 1024 * 1024
MOST_TOKENIZERS = 8
QUIET = "info,text_embeddings_router=warn"
"""Keeps download and device lines, drops one line per request and the first line, which prints the api key."""

_SECRET_WORD = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD)(?:_|$)")


def for_command(around: Surroundings, *layers: Mapping[str, str]) -> dict[str, str]:
    """The environment of somebody's own program: ours without our own names, then `layers` in order."""
    env = {name: value for name, value in around.environ.items() if not _is_ours(name)}
    if around.model_cache_dir:
        _set_cache(env, around.model_cache_dir)
    return _overlaid(env, layers)


def for_router(around: Surroundings, *layers: Mapping[str, str]) -> dict[str, str]:
    """The environment of text-embeddings-router and of our own engine, then `layers` in order."""
    inherited = around.environ
    env = {name: value for name, value in inherited.items() if not (_is_ours(name) or _is_option(name))}
    if not env.get("HF_TOKEN"):
        env.pop("HF_TOKEN", None)
        if token := inherited.get("HF_API_TOKEN"):
            env["HF_TOKEN"] = token
    if around.model_cache_dir:
        _set_cache(env, around.model_cache_dir)
    elif cache := inherited.get(HUB_CACHE):
        env[HUB_CACHE] = cache
    env["AUTO_TRUNCATE"] = "true"
    env["PAYLOAD_LIMIT"] = str(PAYLOAD_LIMIT)
    return _overlaid(env, layers)


def for_vllm(around: Surroundings, *layers: Mapping[str, str]) -> dict[str, str]:
    """The environment of vLLM, then `layers` in order. Names that tune it, like VLLM_USE_V1, are inherited."""
    return _for_hub_client(around, lambda name: name in VLLM_VARIABLES, layers)


def for_llamacpp(around: Surroundings, *layers: Mapping[str, str]) -> dict[str, str]:
    """The environment of llama.cpp's server, which has a name for each of its flags, then `layers` in order."""
    return _for_hub_client(
        around, lambda name: name.startswith("LLAMA_ARG_") or name in ("LLAMA_API_KEY", "LLAMA_OFFLINE"), layers
    )


def _for_hub_client(
    around: Surroundings, is_option: Callable[[str], bool], layers: tuple[Mapping[str, str], ...]
) -> dict[str, str]:
    env = {name: value for name, value in around.environ.items() if not (_is_ours(name) or is_option(name))}
    if not env.get("HF_TOKEN"):
        env.pop("HF_TOKEN", None)
    if around.model_cache_dir:
        # the newer name is the one that both read first
        env[HUB_CACHE] = env["HF_HUB_CACHE"] = around.model_cache_dir
    return _overlaid(env, layers)


def _set_cache(env: dict[str, str], folder: str) -> None:
    env[HUB_CACHE] = folder
    env.pop("HF_HUB_CACHE", None)  # its newer name, which the hub client prefers


def log_level(wanted: str | None, *, has_key: bool) -> str:
    """The value of LOG_LEVEL. With a key the router's own lines are held back at any level: one prints the key."""
    level = wanted or QUIET
    if not has_key or level.endswith(",text_embeddings_router=warn"):
        return level
    return f"{level},text_embeddings_router=warn"


def secrets_in(env: Mapping[str, str]) -> tuple[str, ...]:
    """Values that must not be shown, longest first. Very short ones are left: masking them would blot out text."""
    values = {value for name, value in env.items() if _SECRET_WORD.search(name) and len(value) >= 4}
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def _overlaid(env: dict[str, str], layers: tuple[Mapping[str, str], ...]) -> dict[str, str]:
    for layer in layers:
        env.update(layer)
    return env


def _is_ours(name: str) -> bool:
    return name.startswith("TEI_MANAGER_") or name in MANAGER_ONLY


def _is_option(name: str) -> bool:
    return name in _ENGINE_ONLY or name.startswith("TEI_ENGINE_")
