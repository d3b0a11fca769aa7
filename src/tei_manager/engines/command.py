"""Any program that answers HTTP on a port we give it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tei_manager.domain.exits import ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines import devices, environment, exit_reading
from tei_manager.engines.base import Ask, Launch, Page, Probe, Refusal, Surroundings
from tei_manager.engines.metrics_reading import read_foreign_metrics
from tei_manager.engines.tei import model_for_folders, model_problems
from tei_manager.kits.parsing import Problem

_PLACEHOLDER = re.compile(r"\{(port|host|model_id|revision)\}")


class Command:
    """We know its address and nothing else: no flags of its own, no meaning of exit codes, and of its metrics only
    those of programs that we know."""

    has_second_port = False
    has_metrics_port = False

    def check(
        self, spec: InstanceSpec, around: Surroundings | None = None
    ) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        if not spec.command:
            return spec, (Problem("command", "MISSING_FIELD", "is required for engine 'command'"),)
        if around is None:
            return spec, ()
        return spec, model_problems(spec, around) + devices.variables(spec, around)[1]

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        spec, problems = self.check(spec, around)
        if problems:
            return Refusal(problems)
        values = {
            "port": str(ports.main),
            "host": around.host,
            "model_id": model_for_folders(spec, around),
            "revision": spec.revision or "",
        }
        # one pass, so that a value which looks like a placeholder is not substituted again
        argv = [_PLACEHOLDER.sub(lambda match: values[match[1]], part) for part in spec.command or ()]
        level = {"LOG_LEVEL": spec.log_level} if spec.log_level else {}
        env = environment.for_command(around, level, devices.variables(spec, around)[0], spec.env)
        return Launch((*argv, *spec.extra_args), env, environment.secrets_in(env))

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        return ((spec.protocol or Protocol.HTTP, self.liveness(spec, ports, protocol)),)

    def liveness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe:
        if spec.protocol is Protocol.GRPC and spec.health_path is None:
            return Probe(Ask.GRPC_INFO, ports.main)
        return Probe(Ask.HTTP_HEALTH, ports.main, spec.health_path or "/health")

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return None

    def metrics(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Page | None:
        if spec.protocol is Protocol.GRPC:
            return None
        return Page(ports.main, "/metrics", read_foreign_metrics)

    def info(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return None

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        return exit_reading.read_command_exit(code, signal, tail, was_ready=was_ready)
