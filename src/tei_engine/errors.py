"""What can go wrong, as values: why a start failed, why a request got no answer. No wire format here."""

from __future__ import annotations

import enum
import logging
import uuid

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The engine cannot start: exit code 1. One line for a person, and `causes`, the chain beneath it."""

    def __init__(self, message: str, *causes: str) -> None:
        super().__init__(message)
        self.causes = causes


class ErrorKind(enum.Enum):
    """Who must act. The value is the `error_type` on the wire; statuses are looked up in `server.error_table`."""

    EMPTY = "Empty"
    VALIDATION = "Validation"
    TOKENIZER = "Tokenizer"
    OVERLOADED = "Overloaded"
    BACKEND = "Backend"
    UNHEALTHY = "Unhealthy"
    DEADLINE = "Deadline"  # the caller's own deadline passed; only gRPC has one


class RequestError(Exception):
    """A request that gets an error instead of an answer.

    `label` is the `err` label of `te_request_failure`; `row` the index of the first failing input, where inputs
    form an array.
    """

    def __init__(self, kind: ErrorKind, message: str, *, label: str, row: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.label = label
        self.row = row

    def at_row(self, row: int) -> RequestError:
        """The same error, saying which input it belongs to."""
        return RequestError(self.kind, self.message, label=self.label, row=row)


def let_go(error: RequestError) -> RequestError:
    """The error without its traceback and those before it: for one that is kept, or has been answered.

    The frames of a traceback hold the request, and are often held by what holds the error, a list or a future:
    nothing frees such a circle but a full garbage collection, which does not come sooner because a request had
    megabytes.
    """
    last: BaseException | None = error
    while last is not None:
        before = last.__context__
        last.__traceback__ = last.__cause__ = last.__context__ = None
        last = before
    return error


EMPTY_INPUTS = "Input validation error: `inputs` cannot be empty"
EMPTY_IDS = "Input validation error: `input_ids` cannot be empty"


def empty(message: str) -> RequestError:
    """Nothing was given where something is needed."""
    return RequestError(ErrorKind.EMPTY, message, label="validation")


def invalid(message: str, *, label: str = "validation") -> RequestError:
    """The request is well formed but asks for something that cannot be."""
    return RequestError(ErrorKind.VALIDATION, message, label=label)


def invalid_input(message: str) -> RequestError:
    """One input cannot be taken; TEI's prefix."""
    return invalid(f"Input validation error: {message}")


def backend(message: str, *, label: str = "inference") -> RequestError:
    """The model cannot answer this; TEI's prefix."""
    return RequestError(ErrorKind.BACKEND, f"Backend error: {message}", label=label)


def internal(fault: BaseException) -> RequestError:
    """What the caller learns of a fault of ours: a number, under which the log has the traceback."""
    number = uuid.uuid4().hex[:12]
    _log.error("internal error %s", number, exc_info=fault)
    return RequestError(ErrorKind.BACKEND, f"internal error {number}", label="inference")


def tokenizer(reason: BaseException) -> RequestError:
    """The tokenizer cannot take this."""
    return RequestError(ErrorKind.TOKENIZER, f"tokenizer error {reason}", label="tokenization")


def overloaded() -> RequestError:
    """No permits left."""
    return RequestError(ErrorKind.OVERLOADED, "Model is overloaded", label="overloaded")


def unhealthy(message: str) -> RequestError:
    """The process cannot answer anybody right now."""
    return RequestError(ErrorKind.UNHEALTHY, message, label="dropped")


def expired() -> RequestError:
    """The caller's deadline passed before the computation began."""
    return RequestError(ErrorKind.DEADLINE, "deadline exceeded", label="dropped")
