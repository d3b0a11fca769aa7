"""The command line: text-embeddings-router's flags, environment names and sentences, plus our own.

Every flag is one row of `FLAGS`. Parsing is written by hand because the sentences and spellings (`-p8080`, a bare
`--auto-truncate`, no abbreviations, no repeats) are another program's contract.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class UsageError(Exception):
    """The arguments make no sense; the message is what follows `error: `. Exit code 2."""


def _number(low: int = 0, high: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit():
            raise ValueError("invalid digit found in string")
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"{value} is not in {low}..={high}")
        return value

    return parse


def _boolean(text: str) -> bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if text not in words:
        raise ValueError("expected true or false")
    return words[text]


def _choice(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"possible values: {', '.join(words)}")
        return text

    return parse


def _not_yet(allowed: Callable[[str], str], served: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        value = allowed(text)
        if value not in served:
            raise ValueError(f"not available in this version; available: {', '.join(served)}")
        return value

    return parse


def _false_only(text: str) -> bool:
    if _boolean(text):
        raise ValueError("not available in this version")
    return False


def _secret(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _source(text: str) -> str:
    name, _, source = text.partition("=")
    if not name or not source:
        raise ValueError("expected ID=SOURCE")
    return text


_POOLINGS = _choice("cls", "mean", "splade", "last-token")


@dataclass(frozen=True, slots=True)
class Flag:
    """One row: `parse` raises ValueError with the reason; a switch takes no value on the command line."""

    name: str
    parse: Callable[[str], Any]
    default: Any = None
    help: str = ""
    env: str | None = None
    short: str | None = None
    switch: bool = False
    optional: bool = False
    """May stand without a value, meaning true."""
    repeatable: bool = False

    @property
    def key(self) -> str:
        """The name as a Python attribute."""
        return self.name.replace("-", "_")

    @property
    def usage(self) -> str:
        """How clap would write the flag."""
        return f"--{self.name}" if self.switch else f"--{self.name} <{self.key.upper()}>"


def _ours(name: str, parse: Callable[[str], Any], default: Any = None, help: str = "", **more: Any) -> Flag:
    return Flag(name, parse, default, help, env="TEI_ENGINE_" + name.replace("-", "_").upper(), **more)


def _tei(name: str, parse: Callable[[str], Any], default: Any = None, help: str = "", **more: Any) -> Flag:
    return Flag(name, parse, default, help, env=name.replace("-", "_").upper(), **more)


_PORT = _number(0, 65535)

FLAGS: tuple[Flag, ...] = (
    _tei("model-id", str, help="hub id, directory, or python:PACKAGE/sub/dir"),
    _tei("revision", str, help="commit, branch or tag on the hub"),
    _tei("tokenization-workers", _number(1, 64), help="tokenizer threads [default: 1 up to 4 cores, else 2]"),
    _tei("dtype", _choice("float16", "float32", "bfloat16"), "float32", "others are computed in float32"),
    _tei("pooling", _POOLINGS, help="cls, mean, splade or last-token [default: from the model]"),
    _tei("max-concurrent-requests", _number(1), 512, "inputs in flight; more are answered 429"),
    _tei("max-batch-tokens", _number(1), 16384, "upper bound of tokens in a run, and of one input"),
    _tei("max-batch-requests", _number(1), help="upper bound of inputs in a run"),
    _tei("max-client-batch-size", _number(1), 32, "inputs in one request"),
    _tei("auto-truncate", _boolean, True, "truncate long inputs unless the request says otherwise", optional=True),
    _tei("default-prompt-name", str, help="prompt of the model used where a request names none"),
    _tei("default-prompt", str, help="text put before every input whose request names no prompt"),
    _tei("dense-path", str, help="folder of the Dense module, if not the one in modules.json"),
    _tei("hf-api-token", _secret, help="older name of --hf-token"),
    _tei("hf-token", _secret, help="hub credential"),
    _tei("hostname", str, "0.0.0.0", "address to listen on"),  # noqa: S104 - text-embeddings-router's default
    _tei("port", _PORT, 3000, "HTTP port", short="p"),
    _tei("uds-path", str, "/tmp/text-embeddings-inference-server", "accepted, unused"),  # noqa: S108
    # its environment name is read with the hub client's others, which has an order of its own
    Flag("huggingface-hub-cache", str, help="folder of the hub cache [env: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE]"),
    _tei("payload-limit", _number(1), 2_000_000, "bytes of an HTTP request body"),
    _tei("api-key", _secret, help="required as `Authorization: Bearer KEY`"),
    _tei("json-output", _boolean, False, "log one JSON object per line", switch=True),
    _tei("disable-spans", _boolean, False, "accepted, unused", switch=True),
    _tei("otlp-endpoint", str, help="accepted, unused"),
    _tei("otlp-service-name", str, "text-embeddings-inference.server", "accepted, unused"),
    _tei("prometheus-port", _PORT, 0, "another port for metrics; 0 = none"),
    _tei("cors-allow-origin", str, help="allowed origin; may be given several times", repeatable=True),
    _tei("served-model-name", str, help="the name in OpenAI answers [default: the model id]"),
    _ours("grpc-port", _PORT, 0, "gRPC port; 0 = none"),
    _ours("model-source", _source, help="ID=SOURCE: where to read model ID from", repeatable=True),
    _ours("backend", _not_yet(_choice("onnx", "openvino"), ("onnx",)), "onnx", "onnx"),
    _ours("execution-providers", str, "CPUExecutionProvider", "comma list"),
    _ours("cuda-allow-tf32", _false_only, False, "not available in this version", switch=True),
    _ours("compute-workers", _number(1, 1024), help="one-thread runs side by side [default: usable cores]"),
    _ours("intra-op-threads", _number(1, 1024), help="threads of a lone run [default: usable cores]"),
    _ours("quantize", _choice("none", "int8"), "none", "int8: about twice as fast, vectors a little different"),
    _ours("onnx-file", str, help="ready-made graph inside the model's folder [default: built from the weights]"),
    _ours("auto-split", _boolean, False, "serve client batches above their limit in parts", switch=True),
    _ours("run-tokens", _number(1), 256, "padded tokens in one run"),
    _ours("drain-timeout", _number(0), 30, "seconds that accepted requests get after SIGTERM"),
    _ours("offline", _boolean, False, "no network", switch=True),
    _ours("dry-run", _boolean, False, "load, print what was loaded as JSON, exit", switch=True),
)

_BY_NAME = {flag.name: flag for flag in FLAGS}
_BY_SHORT = {flag.short: flag for flag in FLAGS if flag.short}


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Flag key → value; flags beat the environment, the environment beats defaults. Raises UsageError."""
    given = _read_argv(argv)
    values: dict[str, Any] = {}
    for flag in FLAGS:
        texts = given.get(flag.name)
        if texts is None:
            texts = _read_env(flag, environ)
        if texts is None:
            values[flag.key] = () if flag.repeatable else flag.default
        elif flag.repeatable:
            values[flag.key] = tuple(_value(flag, text) for text in texts)
        else:
            values[flag.key] = _value(flag, texts[0])
    _check(values)
    return values


def _read_argv(argv: Sequence[str]) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        flag, inline = _recognise(token)
        if flag.switch:
            if inline is not None:
                raise UsageError(f"unexpected value '{inline}' for '--{flag.name}' found; no more were expected")
            text = "true"
        elif inline is not None:
            text = inline
        elif flag.optional:
            text = rest.pop(0) if rest and rest[0] in {"true", "false"} else "true"
        elif rest and not (rest[0].startswith("-") and len(rest[0]) > 1):
            text = rest.pop(0)
        else:
            raise UsageError(f"a value is required for '{flag.usage}' but none was supplied")
        if flag.name in given and not flag.repeatable:
            raise UsageError(f"the argument '{flag.usage}' cannot be used multiple times")
        given.setdefault(flag.name, []).append(text)
    return given


def _recognise(token: str) -> tuple[Flag, str | None]:
    if token.startswith("--"):
        name, equals, inline = token[2:].partition("=")
        if name in _BY_NAME:
            return _BY_NAME[name], inline if equals else None
    elif token.startswith("-") and token[1:2] in _BY_SHORT:
        inline = token[2:].removeprefix("=")
        return _BY_SHORT[token[1:2]], inline if len(token) > 2 else None
    raise UsageError(f"unexpected argument '{token.partition('=')[0]}' found")


def _read_env(flag: Flag, environ: Mapping[str, str]) -> list[str] | None:
    text = environ.get(flag.env or "")
    if text is None:
        return None
    if flag.name == "api-key" and text == "":
        raise UsageError(f"invalid value '' for '{flag.usage}': must not be empty")
    if text == "" or (flag.name == "hostname" and not _is_address(text)):
        return None  # containers set HOSTNAME to their own name
    return text.splitlines() if flag.repeatable else [text]


def _value(flag: Flag, text: str) -> Any:
    try:
        return flag.parse(text)
    except ValueError as error:
        raise UsageError(f"invalid value '{text}' for '{flag.usage}': {error}") from None


def _check(values: Mapping[str, Any]) -> None:
    if not values["model_id"]:
        raise UsageError("the following required arguments were not provided:\n  --model-id <MODEL_ID>")
    if values["default_prompt"] is not None and values["default_prompt_name"] is not None:
        first, second = _BY_NAME["default-prompt-name"].usage, _BY_NAME["default-prompt"].usage
        raise UsageError(f"the argument '{first}' cannot be used with '{second}'")
    providers = str(values["execution_providers"]).split(",")
    if not all(provider.endswith("ExecutionProvider") for provider in providers):
        usage = _BY_NAME["execution-providers"].usage
        raise UsageError(
            f"invalid value '{values['execution_providers']}' for '{usage}': expected names of providers"
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def help_text() -> str:
    """What `--help` prints."""
    lines = ["Usage: tei-engine --model-id <MODEL_ID> [OPTIONS]", "", "Options:"]
    for flag in FLAGS:
        short = f"-{flag.short}, " if flag.short else "    "
        default = "" if flag.default in (None, False, 0) or flag.switch else f" [default: {flag.default}]"
        env = f" [env: {flag.env}]" if flag.env else ""
        lines.append(f"  {short}{flag.usage}\n          {flag.help}{default}{env}")
    lines += ["  -h, --help\n          Print help", "  -V, --version\n          Print version"]
    return "\n".join(lines)
