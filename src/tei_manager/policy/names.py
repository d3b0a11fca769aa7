"""Which names and aliases an instance may not have because another one has them."""

from __future__ import annotations

from collections.abc import Iterable

from tei_manager.domain import errors
from tei_manager.domain.instance import InstanceSpec


def check(spec: InstanceSpec, others: Iterable[InstanceSpec]) -> None:
    """Refuse a specification whose name or aliases collide with those of `others`. Raises `errors.Conflict`."""
    others = tuple(others)
    if any(other.name.lower() == spec.name.lower() for other in others):
        raise errors.Conflict(f"Instance '{spec.name}' already exists", code="INSTANCE_EXISTS")
    for other in others:
        _check_aliases(spec, other)


def _check_aliases(spec: InstanceSpec, other: InstanceSpec) -> None:
    alike = (other.model_id, other.revision, other.pooling) == (spec.model_id, spec.revision, spec.pooling)
    for alias in spec.aliases:
        # the same model may answer to one alias from several instances
        if alias in (other.name, other.model_id) or (alias in other.aliases and not alike):
            raise errors.Conflict(
                f"Alias '{alias}' already belongs to instance '{other.name}'", code="ALIAS_CONFLICT"
            )
    if spec.name in other.aliases or spec.model_id in other.aliases:
        raise errors.Conflict(
            f"'{spec.name}' or its model id is an alias of instance '{other.name}'", code="ALIAS_CONFLICT"
        )
