"""The effective configuration: defaults < TOML file < environment < flags, every problem at once."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tei_manager.config import environment, paths, rules, schema, tree
from tei_manager.config.lines import Lines
from tei_manager.config.problems import ConfigProblems, Finding, Notice
from tei_manager.config.schema import BY_NAME, INSTANCES, KEYS, Config, Key
from tei_manager.config.tree import Layer
from tei_manager.domain.instance import EngineKind, InstanceSpec
from tei_manager.kits import parsing
from tei_manager.kits.parsing import Problem, Rejected

CONFIG_VARIABLE = "TEI_MANAGER_CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A checked configuration. `origins` has every key by canonical name, and `instances[0].port` for each field
    of an instance that was given: `file:12`, `env:NAME`, `flag:--port` or `default`."""

    config: Config
    origins: Mapping[str, str]
    warnings: tuple[Notice, ...] = ()
    path: Path | None = None

    @property
    def entries(self) -> tuple[Mapping[str, object], ...]:
        """The instance entries as they were written, for seeds and diffs."""
        return self.config.instances

    def specs(self, default_engine: EngineKind) -> tuple[InstanceSpec, ...]:
        """The checked specifications of the entries; those that name no engine get `default_engine`."""
        return self.config.specs(default_engine)


def config_path(flag: str | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file that was asked for: the flag, else TEI_MANAGER_CONFIG, else none."""
    text = flag if flag is not None else environ.get(CONFIG_VARIABLE) or None
    return Path(text) if text is not None else None


def load(
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Loaded:
    """Load and check everything; reads one file, creates nothing.

    `environ` is the process's own by default. `flags` has values by key or by flag (`api_port` or `--port`), None
    = not given. Raises `ConfigProblems` with all problems.
    """
    environ = os.environ if environ is None else environ
    from_file = _read_file(path, environ) if path is not None else Layer()
    from_environment, notices = environment.read(environ)
    layers = (from_file, from_environment, _read_flags(flags or {}))

    problems = [finding for layer in layers for finding in layer.problems]
    broken = set[str]().union(*(layer.broken for layer in layers))
    values: dict[str, object] = {}
    origins = {key.name: "default" for key in KEYS} | {INSTANCES: "default"}
    for layer in layers:
        if INSTANCES in layer.values:
            origins = {name: origin for name, origin in origins.items() if not name.startswith("instances[")}
        values |= layer.values
        origins |= layer.origins

    problems += _settle_paths(values, origins, environ)
    values.setdefault("grpc_host", values.get("host", BY_NAME["host"].default))
    config = schema.build(values)
    problems += rules.check(config, origins, broken)
    if problems:
        raise ConfigProblems(problems)
    return Loaded(
        config=config,
        origins=origins,
        warnings=(*notices, *rules.notices(config)),
        path=path,
    )


def _read_file(path: Path, environ: Mapping[str, str]) -> Layer:
    layer = Layer()
    try:
        text = _text_of(paths.expand(path, environ))
        if not text.strip():
            raise ValueError("the file is empty: name another one, or start without -c for the built-in values")
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
        layer.refuse("file", str(path), reason)
        return layer
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as fault:  # ValueError: also numbers of absurd length
        reason = str(fault) if isinstance(fault, ValueError) else "nested too deeply"
        at = re.search(r"at line (\d+)", reason)
        end = re.search(r"at end of document", reason)
        line = at.group(1) if at else str(text.count("\n") + 1) if end else "1"
        layer.refuse(f"file:{line}", str(path), f"not valid TOML: {reason}")
        return layer
    lines = Lines(text)

    def origin_of(at: tree.Path) -> str:
        line = lines.of(at)
        return "file" if line is None else f"file:{line}"

    tree.read(document, origin_of, layer)
    layer.problems.sort(key=_line)
    return layer


def _text_of(path: Path) -> str:
    if stat.S_ISDIR(path.stat().st_mode):
        raise ValueError("is a folder, expected a TOML file")
    try:
        # TOML counts lines at \n; a byte order mark is no part of the text
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as fault:
        raise ValueError(f"not UTF-8 text: {fault.reason} at byte {fault.start}") from None


def _line(finding: Finding) -> int:
    return int(finding[0].partition(":")[2] or 0)


def _read_flags(flags: Mapping[str, object]) -> Layer:
    layer = Layer()
    by_flag = {key.flag: key for key in KEYS if key.flag}
    for name, value in flags.items():
        if value is None:
            continue
        key: Key | None = by_flag.get(name) or BY_NAME.get(name)
        if key is None:
            raise KeyError(f"no key or flag '{name}'")  # a fault of ours, not of the user
        shown = key.flag or name
        origin = f"flag:{shown}"
        try:
            text = isinstance(value, str)
            read = environment.read_text(key, shown, str(value)) if text else key.shape.read(value)
        except Rejected as refusal:
            layer.broken.add(key.name)
            layer.refuse(origin, key.name, str(refusal), refusal.code)
            continue
        layer.values[key.name], layer.origins[key.name] = read, origin
    return layer


def _settle_paths(
    values: dict[str, object], origins: Mapping[str, str], environ: Mapping[str, str]
) -> list[Finding]:
    """Make every path absolute and fill in the computed ones."""
    problems: list[Finding] = []
    for name, value in list(values.items()):
        if name not in BY_NAME:
            continue
        try:
            if isinstance(value, Path):
                values[name] = paths.expand(value, environ)
            elif isinstance(value, tuple):
                values[name] = tuple(paths.expand(v, environ) if isinstance(v, Path) else v for v in value)
                if name == "vllm_command":
                    values[name] = (_program(str(value[0]), environ), *value[1:])
            elif name in ("tei_binary_path", "llamacpp_binary_path"):
                values[name] = _program(str(value), environ)
        except ValueError as fault:
            problems.append((origins[name], Problem(name, "INVALID_CONFIG", str(fault))))
    folder = paths.state_folder(environ)
    values.setdefault("state_file", folder / "state.toml")
    values.setdefault("log_dir", folder / "logs")
    values.setdefault("model_cache_dir", paths.model_cache(environ))
    return problems


def _program(name: str, environ: Mapping[str, str]) -> str:
    """A program's name or path, in full if it begins with a home folder. Raises ValueError: unknown `~user`."""
    return str(paths.expand(Path(name), environ)) if name.startswith("~") else name


def create_folders(loaded: Loaded) -> None:
    """Create the folders of state and logs; `serve` does this, `check` does not.

    Raises `ConfigProblems`: a folder that cannot be created is a problem, never a silent move elsewhere.
    """
    problems: list[Finding] = []
    config = loaded.config
    for name, folder in (("state_file", config.state_file.parent), ("log_dir", config.log_dir)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(None, "no permission to write there")
        except OSError as fault:
            reason = f"cannot use folder {parsing.shown(str(folder), 200)}: {fault.strerror}"
            problems.append((loaded.origins[name], Problem(name, "IO_ERROR", reason)))
    if config.state_file.is_dir():
        problems.append((loaded.origins["state_file"], Problem("state_file", "IO_ERROR", "is a folder")))
    if problems:
        raise ConfigProblems(problems)
