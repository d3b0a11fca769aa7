"""llama.cpp's server, `llama-server`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence

from tei_manager.domain.exits import ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.domain.spec import split_quant
from tei_manager.engines import devices, environment, exit_reading, flag_tables
from tei_manager.engines.base import Ask, Launch, Page, Probe, Refusal, Surroundings
from tei_manager.engines.flags import Merged, Style, emit, merge
from tei_manager.engines.tei import absorb, program
from tei_manager.engines.vllm import http_only
from tei_manager.kits.parsing import Problem

MOST_SLOTS = 256
"""More sequences at once than this are refused by every build; older ones stop at 64."""

_POOLING = {"cls": "cls", "mean": "mean", "last-token": "last"}
_LEVELS = {"error": "1", "warn": "2", "info": "3", "trace": "4", "debug": "5"}
_FURTHER_SHARD = re.compile(r"-(?!0*1-of-)\d+-of-\d+\.gguf$", re.IGNORECASE)
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}  # as the hub's own client reads them


class Llamacpp:
    """Speaks HTTP in OpenAI's dialect on its one port. It reads GGUF files, from a folder or from the hub."""

    has_second_port = False
    has_metrics_port = False

    def check(
        self, spec: InstanceSpec, around: Surroundings | None = None
    ) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        # it has more flags than we know, and other ones in every release: its own parser refuses the wrong ones
        spec, problems = absorb(spec, flag_tables.LLAMACPP, None, strict=False)
        problems += http_only(spec) + _field_problems(spec)
        if around is not None:
            file = _file(spec, around)
            problems += (file,) if isinstance(file, Problem) else ()
            problems += devices.variables(spec, around)[1]
        return spec, problems

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        spec, problems = self.check(spec, around)
        file = _file(spec, around)
        if problems or isinstance(file, Problem):
            return Refusal(problems)
        given = merge(spec.extra_args, flag_tables.LLAMACPP, None, strict=False)
        model: list[tuple[str, str | None]] = [("model", file) if file else ("hf-repo", spec.model_id)]
        if not file and _is_offline({**around.environ, **spec.env}) and not given.has("offline"):
            model.append(("offline", None))
        flags = model + _flags(spec, ports, around, given)
        argv = [*program(around), *(token for name, value in flags for token in emit(name, value, Style.PLAIN))]
        argv += [token for item in given.rest for token in item.emitted(Style.PLAIN)]
        env = environment.for_llamacpp(around, devices.variables(spec, around)[0], spec.env)
        warnings = list(given.warnings)
        if not file and (source := around.model_sources.get(split_quant(spec.model_id)[0])):
            warnings.append(f"{source} is not there: '{spec.model_id}' is asked for")
        return Launch(tuple(argv), env, environment.secrets_in(env), tuple(warnings))

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        return ((Protocol.HTTP, self.liveness(spec, ports, protocol)),)

    def liveness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe:
        return Probe(Ask.HTTP_HEALTH, ports.main)  # 503 while it loads

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return Probe(Ask.OPENAI_WARM_UP, ports.main, "/v1/embeddings", spec.model_id)

    def metrics(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Page | None:
        return None  # its page has tokens and slots, but no calls

    def info(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return None

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        return exit_reading.read_llamacpp_exit(code, signal, tail, was_ready=was_ready)


def _flags(spec: InstanceSpec, ports: Ports, around: Surroundings, given: Merged) -> list[tuple[str, str | None]]:
    """The flags that are ours, but for the model."""
    flags: list[tuple[str, str | None]] = [
        ("host", around.host),
        ("port", str(ports.main)),
        ("alias", spec.model_id),
        ("batch-size", str(spec.max_batch_tokens)),
    ]
    if spec.pooling or given.has("embedding") or given.has("reranking"):
        # such an input is computed in one piece or refused; a text that is continued may come in smaller ones
        flags.append(("ubatch-size", str(spec.max_batch_tokens)))
    if spec.max_concurrent_requests <= MOST_SLOTS:
        # beyond that it chooses itself: every slot takes its share of the context, and calls without one wait
        flags.append(("parallel", str(spec.max_concurrent_requests)))
    if spec.pooling:
        if not given.has("embedding"):
            flags.append(("embedding", None))
        flags.append(("pooling", _POOLING[spec.pooling]))
    if spec.log_level:
        flags.append(("log-verbosity", _LEVELS.get(spec.log_level.lower(), spec.log_level)))
    return flags


def _field_problems(spec: InstanceSpec) -> tuple[Problem, ...]:
    problems = []

    def refuse(path: str, text: str, code: str = "VALIDATION_ERROR") -> None:
        problems.append(Problem(path, code, text))

    if spec.pooling and spec.pooling not in _POOLING:
        refuse("pooling", f"engine 'llamacpp' has no pooling '{spec.pooling}': use {', '.join(_POOLING)}")
    if spec.dtype:
        refuse(
            "dtype", "a GGUF file has its numbers in one format: choose another file, or ':QUANT' of the model id"
        )
    if spec.revision:
        refuse("revision", "engine 'llamacpp' cannot choose a revision of a model")
    if spec.log_level and spec.log_level.lower() not in _LEVELS and not spec.log_level.isdecimal():
        refuse("log_level", f"expected {', '.join(_LEVELS)} or a number")
    given = merge(spec.extra_args, flag_tables.LLAMACPP, None, strict=False)
    if spec.log_level and given.has("log-verbosity"):
        refuse("log_level", "--log-verbosity in extra_args says it already", "DUPLICATE_FLAG")
    is_local = spec.model_id.startswith(("/", "python:"))
    if not is_local and "/" not in spec.model_id:
        refuse("model_id", "engine 'llamacpp' needs 'org/name[:QUANT]' or a folder", "INVALID_MODEL_ID")
    return tuple(problems)


def _file(spec: InstanceSpec, around: Surroundings) -> str | Problem | None:
    """The GGUF file to load, None if it comes from the hub."""
    hub_id, quant = split_quant(spec.model_id)
    if hub_id.startswith("/") and hub_id.lower().endswith(".gguf"):
        return hub_id
    is_local = hub_id.startswith(("/", "python:"))
    if around.resolved_model is None or not (is_local or hub_id in around.model_sources):
        return _wrong(f"'{hub_id}' is not there") if is_local else None
    files = [name for name in around.model_files if _is_model(name)]
    if quant is not None:
        files = [name for name in files if quant.lower() in posixpath.basename(name).lower()]
    if len(files) == 1:
        return posixpath.join(around.resolved_model, files[0])
    wanted = f" for '{quant}'" if quant else ""
    if not files:
        return _wrong(f"there is no GGUF file{wanted} in the folder of '{hub_id}'")
    how = "end the model id with the file's name" if is_local else "add ':QUANT' to the model id"
    return _wrong(
        f"the folder of '{hub_id}' has several GGUF files{wanted}, {how}: {', '.join(sorted(files)[:8])}"
    )


def _is_model(name: str) -> bool:
    """Whether a file can be loaded by itself: no projector of images, and of a split model the first part."""
    is_projector = posixpath.basename(name).lower().startswith("mmproj")
    return not is_projector and _FURTHER_SHARD.search(name) is None


def _is_offline(environ: Mapping[str, str]) -> bool:
    return any(environ.get(name, "").upper() in _TRUE for name in _OFFLINE)


def _wrong(text: str) -> Problem:
    return Problem("model_id", "INVALID_MODEL_ID", text)
