"""The real console script against a stand-in manager that answers as the control API says."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SCRIPT = str(Path(sys.executable).parent / "tei-manager")
KEY = "sk-very-secret"

Answer = tuple[int, object]


def instance(name: str, status: str = "running", **more: object) -> dict[str, object]:
    running = status == "running"
    return {
        "name": name, "model_id": "BAAI/bge-small", "port": 8080, "status": status,
        "pid": 12345 if running else None, "created_at": "2025-11-18T19:00:00.000Z",
        "uptime_secs": 3671 if running else None, "restarts": 0, "last_error": None, "detail": None,
        "desired": "running", "engine": "embedded", "grpc_port": 8980, "startup_timeout_secs": None,
        "aliases": [], "env": {}, "memory": {"declared_bytes": None, "estimated_bytes": 391118848},
    } | more  # fmt: skip


class StandIn(ThreadingHTTPServer):
    """A fleet of scripted instances: each GET of one takes its next state, the last one stays."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.states: dict[str, list[dict[str, object]]] = {}
        self.log: list[str] = []
        self.requests: list[tuple[str, str, object]] = []
        self.keys: set[str | None] = set()
        self.refusal: Answer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, target: str, body: object) -> Answer:
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.requests.append((method, target, body))
        if self.refusal is not None:
            return self.refusal
        match [method, *unquote(parts.path).strip("/").split("/")]:
            case ["GET", "instances"]:
                now = [states[0] for states in self.states.values()]
                return 200, [one for one in now if query.get("status") in (None, one["status"])]
            case ["POST", "instances"]:
                assert isinstance(body, dict)
                if len(self.states.get(body["name"], ())) == 1:
                    return error(409, "INSTANCE_EXISTS", f"Instance '{body['name']}' already exists")
                return 201, self.next(body["name"])
            case ["POST", "v1", "embeddings"]:
                assert isinstance(body, dict)
                data = [
                    {"object": "embedding", "index": i, "embedding": [0.6, 0.8 * (-1) ** i, 0, 0, 0]}
                    for i, _ in enumerate(body["input"])
                ]
                return 200, {"object": "list", "data": data, "model": body["model"], "usage": {"total_tokens": 4}}
            case [_, "instances", name, *_] if name not in self.states:
                return error(404, "INSTANCE_NOT_FOUND", f"Instance '{name}' not found")
            case ["GET", "instances", name]:
                return 200, self.next(name)
            case ["GET", "instances", _, "logs"]:
                total = len(self.log)
                at = int(query["start"]) if "start" in query else max(total - int(query["tail"]), 0)
                at = min(at, total)
                return 200, {"lines": self.log[at:], "start": at, "end": total, "total_lines": total}
            case ["POST", "instances", name, "start" | "restart"]:
                return 200, self.next(name)
            case ["POST", "instances", name, "stop"]:
                return 200, instance(name, "stopped", desired="stopped", pid=None)
            case ["DELETE", "instances", name]:
                del self.states[name]
                return 204, None
        return error(404, "NOT_FOUND", "no such route")

    def next(self, name: str) -> dict[str, object]:
        states = self.states[name]
        return states.pop(0) if len(states) > 1 else states[0]


def error(status: int, code: str, text: str, **details: object) -> Answer:
    body = {"error": text, "code": code, "timestamp": "2025-11-18T19:00:00.000Z", "request_id": "r1"}
    return status, body | ({"details": details} if details else {})


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if not self.raw_requestline or not self.parse_request():
            return
        self.server.keys.add(self.headers["Authorization"])
        length = int(self.headers["Content-Length"] or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        status, value = self.server.answer(self.command, self.path, body)
        content = b"" if value is None else value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def manager() -> Iterator[StandIn]:
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def environment(manager: StandIn | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TEI_MANAGER")}
    proxy = {"http_proxy": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"}
    return kept | proxy | ({"TEI_MANAGER_URL": manager.url} if manager else {})


def tei_manager(manager: StandIn | None, *args: str, stdin: str = "", **more: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    ended = subprocess.run(
        [SCRIPT, *args], env=environment(manager) | more, input=stdin, capture_output=True, text=True, timeout=20
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


@contextmanager
def terminal(columns: int) -> Iterator[tuple[int, Callable[[], str]]]:
    """A terminal to write to, and what was written to it; reading closes it."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))

    def drawn() -> str:
        os.close(theirs)
        chunks = []
        while True:
            try:
                chunks.append(os.read(ours, 65536))
            except OSError:  # how Linux says that the other end is closed
                break
            if not chunks[-1]:
                break
        return b"".join(chunks).decode()

    try:
        yield theirs, drawn
    finally:
        os.close(ours)


# instances list, show


def test_list(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge")], "other-one": [instance("other-one", "starting", detail="loading")]}
    code, out, err = tei_manager(manager, "instances", "list")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "NAME        MODEL            ENGINE     STATUS               PORT   GRPC   PID     UPTIME   RESTARTS",
        "bge         BAAI/bge-small   embedded   running              8080   8980   12345   1h1m     0",
        "other-one   BAAI/bge-small   embedded   starting (loading)   8080   8980   -       -        0",
    ]
    assert "bge" not in tei_manager(manager, "instances", "list", "--status", "starting")[1].split()
    code, out, err = tei_manager(manager, "instances", "list", "--json")
    assert (code, [one["name"] for one in json.loads(out)], err) == (0, ["bge", "other-one"], "")


def test_an_empty_list(manager: StandIn) -> None:
    assert tei_manager(manager, "instances", "list") == (0, "", "no instances\n")
    assert tei_manager(manager, "instances", "list", "--json") == (0, "[]\n", "")


def test_a_list_on_a_terminal_fits_its_width(manager: StandIn) -> None:
    manager.states = {"a": [instance("a", "starting", detail="loading", model_id="organisation/" + "x" * 80)]}
    with terminal(columns=90) as (theirs, drawn):
        subprocess.run(
            [SCRIPT, "instances", "list"],
            env=environment(manager) | {"PYTHONUTF8": "1"}, stdout=theirs, timeout=20, check=True,
        )  # fmt: skip
        lines = drawn().splitlines()
    assert max(map(len, lines)) <= 90
    assert "organisation/…" in lines[1]


def test_show(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge")]}
    code, out, err = tei_manager(manager, "instances", "show", "bge")
    assert (code, err) == (0, "")
    assert out.startswith("name:                 bge\nmodel_id:             BAAI/bge-small\n")
    assert "memory.estimated:     373.0 MiB\n" in out
    assert json.loads(tei_manager(manager, "instances", "show", "bge", "--json")[1]) == instance("bge")


# create and waiting


def test_create_waits_until_it_runs(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge", "starting", detail="loading")] * 2 + [instance("bge")]}
    code, out, err = tei_manager(
        manager, "instances", "create", "bge", "org/m", "--max-batch-tokens", "512", "--", "--auto-truncate"
    )
    assert (code, out) == (0, "instance 'bge' running on port 8080, gRPC on 8980\n")
    assert re.sub(r"\d\.\d", "T", err).splitlines() == [
        "instance 'bge' created",
        "bge: starting (loading) (Ts)",
        "bge: running (Ts)",
    ]
    assert manager.requests[0] == (
        "POST",
        "/instances",
        {"name": "bge", "model_id": "org/m", "max_batch_tokens": 512, "extra_args": ["--auto-truncate"]},
    )


def test_create_without_waiting(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge", "starting"), instance("bge")]}
    code, out, _ = tei_manager(manager, "instances", "create", "bge", "org/m", "--no-wait")
    assert (code, out, len(manager.requests)) == (0, "instance 'bge' starting\n", 1)


def test_create_without_starting_does_not_wait(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge", "stopped", desired="stopped")] * 2}
    code, out, _ = tei_manager(manager, "instances", "create", "bge", "org/m", "--no-autostart")
    assert (code, out) == (0, "instance 'bge' stopped\n")
    assert manager.requests[0][2] == {"name": "bge", "model_id": "org/m", "autostart": False}


def test_create_as_json_prints_the_last_state(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge", "starting"), instance("bge")]}
    code, out, err = tei_manager(manager, "instances", "create", "bge", "org/m", "--json")
    assert (code, json.loads(out)) == (0, instance("bge"))
    assert err.startswith("bge: starting (0.0s)\n")


def test_create_of_what_fails_tells_why(manager: StandIn) -> None:
    manager.log = [f"line {n}" for n in range(50)]
    manager.states = {"bge": [instance("bge", "starting"), instance("bge", "failed", last_error="exit code 1")]}
    code, out, err = tei_manager(manager, "instances", "create", "bge", "org/m", "--json")
    assert (code, out) == (1, "")
    assert "instance 'bge' failed: exit code 1\n" in err
    assert err.splitlines()[-20:] == [f"  line {n}" for n in range(30, 50)]


def test_create_of_what_takes_too_long(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge", "starting")] * 2}
    code, out, err = tei_manager(manager, "instances", "create", "bge", "org/m", "--timeout", "0.2")
    assert (code, out) == (1, "")
    assert "instance 'bge' is not running after 0.2 s" in err


def test_create_of_what_exists(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge")]}
    assert tei_manager(manager, "instances", "create", "bge", "org/m") == (
        1,
        "",
        "INSTANCE_EXISTS: Instance 'bge' already exists\n",
    )


def test_every_problem_of_a_refusal_is_told(manager: StandIn) -> None:
    problems = [{"path": "port", "message": "expected 1024-65535"}, {"path": "env", "message": "PATH is ours"}]
    manager.refusal = error(400, "INVALID_PORT", "port: expected 1024-65535", problems=problems)
    assert tei_manager(manager, "instances", "create", "bge", "org/m", "--port", "1")[2].splitlines() == [
        "INVALID_PORT: port: expected 1024-65535",
        "  port: expected 1024-65535",
        "  env: PATH is ours",
    ]


def test_progress_on_a_terminal_stays_out_of_the_answer(manager: StandIn) -> None:
    manager.states = {"bge": [instance("bge", "starting", detail="loading")] * 2 + [instance("bge")]}
    with terminal(columns=60) as (theirs, drawn):
        out = subprocess.run(
            [SCRIPT, "instances", "create", "bge", "org/m", "--json"],
            env=environment(manager) | {"PYTHONUTF8": "1"}, stdout=subprocess.PIPE, stderr=theirs, timeout=20,
        ).stdout  # fmt: skip
        frames = drawn().split("\r\x1b[K")
    assert json.loads(out) == instance("bge")
    assert re.fullmatch(r"⠋ bge: starting \(loading\) 0\.\ds", frames[1])
    assert len(frames) > 4
    assert frames[-1] == ""


# start, restart, stop, delete


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_several_are_told_before_the_first_is_waited_for(manager: StandIn, verb: str) -> None:
    manager.states = {name: [instance(name, "starting"), instance(name)] for name in "ab"}
    code, out, _ = tei_manager(manager, "instances", verb, "a", "b")
    assert code == 0
    assert out.splitlines() == [f"instance '{name}' running on port 8080, gRPC on 8980" for name in "ab"]
    assert [target for _, target, _ in manager.requests[:2]] == [f"/instances/{name}/{verb}" for name in "ab"]


def test_start_without_waiting(manager: StandIn) -> None:
    manager.states = {"a": [instance("a", "starting"), instance("a")]}
    assert tei_manager(manager, "instances", "start", "a", "--no-wait") == (0, "instance 'a' starting\n", "")


def test_one_unknown_name_does_not_keep_the_others_from_their_turn(manager: StandIn) -> None:
    manager.states = {"a": [instance("a")], "b": [instance("b")]}
    assert tei_manager(manager, "instances", "stop", "a", "nobody", "b") == (
        1,
        "instance 'a' stopped\ninstance 'b' stopped\n",
        "INSTANCE_NOT_FOUND: Instance 'nobody' not found\n",
    )
    code, out, _ = tei_manager(manager, "instances", "start", "a", "nobody", "b", "--json")
    assert (code, [one["name"] for one in json.loads(out)]) == (1, ["a", "b"])


def test_delete(manager: StandIn) -> None:
    manager.states = {"a": [instance("a")], "b": [instance("b")]}
    assert tei_manager(manager, "instances", "delete", "a") == (0, "instance 'a' deleted\n", "")
    code, out, _ = tei_manager(manager, "instances", "delete", "b", "--json")
    assert (code, json.loads(out)) == (0, {"name": "b", "status": "deleted"})
    assert manager.states == {}


def test_a_name_cannot_leave_its_path(manager: StandIn) -> None:
    assert tei_manager(manager, "instances", "show", "../x?y")[0] == 1
    assert manager.requests[0][1] == "/instances/..%2Fx%3Fy"


# logs


def test_logs(manager: StandIn) -> None:
    manager.states, manager.log = {"a": [instance("a")]}, [f"line {n}" for n in range(5)] + ["ünï\x1b[1m"]
    assert tei_manager(manager, "instances", "logs", "a", "--tail", "2")[:2] == (0, "line 4\nünï\x1b[1m\n")
    code, out, _ = tei_manager(manager, "instances", "logs", "a", "--json")
    assert (code, json.loads(out)["total_lines"]) == (0, 6)
    assert "tail=100" in manager.requests[-1][1]


def test_following_a_log_until_ctrl_c(manager: StandIn) -> None:
    manager.states, manager.log = {"a": [instance("a")]}, ["one", "two"]
    with subprocess.Popen(
        [SCRIPT, "instances", "logs", "a", "-f", "--tail", "1", "--json"],
        env=environment(manager), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"n": 1, "line": "two"}
        manager.log.append("three")
        assert json.loads(process.stdout.readline()) == {"n": 2, "line": "three"}
        manager.log[:] = ["of a new file"]
        assert json.loads(process.stdout.readline()) == {"n": 0, "line": "of a new file"}
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


# embed


def test_embed_shows_vectors_and_how_alike_they_are(manager: StandIn) -> None:
    manager.states = {"a": [instance("a")]}
    code, out, err = tei_manager(manager, "embed", "--instance", "a", "first", "-", stdin="second\n\nthird\n")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "INDEX   DIMENSIONS   VECTOR                                 NORM     TEXT",
        "0       5            [0.6000, 0.8000, 0.0000, 0.0000, …]    1.0000   first",
        "1       5            [0.6000, -0.8000, 0.0000, 0.0000, …]   1.0000   second",
        "2       5            [0.6000, 0.8000, 0.0000, 0.0000, …]    1.0000   third",
        "",
        "cosine similarity",
        "    0         1         2",
        "0   1.0000    -0.2800   1.0000",
        "1   -0.2800   1.0000    -0.2800",
        "2   1.0000    -0.2800   1.0000",
    ]
    assert manager.requests[-1][2] == {"model": "a", "input": ["first", "second", "third"]}


def test_embed_of_one_text_as_json_waits_for_the_instance(manager: StandIn) -> None:
    manager.states = {"a": [instance("a", "starting"), instance("a")]}
    code, out, err = tei_manager(manager, "embed", "--instance", "a", "text", "--json")
    assert (code, json.loads(out)["model"]) == (0, "a")
    assert err.startswith("a: starting (0.0s)\n")


def test_embed_errors(manager: StandIn) -> None:
    assert tei_manager(manager, "embed", "--instance", "x", "text") == (
        1,
        "",
        "INSTANCE_NOT_FOUND: Instance 'x' not found\n",
    )
    assert tei_manager(manager, "embed", "--instance", "x", "-")[0] == 2
    manager.refusal = 400, {"error": {"message": "too long", "type": "invalid_request_error", "code": None}}
    assert tei_manager(manager, "embed", "--instance", "x", "a")[2] == "invalid_request_error: too long\n"


# reaching the manager


def test_nothing_listens() -> None:
    with StandIn() as gone:
        url = gone.url
    hint = "(is it running? start it with 'tei-manager serve')"
    told = f"cannot reach tei-manager at {url}: connection refused {hint}\n"
    assert tei_manager(None, "instances", "list", "--url", url) == (1, "", told)
    assert tei_manager(None, "instances", "stop", "a", "b", "--url", url) == (1, "", told)


def test_a_url_may_leave_out_its_scheme(manager: StandIn) -> None:
    assert tei_manager(None, "instances", "list", "--url", f"127.0.0.1:{manager.server_port}/")[0] == 0


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://u:hunter2@x", "http://x:port", "http://x?a=b"])
def test_a_url_that_cannot_work_is_wrong_usage(url: str) -> None:
    code, out, err = tei_manager(None, "instances", "list", "--url", url)
    assert (code, out) == (2, "")
    assert "hunter2" not in err


def test_somebody_else_listens(manager: StandIn) -> None:
    manager.refusal = 200, b"<html>hello</html>"
    assert "is not tei-manager: no JSON" in tei_manager(manager, "instances", "list")[2]
    manager.refusal = 502, b"<html>bad gateway</html>"
    assert tei_manager(manager, "instances", "list") == (1, "", "HTTP_502: Bad Gateway\n")


def test_the_api_key_is_sent_and_never_shown(manager: StandIn) -> None:
    manager.refusal = error(401, "UNAUTHENTICATED", "missing or invalid credential")
    told = (1, "", "UNAUTHENTICATED: missing or invalid credential\n")
    assert tei_manager(manager, "instances", "list", "--api-key", KEY) == told
    assert tei_manager(manager, "instances", "list", TEI_MANAGER_API_KEY=KEY) == told
    assert manager.keys == {f"Bearer {KEY}"}
    code, out, err = tei_manager(manager, "instances", "list", "--api-key", KEY + "\n")
    assert (code, KEY in out + err) == (2, False)


# how it ends


def test_ctrl_c_while_waiting(manager: StandIn) -> None:
    manager.states = {"a": [instance("a", "starting")]}
    with subprocess.Popen(
        [SCRIPT, "instances", "start", "a"],
        env=environment(manager), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("a: starting")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "")
    assert err == "no longer waiting; the instance keeps loading\n"


def test_a_closed_pipe_is_no_error_message(manager: StandIn) -> None:
    manager.states, manager.log = {"a": [instance("a")]}, ["x" * 1000] * 1000
    with subprocess.Popen(
        [SCRIPT, "instances", "logs", "a", "--tail", "1000"],
        env=environment(manager), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(10) == 141


def test_version_and_help() -> None:
    assert tei_manager(None, "--version") == (0, "tei-manager 0.1.0\n", "")
    code, out, _ = tei_manager(None, "--help", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (code, "instances" in out) == (0, True)
    assert tei_manager(None, "instances", "frobnicate")[0] == 2


@pytest.mark.parametrize("args", [("--help",), ("instances", "list", "--url", "127.0.0.1:1")])
def test_nothing_heavy_is_imported(args: tuple[str, ...]) -> None:
    code = "import sys; from tei_manager.app.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print('LOADED', *sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=20)
    loaded = set(ended.stdout.partition("LOADED ")[2].split())
    assert "tei_manager.app.cli" in loaded
    heavy = {"asyncio", "aiohttp", "grpc", "starlette", "structlog", "orjson", "numpy", "tei_manager.config"}
    assert not loaded & heavy


# check, config show


def test_check(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("api_port = 9100\n")
    bad.write_text("api_port = 9100\nnonsense = 1\nlog_format = 'xml'\n")
    assert tei_manager(None, "check", "-c", str(good)) == (0, "configuration is valid\n", "")
    assert json.loads(tei_manager(None, "check", "-c", str(good), "--json")[1])["valid"] is True

    code, out, err = tei_manager(None, "check", "-c", str(bad))
    assert (code, out) == (2, "")
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["file:2", "nonsense"],
        ["file:3", "log_format"],
    ]
    code, out, err = tei_manager(None, "check", "-c", str(bad), "--json")
    verdict = json.loads(out)
    assert (code, err, verdict["valid"], verdict["warnings"]) == (2, "", False, [])
    assert [set(problem) for problem in verdict["problems"]] == [{"origin", "path", "code", "message"}] * 2


def test_config_show(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("api_port = 9100\n")
    code, out, err = tei_manager(None, "config", "show", TEI_MANAGER_CONFIG=str(file))
    assert (code, err) == (0, "")
    assert "api_port = 9100  # file:1\n" in out
    code, out, _ = tei_manager(None, "config", "show", "--format", "json", "-c", str(file))
    assert (code, json.loads(out)["values"]["api_port"]) == (0, 9100)
    file.write_text("api_port = 1\n")
    code, out, err = tei_manager(None, "config", "show", "-c", str(file))
    assert (code, out) == (2, "")
    assert err.startswith("file:1: api_port: ")
