"""Where a model's files are: a mapping, a directory, an installed package, the hub's cache or the hub."""

from __future__ import annotations

import importlib.machinery
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tei_engine.errors import StartError
from tei_engine.models import hub

_log = logging.getLogger(__name__)

_PACKAGE = "python:"


@dataclass(frozen=True, slots=True)
class Found:
    """A folder with a model in it; `sha` is the resolved commit, or the given revision, or None."""

    folder: Path
    sha: str | None


def find_model(
    model_id: str,
    *,
    sources: Mapping[str, str],
    revision: str | None,
    hub_options: hub.HubOptions,
) -> Found:
    """The folder of `model_id`. Raises StartError with one line saying what is not there."""
    source = sources.get(model_id)
    if source is not None:
        try:
            return Found(_find_local(source), None)
        except StartError as error:
            _log.warning("source of %s is not usable, asking the hub: %s", model_id, error)
    else:
        local = _find_local_or_none(model_id)
        if local is not None:
            return Found(local, revision)
    folder, sha = hub.fetch(model_id, revision=revision, options=hub_options)
    return Found(folder, sha or revision)


def _find_local_or_none(model_id: str) -> Path | None:
    if model_id.startswith(_PACKAGE) or _is_path_like(model_id) or Path(model_id).is_dir():
        return _find_local(model_id)
    return None


def _find_local(source: str) -> Path:
    if source.startswith(_PACKAGE):
        return find_in_package(source[len(_PACKAGE) :])
    path = Path(source).expanduser()
    if not path.is_dir():
        raise StartError(f"model directory not found: {source}")
    return path.absolute()


def _is_path_like(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or bool(re.match(r"[A-Za-z]:[\\/]", text))


def find_in_package(place: str) -> Path:
    """The folder `place` (PACKAGE/sub/dir) of an installed top-level package, which is not imported.

    Importing it could run anything, and packages that carry models tend to import heavy frameworks.
    Raises StartError naming package and folder.
    """
    package, _, inside = place.partition("/")
    parts = Path(inside).parts
    if not package.isidentifier() or ".." in parts or Path(inside).is_absolute():
        raise StartError(f"{_PACKAGE}{place}: expected {_PACKAGE}PACKAGE/sub/dir")
    spec = importlib.machinery.PathFinder.find_spec(package, sys.path)
    if spec is None:
        raise StartError(f"python package {package} is not installed (folder {inside or '.'} was wanted in it)")
    for root in spec.submodule_search_locations or ():
        folder = Path(root).joinpath(*parts)
        if folder.is_dir():
            return folder
    raise StartError(f"python package {package} has no folder {inside or '.'}, or is zipped")
