"""The soak run is left out unless `-m soak`, SOAK_REQUESTS or SOAK_SECONDS in the environment ask for it."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the run out of every other one."""
    if "soak" in (config.option.markexpr or "") or {"SOAK_REQUESTS", "SOAK_SECONDS"} & os.environ.keys():
        return
    unwanted = [item for item in items if item.get_closest_marker("soak")]
    if unwanted:
        config.hook.pytest_deselected(items=unwanted)
        items[:] = [item for item in items if item not in unwanted]
