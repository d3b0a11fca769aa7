"""Every engine we know, by kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tei_manager.domain.instance import EngineKind, InstanceSpec
from tei_manager.engines.base import Engine
from tei_manager.engines.command import Command
from tei_manager.engines.embedded import Embedded
from tei_manager.engines.tei import Tei
from tei_manager.engines.version import parse_version

ENGINES: Mapping[EngineKind, Engine] = MappingProxyType(
    {
        EngineKind.EMBEDDED: Embedded(),
        EngineKind.TEI: Tei(),
        EngineKind.COMMAND: Command(),
    }
)


def kind_of(version_text: str | None) -> EngineKind:
    """How to drive a router binary, from what its `--version` says: it may be our own engine."""
    version = parse_version(version_text)
    return EngineKind.EMBEDDED if version and version.engine else EngineKind.TEI


def api_key(spec: InstanceSpec) -> str | None:
    """The key that a checked instance's engine asks of every caller, probes included."""
    if spec.engine is EngineKind.COMMAND:
        return None
    return spec.env.get("API_KEY") or None
