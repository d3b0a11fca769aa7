"""The Hugging Face hub: its cache on disk, and downloads. The only door to `huggingface_hub`."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tei_engine.errors import StartError

_log = logging.getLogger(__name__)

_ALWAYS = ("config.json", "tokenizer.json")
_PATTERNS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",
    "[0-9]*_Dense/model.safetensors",
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DECIDING = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""Files that a model need not have, but that change what is computed where it has them."""

_TIMEOUT = 10.0
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How to reach the hub; None = the hub client's own defaults and environment."""

    cache: str | None = None
    token: str | None = None
    offline: bool = False


def fetch(model_id: str, *, revision: str | None, options: HubOptions) -> tuple[Path, str | None]:
    """The folder and commit of `model_id`, from the cache if complete there, else downloaded.

    Other programs leave caches without files that decide how to pool (`_DECIDING`); then the hub is asked, and the
    cache is used as it is, with a warning, where there is no hub to ask.

    Raises StartError: not a hub id, not reachable, or offline with files missing, which are then listed.
    """
    if not _ID.fullmatch(model_id):
        raise StartError(f"{model_id!r} is neither a directory nor a hub id")
    cache = Path(options.cache).expanduser() if options.cache else default_cache()
    snapshot = cached_snapshot(cache, model_id, revision or "main")
    missing = missing_files(snapshot) if snapshot else [*_ALWAYS, _WEIGHTS[0]]
    if snapshot is not None and not missing:
        return _completed(snapshot, model_id, revision, cache, options), snapshot.name
    if options.offline:
        raise StartError(
            f"{model_id} is not complete in {cache} and there is no network: missing {', '.join(missing)}"
        )
    return _download(model_id, revision, cache, options)


def _completed(snapshot: Path, model_id: str, revision: str | None, cache: Path, options: HubOptions) -> Path:
    """`snapshot` with the deciding files that the hub has, so far as it can be asked."""
    unsure = unsure_files(snapshot)
    if not unsure:
        return snapshot
    reason = "there is no network"
    if not options.offline:
        try:
            # by commit: the branch may have moved on, and this is about the files that are here
            return _download(model_id, snapshot.name, cache, options)[0]
        except StartError as error:
            reason = "; ".join([str(error), *error.causes])
    _log.warning("%s: the cache lacks %s, if the model has them: %s", model_id, ", ".join(unsure), reason)
    return snapshot


def default_cache() -> Path:
    """The hub client's cache folder by its environment variables."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def cached_snapshot(cache: Path, model_id: str, revision: str) -> Path | None:
    """The snapshot folder of `revision` in the cache, complete or not; None if there is none."""
    root = cache / ("models--" + model_id.replace("/", "--"))
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (root / "refs" / revision).read_text().strip()
        except OSError:
            return None
    folder = root / "snapshots" / commit
    return folder if folder.is_dir() else None


def missing_files(snapshot: Path) -> list[str]:
    """Names of the needed files that `snapshot` lacks."""
    missing = [name for name in _ALWAYS if not (snapshot / name).is_file()]
    if not (snapshot / _WEIGHTS[0]).is_file():
        index = snapshot / _WEIGHTS[1]
        if not index.is_file():
            missing.append(_WEIGHTS[0])
        else:
            missing += [name for name in _shards(index) if not (snapshot / name).is_file()]
    return missing + _missing_modules(snapshot)


def unsure_files(snapshot: Path) -> list[str]:
    """Deciding files that are neither in `snapshot` nor noted (as the hub client does) as not existing."""
    noted = snapshot.parent.parent / ".no_exist" / snapshot.name
    return [name for name in _DECIDING if not (snapshot / name).is_file() and not (noted / name).is_file()]


def _note_absent(snapshot: Path, names: set[str]) -> None:
    noted = snapshot.parent.parent / ".no_exist" / snapshot.name
    with suppress(OSError):  # a cache that cannot be written to is asked about again
        noted.mkdir(parents=True, exist_ok=True)
        for name in _DECIDING:
            if name not in names:
                (noted / name).touch()


def _missing_modules(snapshot: Path) -> list[str]:
    try:
        modules = orjson.loads((snapshot / "modules.json").read_bytes())
        wanted = [(str(m["type"]), str(m["path"])) for m in modules]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    names = [f"{path}/config.json" for kind, path in wanted if kind.endswith(("Pooling", "Dense"))]
    names += [f"{path}/model.safetensors" for kind, path in wanted if kind.endswith("Dense")]
    return [name for name in names if not (snapshot / name).is_file()]


def _shards(index: Path) -> list[str]:
    try:
        return sorted({str(name) for name in orjson.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _download(model_id: str, revision: str | None, cache: Path, options: HubOptions) -> tuple[Path, str | None]:
    # the client draws progress bars on stderr and is slow to import; both only matter here
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub

    api = huggingface_hub.HfApi(token=options.token)
    began = time.monotonic()
    try:
        info = api.model_info(model_id, revision=revision, timeout=_TIMEOUT)
        names = {sibling.rfilename for sibling in info.siblings or []}
        weights = [_WEIGHTS[0]] if _WEIGHTS[0] in names else [_WEIGHTS[1], "model-*-of-*.safetensors"]
        with _progress(model_id):
            folder = huggingface_hub.snapshot_download(
                model_id,
                # a branch, not its commit: then refs/<branch> is written, and the next start needs no network
                revision=revision,
                cache_dir=cache,
                token=options.token,
                allow_patterns=[*_PATTERNS, *weights],
            )
    except Exception as error:  # the client's own errors, its HTTP library's, and the disk's
        raise StartError(f"Could not download {model_id}", _first_line(error)) from error
    _log.info("Model artifacts downloaded in %.3fs", time.monotonic() - began)
    snapshot = Path(folder)
    # the client is content with what it has when the hub goes away in between
    missing = missing_files(snapshot) + [n for n in _DECIDING if n in names and not (snapshot / n).is_file()]
    if missing:
        raise StartError(f"{model_id} lacks files that are needed: {', '.join(missing)}")
    _note_absent(snapshot, names)
    return snapshot, snapshot.name


@contextmanager
def _progress(model_id: str) -> Iterator[None]:
    """Log a line at once and then every 5 s, so that a long download does not look like a hang."""
    ended = threading.Event()

    def tell() -> None:
        began = time.monotonic()
        while not ended.wait(5.0):
            _log.info("Downloading `%s`: %.0f s", model_id, time.monotonic() - began)

    _log.info("Downloading `%s`", model_id)
    thread = threading.Thread(target=tell, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _first_line(error: BaseException | Any) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
