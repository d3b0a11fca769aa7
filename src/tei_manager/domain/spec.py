"""The fields of an instance specification, one table for REST and for the configuration file.

`parse` checks shapes and single values and the rules between fields. What needs the world (free ports, names in
use, devices) is checked by its owner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind, InstanceSpec, Protocol
from tei_manager.kits import parsing
from tei_manager.kits.parsing import (
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Number,
    Optional,
    Text,
)

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = rf"{_PART}(/{_PART})?"
_RESOURCE = r"python:[A-Za-z_]\w*(/[A-Za-z0-9._-]+)*"
_QUANT = r":[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_FOLDER = r"/[^\0]*"
# set by us or by the loader, never by an instance: they decide what code runs or on which device
_RESERVED_ENV = ("LD_", "DYLD_", "PYTHON", "TEI_MANAGER_")
_RESERVED_ENV_NAMES = {"PATH", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"}


def _odd_path(text: str) -> bool:
    return ".." in text or "//" in text


def _odd_model(text: str) -> bool:
    if text.startswith("/"):
        return False
    return ".." in text or (not text.startswith("python:") and "--" in text)


def _reserved(name: str) -> bool:
    return name.startswith(_RESERVED_ENV) or name in _RESERVED_ENV_NAMES


NAME = Text(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
    "a name of 1 to 63 letters, digits, '.', '_' or '-' that starts with a letter or digit",
    code="INVALID_INSTANCE_NAME",
)
MODEL_ID = Text(
    rf"{_HUB_ID}({_QUANT})?|{_FOLDER}|{_RESOURCE}",
    "a hub id like 'org/name', an absolute folder, or 'python:PACKAGE/folder'",
    code="INVALID_MODEL_ID",
    refuse=_odd_model,
)
HUB_ID = Text(
    _HUB_ID,
    "a hub id like 'org/name'",
    code="INVALID_MODEL_ID",
    refuse=_odd_model,
)
MODEL_SOURCE = Text(
    rf"{_FOLDER}|{_RESOURCE}",
    "an absolute folder or 'python:PACKAGE/folder'",
    code="INVALID_MODEL_ID",
    refuse=_odd_model,
)
REVISION = Text(
    r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}",
    "a revision: branch, tag or commit",
    code="INVALID_MODEL_ID",
    refuse=_odd_path,
)
PORT = Integer(1024, 65535, code="INVALID_PORT")
ZERO = Integer(0, 0, code="INVALID_PORT")
ALIAS = Text(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", "an alias of 1 to 128 letters, digits or '._:/-'")
DEVICE = Either[Any](
    Integer(0, 1023, code="INVALID_GPU_ID"),
    Text(r"(GPU|MIG)-[A-Za-z0-9/-]{1,120}", "a device index or UUID", code="INVALID_GPU_ID"),
)
ENV_NAME = Text(
    r"[A-Z_][A-Z0-9_]*",
    "a variable name in upper case that is not reserved",
    refuse=_reserved,
    longest=256,
)

FIELDS: tuple[Field, ...] = (
    Field("name", NAME, required=True, doc="Unique, also when compared without case."),
    Field(
        "model_id",
        MODEL_ID,
        required=True,
        doc="Hub id, absolute folder or `python:PACKAGE/folder`. Engine `llamacpp`: also `org/name:QUANT`.",
    ),
    Field("revision", Optional(REVISION), doc="Branch, tag or commit on the hub."),
    Field("port", Optional(Either(PORT, ZERO)), doc="Main port of the engine; null or 0 = automatic."),
    Field("engine", Optional(Choice(*EngineKind)), doc="Default: `tei` if its binary is found, else `embedded`."),
    Field("max_batch_tokens", Integer(1, 10_000_000), 16384, doc="Most tokens the engine computes at once."),
    Field("max_concurrent_requests", Integer(1, 1_000_000), 512, doc="Inputs an engine accepts at once."),
    Field(
        "pooling",
        Optional(Choice("cls", "mean", "splade", "last-token", aliases={"last_token": "last-token"})),
        doc="Default: what the model says.",
    ),
    Field("dtype", Optional(Choice("float16", "float32", "bfloat16")), doc="Default: the engine's."),
    Field("gpu_id", Optional(DEVICE), doc="Pin to one device of the manager's visible set; null = all."),
    Field("gpu_ids", Optional(ListOf(DEVICE, longest=64)), doc="Pin to several; [] = CPU only."),
    Field(
        "prometheus_port",
        Optional(Either(PORT, ZERO)),
        doc="Port of the engine's own metrics; null = automatic, 0 = none.",
    ),
    Field(
        "extra_args", ListOf(Text(), longest=64), (), doc="Further engine flags, appended last.", is_secret=True
    ),
    Field("env", MapOf(ENV_NAME, Text()), {}, doc="Further environment of the engine.", is_secret=True),
    Field(
        "startup_timeout_secs",
        Optional(Number(0, 86400, above=True)),
        doc="How long a start may show no progress; null = the global value.",
    ),
    Field("log_level", Optional(Text(longest=256)), doc="The engine's log level; null = quiet."),
    Field("protocol", Optional(Choice("http", "grpc", "both")), doc="What the engine speaks; null = found out."),
    Field("aliases", ListOf(ALIAS, longest=64), (), doc="Further names that callers may ask for."),
    Field("autostart", Boolean(), True, doc="Start at creation and with the manager."),
    Field(
        "command",
        Optional(ListOf(Text(), longest=256, shortest=1)),
        doc="Engine `command` only: argv, with `{port}` and optionally `{host} {model_id} {revision}`.",
        is_secret=True,
    ),
    Field(
        "health_path",
        Optional(Text(r"/[!-~]{0,255}", "a path that starts with '/'")),
        doc="Engine `command` only: answers 2xx when ready. Default `/health`.",
    ),
)


def parse(values: Mapping[str, object], *, default_engine: EngineKind) -> InstanceSpec:
    """A specification from decoded JSON or TOML. Raises `errors.InvalidSpec` with every problem."""
    read, problems = parsing.read_record(FIELDS, values)
    problems += _between_fields(read)
    if problems:
        raise errors.InvalidSpec(problems)
    read["port"] = read["port"] or None
    read["engine"] = EngineKind(str(read["engine"])) if read["engine"] else default_engine
    read["protocol"] = Protocol(str(read["protocol"])) if read["protocol"] else None
    spec = InstanceSpec(**read)  # type: ignore[arg-type]  # read_record has checked every type
    if problems := _engine_rules(spec):
        raise errors.InvalidSpec(problems)
    return spec


def as_values(spec: InstanceSpec) -> dict[str, object]:
    """The specification as JSON-able values, every key present, in table order: `parse` reads it back."""
    values: dict[str, object] = {}
    for entry in FIELDS:
        value = getattr(spec, entry.name)
        if isinstance(value, tuple):
            value = list(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, EngineKind | Protocol):
            value = str(value)
        values[entry.name] = value
    return values


# what can change under a running process
_LIVE_FIELDS = {"aliases", "autostart", "startup_timeout_secs"}


def fingerprint(spec: InstanceSpec) -> str:
    """SHA-256 over everything a process is started with: equal fingerprints need no restart."""
    values = {name: value for name, value in as_values(spec).items() if name not in _LIVE_FIELDS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def split_quant(model_id: str) -> tuple[str, str | None]:
    """The hub id and the QUANT of `org/name:QUANT`; any other model id as it is, and None."""
    if model_id.startswith(("/", "python:")):
        return model_id, None
    hub_id, _, quant = model_id.partition(":")
    return hub_id, quant or None


def _between_fields(read: Mapping[str, object]) -> list[parsing.Problem]:
    problems = []
    if read["gpu_id"] is not None and read["gpu_ids"] is not None:
        problems.append(parsing.Problem("gpu_ids", "INVALID_GPU_ID", "give gpu_id or gpu_ids, not both"))
    if read["name"] is not None and read["name"] in (read["aliases"] or ()):  # type: ignore[operator]
        problems.append(parsing.Problem("aliases", "VALIDATION_ERROR", "an alias equals the name"))
    return problems


def _engine_rules(spec: InstanceSpec) -> list[parsing.Problem]:
    is_command = spec.engine is EngineKind.COMMAND
    problems = [
        parsing.Problem(name, "VALIDATION_ERROR", "is only for engine 'command'")
        for name in ("command", "health_path")
        if getattr(spec, name) is not None and not is_command
    ]
    if is_command and spec.command is None:
        problems.append(parsing.Problem("command", "MISSING_FIELD", "is required for engine 'command'"))
    elif is_command and not any("{port}" in part for part in spec.command or ()):
        problems.append(parsing.Problem("command", "VALIDATION_ERROR", "must contain '{port}'"))
    if spec.engine is not EngineKind.LLAMACPP and split_quant(spec.model_id)[1] is not None:
        problems.append(parsing.Problem("model_id", "INVALID_MODEL_ID", "':QUANT' is only for engine 'llamacpp'"))
    return problems
