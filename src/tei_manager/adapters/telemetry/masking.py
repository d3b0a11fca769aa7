"""Which values are secret by their name, and how they are printed instead."""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "***"

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a variable or field of this name holds a secret."""
    return _SECRET.search(name) is not None


def masked_env(env: Mapping[str, object]) -> dict[str, object]:
    """An environment as it may be shown: the values of secret names are replaced."""
    return {name: MASK if is_secret(name) else value for name, value in env.items()}
