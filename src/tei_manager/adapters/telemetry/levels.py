"""The grammar of log levels: `info`, or a comma list like `tei_manager.control=debug,info`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

TRACE = 5  # below logging.DEBUG, as in other languages; the standard library has no word for it
EXPECTS = "trace, debug, info, warn or error, or a comma list with logger=LEVEL parts"

_NUMBERS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LOGGER = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")


@dataclass(frozen=True, slots=True)
class Levels:
    """What is logged: the level of all loggers, and those of single ones and what is below them."""

    general: int = logging.INFO
    loggers: Mapping[str, int] = field(default_factory=dict)


def parse(text: str) -> Levels:
    """Read a level text. Case does not matter, `target::path` is read as `target.path`.

    Raises ValueError with the reason. Without a part for all loggers those keep `info`.
    """
    general: int | None = None
    loggers: dict[str, int] = {}
    for part in (part.strip() for part in text.split(",")):
        name, has_name, word = part.rpartition("=")
        name = name.strip().replace("::", ".")
        number = _NUMBERS.get(word.strip().lower())
        if number is None or (has_name and not _LOGGER.fullmatch(name)) or (not has_name and general is not None):
            raise ValueError(f"expected {EXPECTS}")
        if has_name:
            loggers[name] = number
        else:
            general = number
    return Levels(logging.INFO if general is None else general, loggers)
