"""`tei-manager instances …` except `logs`: one function for each verb."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from tei_manager.app.client import table
from tei_manager.app.client.console import Console, terminal_width
from tei_manager.app.client.failures import CommandFailed, Unreachable
from tei_manager.app.client.rest import DEFAULT_URL, Client, Json, instance_path
from tei_manager.app.client.waiting import Waiter, waiter

COLUMNS = ("NAME", "MODEL", "ENGINE", "STATUS", "PORT", "GRPC", "PID", "UPTIME", "RESTARTS")

# options of `create` that are sent under the same name when given
FIELDS = (
    "engine", "port", "revision", "pooling", "dtype", "gpu_id", "prometheus_port", "max_batch_tokens",
    "max_concurrent_requests",
)  # fmt: skip


def connect(options: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> Client:
    """The manager that the flags, else the environment name. Raises `WrongUsage`."""
    url = options.url or environ.get("TEI_MANAGER_URL") or DEFAULT_URL
    return Client(url, options.api_key or environ.get("TEI_MANAGER_API_KEY"))


def patience(client: Client, console: Console) -> AbstractContextManager[Waiter]:
    """A waiter in real time that draws on stderr."""
    return waiter(client, console, terminal_width(console.err), time.monotonic, time.sleep)


def list_(options: argparse.Namespace, console: Console) -> int:
    instances = connect(options).get("/instances", {"status": options.status})
    if options.json:
        console.json(instances)
    elif not instances:
        console.note("no instances")
    else:
        for line in table.render(COLUMNS, [row(instance) for instance in instances], width=console.width):
            console.line(line)
    return 0


def row(instance: Json) -> tuple[str, ...]:
    return (
        table.plain(instance.get("name")),
        table.plain(instance.get("model_id")),
        table.plain(instance.get("engine")),
        table.status(instance),
        *(table.plain(instance.get(key)) for key in ("port", "grpc_port", "pid")),
        table.age(instance.get("uptime_secs")),
        table.plain(instance.get("restarts")),
    )


def show(options: argparse.Namespace, console: Console) -> int:
    instance = connect(options).get(instance_path(options.name))
    if options.json:
        console.json(instance)
    else:
        for line in table.block(table.flatten(instance)):
            console.line(line)
    return 0


def create(options: argparse.Namespace, console: Console) -> int:
    client = connect(options)
    instance = client.post("/instances", specification(options))
    if not options.json:
        console.note(f"instance '{instance['name']}' created")
    with patience(client, console) as waiting:
        instance = settle(options, waiting, instance)
    report(options, console, instance)
    return 0


def specification(options: argparse.Namespace) -> Json:
    """The body of `POST /instances`: what was given and nothing else, so that defaults stay the manager's."""
    body: Json = {"name": options.name, "model_id": options.model_id}
    body |= {key: value for key in FIELDS if (value := getattr(options, key)) is not None}
    if options.startup_timeout is not None:
        body["startup_timeout_secs"] = options.startup_timeout
    if options.alias:
        body["aliases"] = options.alias
    if options.env:
        body["env"] = dict(options.env)
    if extra := [*(options.extra_arg or ()), *options.rest]:
        body["extra_args"] = extra
    if options.no_autostart:
        body["autostart"] = False
    return body


def settle(options: argparse.Namespace, waiting: Waiter, instance: Json) -> Json:
    """The instance after the wait that was asked for; one that nobody wants running is not waited for."""
    if not options.wait or instance.get("desired") not in ("running", None):
        return instance
    return waiting.until_running(instance, options.timeout)


def report(options: argparse.Namespace, console: Console, instance: Json) -> None:
    """Say how one instance stands: the object or one line."""
    if options.json:
        console.json(instance)
        return
    line = f"instance '{instance['name']}' {table.status(instance)}"
    if instance.get("status") == "running":
        line += f" on port {table.plain(instance.get('port'))}"
        if (grpc := instance.get("grpc_port")) not in (None, instance.get("port")):
            line += f", gRPC on {grpc}"
    console.line(line)


def start(options: argparse.Namespace, console: Console) -> int:
    return _bring_up(options, console, "start")


def restart(options: argparse.Namespace, console: Console) -> int:
    return _bring_up(options, console, "restart")


def _bring_up(options: argparse.Namespace, console: Console, verb: str) -> int:
    client = connect(options)
    with patience(client, console) as waiting:
        # all are told before the first is waited for, so that they load side by side
        started: dict[str, Json] = {}
        told = each(options, console, lambda name: started.update({name: client.post(instance_path(name, verb))}))
        return told | finish(options, console, list(started), lambda name: settle(options, waiting, started[name]))


def stop(options: argparse.Namespace, console: Console) -> int:
    client = connect(options)
    return finish(options, console, options.names, lambda name: client.post(instance_path(name, "stop")))


def delete(options: argparse.Namespace, console: Console) -> int:
    client = connect(options)

    def remove(name: str) -> Json:
        client.delete(instance_path(name))
        return {"name": name, "status": "deleted"}

    return finish(options, console, options.names, remove)


def each(options: argparse.Namespace, console: Console, do: Callable[[str], Any]) -> int:
    """Do one thing for every name. One that fails is told and does not keep the others from their turn."""
    return sum(not _attempt(console, name, do) for name in options.names) and 1


def finish(options: argparse.Namespace, console: Console, names: list[str], do: Callable[[str], Json]) -> int:
    """Like `each`, and report what came out: one JSON object for one name, an array for several."""
    done: list[Json] = []

    def one(name: str) -> None:
        done.append(do(name))
        if not options.json:
            report(options, console, done[-1])

    failed = sum(not _attempt(console, name, one) for name in names)
    if options.json and len(options.names) > 1:
        console.json(done)
    elif options.json and done:
        console.json(done[0])
    return 1 if failed else 0


def _attempt(console: Console, name: str, do: Callable[[str], Any]) -> bool:
    try:
        do(name)
    except Unreachable:
        raise  # nor will the others be reached
    except CommandFailed as failure:
        for line in failure.lines:
            console.note(line)
        return False
    return True
