"""Where things lie when nobody says: state, logs and the model cache; and how a written path is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import platformdirs

APP = "tei-manager"


def expand(path: Path, environ: Mapping[str, str]) -> Path:
    """An absolute path: `~` is the home folder, a relative path starts at the current folder.

    Links and `..` stay as they are written. Raises ValueError for an unknown `~user`.
    """
    parts = path.parts
    if parts and parts[0] == "~":
        path = home(environ).joinpath(*parts[1:])
    elif parts and parts[0].startswith("~"):
        try:
            path = path.expanduser()
        except RuntimeError as fault:
            raise ValueError(f"no home folder for '{parts[0]}'") from fault
    return path.absolute()


def home(environ: Mapping[str, str]) -> Path:
    return Path(environ["HOME"]) if environ.get("HOME") else Path.home()


def state_folder(environ: Mapping[str, str]) -> Path:
    """The user's state folder of this program; not created here."""
    # platformdirs looks only at the real environment of the process
    xdg = environ.get("XDG_STATE_HOME", "")
    return Path(xdg) / APP if xdg.startswith("/") else platformdirs.user_state_path(APP, appauthor=False)


def model_cache(environ: Mapping[str, str]) -> Path:
    """The hub cache folder where no variable of the hub client names one."""
    xdg = environ.get("XDG_CACHE_HOME", "")
    base = expand(Path(xdg), environ) if xdg else home(environ) / ".cache"
    return base / "huggingface" / "hub"
