"""The command line: TEI's and tei-engine's flags, with the manners of TEI's parser, and the script's switches."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tei_manager.testing.engine.script import PREFIX, Script, environment_name, read_bool, switches

_TEXT, _NUMBER, _SWITCH, _OPTIONAL_BOOL = "text", "number", "switch", "bool"

# name -> how it is read; the environment name of each is the flag in upper snake case
_TEI: dict[str, str | tuple[str, ...]] = {
    "model-id": _TEXT,
    "revision": _TEXT,
    "tokenization-workers": _NUMBER,
    "dtype": ("float16", "float32", "bfloat16"),
    "served-model-name": _TEXT,
    "pooling": ("cls", "mean", "splade", "last-token"),
    "max-concurrent-requests": _NUMBER,
    "max-batch-tokens": _NUMBER,
    "max-batch-requests": _NUMBER,
    "max-client-batch-size": _NUMBER,
    "auto-truncate": _OPTIONAL_BOOL,
    "default-prompt-name": _TEXT,
    "default-prompt": _TEXT,
    "dense-path": _TEXT,
    "hf-api-token": _TEXT,
    "hf-token": _TEXT,
    "hostname": _TEXT,
    "port": _NUMBER,
    "uds-path": _TEXT,
    "huggingface-hub-cache": _TEXT,
    "payload-limit": _NUMBER,
    "api-key": _TEXT,
    "json-output": _SWITCH,
    "disable-spans": _SWITCH,
    "otlp-endpoint": _TEXT,
    "otlp-service-name": _TEXT,
    "prometheus-port": _NUMBER,
    "cors-allow-origin": _TEXT,
}
# taken from argv only: tei-engine reads them from the environment under a prefix of its own
_TEI_ENGINE: dict[str, str | tuple[str, ...]] = {
    "grpc-port": _NUMBER,
    "model-source": _TEXT,
    "backend": _TEXT,
    "execution-providers": _TEXT,
    "cuda-allow-tf32": _SWITCH,
    "compute-workers": _NUMBER,
    "intra-op-threads": _NUMBER,
    "quantize": ("none", "int8"),
    "onnx-file": _TEXT,
    "auto-split": _SWITCH,
    "run-tokens": _NUMBER,
    "drain-timeout": _TEXT,
    "offline": _SWITCH,
    "dry-run": _SWITCH,
}
_REPEATABLE = {"cors-allow-origin", "model-source"}
_PORTS = {"port", "grpc-port", "prometheus-port"}
_ALL = _TEI | _TEI_ENGINE


class UsageError(Exception):
    """A command line or environment that the program refuses: exit code 2 and this text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The flags of TEI and tei-engine that the testing engine acts on, and the script."""

    script: Script
    model_id: str = "testing-engine"
    model_sha: str | None = None
    served_model_name: str | None = None
    dtype: str = "float32"
    pooling: str = "mean"
    hostname: str | None = None
    port: int = 3000
    grpc_port: int | None = None
    prometheus_port: int | None = None
    max_batch_tokens: int = 16384
    max_batch_requests: int | None = None
    max_concurrent_requests: int = 512
    max_client_batch_size: int = 32
    tokenization_workers: int = 1
    payload_limit: int = 2_000_000
    auto_truncate: bool = True
    default_prompt: str | None = None
    api_key: str | None = None
    json_output: bool = False
    drain_timeout: float | None = None
    log_level: str = "info"
    wants: str = "serve"  # or "version", "help"

    @property
    def protocol(self) -> str:
        """What is spoken where: `http` or `grpc` on the port, or `both`."""
        return self.script.protocol or ("both" if self.grpc_port else "http")

    @property
    def version(self) -> str:
        """The protocol version: the last word of `--version`, without its bracket."""
        return self.script.version_text.split()[-1].strip("()") if self.script.version_text.split() else ""


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Read the arguments (without the program's name) and the environment; UsageError says what is wrong."""
    given = _split(argv)
    wants = next((name for name in ("help", "version") if name in given), "serve")
    values = _from_environment(environ) | {name: texts[-1] for name, texts in given.items()}
    script = _script(values, environ)
    # like TEI's parser: --version and --help win over everything that is merely missing
    flags = {name: _value(name, text) for name, text in values.items() if name in _ALL}
    known = {name.replace("-", "_"): value for name, value in flags.items()}
    if "revision" in flags:
        known["model_sha"] = flags["revision"]
    if "drain-timeout" in flags:
        known["drain_timeout"] = _drain_timeout(str(flags["drain-timeout"]))
    fields = set(Options.__dataclass_fields__)
    kept = {name: value for name, value in known.items() if name in fields}
    options = Options(
        script=script,
        wants=wants,
        log_level=environ.get("LOG_LEVEL") or "info",
        **kept,  # type: ignore[arg-type]  # the table gives each field its type
    )
    if wants == "serve" and options.script.protocol == "both" and not options.grpc_port:
        raise UsageError("error: --protocol both needs --grpc-port")
    return options


def help_text() -> str:
    """Usage: every switch of the script, and the names of the other flags."""
    lines = ["Usage: tei-testing-engine [OPTIONS]", "", "Script (flag, same with environment):"]
    for name, switch in switches().items():
        lines.append(f"  --{name} {switch.placeholder}".rstrip())
        lines.append(f"      {switch.meaning} [env: {environment_name(name)}]")
    lines += ["", "As TEI and tei-engine: --version, --help, " + ", ".join(f"--{name}" for name in _ALL)]
    return "\n".join(lines)


def _split(argv: Sequence[str]) -> dict[str, list[str]]:
    """Flag name -> texts, in order; refuses what TEI's parser refuses."""
    script = switches()
    given: dict[str, list[str]] = {}
    rest = list(argv)
    while rest:
        name, value = _flag(rest.pop(0))
        if name in ("help", "version"):
            given[name] = [""]
            continue
        if name not in _ALL and name not in script:
            raise _usage(f"unexpected argument '--{name}' found")
        if name in given and name not in _REPEATABLE:
            raise _usage(f"the argument '{_shown(name)}' cannot be used multiple times")
        if value is None:
            value = _next_value(name, rest)
        elif _ALL.get(name) == _SWITCH:
            raise _usage(f"unexpected value '{value}' for '--{name}' found; no more were expected")
        given.setdefault(name, []).append(value)
    return given


def _flag(text: str) -> tuple[str, str | None]:
    for short, name in (("-p", "port"), ("-h", "help"), ("-V", "version")):
        if text == short:
            return name, None
        if short == "-p" and text.startswith("-p"):
            return name, text[2:].removeprefix("=")
    if not text.startswith("--") or text == "--":
        raise _usage(f"unexpected argument '{text}' found")
    name, equals, value = text[2:].partition("=")
    return name, value if equals else None


def _next_value(name: str, rest: list[str]) -> str:
    """The value of a flag written without `=`: the next argument, or what the flag means alone."""
    kind = _ALL.get(name)
    if kind == _SWITCH or (name not in _ALL and not switches()[name].placeholder):
        return "true"
    if kind == _OPTIONAL_BOOL:
        return rest.pop(0) if rest and rest[0] in ("true", "false") else "true"
    # a value that begins with a dash needs `=`; only --exit-code takes negative numbers
    negative = name == "exit-code" and rest and rest[0][1:].isdigit()
    if not rest or (rest[0].startswith("-") and rest[0] != "-" and not negative):
        raise _usage(f"a value is required for '{_shown(name)}' but none was supplied")
    return rest.pop(0)


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """TEI's own variables; as in TEI an empty one counts. HOSTNAME only if an IP: shells and containers set it."""
    found = {name: environ[key] for name in _TEI if (key := name.upper().replace("-", "_")) in environ}
    if "hostname" in found and not is_ip(found["hostname"]):
        del found["hostname"]
    return found


def _script(values: Mapping[str, str], environ: Mapping[str, str]) -> Script:
    table = switches()
    named = {environment_name(name): name for name in table}
    if unknown := sorted(key for key in environ if key.startswith(PREFIX) and key not in named):
        raise UsageError(f"error: unknown script variable {unknown[0]}")
    texts = {named[key]: (key, text) for key, text in environ.items() if key in named and text}
    texts |= {name: (f"--{name}", values[name]) for name in table if name in values}
    read: dict[str, object] = {}
    for name, (origin, text) in texts.items():
        try:
            read[name.replace("-", "_")] = table[name].read(text)
        except ValueError as error:
            raise UsageError(f"error: invalid value '{text}' for {origin}: {error}") from None
    return Script(**read)  # type: ignore[arg-type]  # each reader gives its field's type


def _value(name: str, text: str) -> object:
    kind = _ALL[name]
    if isinstance(kind, tuple):
        if text not in kind:
            raise _usage(f"invalid value '{text}' for '{_shown(name)}'\n  [possible values: {', '.join(kind)}]")
        return text
    if kind in (_SWITCH, _OPTIONAL_BOOL):
        try:
            return read_bool(text)
        except ValueError:
            raise _usage(f"invalid value '{text}' for '{_shown(name)}'") from None
    if kind == _NUMBER:
        return _number(name, text)
    if name in ("api-key", "hf-token") and not text:
        raise _usage(f"a value is required for '{_shown(name)}' but none was supplied")
    return text


def _number(name: str, text: str) -> int:
    if not text:
        reason = "cannot parse integer from empty string"
    elif not (text.isascii() and text.isdigit()):
        reason = "invalid digit found in string"
    elif name in _PORTS and int(text) > 65535:
        reason = f"{text} is not in 0..=65535"
    else:
        return int(text)
    raise _usage(f"invalid value '{text}' for '{_shown(name)}': {reason}")


def is_ip(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, text)
            return True
    return False


def _drain_timeout(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _usage(
            f"invalid value '{text}' for '--drain-timeout <DRAIN_TIMEOUT>': invalid float literal"
        ) from None


def _shown(name: str) -> str:
    if _ALL.get(name) == _SWITCH or (name not in _ALL and not switches()[name].placeholder):
        return f"--{name}"
    return f"--{name} <{name.upper().replace('-', '_')}>"


def _usage(reason: str) -> UsageError:
    return UsageError(
        f"error: {reason}\n\nUsage: tei-testing-engine [OPTIONS]\n\nFor more information, try '--help'."
    )
