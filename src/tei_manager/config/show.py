"""The effective configuration as `config show` and `GET /config` print it: with origins, without secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import tomli_w

from tei_manager.config.load import Loaded
from tei_manager.config.problems import one_line
from tei_manager.config.schema import INSTANCES, KEYS, value_of
from tei_manager.kits.masking import masked_args, masked_env


def values(loaded: Loaded) -> dict[str, object]:
    """Every key nested by its canonical name, JSON-able, secrets masked. `null` = unset."""
    tree: dict[str, object] = {}
    for key in KEYS:
        *tables, last = key.name.split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})  # type: ignore[assignment]  # tables hold only tables here
        table[last] = plain(value_of(loaded.config, key.name))
    tree[INSTANCES] = [_entry(entry) for entry in loaded.entries]
    return tree


def document(loaded: Loaded) -> dict[str, object]:
    """The whole answer: file, values, origins, warnings."""
    return {
        "file": str(loaded.path) if loaded.path is not None else None,
        "values": values(loaded),
        "origins": dict(loaded.origins),
        "warnings": [{"code": notice.code, "message": notice.message} for notice in loaded.warnings],
    }


def as_json(loaded: Loaded) -> str:
    return json.dumps(document(loaded), indent=2, ensure_ascii=False) + "\n"


def as_toml(loaded: Loaded) -> str:
    """A TOML file that loads to the same configuration (secrets apart), each line with its origin as a comment."""
    lines = [one_line(f"# file: {loaded.path if loaded.path is not None else 'none'}")]
    lines += [one_line(f"# warning: {notice.code}: {notice.message}") for notice in loaded.warnings]
    tree = values(loaded)
    tables = {name: value for name, value in tree.items() if isinstance(value, dict)}
    flat = {name: value for name, value in tree.items() if name not in tables and name != INSTANCES}
    lines += ["", *_lines(flat, "", loaded)]
    for name, table in tables.items():
        origin = loaded.origins.get(name)
        lines += ["", f"[{name}]" + (f"  # {origin}" if origin else ""), *_lines(table, f"{name}.", loaded)]
    for index, entry in enumerate(loaded.entries):
        shown = _entry(entry)
        lines += ["", f"[[{INSTANCES}]]", *_lines(shown, f"{INSTANCES}[{index}].", loaded)]
    return "\n".join(lines) + "\n"


def plain(value: object) -> object:
    """A value as JSON and TOML have it: paths as text, whole numbers without `.0`."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return value


def _entry(entry: Mapping[str, object]) -> dict[str, object]:
    shown = {name: plain(value) for name, value in entry.items()}
    if isinstance(env := entry.get("env"), Mapping):
        shown["env"] = masked_env(env)
    for name in ("extra_args", "command"):
        if isinstance(args := entry.get(name), list):
            shown[name] = masked_args([str(arg) for arg in args])
    return shown


def _lines(table: Mapping[str, object], prefix: str, loaded: Loaded) -> list[str]:
    lines = []
    for name, value in table.items():
        origin = loaded.origins.get(prefix + name)
        line = f"# {name} is unset" if value is None else f"{_key(name)} = {_inline(value)}"
        lines.append(f"{line}  # {origin}" if origin else line)
    return lines


def _inline(value: object) -> str:
    """One value on one line; the library lays out long lists and tables over several."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")


def _key(name: str) -> str:
    return tomli_w.dumps({name: 0}).removesuffix(" = 0\n")
