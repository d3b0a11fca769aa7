"""The reference page of the configuration, written from the table of keys."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tei_manager.config.schema import BY_NAME, KEYS, Key
from tei_manager.config.show import plain
from tei_manager.domain import spec
from tei_manager.kits.parsing import Field, MapOf

_HEAD = """\
# Configuration

<!-- Generated from the table of keys in tei_manager/config/schema.py by tools/generate_docs.py. -->

`tei-manager serve -c FILE` reads one TOML file; without `-c`, `TEI_MANAGER_CONFIG` names it; without both the
defaults count and no folder is searched. Defaults are overridden by the file, the file by the environment, the
environment by flags; lists and tables are replaced whole. Everything wrong is reported at once, one line each:
`ORIGIN: KEY.PATH: reason`. `tei-manager check` validates, `tei-manager config show` prints every effective
value with its origin.

Every key can be set by a variable `TEI_MANAGER__` + its path in upper case, joined by `__`:
`TEI_MANAGER__API_PORT=9000`, `TEI_MANAGER__GATEWAY__MAX_BODY_MB=64`. Lists and tables are JSON:
`TEI_MANAGER__INSTANCES='[{"name": "a", "model_id": "org/model"}]'`. An empty variable counts as unset.
Booleans are `true`, `false`, `1`, `0`, `yes`, `no`, `on` or `off`. The shorter names in the tables below say the
same; both with different values are a problem.

Times end in `_secs` and are numbers, fractions allowed. Relative paths start at the current folder, `~` is the
home folder. Keys marked ↻ take effect at the next start of the manager.
"""

_SOURCES = f"""\
## `[model_sources]`

{BY_NAME["model_sources"].doc} Another form of key or value is a problem.

```toml
[model_sources]
"org/name" = "/srv/models/name"
"org/other" = "python:some_package/model"
```
"""

_INSTANCES = """\
## `[[instances]]`

Each entry is one instance that the manager runs. Names (also compared without case) and ports must be unique.

"""


def markdown() -> str:
    """The page."""
    parts = [_HEAD]
    top = [key for key in KEYS if "." not in key.name and not isinstance(key.shape, MapOf)]
    parts.append("## Server keys\n\n" + _table(top))
    parts += [
        f"## `[{table}]`\n\n" + _table([key for key in KEYS if key.name.startswith(table + ".")])
        for table in dict.fromkeys(key.name.split(".")[0] for key in KEYS if "." in key.name)
    ]
    parts += [_SOURCES, _INSTANCES + _fields(spec.FIELDS)]
    return "\n".join(parts)


def _table(keys: Sequence[Key]) -> str:
    rows = ["| key | default | value | meaning |", "|---|---|---|---|"]
    rows += [f"| {_name(key)} | {_default(key)} | {key.shape.expects} | {_meaning(key)} |" for key in keys]
    return "\n".join(rows) + "\n"


def _name(key: Key) -> str:
    return f"`{key.name.split('.')[-1]}`" + (" ↻" if key.needs_restart else "")


def _default(key: Key) -> str:
    return key.computed or f"`{_literal(key.default)}`"


def _meaning(key: Key) -> str:
    parts = [key.doc]
    if others := key.spellings[1:]:
        parts.append("Also " + ", ".join(f"`{'.'.join(path)}`" for path in others) + ".")
    if key.flag:
        parts.append(f"Flag `{key.flag}`.")
    variables = [f"`{name}`" for name in key.env]
    variables += [f"`${name}/{below}`" if below else f"`{name}`" for name, below in key.borrowed]
    if variables:
        parts.append("Environment " + ", else ".join(variables) + ".")
    return " ".join(parts)


def _fields(fields: Sequence[Field]) -> str:
    rows = ["| field | default | value | meaning |", "|---|---|---|---|"]
    for entry in fields:
        default = "required" if entry.required else f"`{_literal(entry.default)}`"
        rows.append(f"| `{entry.name}` | {default} | {_words(entry.shape.expects)} | {entry.doc} |")
    return "\n".join(rows) + "\n"


def _words(text: str) -> str:
    return text.replace("|", "\\|")


def _literal(value: object) -> str:
    return json.dumps(plain(value), ensure_ascii=False)
