"""The story of an instance over two lives of the manager, and events followed with a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def test_a_story_survives_kill_minus_9_of_everything(manager: Any) -> None:
    manager.start()
    manager.create("one")
    first = manager.instance("one")["pid"]
    manager.kill()
    os.kill(first, signal.SIGKILL)
    manager.start()
    second = manager.until("one", "running")["pid"]
    told = manager.get("/instances/one/story").body["events"]
    assert [event["seq"] for event in told] == sorted({event["seq"] for event in told})
    ready = [event["data"]["pid"] for event in told if event["to"] == "running"]
    assert ready == [first, second]
    assert told[0]["type"] == "instance.created"
    shown = subprocess.run(
        [BIN / "tei-manager", "instances", "story", "one", "--url", f"127.0.0.1:{manager.api}", "--limit", "3"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    assert len(shown.splitlines()) == 3
    assert f"status  starting → running  pid={second}" in shown.splitlines()[-1]


def test_events_are_followed_through_a_life_until_the_manager_ends(manager: Any) -> None:
    manager.start()
    connection = http.client.HTTPConnection("127.0.0.1", manager.api, timeout=60)
    connection.request("GET", "/events")
    stream = connection.getresponse()
    assert stream.getheader("content-type") == "text/event-stream; charset=utf-8"
    manager.create("one")
    manager.delete("/instances/one")
    assert manager.stop() == 0  # an open stream does not hold the manager back
    lines = stream.read().decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert [event["type"] for event in events][:1] == ["instance.created"]
    assert [event["type"] for event in events][-1:] == ["instance.deleted"]
    assert ("starting", "running") in [(event["from"], event["to"]) for event in events]
    connection.close()
