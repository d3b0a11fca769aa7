"""What the instances of the configuration file mean for the instances that exist.

The file is compared with what it said when it was last applied, field by field: changes made over REST stand
until the file itself says something new about the same field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tei_manager.domain.instance import Origin

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Known:
    """An instance that exists: its values now, and the file's values last applied to it (None: never)."""

    values: Values
    seed: Values | None
    origin: Origin


@dataclass(frozen=True, slots=True)
class Create:
    values: Values


@dataclass(frozen=True, slots=True)
class Change:
    """`values` is the whole specification after the change, `fields` the names that differ."""

    name: str
    values: Values
    fields: tuple[str, ...]
    seed: Values


@dataclass(frozen=True, slots=True)
class Remove:
    name: str


Action = Create | Change | Remove


def compare(
    entries: Sequence[Values], known: Mapping[str, Known], deleted: Mapping[str, Values]
) -> tuple[Action, ...]:
    """Actions that bring the fleet in line with the file; applying them twice does nothing the second time.

    `deleted` holds the file values of seeds that somebody deleted over REST: they stay deleted until their entry
    changes.
    """
    actions: list[Action] = []
    named = {str(entry["name"]): entry for entry in entries}
    for name, entry in named.items():
        if (instance := known.get(name)) is None:
            if deleted.get(name) != dict(entry):
                actions.append(Create(entry))
        elif instance.seed is None:
            # made over REST before the file named it: the file is new about every field that it mentions
            actions += _changes(name, instance.values, {}, entry)
        elif dict(instance.seed) != dict(entry):
            actions += _changes(name, instance.values, instance.seed, entry)
    actions += [
        Remove(name) for name, instance in known.items() if name not in named and instance.origin is Origin.CONFIG
    ]
    return tuple(actions)


def _changes(name: str, now: Values, before: Values, entry: Values) -> list[Action]:
    said = {key: value for key, value in entry.items() if key not in before or before[key] != value}
    # a field that the file no longer mentions goes back to its default: it leaves the values
    gone = [key for key in before if key not in entry]
    merged = {key: value for key, value in now.items() if key not in gone} | said
    fields = tuple(sorted(key for key in (*said, *gone) if now.get(key) != merged.get(key)))
    return [Change(name, merged, fields, entry)]
