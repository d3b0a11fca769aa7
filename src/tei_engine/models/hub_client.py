"""The only door to `huggingface_hub`: what a model's repository holds, and the bytes of its files.

The client library names, finds and authorises. It is not asked to download: it keeps nothing of a download that
was cut short and compares no checksums, both of which `hub_transfer` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"\w[\w.+=-]{0,199}")
"""What may become the name of a file."""
_RANGE = re.compile(r"bytes (\d+)-")
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class HubError(Exception):
    """The hub cannot be reached, refuses, or answers nonsense: one line for a person."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        super().__init__(message)
        self.is_passing = is_passing
        """Whether asking once more may help."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `etag` is the SHA-256 of its content, or git's SHA-1 of it; None = not told yet."""

    name: str
    size: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit, by name."""

    commit: str
    files: Mapping[str, RemoteFile]


class HubClient:
    """One repository of the hub at HF_ENDPOINT.

    Without a `token` the library takes its own: HF_TOKEN, else `$HF_HOME/token`.
    """

    def __init__(self, model_id: str, *, token: str | None = None) -> None:
        # read when the library is imported; in a container a variable that is not set is often there and empty
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        if not os.environ.get("HF_ENDPOINT"):
            os.environ.pop("HF_ENDPOINT", None)
        # slow to import, and not needed where everything is cached
        import huggingface_hub
        from huggingface_hub import constants, errors, utils

        self._hub: Any = huggingface_hub
        self._errors: Any = errors
        self._utils: Any = utils
        self._endpoint = _shown(constants.ENDPOINT)
        self._model_id = model_id
        self._token = token
        self._answer_timeout = float(constants.HF_HUB_ETAG_TIMEOUT)
        self._read_timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)

    def list(self, revision: str | None) -> Listing:
        """What the repository holds at `revision` (None = its main branch). Raises HubError."""
        try:
            api = self._hub.HfApi(token=self._token)
            info = api.model_info(
                self._model_id, revision=revision, files_metadata=True, timeout=self._answer_timeout
            )
        except Exception as error:  # the library's own errors, and those of whatever HTTP library it uses
            raise self._translated(error, revision) from error
        if not info.sha or not _COMMIT.fullmatch(info.sha):
            raise HubError(f"{self._endpoint} did not say which commit {revision or 'main'} is")
        return Listing(info.sha, {one.rfilename: _file_of(one) for one in info.siblings or ()})

    def describe(self, name: str, commit: str) -> RemoteFile:
        """Size and etag of a file, for hubs that do not list them. Raises HubError."""
        try:
            told = self._hub.get_hf_file_metadata(
                self._url(name, commit), token=self._token, timeout=self._answer_timeout
            )
        except Exception as error:
            raise self._translated(error, commit, name) from error
        if not told.etag or not _ETAG.fullmatch(told.etag):
            raise HubError(f"{self._endpoint} told no usable etag of {name}")
        return RemoteFile(name, told.size, told.etag)

    def chunks(self, name: str, commit: str, *, start: int = 0) -> Generator[tuple[int, bytes], None, None]:
        """The file's bytes from `start` on, each piece with its offset. Raises HubError.

        A hub that cannot begin in the middle sends everything: then the first offset is 0.
        """
        headers = self._utils.build_hf_headers(token=self._token) | {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        try:
            # redirects to a storage host are followed without the credential: the HTTP library sees to that
            with self._hub.get_session().stream(
                "GET",
                self._url(name, commit),
                headers=headers,
                timeout=self._read_timeout,
                follow_redirects=True,
            ) as answer:
                self._hub.hf_raise_for_status(answer)
                offset = _offset(answer) if answer.status_code == 206 else 0
                for chunk in answer.iter_bytes():
                    yield offset, chunk
                    offset += len(chunk)
        except Exception as error:
            raise self._translated(error, commit, name) from error

    def enter_lock(self, stack: ExitStack, path: Path, *, timeout: float) -> bool:
        """Hold the library's own lock until `stack` ends; False if another process kept it for `timeout` s."""
        try:
            stack.enter_context(self._utils.WeakFileLock(path, timeout=timeout))
        except TimeoutError:
            return False
        return True

    def _url(self, name: str, commit: str) -> str:
        return str(self._hub.hf_hub_url(self._model_id, name, revision=commit))

    def _translated(self, error: Exception, revision: str | None, name: str | None = None) -> HubError:
        errors = self._errors
        if not isinstance(error, errors.HfHubHTTPError):
            if isinstance(error, ValueError) and name is None:  # of JSON
                return HubError(f"{self._endpoint} is no hub: its answer is not a listing ({_first_line(error)})")
            return HubError(f"{self._asked(error)} could not be reached: {_first_line(error)}", is_passing=True)
        status = error.response.status_code
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"the hub has no revision {revision} of {self._model_id}")
        if isinstance(error, errors.GatedRepoError):
            return HubError(
                f"{self._model_id} is gated ({status}): accept its terms at {self._endpoint}/{self._model_id} "
                f"and give a credential of that account as HF_TOKEN{self._given()}"
            )
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return HubError(f"the hub has no file {name} in {self._model_id}")
        if error.response.headers.get("x-error-message") == "Invalid credentials in Authorization header":
            return HubError(f"{self._endpoint} does not know the credential in HF_TOKEN ({status})")
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            return HubError(
                f"the hub has no model {self._model_id}, or a private one ({status}), "
                f"which needs a credential as HF_TOKEN{self._given()}"
            )
        if status == 403:
            return HubError(
                f"{self._endpoint} refuses access to {self._model_id} (403), "
                f"which depends on the credential in HF_TOKEN{self._given()}"
            )
        return HubError(
            f"{self._asked(error)} answered {status} {error.response.reason_phrase}".rstrip()
            + (f" for {name}" if name else ""),
            is_passing=status in _PASSING,
        )

    def _asked(self, error: Any) -> str:
        """Who did not answer as it should: large files come from other hosts, which a firewall may not know."""
        try:
            url = str(error.request.url)
        except (AttributeError, RuntimeError):  # it never came to a request
            return self._endpoint
        return self._endpoint if _shown(url).startswith(self._endpoint) else _shown(url, with_path=False)

    def _given(self) -> str:
        token = self._token or self._hub.get_token()
        return " (the one given has no access)" if token else " (none is given)"


def _file_of(sibling: Any) -> RemoteFile:
    size, etag = sibling.size, sibling.blob_id
    if sibling.lfs is not None:
        size, etag = sibling.lfs.size, sibling.lfs.sha256
    return RemoteFile(sibling.rfilename, size, etag if etag and _ETAG.fullmatch(etag) else None)


def _shown(url: str, *, with_path: bool = True) -> str:
    """`url` without what may be secret in it: a password in front of the host, a signature at the end."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path if with_path else "", "", ""))


def _offset(answer: Any) -> int:
    found = _RANGE.match(answer.headers.get("content-range", ""))
    if found is None:
        raise ValueError(f"an answer in part that does not say which: {answer.headers.get('content-range')!r}")
    return int(found[1])


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
