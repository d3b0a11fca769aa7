"""Where the target of a call is written: in the multiplexer's wrapper, or, for `tei.v1`, in metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tei_manager.domain import errors
from tei_manager.domain.target import ByModel, ByName, Routing
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc import metadata, wrapper

Given = Sequence[tuple[str, str | bytes]]


class Reader(Protocol):
    """Finds routing and inner request. Both methods raise errors with the contract's texts."""

    def first(self, message: bytes, given: Given) -> tuple[Routing, bytes]:
        """Of a unary call, or of the first message of a stream."""
        ...

    def later(self, message: bytes, pinned: Routing) -> bytes:
        """Of a later message of a stream that goes where `pinned` says."""
        ...


class Wrapped:
    """`tei_multiplexer.v1`: every message says where it goes."""

    def __init__(self, word: str | None) -> None:
        self._word = word

    def first(self, message: bytes, given: Given) -> tuple[Routing, bytes]:
        return wrapper.read(message, self._word)

    def later(self, message: bytes, pinned: Routing) -> bytes:
        return wrapper.read_next(message, self._word, pinned)


class Native:
    """`tei.v1` as any TEI client speaks it: metadata, else the configured default, else the only instance."""

    def __init__(self, router: Router, default_target: str) -> None:
        self._router, self._default = router, default_target

    def first(self, message: bytes, given: Given) -> tuple[Routing, bytes]:
        return self._routing(given), message

    def later(self, message: bytes, pinned: Routing) -> bytes:
        return message

    def _routing(self, given: Given) -> Routing:
        name = _value(given, metadata.TARGET_INSTANCE, "Instance name cannot be empty")
        model = _value(given, metadata.TARGET_MODEL, "Model id cannot be empty")
        if name is not None and model is not None:
            self._check_agreement(name, model)
        if name is not None:
            return ByName(name)
        if model is not None:
            return ByModel(model)
        table = self._router.table
        if self._default:
            known = self._default in table.by_name or self._default in table.by_alias
            return ByName(self._default) if known else ByModel(self._default)
        if len(table.ready) == 1:
            return ByName(next(iter(table.ready)))
        if table.ready:
            raise errors.CallerError("Several instances are running: set metadata x-tei-instance or x-tei-model")
        raise errors.NotReady("No running instance")

    def _check_agreement(self, name: str, model: str) -> None:
        table = self._router.table
        meant = (table.by_name[name],) if name in table.by_name else table.by_alias.get(name, ())
        # an unknown name is told later, as everywhere
        if meant and not any(model in (each.spec.model_id, *each.spec.aliases) for each in meant):
            raise errors.CallerError("x-tei-instance and x-tei-model do not agree")


def _value(given: Given, wanted: str, empty: str) -> str | None:
    for key, value in given:
        if key == wanted:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if not text:
                raise errors.CallerError(empty)
            return text
    return None
