"""Reading the environment: the named variables, the general form `TEI_MANAGER__A__B`, and what is odd there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tei_manager.config import tree
from tei_manager.config.problems import Notice
from tei_manager.config.schema import BY_PATH, GENERAL_PREFIX, INSTANCES, KEYS, PREFIX, TABLES, Key, general_name
from tei_manager.config.tree import Layer
from tei_manager.kits import parsing
from tei_manager.kits.parsing import MapOf, Problem, Rejected

# read by the command line, by the embedded engine or by ourselves: known, but no keys
OTHER_NAMES = ("CONFIG", "URL", "API_KEY", "INSTANCE_UID", "NONCE")
# what orchestrators set for a service named like us, for example TEI_MANAGER_PORT_9000_TCP_ADDR
_SERVICE_LINK = re.compile(r".*_SERVICE_(HOST|PORT(_.+)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?")
_LINK_VALUE = re.compile(r"(tcp|udp)://")


def read(environ: Mapping[str, str]) -> tuple[Layer, list[Notice]]:
    """Everything the environment says about the configuration. Empty variables count as unset."""
    given = {name: text for name, text in environ.items() if text}
    layer, notices = Layer(), _take_links(given)
    seen: set[str] = set()
    _read_tables(given, layer, seen)
    for key in KEYS:
        _read_key(key, given, layer, seen)
        if key.name not in layer.values and key.name not in layer.broken:
            notices += _borrow(key, given, layer)
    seen.update(PREFIX + name for name in OTHER_NAMES)
    for name in sorted(given):
        if name in seen:
            continue
        if name.startswith(GENERAL_PREFIX):
            layer.problems.append((f"env:{name}", _unknown(name)))
        elif name.startswith(PREFIX):
            guess = parsing.nearest(name, _known_names())
            hint = f", did you mean {guess}?" if guess else ""
            notices.append(Notice("UNKNOWN_VARIABLE", f"unknown environment variable {name}{hint}"))
    return layer, notices


def _take_links(given: dict[str, str]) -> list[Notice]:
    """Remove service links, so that `TEI_MANAGER_API_PORT=tcp://10.0.0.1:80` is not taken for a port."""
    links = [
        name
        for name, text in given.items()
        if name.startswith(PREFIX)
        and (("PORT" in name and _LINK_VALUE.match(text)) or _SERVICE_LINK.fullmatch(name))
        and (not name.startswith(GENERAL_PREFIX) or _LINK_VALUE.match(text))
    ]
    for name in links:
        del given[name]
    return [
        Notice("SERVICE_LINK_IGNORED", f"{name} looks like a service link of an orchestrator and is ignored")
        for name in sorted(links)
    ]


def _read_tables(given: Mapping[str, str], layer: Layer, seen: set[str]) -> None:
    """Whole tables as JSON: `TEI_MANAGER__INSTANCES`, `TEI_MANAGER__GRPC`. Their keys count one by one."""
    for path in sorted({(INSTANCES,), *TABLES}):
        name = general_name(path)
        if name not in given:
            continue
        seen.add(name)
        origin = f"env:{name}"
        try:
            value = json.loads(given[name])
        except (ValueError, RecursionError):
            wanted = "an array of tables" if path == (INSTANCES,) else "a table"
            layer.refuse(origin, tree.dotted(path), f"Invalid {name} value: expected {wanted} as JSON")
            layer.broken.add(tree.dotted(path))
            continue
        nested: dict[str, object] = {path[-1]: value}
        for part in reversed(path[:-1]):
            nested = {part: nested}
        tree.read(nested, _always(origin), layer)


def _always(origin: str) -> tree.OriginOf:
    return lambda _: origin


def _read_key(key: Key, given: Mapping[str, str], layer: Layer, seen: set[str]) -> None:
    first: str | None = layer.origins.get(key.name, "").removeprefix("env:") or None
    for name in dict.fromkeys((*key.env, *key.general_env)):
        if name not in given:
            continue
        seen.add(name)
        try:
            value = read_text(key, name, given[name])
        except Rejected as refusal:
            layer.broken.add(key.name)
            layer.refuse(f"env:{name}", key.name, str(refusal), refusal.code)
            continue
        if first is None:
            first = name
            layer.values[key.name], layer.origins[key.name] = value, f"env:{name}"
        elif value != layer.values[key.name]:
            layer.refuse(f"env:{name}", key.name, f"{first} is set to a different value: keep one of the two")


def read_text(key: Key, name: str, text: str) -> object:
    """The value of a variable or flag. Raises `Rejected` naming it."""
    try:
        return key.shape.read_text(text)
    except (Rejected, RecursionError) as refusal:
        code = refusal.code if isinstance(refusal, Rejected) else "INVALID_CONFIG"
        reason = refusal if isinstance(refusal, Rejected) else f"expected {key.shape.expects}"
        short = text if len(text) <= 60 else text[:59] + "…"
        value = "" if isinstance(key.shape, MapOf) else f" '{short}'"
        raise Rejected(code, f"Invalid {name} value{value}: {reason}") from None


def _borrow(key: Key, given: Mapping[str, str], layer: Layer) -> list[Notice]:
    """Variables that other programs own: the first good one counts, a bad one only warns."""
    notices = []
    for name, below in key.borrowed:
        if name not in given:
            continue
        try:
            value = read_text(key, name, f"{given[name]}/{below}" if below else given[name])
        except Rejected as refusal:
            notices.append(Notice("VARIABLE_IGNORED", f"{refusal}; it is ignored"))
            continue
        layer.values[key.name], layer.origins[key.name] = value, f"env:{name}"
        break
    return notices


def _unknown(name: str) -> Problem:
    path = name.removeprefix(GENERAL_PREFIX).lower().replace("__", ".")
    problem = parsing.unknown(path, map(tree.dotted, BY_PATH))
    if problem.nearest is None:
        return problem
    guess = general_name(tuple(problem.nearest.split(".")))
    return Problem(path, problem.code, f"unknown key, did you mean {guess}?", problem.nearest)


def _known_names() -> list[str]:
    names = [PREFIX + name for name in OTHER_NAMES]
    for key in KEYS:
        names += [name for name in key.env if name.startswith(PREFIX)] + list(key.general_env)
    return names
