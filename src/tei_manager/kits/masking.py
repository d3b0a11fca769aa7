"""Which values are secret by their name, and how they are printed instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MASK = "***"

_SECRET_FLAGS = ("--api-key", "--hf-api-token", "--hf-token")
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable or field of this name holds a secret."""
    return _SECRET.search(name) is not None


def masked_env(env: Mapping[str, object]) -> dict[str, object]:
    """An environment as it may be shown: the values of secret names are replaced."""
    return {name: MASK if is_secret(name) else value for name, value in env.items()}


def masked_args(args: Sequence[str]) -> list[str]:
    """Arguments with the values of credential flags hidden, in both spellings."""
    result: list[str] = []
    hide_next = False
    for arg in args:
        flag, equals, _ = arg.replace("_", "-").partition("=")
        secret = flag in _SECRET_FLAGS
        result.append(MASK if hide_next else f"{arg.partition('=')[0]}={MASK}" if secret and equals else arg)
        hide_next = secret and not equals and not hide_next
    return result
