"""Reading an engine's metrics, and waiting until one of them says something."""

import re
import time
from collections.abc import Callable
from typing import Any


def scrape(engine: Any, port: int | None = None) -> dict[str, float]:
    """Series, labels included, → value."""
    text = engine.request("GET", "/metrics", port=port).body.decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\s].*) (\S+)$", text, re.MULTILINE)}


def moved(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    """Counters, and numbers of observations, that grew: by how much. Gauges and own series are left out."""
    return {
        name: int(after[name] - before[name])
        for name in after
        if name.startswith("te_")
        and name != "te_queue_size"
        and not re.search(r"_bucket|_sum", name)
        and after[name] != before[name]
    }


def wait_until(
    engine: Any, condition: Callable[[dict[str, float]], bool], timeout: float = 20.0
) -> dict[str, float]:
    """The first scrape of which `condition` is true."""
    deadline = time.monotonic() + timeout
    while not condition(found := scrape(engine)):
        assert time.monotonic() < deadline, found
        time.sleep(0.005)
    return found
