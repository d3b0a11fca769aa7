"""The ledger of instance ports: booked from creation to deletion, stopped instances included."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tei_manager.domain import errors
from tei_manager.domain.instance import InstanceSpec, Ports
from tei_manager.engines.base import Engine
from tei_manager.policy import ports as policy


class PortBook:
    """The only writer of port bookings.

    `is_free` says whether a port can be bound on this host now; other people's processes hold ports too.
    """

    def __init__(self, within: policy.Range, reserved: Iterable[int], is_free: Callable[[int], bool]) -> None:
        self._range, self._is_free = within, is_free
        self._holders: dict[int, str] = dict.fromkeys(reserved, "")
        self._last_main = within.start - 1

    def check_explicit(self, spec: InstanceSpec) -> None:
        """Refuse explicit ports that are booked, reserved or in use. Raises `errors.Conflict`."""
        for port in (spec.port, spec.prometheus_port):
            if port:
                self._check(port, spec.name)
        if spec.port and spec.port == spec.prometheus_port:
            raise errors.Conflict(f"Port {spec.port} is given twice", code="PORT_CONFLICT")

    def book(self, spec: InstanceSpec, engine: Engine) -> Ports:
        """Book every port the instance needs. Raises `errors.Conflict` or `errors.CapacityError`."""
        self.check_explicit(spec)
        taken = dict(self._holders)
        main = spec.port
        if main is None:
            main = self._found(policy.main_port(self._range, taken, self._last_main, self._is_free), "instance")
            self._last_main = main
        taken[main] = spec.name
        metrics: int | None = None
        if engine.has_metrics_port:
            metrics = spec.prometheus_port
            if metrics is None:
                metrics = self._found(policy.metrics_port(self._range, taken, self._is_free), "metrics")
            taken[metrics] = spec.name
        second: int | None = None
        if engine.has_second_port:
            second = self._found(policy.second_port(self._range, taken, self._is_free), "instance")
        ports = Ports(main=main, grpc=second, metrics=metrics)
        self.restore(spec.name, ports)
        return ports

    def restore(self, name: str, ports: Ports) -> None:
        """Book ports that were chosen earlier."""
        for port in ports.all:
            self._holders[port] = name

    def complete(self, spec: InstanceSpec, ports: Ports, engine: Engine) -> Ports:
        """Booked ports, with what `engine` needs besides and without what it does not. Raises
        `errors.CapacityError`.
        """
        grpc, metrics = ports.grpc, ports.metrics
        if engine.has_second_port and grpc is None:
            grpc = self._found(policy.second_port(self._range, self._holders, self._is_free), "instance")
        if engine.has_metrics_port and metrics is None:
            metrics = self._found(policy.metrics_port(self._range, self._holders, self._is_free), "metrics")
        fitting = Ports(
            main=ports.main,
            grpc=grpc if engine.has_second_port else None,
            metrics=metrics if engine.has_metrics_port else None,
        )
        self.release(spec.name)
        self.restore(spec.name, fitting)
        return fitting

    def release(self, name: str) -> None:
        self._holders = {port: holder for port, holder in self._holders.items() if holder != name}

    def blocked(self, ports: Ports) -> int | None:
        """The first of these ports that somebody else holds on this host right now."""
        return next((port for port in ports.all if not self._is_free(port)), None)

    def _check(self, port: int, name: str) -> None:
        holder = self._holders.get(port)
        if holder == name:
            return
        if holder is not None:
            by = f"by instance '{holder}'" if holder else "by the manager"
            verb = "in use" if holder else "reserved"
            raise errors.Conflict(f"Port {port} already {verb} {by}", code="PORT_CONFLICT")
        if not self._is_free(port):
            raise errors.Conflict(f"Port {port} already in use by another process", code="PORT_CONFLICT")

    def _found(self, port: int | None, what: str) -> int:
        if port is not None:
            return port
        registered = sum(1 for holder in self._holders.values() if holder)
        raise errors.CapacityError(
            f"No free {what} port: instances use {self._range.start}-{self._range.end - 1}, metrics from "
            f"{self._range.metrics_start}; {registered} ports are registered, other processes hold the rest",
            code="PORT_ALLOCATION_FAILED",
        )
