"""Times as every answer prints them: RFC 3339, UTC, milliseconds, `Z`."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def text(epoch_secs: float) -> str:
    moment = datetime.fromtimestamp(epoch_secs, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def now_text() -> str:
    return text(time.time())
