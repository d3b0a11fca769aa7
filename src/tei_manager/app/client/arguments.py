"""The command line of the client commands. Only argparse: the commands themselves are imported when run."""

from __future__ import annotations

import argparse

SERVER = "tei_manager.app.client.instances"
WAIT = "wait until the instance is running (default) or answer at once"


class Leaf(argparse.ArgumentParser):
    """A parser for one command: `--js` must not mean `--json`, for it would break with the next flag."""

    def __init__(self, **more: object) -> None:
        super().__init__(**{"allow_abbrev": False} | more)  # type: ignore[arg-type]


def add(commands: argparse._SubParsersAction[Leaf]) -> None:
    """Add `instances …` and `embed`."""
    instances = commands.add_parser("instances", help="create, watch, start, stop and delete instances")
    verbs = instances.add_subparsers(metavar="VERB", required=True, parser_class=Leaf)

    verb = _leaf(verbs, "list", "one line for each instance", f"{SERVER}:list_")
    verb.add_argument("--status", metavar="S", help="only those in this status, as running or failed")

    verb = _leaf(verbs, "show", "everything about one instance", f"{SERVER}:show")
    verb.add_argument("name", metavar="NAME")

    _create(_leaf(verbs, "create", "register an instance and start it", f"{SERVER}:create"))

    for word, does in (("start", "start instances"), ("restart", "stop instances and start them again")):
        verb = _leaf(verbs, word, does, f"{SERVER}:{word}")
        verb.add_argument("names", metavar="NAME", nargs="+")
        _waiting(verb)
    for word, does in (
        ("stop", "let instances finish their calls and end them"),
        ("delete", "stop and forget instances"),
    ):
        _leaf(verbs, word, does, f"{SERVER}:{word}").add_argument("names", metavar="NAME", nargs="+")

    verb = _leaf(verbs, "logs", "the end of an instance's log", "tei_manager.app.client.logs:logs")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--tail", metavar="N", type=_count, default=100, help="how many lines (default: 100)")
    verb.add_argument("--follow", "-f", action="store_true", help="go on with new lines until Ctrl-C")

    verb = _leaf(verbs, "story", "what happened to an instance", "tei_manager.app.client.logs:story")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--limit", metavar="N", type=_count, default=50, help="how many events (default: 50)")

    verb = _leaf(commands, "embed", "embed texts and compare them", "tei_manager.app.client.embed:embed")
    verb.add_argument("texts", metavar="TEXT", nargs="+", help="a text, or - for the lines of stdin")
    verb.add_argument("--instance", metavar="X", required=True, help="name of the instance")
    _timeout(verb)


def _leaf(commands: argparse._SubParsersAction[Leaf], word: str, does: str, run: str) -> Leaf:
    parser = commands.add_parser(word, help=does, description=does[0].upper() + does[1:] + ".")
    parser.set_defaults(run=run, takes_rest=False)
    parser.add_argument("--url", metavar="URL", help="the manager (default: TEI_MANAGER_URL or port 9000 here)")
    parser.add_argument("--api-key", metavar="KEY", help="credential (better: TEI_MANAGER_API_KEY)")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")
    return parser


def _create(parser: Leaf) -> None:
    parser.usage = "tei-manager instances create NAME MODEL_ID [flags] [-- ENGINE-FLAGS]"
    parser.set_defaults(takes_rest=True, rest=())
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("model_id", metavar="MODEL_ID", help="hub id, folder or python:PACKAGE")
    parser.add_argument(
        "--engine", metavar="E", help="tei, embedded, ... (default: tei if installed, else embedded)"
    )
    parser.add_argument("--port", metavar="N", type=int, help="default: a free one")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the model")
    parser.add_argument("--pooling", metavar="P", help="cls, mean, splade or last-token (default: the model's)")
    parser.add_argument("--dtype", metavar="T", help="float16, float32 or bfloat16")
    parser.add_argument("--gpu-id", metavar="ID", type=_int_or_text, help="number or UUID of one GPU")
    parser.add_argument("--prometheus-port", metavar="N", type=int, help="0 = none")
    parser.add_argument("--max-batch-tokens", metavar="N", type=_int_or_text, help="a number or auto")
    parser.add_argument("--max-concurrent-requests", metavar="N", type=int)
    parser.add_argument("--alias", metavar="A", action="append", help="another name for callers; may repeat")
    parser.add_argument(
        "--env", metavar="K=V", type=_pair, action="append", help="environment variable; may repeat"
    )
    parser.add_argument(
        "--extra-arg", metavar="X", action="append", help="engine flag, as --extra-arg=--auto-truncate; may repeat"
    )
    parser.add_argument("--no-autostart", action="store_true", help="register only: do not start it")
    parser.add_argument("--startup-timeout", metavar="S", type=_seconds, help="seconds until a start has failed")
    _waiting(parser)


def _waiting(parser: Leaf) -> None:
    parser.add_argument("--wait", action=argparse.BooleanOptionalAction, default=True, help=WAIT)
    _timeout(parser)


def _timeout(parser: Leaf) -> None:
    parser.add_argument(
        "--timeout", metavar="S", type=_seconds, help="seconds to wait at most (default: the startup timeout)"
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a number, 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # written so that it refuses NaN too
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return number


def _int_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        # the text is not repeated: it may be a secret with its name forgotten
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value
