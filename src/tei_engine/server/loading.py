"""From settings to a model in memory. Runs on a thread beside the event loop, which meanwhile says "loading".

Importing this module is slow (onnx, onnxruntime), so that is left to the same thread.
"""

from __future__ import annotations

import logging
import os
import time
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path

from tei_engine import errors
from tei_engine.errors import StartError
from tei_engine.graph.heads import Pooling
from tei_engine.graph.session import available_providers
from tei_engine.models.configuration import Configuration, read_configuration
from tei_engine.models.finding import find_model
from tei_engine.models.hub import HubOptions
from tei_engine.models.model import Model, Threads
from tei_engine.models.native import GraphChoice
from tei_engine.server.asking import find_prompt
from tei_engine.server.metrics import resident_bytes
from tei_engine.server.settings import Settings
from tei_engine.tokenization.tokenizer import Tokenizer

_log = logging.getLogger("text_embeddings_router")

_POOLINGS = {
    "cls": Pooling.CLS,
    "mean": Pooling.MEAN,
    "last-token": Pooling.LAST_TOKEN,
    "splade": Pooling.SPLADE,
}


@dataclass(frozen=True, slots=True)
class LoadedFiles:
    """A model in memory, before anything serves it."""

    model: Model
    tokenizer: Tokenizer
    configuration: Configuration
    model_sha: str | None


def load(settings: Settings) -> LoadedFiles:
    """Find, read and warm up the model. Raises StartError with one clear line."""
    began = time.perf_counter()
    _check_providers(settings)
    found = find_model(
        settings.model_id,
        sources=settings.model_sources,
        revision=settings.revision,
        hub_options=HubOptions(
            cache=settings.huggingface_hub_cache,
            token=settings.hf_token,
            offline=settings.offline,
            onnx_file=settings.onnx_file,
            int8=settings.quantize == "int8",
            dense_path=settings.dense_path,
        ),
    )
    pooling = _POOLINGS[settings.pooling] if settings.pooling else None
    configuration = read_configuration(found.folder, pooling=pooling, dense_path=settings.dense_path)
    for warning in configuration.warnings:
        _log.warning("%s", warning)
    configuration = _limit(configuration, settings)
    _check_prompt(settings, configuration)
    _log.info("Starting model backend")
    _log.info("Starting %s model on Cpu", configuration.model_type)
    threads = Threads(settings.compute_workers, settings.intra_op_threads)
    with futures.ThreadPoolExecutor(1, "tokenizer-load") as pool:
        reading = pool.submit(Tokenizer, found.folder)
        model = Model(found.folder, configuration, threads, _choice(settings))
        tokenizer = reading.result()
    if model.max_input_length < configuration.max_input_length:
        _log.warning("inputs are limited to the %d tokens that %s takes", model.max_input_length, model.file)
        configuration = replace(configuration, max_input_length=model.max_input_length)
    _log.info("Maximum number of tokens per request: %d", configuration.max_input_length)
    _log.info("Warming up model")
    model.warm_up(min(settings.run_tokens, settings.max_batch_tokens), configuration.max_input_length)
    _log.info(
        "loaded weights=%d rss=%d seconds=%.3f",
        model.weights_bytes,
        resident_bytes(),
        time.perf_counter() - began,
    )
    return LoadedFiles(model, tokenizer, configuration, found.sha)


def _choice(settings: Settings) -> GraphChoice:
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return GraphChoice(settings.onnx_file, int8=settings.quantize == "int8", cache=home / "tei-engine")


def _check_providers(settings: Settings) -> None:
    have = available_providers()
    for name in settings.execution_providers:
        if name not in have:
            raise StartError(f"execution provider {name} is not in this onnxruntime; it has {', '.join(have)}")
        if name != "CPUExecutionProvider":
            raise StartError(f"execution provider {name} is not supported yet, only CPUExecutionProvider")


def _limit(configuration: Configuration, settings: Settings) -> Configuration:
    longest = configuration.max_input_length
    if settings.max_batch_tokens >= longest:
        return configuration
    if not settings.auto_truncate:
        raise StartError(
            f"`--max-batch-tokens` cannot be < `max_input_length` {longest} when `--auto-truncate` is off"
        )
    _log.warning("inputs are truncated to --max-batch-tokens: %d", settings.max_batch_tokens)
    return replace(configuration, max_input_length=settings.max_batch_tokens)


def _check_prompt(settings: Settings, configuration: Configuration) -> None:
    if settings.default_prompt_name is not None:
        try:
            find_prompt(settings.default_prompt_name, configuration.prompts)
        except errors.RequestError as error:
            raise StartError(error.message.partition(": ")[2]) from error
