"""The command line. It knows the commands and imports each one only when it is run."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from tei_manager.app.client import arguments
from tei_manager.app.client.console import Console
from tei_manager.app.client.failures import CommandFailed

INTERRUPTED = 130
PIPE_CLOSED = 141

# flag of `serve` -> configuration key
SERVE_KEYS = ("host", "api_port", "grpc_port", "insecure", "log_level", "log_format")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong usage, `--help` and `--version` leave by `SystemExit`."""
    try:
        try:
            return run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # so that a closed pipe is found here and not at the interpreter's end
    except BrokenPipeError:
        # what is still buffered has no reader; without this the interpreter would try once more and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write("tei-manager: no space left for the output\n")
        return 1


def run(argv: list[str]) -> int:
    options = parse(argv)
    command = load(options.run)
    console = Console.standard()
    try:
        return command(options, console)
    except CommandFailed as failure:
        for line in failure.lines:
            console.note(line)
        return failure.exit_code


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of one command; `run` names the function to call. Wrong usage exits 2."""
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv = ["serve", *argv]
    # split here: argparse would look for more positionals behind the `--`
    at = argv.index("--") if "--" in argv and argv[:2] == ["instances", "create"] else len(argv)
    options = build_parser().parse_args(argv[:at])
    if options.takes_rest:
        options.rest = tuple(argv[at + 1 :])
    return options


def load(address: str) -> Callable[[argparse.Namespace, Console], int]:
    """The function at `package.module:name`."""
    module, name = address.split(":")
    command: Callable[[argparse.Namespace, Console], int] = getattr(importlib.import_module(module), name)
    return command


class ShowVersion(argparse.Action):
    """Like argparse's own, but looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"tei-manager {version('tei-manager')}\n")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The whole tree of commands."""
    parser = arguments.Leaf(
        prog="tei-manager",
        description="One control plane and one front door for self-hosted inference servers.",
        epilog="'tei-manager COMMAND --help' tells more. Without a command it is 'serve'.",
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=arguments.Leaf)

    serve = commands.add_parser("serve", help="run the manager in the foreground", description=SERVE)
    serve.set_defaults(run="tei_manager.app.cli:serve", takes_rest=False)
    _config(serve)
    serve.add_argument("--host", metavar="ADDR", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", metavar="N", type=int, dest="api_port", help="HTTP port (default: 9000)")
    serve.add_argument("--grpc-port", metavar="N", type=int, help="gRPC port (default: 9001)")
    serve.add_argument(
        "--insecure", action="store_true", default=None, help="allow an address others can reach without auth"
    )
    serve.add_argument("--log-level", metavar="L", help="trace, debug, info, warn, error; or logger=LEVEL,...")
    serve.add_argument("--log-format", choices=("json", "pretty"))

    check = commands.add_parser("check", help="validate the configuration", description=CHECK)
    check.set_defaults(run="tei_manager.app.configuration:check", takes_rest=False)
    _config(check)
    check.add_argument("--json", action="store_true", help="print the verdict as JSON")

    config = commands.add_parser("config", help="show the configuration")
    shows = config.add_subparsers(metavar="VERB", required=True, parser_class=arguments.Leaf)
    show = shows.add_parser("show", help="the effective configuration with its origins", description=CONFIG_SHOW)
    show.set_defaults(run="tei_manager.app.configuration:show_effective", takes_rest=False)
    _config(show)
    show.add_argument("--format", choices=("toml", "json"), default="toml", help="default: toml")

    arguments.add(commands)
    return parser


SERVE = "Run the manager in the foreground. Ends on SIGTERM or Ctrl-C."
CHECK = "Validate file and environment. Starts and creates nothing. Exits 0 if valid, 2 if not."
CONFIG_SHOW = "Show the effective configuration, each value with where it came from. Secrets are masked."


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", metavar="PATH", help="TOML file (default: TEI_MANAGER_CONFIG)")


def serve(options: argparse.Namespace, console: Console) -> int:
    """Hand over to the server with the flags that were given."""
    # until the server takes over: it starts nothing before that, so there is nothing to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from tei_manager.app.serve import run as run_server
    from tei_manager.config.load import config_path

    given = {key: value for key in SERVE_KEYS if (value := getattr(options, key)) is not None}
    return run_server(config_path(options.config, os.environ), given)
