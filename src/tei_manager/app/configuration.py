"""`tei-manager check` and `tei-manager config show`: what a start would see. Nothing is started or created."""

from __future__ import annotations

import argparse
import os

from tei_manager.app.client.console import Console
from tei_manager.config import load, show
from tei_manager.config.load import Loaded
from tei_manager.config.problems import ConfigProblems

INVALID = 2


def check(options: argparse.Namespace, console: Console) -> int:
    """Problems on stderr and 2, or one line on stdout and 0; with `--json` the verdict on stdout."""
    try:
        loaded = read(options)
    except ConfigProblems as invalid:
        if options.json:
            console.json({"valid": False, "problems": invalid.details["problems"], "warnings": []})
        else:
            refuse(invalid, console)
        return INVALID
    if options.json:
        warnings = [{"code": notice.code, "message": notice.message} for notice in loaded.warnings]
        console.json({"valid": True, "problems": [], "warnings": warnings})
    else:
        for notice in loaded.warnings:
            console.note(f"warning: {notice.code}: {notice.message}")
        console.line("configuration is valid")
    return 0


def show_effective(options: argparse.Namespace, console: Console) -> int:
    """The effective configuration with origins, secrets masked; like `check` if it is not valid."""
    try:
        loaded = read(options)
    except ConfigProblems as invalid:
        refuse(invalid, console)
        return INVALID
    text = show.as_json(loaded) if options.format == "json" else show.as_toml(loaded)
    console.line(text.removesuffix("\n"))
    return 0


def read(options: argparse.Namespace) -> Loaded:
    """What `-c`, else `TEI_MANAGER_CONFIG`, and the environment say. Raises `ConfigProblems`."""
    return load.load(load.config_path(options.config, os.environ), os.environ, {})


def refuse(invalid: ConfigProblems, console: Console) -> None:
    for line in invalid.lines():
        console.note(line)
