"""What an engine's refusal of a probe says about the engine."""

from __future__ import annotations

import json
import re

TEXT_LENGTH = 200
_WRONG_KIND = re.compile(r"\bmodel is not |` is not available ", re.IGNORECASE)


def is_wrong_kind(text: str) -> bool:
    """TEI's Backend error for a question that another kind of model answers. It proves that the engine computes;
    any other Backend error proves that it cannot."""
    return _WRONG_KIND.search(text) is not None


def text_of(body: bytes) -> str:
    """The reason in an error answer: the text in TEI's or OpenAI's JSON, else the body itself, on one line."""
    text = body.decode(errors="replace")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict):
        reason = values.get("error") or values.get("message")
        if isinstance(reason, dict):
            reason = reason.get("message")
        if isinstance(reason, str):
            text = reason
    return shortened(text)


def shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_LENGTH else line[: TEXT_LENGTH - 1] + "…"
