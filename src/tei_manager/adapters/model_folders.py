"""Where a model that is served from this machine lies."""

from __future__ import annotations

import importlib.util
from pathlib import Path

RESOURCE = "python:"


class ModelFolders:
    """Implements `control.world.Models`."""

    def folder(self, source: str) -> str | None:
        """The folder of an absolute path or of a `python:PACKAGE/sub/dir` resource; None if it is not there.

        The package is located by its module spec and never imported: its imports may pull in anything.
        """
        if source.startswith(RESOURCE):
            package, _, rest = source.removeprefix(RESOURCE).partition("/")
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                return None
            folder = Path(next(iter(spec.submodule_search_locations))) / rest
        elif source.startswith("/"):
            folder = Path(source)
        else:
            return None
        return str(folder) if folder.is_dir() else None

    def files(self, folder: str, suffix: str) -> tuple[str, ...]:
        """Names of the files in `folder` and in folders directly in it that end so, relative to it and sorted."""
        root = Path(folder)
        found = (*root.glob(f"*{suffix}"), *root.glob(f"*/*{suffix}"))
        return tuple(sorted(str(path.relative_to(root)) for path in found if path.is_file()))
