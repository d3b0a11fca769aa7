"""`tei-manager instances logs` and `story`: what an instance said, and what happened to it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

from tei_manager.app.client.console import Console
from tei_manager.app.client.instances import connect
from tei_manager.app.client.rest import Client, Json, instance_path

POLL_S = 0.5


def logs(options: argparse.Namespace, console: Console) -> int:
    client = connect(options)
    if not options.follow:
        answer = client.get(instance_path(options.name, "logs"), {"tail": options.tail})
        if options.json:
            console.json(answer)
        else:
            write(console, answer, as_json=False)
        return 0
    try:
        for answer in follow(client, options.name, tail=options.tail, sleep=time.sleep):
            write(console, answer, as_json=options.json)
    except KeyboardInterrupt:
        pass  # the way to end it
    return 0


def follow(client: Client, name: str, *, tail: int, sleep: Callable[[float], None]) -> Iterator[Json]:
    """Answers of the log route, each beginning where the one before ended. Endless."""
    path = instance_path(name, "logs")
    answer = client.get(path, {"tail": tail})
    while True:
        yield answer
        # a log shorter than what was read is another file: a rotated one is read from its beginning
        at = answer["end"] if answer["total_lines"] >= answer["end"] else 0
        sleep(POLL_S)
        answer = client.get(path, {"start": at})
        if answer["total_lines"] < at:
            answer = client.get(path, {"start": 0})


def story(options: argparse.Namespace, console: Console) -> int:
    """One line for each event, oldest first."""
    answer = connect(options).get(instance_path(options.name, "story"), {"limit": options.limit})
    if options.json:
        console.json(answer)
        return 0
    for event in answer["events"]:
        words = [event["timestamp"], event["type"].removeprefix("instance.")]
        if event["to"] is not None:
            words.append(f"{event['from']} → {event['to']}")
        known = {key: value for key, value in event["data"].items() if value is not None}
        words += [f"{key}={value}" for key, value in known.items()]
        if event["reason"]:
            words.append(f"({event['reason']})")
        console.line("  ".join(words))
    return 0


def write(console: Console, answer: Json, *, as_json: bool) -> None:
    """The lines of one answer; as JSON one object for each, since a followed log has no end to close."""
    for number, line in enumerate(answer["lines"], answer["start"]):
        if as_json:
            console.json({"n": number, "line": line}, indent=None)
        else:
            console.line(line)
    console.out.flush()
