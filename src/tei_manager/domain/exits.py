"""Why an instance ended, in words that decide whether starting it again can help."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ExitKind(StrEnum):
    USAGE = "usage"  # our arguments: starting again cannot help
    MISSING = "missing"  # the program is not there
    PORT = "port"  # an address was in use: another port helps
    MODEL = "model"  # the model cannot be loaded: try once more, then give up
    DOWNLOAD = "download"  # the network: try again later
    CRASH = "crash"  # a panic or a signal
    ENDED = "ended"  # it ended by itself, nothing more is known
    TIMEOUT = "timeout"  # it did not become ready in time
    UNHEALTHY = "unhealthy"  # it stopped answering


@dataclass(frozen=True, slots=True)
class ExitReason:
    kind: ExitKind
    text: str  # "process exited with code 1: Error: …"
