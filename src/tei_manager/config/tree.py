"""Reading a decoded tree of tables (a TOML document, or JSON from a variable) against the keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tei_manager.config.problems import Finding
from tei_manager.config.schema import BY_PATH, INSTANCES, TABLES, Key
from tei_manager.domain import errors, spec
from tei_manager.domain.instance import EngineKind
from tei_manager.kits import parsing
from tei_manager.kits.parsing import MapOf, Problem, Rejected

Path = tuple[str | int, ...]
OriginOf = Callable[[Path], str]

BELOW_A_HEADER = "server key below a table header: move it above the first table"
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(slots=True)
class Layer:
    """What one source says: values by canonical name with their origins, and what is wrong with it."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Finding] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)  # keys that were given and refused
    written: dict[str, Path] = field(default_factory=dict)  # the spelling that was used

    def refuse(self, origin: str, path: str, message: str, code: str = "INVALID_CONFIG") -> None:
        self.problems.append((origin, Problem(path, code, message)))


def dotted(path: Iterable[str | int]) -> str:
    """A key path as people write it: `instances[0].port`, `model_sources."org/name"`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            plain = step if _BARE.fullmatch(step) else json.dumps(step, ensure_ascii=False)
            text += f".{plain}" if text else plain
    return text


def read(tree: Mapping[str, object], origin_of: OriginOf, layer: Layer, prefix: tuple[str, ...] = ()) -> None:
    """Read every key of the tree into the layer."""
    for name, value in tree.items():
        path = (*prefix, name)
        if path == (INSTANCES,):
            read_instances(value, origin_of, layer)
        elif (key := BY_PATH.get(path)) is not None:
            _read_key(key, path, value, origin_of, layer)
        elif path in TABLES:
            if isinstance(value, Mapping):
                read(value, origin_of, layer, path)
            else:
                layer.refuse(origin_of(path), dotted(path), f"expected a table, got {parsing.shown(value)}")
        else:
            for leaf in _leaves(path, value):
                layer.problems.append((origin_of(leaf), _unknown(leaf)))


def _read_key(key: Key, path: tuple[str, ...], value: object, origin_of: OriginOf, layer: Layer) -> None:
    if key.name in layer.written:
        other = layer.written[key.name]
        layer.refuse(
            origin_of(path),
            dotted(path),
            f"the same key as '{dotted(other)}' ({origin_of(other)}): keep one of the two",
        )
        return
    layer.written[key.name] = path
    try:
        layer.values[key.name] = key.shape.read(value)
        layer.origins[key.name] = origin_of(path)
    except Rejected as refusal:
        layer.broken.add(key.name)
        if isinstance(key.shape, MapOf) and isinstance(value, Mapping):
            _explain_entries(key.shape, path, value, origin_of, layer)
        else:
            reason = f"{refusal}, got {parsing.shown(value)}"
            layer.refuse(origin_of(path), dotted(path), reason, refusal.code)


def _explain_entries(
    shape: MapOf[object], path: Path, value: Mapping[str, object], origin_of: OriginOf, layer: Layer
) -> None:
    for name, item in value.items():
        at, got = (*path, name), ""
        try:
            shape.keys.read(name)
            got = f", got {parsing.shown(item)}"
            shape.values.read(item)
        except Rejected as refusal:
            reason, code = f"{refusal}{got}", refusal.code
            if _is_server_key(name):
                reason, code = BELOW_A_HEADER, "UNKNOWN_FIELD"
            layer.refuse(origin_of(at), dotted(at), reason, code)


def read_instances(value: object, origin_of: OriginOf, layer: Layer) -> None:
    """Check the instance entries, keep them as they were written, and note the origin of each field."""
    if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
        reason = "is always an array of tables, [[instances]]"
        layer.refuse(origin_of((INSTANCES,)), INSTANCES, reason, "INVALID_TYPE")
        layer.broken.add(INSTANCES)
        return
    layer.values[INSTANCES] = tuple(dict(entry) for entry in value)
    layer.origins[INSTANCES] = origin_of((INSTANCES,))
    for index, entry in enumerate(value):
        at: Path = (INSTANCES, index)
        for name in entry:
            layer.origins[dotted((*at, name))] = origin_of((*at, name))
        try:
            # engines are chosen later: no rule of a specification depends on which of the two defaults it is
            spec.parse(entry, default_engine=EngineKind.EMBEDDED)
        except errors.InvalidSpec as fault:
            layer.broken.add(INSTANCES)
            for problem in fault.problems:
                if problem.code == "UNKNOWN_FIELD" and _is_server_key(problem.path):
                    problem = Problem(problem.path, problem.code, BELOW_A_HEADER)
                name, _, part = problem.path.partition(".")
                here = (*at, name, part) if part else (*at, name)
                origin = origin_of(here) if name in entry else origin_of(at)
                layer.problems.append((origin, problem.below(dotted(at))))


def _is_server_key(name: str) -> bool:
    return (name,) in BY_PATH or (name,) in TABLES


def _unknown(path: Path) -> Problem:
    if len(path) > 1 and isinstance(path[-1], str) and _is_server_key(path[-1]):
        return Problem(dotted(path), "UNKNOWN_FIELD", BELOW_A_HEADER)
    return parsing.unknown(dotted(path), [*map(dotted, BY_PATH), INSTANCES])


def _leaves(path: Path, value: object) -> Iterable[Path]:
    # not recursive: the depth of a document is its writer's choice
    waiting = [(path, value)]
    while waiting:
        here, item = waiting.pop()
        if isinstance(item, Mapping) and item:
            waiting += reversed([((*here, name), below) for name, below in item.items()])
        else:
            yield here
