import argparse
import sys
import types
from pathlib import Path

import pytest

from tei_manager.app import cli
from tei_manager.app.client.instances import specification


@pytest.mark.parametrize("argv", [[], ["--port", "9100"], ["-c", "x.toml"], ["--insecure"]])
def test_without_a_command_it_is_serve(argv: list[str]) -> None:
    assert cli.parse(argv) == cli.parse(["serve", *argv])


@pytest.mark.parametrize(
    ("argv", "path", "flags"),
    [
        (["serve"], Path("from-environment.toml"), {}),
        (["-c", "a.toml", "--insecure"], Path("a.toml"), {"insecure": True}),
        (
            [
                "-ca.toml",
                "--host=::1",
                "--port=9100",
                "--grpc-port=9101",
                "--log-level=debug",
                "--log-format=pretty",
            ],
            Path("a.toml"),
            {"host": "::1", "api_port": 9100, "grpc_port": 9101, "log_level": "debug", "log_format": "pretty"},
        ),
    ],
)
def test_serve_hands_over_only_the_flags_that_were_given(
    argv: list[str], path: Path, flags: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    server = types.ModuleType("tei_manager.app.serve")
    server.run = lambda *args: calls.append(args) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, server.__name__, server)
    monkeypatch.setenv("TEI_MANAGER_CONFIG", "from-environment.toml")
    assert cli.main(argv) == 3
    assert calls == [(path, flags)]


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["serve", "--log-format", "xml"],
        ["serve", "--port", "many"],
        ["--por", "9000"],
        ["instances"],
        ["instances", "show"],
        ["instances", "create", "only-a-name"],
        ["instances", "create", "a", "m", "--env", "NOVALUE"],
        ["instances", "create", "a", "m", "--startup-timeout", "nan"],
        ["instances", "create", "a", "m", "--startup-timeout", "soon"],
        ["instances", "logs", "a", "--tail", "-1"],
        ["instances", "stop"],
        ["embed", "a text and no instance"],
    ],
)
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.parse(argv)
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_secret_with_its_name_forgotten_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["instances", "create", "a", "m", "--env", "hf_secret"])
    assert "hf_secret" not in capsys.readouterr().err


def test_a_plain_create_sends_only_what_was_given() -> None:
    assert specification(cli.parse(["instances", "create", "a", "org/m"])) == {"name": "a", "model_id": "org/m"}


def test_every_flag_of_create_becomes_a_field() -> None:
    line = (
        "instances create a org/m --engine embedded --port 8080 --revision v1 --pooling mean --dtype float32"
        " --gpu-id 1 --prometheus-port 0 --max-batch-tokens auto --max-concurrent-requests 7 --alias x --alias y"
        " --env A=1 --env B=c=d --extra-arg=--one --no-autostart --startup-timeout 1.5 -- --two --three=3 --"
    )
    assert specification(cli.parse(line.split())) == {
        "name": "a",
        "model_id": "org/m",
        "engine": "embedded",
        "port": 8080,
        "revision": "v1",
        "pooling": "mean",
        "dtype": "float32",
        "gpu_id": 1,
        "prometheus_port": 0,
        "max_batch_tokens": "auto",
        "max_concurrent_requests": 7,
        "aliases": ["x", "y"],
        "env": {"A": "1", "B": "c=d"},
        "extra_args": ["--one", "--two", "--three=3", "--"],
        "autostart": False,
        "startup_timeout_secs": 1.5,
    }


def test_a_gpu_may_be_named_by_its_uuid() -> None:
    assert specification(cli.parse(["instances", "create", "a", "m", "--gpu-id", "GPU-8c"]))["gpu_id"] == "GPU-8c"


def test_texts_behind_two_dashes_may_look_like_flags() -> None:
    assert cli.parse(["embed", "--instance", "a", "--", "--not-a-flag", "-x"]).texts == ["--not-a-flag", "-x"]


def test_every_command_names_a_function_that_exists() -> None:
    for _, parser in leaves(cli.build_parser()):
        address = parser.get_default("run")
        assert callable(cli.load(address)), address


def test_the_reference_names_every_command_and_flag() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text()
    sections = {part.split("\n")[0].strip("` "): part for part in page.split("\n## ")[1:]}
    shared = sections["Flags of all client commands"]
    for words, parser in leaves(cli.build_parser()):
        section = sections[words]
        assert f"$ {words}" in section, f"no example of {words}"
        for action in parser._actions:
            for flag in action.option_strings:
                here = section + (shared if parser.get_default("run").startswith("tei_manager.app.client") else "")
                assert flag in ("-h", "--help") or f"`{flag}" in here, f"{words} {flag}"


def leaves(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    """Every command with its whole name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [leaf for child in action.choices.values() for leaf in leaves(child)]
    return [(parser.prog, parser)]
