"""`tei-manager serve`: from the command line to an exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import uvloop

from tei_manager.adapters.telemetry import logs
from tei_manager.app import lifespan
from tei_manager.config.load import Loaded, create_folders, load
from tei_manager.config.problems import ConfigProblems

USAGE = 2


def run(config_path: Path | None, flags: Mapping[str, object]) -> int:
    """Run until asked to end.

    Returns 0 = asked to end and did, 1 = a listener or the state failed or a second signal cut the end short,
    2 = configuration problems, printed one per line on standard error.
    """
    try:
        loaded = load(config_path, os.environ, flags)
        create_folders(loaded)
    except ConfigProblems as problems:
        for line in problems.lines():
            sys.stderr.write(line + "\n")
        return USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(loaded))


async def _serve(loaded: Loaded) -> int:
    logs.configure(loaded.config.log_level, loaded.config.log_format)
    return await lifespan.serve(loaded)
