"""The errors of the house.

    TeiManagerError
    ├── CallerError            the caller must change the request
    │   ├── InvalidSpec            one or more fields are wrong; carries every problem
    │   ├── UnknownInstance        no such name
    │   ├── UnknownTarget          nothing answers to this model or alias
    │   ├── Unsupported            what answers there cannot do this
    │   ├── Conflict               a name, port or alias is taken
    │   └── Forbidden              this caller may not do it
    ├── CapacityError          there is no room: instances, ports
    ├── NotReady               it exists and cannot answer now; try again later
    │   └── Withdrawn              it was stopped under a call that was running there
    ├── InstanceFailed         an instance ended instead of becoming ready
    ├── StartupTimeout         an instance did not become ready in time
    ├── UpstreamError          an engine could not be reached, broke off, or answered nonsense
    │   ├── UpstreamTimeout        it did not answer in time
    │   └── UpstreamRefused        it answered an error of its own; carries status and text
    ├── DriverError            a process could not be started, found or stopped
    └── StateError             the state file cannot be used

`code` is the stable upper-case word of the control API; `surfaces` turn types into statuses, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tei_manager.kits import parsing


class TeiManagerError(Exception):
    """Base class. `details` is JSON-able and is shown to the caller."""

    code = "INTERNAL_ERROR"

    def __init__(
        self, message: str, *, code: str | None = None, details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.details = dict(details or {})


class CallerError(TeiManagerError):
    """The request itself is wrong: repeating it cannot help."""

    code = "VALIDATION_ERROR"


class InvalidSpec(CallerError):
    """A specification has problems. Message and code are those of the first; for a flag it is INVALID_CONFIG."""

    code = "INVALID_CONFIG"
    # these say what is wrong with `extra_args`; as the error's own code they would be news to most callers
    _of_flags = frozenset({"MANAGED_FLAG", "DUPLICATE_FLAG", "UNKNOWN_FLAG", "FLAG_NEEDS_VERSION"})

    def __init__(self, problems: Sequence[parsing.Problem]) -> None:
        first = problems[0]
        # a message that is a sentence of its own already names its subject
        is_sentence = first.message[:1].isupper()
        text = first.message if is_sentence or not first.path else f"{first.path}: {first.message}"
        super().__init__(text, code=self.code if first.code in self._of_flags else first.code)
        self.problems = tuple(problems)


class UnknownInstance(CallerError):
    code = "INSTANCE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"Instance '{name}' not found")
        self.name = name


class UnknownTarget(CallerError):
    code = "MODEL_NOT_FOUND"


class Unsupported(CallerError):
    code = "OPERATION_NOT_SUPPORTED"


class Conflict(CallerError):
    """`code` is INSTANCE_EXISTS, PORT_CONFLICT or ALIAS_CONFLICT."""


class Forbidden(CallerError):
    code = "FORBIDDEN"


class CapacityError(TeiManagerError):
    """`code` is MAX_INSTANCES_REACHED or PORT_ALLOCATION_FAILED."""


class NotReady(TeiManagerError):
    """The target exists and cannot answer now. `retry_after` is in seconds, None = unknown."""

    code = "NOT_READY"

    def __init__(self, message: str, *, code: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class Withdrawn(NotReady):
    """An instance was stopped under a call that was running there."""

    def __init__(self, instance: str) -> None:
        super().__init__(f"Instance '{instance}' was stopped")


class InstanceFailed(TeiManagerError):
    code = "INSTANCE_FAILED"


class StartupTimeout(TeiManagerError):
    code = "STARTUP_TIMEOUT"


class UpstreamError(TeiManagerError):
    """An engine could not be reached, broke off, or answered something unreadable."""

    code = "UPSTREAM_ERROR"


class UpstreamTimeout(UpstreamError):
    code = "UPSTREAM_TIMEOUT"


class UpstreamRefused(UpstreamError):
    """An engine answered an error. `status` is its HTTP status, `kind` TEI's `error_type` if it gave one.

    `code` says whose fault it is: UPSTREAM_REJECTED, CONTEXT_LENGTH_EXCEEDED and OPERATION_NOT_SUPPORTED are the
    caller's, UPSTREAM_RATE_LIMITED asks for patience. `retry_after` is in seconds, None = unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status, self.kind, self.retry_after = status, kind, retry_after


class DriverError(TeiManagerError):
    code = "IO_ERROR"


class StateError(TeiManagerError):
    code = "IO_ERROR"
