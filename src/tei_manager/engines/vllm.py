"""vLLM's OpenAI-compatible server, `vllm serve`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tei_manager.domain.exits import ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines import devices, environment, exit_reading, flag_tables
from tei_manager.engines.base import Ask, Launch, Page, Probe, Refusal, Surroundings
from tei_manager.engines.flags import Merged, Style, emit, merge
from tei_manager.engines.metrics_reading import read_foreign_metrics
from tei_manager.engines.tei import absorb, model_for_folders, model_problems, program, source_missing
from tei_manager.engines.version import Version, parse_vllm_version
from tei_manager.kits.parsing import Problem

_POOLING = {"cls": "CLS", "mean": "MEAN", "last-token": "LAST"}
# before these releases the same was said with other flags
_RUNNER, _POOLER_CONFIG = Version(0, 10, 1), Version(0, 11, 0)
_POOLER_FLAGS = ("pooler-config", "override-pooler-config")


class Vllm:
    """Speaks HTTP in OpenAI's dialect on its one port, metrics included."""

    has_second_port = False
    has_metrics_port = False

    def check(
        self, spec: InstanceSpec, around: Surroundings | None = None
    ) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        # it has more flags than we know, and other ones in every release: its own parser refuses the wrong ones
        spec, problems = absorb(spec, flag_tables.VLLM, None, strict=False)
        problems += http_only(spec)
        if spec.pooling is not None:
            problems += _pooling_problems(spec)
        if around is not None:
            problems += model_problems(spec, around) + devices.variables(spec, around)[1]
        return spec, problems

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        spec, problems = self.check(spec, around)
        if problems:
            return Refusal(problems)
        given = merge(spec.extra_args, flag_tables.VLLM, None, strict=False)
        argv = [*program(around), model_for_folders(spec, around)]
        argv += [token for name, value in _flags(spec, ports, around, given) for token in emit(name, value)]
        argv += [token for item in given.rest for token in item.emitted(Style.ARGPARSE)]
        level = {"VLLM_LOGGING_LEVEL": spec.log_level.upper()} if spec.log_level else {}
        env = environment.for_vllm(around, level, devices.variables(spec, around)[0], spec.env)
        warnings = list(given.warnings)
        if source_missing(spec, around):
            warnings.append(f"{around.model_sources[spec.model_id]} is not there: '{spec.model_id}' is asked for")
        return Launch(tuple(argv), env, environment.secrets_in(env), tuple(warnings))

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        return ((Protocol.HTTP, self.liveness(spec, ports, protocol)),)

    def liveness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe:
        return Probe(Ask.HTTP_HEALTH, ports.main)

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return Probe(Ask.OPENAI_WARM_UP, ports.main, "/v1/embeddings", spec.model_id)

    def metrics(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Page | None:
        return Page(ports.main, "/metrics", read_foreign_metrics)

    def info(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return None

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        return exit_reading.read_vllm_exit(code, signal, tail, was_ready=was_ready)


def http_only(spec: InstanceSpec) -> tuple[Problem, ...]:
    """What an engine cannot have that speaks HTTP on one port only."""
    problems = []
    if spec.protocol not in (None, Protocol.HTTP):
        problems.append(Problem("protocol", "VALIDATION_ERROR", f"engine '{spec.engine}' speaks HTTP only"))
    if spec.prometheus_port:
        text = f"engine '{spec.engine}' has no metrics port: its metrics are on its main port"
        problems.append(Problem("prometheus_port", "INVALID_PORT", text))
    return tuple(problems)


def _flags(spec: InstanceSpec, ports: Ports, around: Surroundings, given: Merged) -> list[tuple[str, str | None]]:
    """The flags that are ours."""
    flags: list[tuple[str, str | None]] = [
        ("host", around.host),
        ("port", str(ports.main)),
        ("served-model-name", spec.model_id),
        ("max-num-batched-tokens", str(spec.max_batch_tokens)),
        # it refuses more sequences in a batch than tokens
        ("max-num-seqs", str(min(spec.max_concurrent_requests, spec.max_batch_tokens))),
    ]
    flags += [(name, value) for name in ("revision", "dtype") if (value := getattr(spec, name))]
    if spec.pooling is not None:
        flags += _pooling_flags(_POOLING[spec.pooling], parse_vllm_version(around.version), given)
    says_itself = any(given.has(name) for name in ("uvicorn-log-level", "disable-uvicorn-access-log"))
    if spec.log_level is None and not says_itself:
        flags.append(("uvicorn-log-level", "warning"))  # no line per request; its own lines stay
    return flags


def _pooling_flags(kind: str, version: Version | None, given: Merged) -> list[tuple[str, str | None]]:
    """Vectors, and how they are made of the tokens'. Left alone, vLLM finds both out from the model's files."""
    flags: list[tuple[str, str | None]] = []
    if not (given.has("runner") or given.has("task")):
        is_new = version is None or version >= _RUNNER
        flags.append(("runner", "pooling") if is_new else ("task", "embed"))
    name = "pooler-config" if version is None or version >= _POOLER_CONFIG else "override-pooler-config"
    return [*flags, (name, json.dumps({"pooling_type": kind}))]


def _pooling_problems(spec: InstanceSpec) -> tuple[Problem, ...]:
    given = merge(spec.extra_args, flag_tables.VLLM, None, strict=False)
    problems = [
        Problem(item.path, "DUPLICATE_FLAG", f"--{item.name}: 'pooling' says it already")
        for item in given.rest
        if item.name.partition(".")[0] in _POOLER_FLAGS
    ]
    if spec.pooling not in _POOLING:
        text = f"engine 'vllm' has no pooling '{spec.pooling}': use {', '.join(_POOLING)}"
        problems.append(Problem("pooling", "VALIDATION_ERROR", text))
    return tuple(problems)
