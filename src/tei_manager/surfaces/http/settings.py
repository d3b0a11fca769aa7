"""What the HTTP door can be told. Plain values: the configuration format is someone else's business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """`is_loopback`: the listener binds a loopback address only, so a foreign Host means a browser was tricked."""

    is_loopback: bool = True
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_mb: float = 2
    gateway_max_body_mb: float = 32
    max_inputs: int = 2048
    body_idle_timeout_secs: float = 30
    has_grpc: Callable[[], bool] = field(default=lambda: True)  # whether the gRPC listener is up, if one is wanted
