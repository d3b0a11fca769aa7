"""Releases of text-embeddings-router, and which of them we drive; releases of vLLM."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_ROUTER = re.compile(r"text-embeddings-router[ v]+(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?")
_VLLM = re.compile(r"(?:vllm +)?v?(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?(?:[^\d.\s]\S*|\.\S+)?", re.IGNORECASE)
_ENGINE = re.compile(r"\btei-engine[ v]+(\S+)")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release whose command line and protocol a program speaks."""

    major: int
    minor: int
    patch: int = 0
    # the release of our own engine, when that is the program; says nothing about order
    engine: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


OLDEST = Version(1, 7, 0)
NEXT = Version(1, 10, 0)  # from here on flags may exist that we have never seen


def parse_version(text: str | None) -> Version | None:
    """The version in what `<program> --version` printed, None if there is none to be read.

    `text-embeddings-router 1.9.3` and `tei-engine 0.1.0 (text-embeddings-router 1.9.3)` are both 1.9.3.
    """
    if text is None or (router := _ROUTER.search(text)) is None:
        return None
    major, minor, patch = (int(part or 0) for part in router.groups())
    engine = _ENGINE.search(text[: router.start()])
    return Version(major, minor, patch, engine[1] if engine else None)


def parse_vllm_version(text: str | None) -> Version | None:
    """The version in what `vllm --version` printed: the number alone, perhaps with more, as `0.11.0rc2+cu128`."""
    if text is None or (found := _VLLM.fullmatch(text.strip())) is None:
        return None
    major, minor, patch = (int(part or 0) for part in found.groups())
    return Version(major, minor, patch)


def is_supported(version: Version | None) -> bool:
    """False only for what is known to be too old: an unreadable version is tried."""
    return version is None or version >= OLDEST


def is_known(version: Version | None) -> bool:
    """Whether every flag of this version is in our table, so that another one must be a mistake."""
    return version is not None and version < NEXT
