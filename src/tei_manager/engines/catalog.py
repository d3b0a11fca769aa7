"""Every engine we know, by kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tei_manager.domain.instance import EngineKind, InstanceSpec
from tei_manager.engines.base import Engine
from tei_manager.engines.command import Command
from tei_manager.engines.embedded import Embedded
from tei_manager.engines.llamacpp import Llamacpp
from tei_manager.engines.tei import Tei
from tei_manager.engines.version import parse_version
from tei_manager.engines.vllm import Vllm

ENGINES: Mapping[EngineKind, Engine] = MappingProxyType(
    {
        EngineKind.EMBEDDED: Embedded(),
        EngineKind.TEI: Tei(),
        EngineKind.VLLM: Vllm(),
        EngineKind.LLAMACPP: Llamacpp(),
        EngineKind.COMMAND: Command(),
    }
)


_KEYS = {
    EngineKind.EMBEDDED: "API_KEY",
    EngineKind.TEI: "API_KEY",
    EngineKind.VLLM: "VLLM_API_KEY",
    EngineKind.LLAMACPP: "LLAMA_API_KEY",
}


def kind_of(version_text: str | None) -> EngineKind:
    """How to drive a router binary, from what its `--version` says: it may be our own engine."""
    version = parse_version(version_text)
    return EngineKind.EMBEDDED if version and version.engine else EngineKind.TEI


def api_key(spec: InstanceSpec) -> str | None:
    """The key that a checked instance's engine asks of every caller, probes included."""
    name = _KEYS.get(spec.engine)
    keys = spec.env.get(name, "") if name else ""
    # only llama.cpp takes several, and any of them will do
    return (keys.split(",")[0] if spec.engine is EngineKind.LLAMACPP else keys) or None
