"""`python -m benchmarks.engine`: the embedded engine beside what its model could do, on this machine.

Exit codes: 0 = measured, whatever became of the goals, 1 = something did not start or hung, or a request failed,
2 = usage.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import psutil

from benchmarks.engine import report
from benchmarks.engine.plan import Effort
from benchmarks.engine.run import Task, run
from benchmarks.stack import MINILM, MINILM_PACKAGE, NotStarted, has_minilm
from benchmarks.worker import WorkerFailed
from tei_engine.errors import StartError
from tei_engine.models.configuration import Configuration, read_configuration
from tei_engine.models.finding import find_model
from tei_engine.models.hub import HubOptions
from tei_engine.models.kinds import Kind
from tei_engine.server.settings import usable_cores

FULL = Effort(rounds=5, secs=1.2, cold_starts=3, is_quick=False)
QUICK = Effort(rounds=1, secs=0.6, cold_starts=1, is_quick=True)


def main() -> int:
    options = arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        folder = find(options.model)
        configuration = read_configuration(folder)
        problem = unsuitable(configuration, options.tokens)
        if problem:
            print(f"benchmarks.engine: {problem}", file=sys.stderr)
            return 2
        threads = options.threads or usable_cores()
        result = run(Task(options.model, folder, configuration, options.tokens, threads, effort(options)))
    except (StartError, NotStarted, WorkerFailed) as error:
        print(f"benchmarks.engine: {error}", file=sys.stderr)
        return 1
    except (OSError, http.client.HTTPException, psutil.Error) as error:  # a process went away under our hands
        print(f"benchmarks.engine: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(report.markdown(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=(__doc__ or "").partition("\n")[0].partition(": ")[2]
    )
    parser.add_argument(
        "--model", required=True, metavar="ID", help="an embedding model: folder, python:PACKAGE/folder, or hub id"
    )
    parser.add_argument(
        "--tokens",
        type=lengths,
        default=[12, 60, 250],
        metavar="N,N,…",
        help="lengths of texts; default 12,60,250",
    )
    parser.add_argument("--rounds", type=positive(int), help="default 5, with --quick 1")
    parser.add_argument(
        "--secs", type=positive(float), help="of one figure in a round; default 1.2, with --quick 0.6"
    )
    parser.add_argument("--threads", type=positive(int), help="of the engine and offline; default: usable cores")
    parser.add_argument("--quick", action="store_true", help="about a minute: one short round")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="also write everything as JSON")
    return parser.parse_args()


def lengths(text: str) -> list[int]:
    found = sorted({int(part) for part in text.split(",")})
    if found[0] < 3:
        raise ValueError(text)
    return found


def positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError(text)
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)  # through every `with`


def find(model: str) -> Path:
    """The folder of a model; all-MiniLM-L6-v2 is taken from its Python package where that is installed."""
    sources = {MINILM: f"python:{MINILM_PACKAGE}/model"} if has_minilm() else {}
    return find_model(model, sources=sources, revision=None, hub_options=HubOptions()).folder


def unsuitable(configuration: Configuration, tokens: list[int]) -> str | None:
    if configuration.kind is not Kind.EMBEDDING:
        return f"this is a {configuration.kind.value}; only embedding models are measured"
    if max(tokens) > configuration.max_input_length:
        return f"--tokens {max(tokens)}: this model reads at most {configuration.max_input_length}"
    return None


def effort(options: argparse.Namespace) -> Effort:
    usual = QUICK if options.quick else FULL
    return replace(usual, rounds=options.rounds or usual.rounds, secs=options.secs or usual.secs)


if __name__ == "__main__":
    sys.exit(main())
