"""Our own engine: `tei-engine`, run as a process like any other."""

from __future__ import annotations

from collections.abc import Sequence

from tei_manager.domain.exits import ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines import devices, exit_reading, flag_tables
from tei_manager.engines.base import Ask, Launch, Page, Probe, Refusal, Surroundings
from tei_manager.engines.flags import emit, merge
from tei_manager.engines.metrics_reading import read_metrics
from tei_manager.engines.tei import absorb, finished, metrics_port, program, router_flags
from tei_manager.kits.parsing import Problem

# between its last answer and our SIGKILL: time to close listeners and to say goodbye in the log
_FAREWELL_SECS = 2


class Embedded:
    """Speaks HTTP on the main port and gRPC on the second one."""

    has_second_port = True
    has_metrics_port = True

    def check(
        self, spec: InstanceSpec, around: Surroundings | None = None
    ) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        # it comes with the manager: every flag is known, whatever `--version` says
        spec, problems = absorb(spec, flag_tables.ENGINE, None, strict=True)
        on_cpu = tuple(
            Problem(
                path, "INVALID_GPU_ID", "engine 'embedded' computes on the CPU only: it cannot be pinned to a GPU"
            )
            for path, _ in devices.pinned(spec)[:1]
        )
        return spec, problems + on_cpu

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        spec, problems = self.check(spec, around)
        if problems:
            return Refusal(problems)
        given = merge(spec.extra_args, flag_tables.ENGINE, None, strict=True)
        drain = max(1, int(around.stop_grace_secs) - _FAREWELL_SECS)
        flags = [
            ("prometheus-port", str(metrics_port(spec, ports))),
            ("grpc-port", str(ports.grpc or 0)),
            ("drain-timeout", str(drain)),
        ]
        if source := around.model_sources.get(spec.model_id):
            flags.append(("model-source", f"{spec.model_id}={source}"))
        if around.cpu_threads:
            threads = (name for name in ("compute-workers", "intra-op-threads") if given.value(name) is None)
            flags += [(name, str(around.cpu_threads)) for name in threads]
        own = [*program(around), *router_flags(spec, ports, around, given, spec.model_id)]
        own += [token for name, value in flags for token in emit(name, value)]
        # it reads this name first, so an inherited one would hide the configured folder
        cache = {"HF_HUB_CACHE": around.model_cache_dir} if around.model_cache_dir else {}
        return finished(own, spec, around, given, cache, given.warnings)

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        return ((Protocol.BOTH, Probe(Ask.HTTP_HEALTH, ports.main)),)

    def liveness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe:
        return Probe(Ask.HTTP_HEALTH, ports.main, "/info")

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        if ports.grpc:
            return Probe(Ask.GRPC_WARM_UP, ports.grpc)
        return Probe(Ask.HTTP_WARM_UP, ports.main, "/embed")

    def metrics(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Page | None:
        return Page(ports.main, "/metrics", read_metrics)

    def info(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        return self.liveness(spec, ports, protocol)

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        return exit_reading.read_exit(code, signal, tail, was_ready=was_ready)
