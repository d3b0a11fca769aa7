"""A model of the Hugging Face hub: its folder in the hub's cache, downloaded where it is not there."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tei_engine.errors import StartError
from tei_engine.models import hub_files
from tei_engine.models.hub_cache import DiskError, ModelCache, default_cache, expanded
from tei_engine.models.hub_client import HubClient, HubError, Listing
from tei_engine.models.hub_files import LackingError, Wanted
from tei_engine.models.hub_progress import Progress
from tei_engine.models.hub_transfer import Transfer

_log = logging.getLogger(__name__)

_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REVISION = re.compile(r"[\w.+@-]+(/[\w.+@-]+)*")


@dataclass(frozen=True, slots=True)
class HubOptions:
    """How to reach the hub, where None = as the hub client does by itself, and what of the model is wanted."""

    cache: str | None = None
    token: str | None = None
    offline: bool = False
    onnx_file: str | None = None
    """The graph to use, relative to the model's folder; None = see `models.onnx_files` and `models.native`."""
    int8: bool = False
    """Whether a graph that was quantised beforehand is taken where there is one."""
    dense_path: str | None = None
    """Folder of the Dense module, instead of the one in modules.json."""

    @property
    def wanted(self) -> Wanted:
        """The part that decides which files are needed."""
        return Wanted(self.onnx_file, self.int8, self.dense_path)


def fetch(model_id: str, *, revision: str | None, options: HubOptions) -> tuple[Path, str | None]:
    """The folder and commit of `model_id`, from the cache if complete there, else downloaded.

    Other programs leave caches without files that decide how to pool (`hub_files.DECIDING`). Then the hub is
    asked; where there is no hub to ask, the cache is used as it is, with a warning.

    Raises StartError: not a hub id, not reachable, not on the hub, no room on the disk, or offline with files
    missing, which are then listed.
    """
    if not _ID.fullmatch(model_id):
        raise StartError(f"{model_id!r} is neither a directory nor a hub id")
    _check_paths(revision, options)
    place = ModelCache(expanded(options.cache) if options.cache else default_cache(), model_id)
    snapshot = place.snapshot(revision or "main")
    if snapshot is None:
        missing = [*hub_files.ALWAYS, options.onnx_file or "model.safetensors"]
    else:
        missing = _missing(place, snapshot, options.wanted)
        if not missing:
            return _completed(place, snapshot, options), snapshot.name
    if options.offline:
        raise StartError(
            f"{model_id} is not complete in {place.cache} and there is no network: missing {', '.join(missing)}"
        )
    folder = _download(place, revision, options)
    return folder, folder.name


def _check_paths(revision: str | None, options: HubOptions) -> None:
    """Both become paths in the cache, so they must stay inside it."""
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise StartError(f"{revision!r} is not a revision: expected a commit, branch, tag or refs/pr/N")
    for name in (options.onnx_file, options.dense_path):
        if name is not None and (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts):
            raise StartError(f"{name} is outside the model's folder")


def _missing(place: ModelCache, snapshot: Path, wanted: Wanted) -> list[str]:
    modules = hub_files.missing_modules(snapshot, wanted)
    return [
        *hub_files.missing_files(snapshot, wanted),
        *(name for name in modules if not place.is_absent(snapshot.name, name)),
    ]


def _unsure(place: ModelCache, snapshot: Path) -> list[str]:
    """Deciding files that are neither in `snapshot` nor known not to exist."""
    return [
        name
        for name in hub_files.DECIDING
        if not (snapshot / name).is_file() and not place.is_absent(snapshot.name, name)
    ]


def _completed(place: ModelCache, snapshot: Path, options: HubOptions) -> Path:
    """`snapshot` with the deciding files that the hub has, so far as it can be asked."""
    unsure = _unsure(place, snapshot)
    if not unsure:
        return snapshot
    reason = "there is no network"
    if not options.offline:
        try:
            # by commit: the branch may have moved on, and this is about the files that are here
            return _download(place, snapshot.name, options)
        except StartError as error:
            reason = "; ".join([str(error), *error.causes])
    _log.warning("%s: the cache lacks %s, if the model has them: %s", place.model_id, ", ".join(unsure), reason)
    return snapshot


def _download(place: ModelCache, revision: str | None, options: HubOptions) -> Path:
    began = time.monotonic()
    progress = Progress()
    try:
        with progress.telling():
            client = HubClient(place.model_id, token=options.token)
            listing = client.list(revision)
            transfer = Transfer(client, place, listing, progress)
            _bring_all(transfer, listing, options.wanted)
        place.note_absent(listing.commit, _not_listed(transfer.folder, listing, options.wanted))
        # last of all: a branch never leads to a snapshot that was left half done
        place.write_ref(revision or "main", listing.commit)
    except (HubError, DiskError) as error:
        raise StartError(f"Could not download {place.model_id}", str(error)) from error
    except LackingError as error:
        raise StartError(f"{place.model_id} cannot be used: {error}") from error
    _log.info("Model artifacts downloaded in %.3fs", time.monotonic() - began)
    return transfer.folder


def _bring_all(transfer: Transfer, listing: Listing, wanted: Wanted) -> None:
    """Small files first, as they say which others are needed, and whether the weights are worth their while."""
    names, folder = listing.files, transfer.folder
    transfer.bring(name for name in hub_files.FIRST if name in names)
    small = hub_files.small_files(names, folder, wanted)
    # a snapshot that can be served as it is only gets what is missing beside its weights
    weights: list[str] = []
    if hub_files.missing_weights(folder, wanted):
        weights = hub_files.weight_files(names, hub_files.read_json(folder / "config.json"), wanted)
    if hub_files.INDEX in weights:
        transfer.bring([hub_files.INDEX])
        weights = hub_files.shards(folder)
        if lacking := [name for name in weights if name not in names]:
            raise LackingError(lacking)
    transfer.bring([*small, *weights])


def _not_listed(folder: Path, listing: Listing, wanted: Wanted) -> list[str]:
    """Files that would be asked for again at every start, and that the repository does not have."""
    asked_for = [*hub_files.DECIDING, *hub_files.missing_modules(folder, wanted)]
    return [name for name in asked_for if name not in listing.files]
