"""The main job, for real: `make demo`.

Starts the manager with `config/quickstart.toml`, waits until its model answers, and embeds a few sentences through
every door: TEI's REST on the instance, OpenAI HTTP and gRPC on the manager. With `--exit` it then ends by itself,
with 0 if all went well; else it stays up until Ctrl-C.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from tei_manager.grpc import create_request
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2_grpc as mux_grpc

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "config" / "quickstart.toml"
STATE = ROOT / ".state"
INSTANCE = "minilm"
READY_WITHIN_SECS = 120.0
SENTENCES = (
    "A cat is sleeping on the sofa.",
    "A kitten naps on the couch.",
    "The stock market fell sharply today.",
    "Shares lost a lot of value this morning.",
)
Vector = Sequence[float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--exit", action="store_true", help="end after the demonstration")
    options = parser.parse_args()
    settings = tomllib.loads(CONFIG.read_text())
    api, door = int(settings["api_port"]), int(settings["grpc_port"])
    STATE.mkdir(exist_ok=True)
    say(f"Starting tei-manager with {CONFIG.relative_to(ROOT)} …")
    started = time.monotonic()
    with Manager() as manager:
        instance = manager.wait_until_running(f"http://127.0.0.1:{api}")
        say(f"Model ready {time.monotonic() - started:.1f} s after the start, pid {instance['pid']}\n")
        agree = demonstrate(api, int(instance["port"]), door)
        say(urls(api, int(instance["port"]), door))
        if not options.exit:
            say("Ctrl-C ends it.")
            manager.wait()
    return 0 if agree else 1


class Manager:
    """The real `tei-manager serve` as a child; its log goes to `.state/manager.log`."""

    def __init__(self) -> None:
        self.log = STATE / "manager.log"

    def __enter__(self) -> Manager:
        program = Path(sys.executable).with_name("tei-manager")
        environ = {
            **os.environ,
            "TEI_MANAGER_STATE_FILE": str(STATE / "state.toml"),
            "TEI_MANAGER_LOG_DIR": str(STATE / "logs"),
        }
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [str(program), "serve", "-c", str(CONFIG)], stdout=stream, stderr=stream, env=environ
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until_running(self, url: str) -> dict[str, Any]:
        """Return the instance object; ends the program with the log's end if it cannot get there."""
        deadline = time.monotonic() + READY_WITHIN_SECS
        shown = ""
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.fail(f"tei-manager ended with code {self.process.returncode}")
            try:
                instance: dict[str, Any] = json.loads(get(f"{url}/instances/{INSTANCE}"))
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
                continue
            now = f"{instance['status']} {instance['detail'] or ''}".strip()
            if now != shown:
                say(f"  {INSTANCE}: {now}")
                shown = now
            if instance["status"] == "running":
                return instance
            if instance["status"] == "failed":
                self.fail(f"the model did not start: {instance['last_error']}")
            time.sleep(0.1)
        self.fail(f"the model was not ready within {READY_WITHIN_SECS:.0f} s")
        raise AssertionError  # `fail` has left

    def fail(self, reason: str) -> None:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        raise SystemExit("\n".join(["demo: " + reason, *lines]))

    def wait(self) -> None:
        try:
            self.process.wait()
        except KeyboardInterrupt:
            say("\nStopping …")


def demonstrate(api: int, port: int, door: int) -> bool:
    """Embed through every door and print what came; True if all doors gave the same vectors."""
    rest = timed("TEI REST   /embed", lambda: embed_rest(port))
    http = timed("OpenAI HTTP /v1/embeddings", lambda: embed_openai(api))
    with grpc.insecure_channel(f"127.0.0.1:{door}") as channel:
        stub = mux_grpc.TeiMultiplexerStub(channel)  # type: ignore[no-untyped-call]
        rpc = timed("gRPC       Embed", lambda: [embed_grpc(stub, text) for text in SENTENCES])
        stream = timed("gRPC       EmbedStream", lambda: embed_stream(stub))
    say(f"\n{len(SENTENCES)} sentences, {len(rest[0])} dimensions. Cosine similarities:\n")
    for i, text in enumerate(SENTENCES):
        row = "  ".join(f"{cosine(rest[i], other):5.2f}" for other in rest)
        say(f"  {i + 1}  {text:<42} {row}")
    agree = all(
        cosine(mine, theirs) > 0.99999
        for other in (http, rpc, stream)
        for mine, theirs in zip(rest, other, strict=True)
    )
    say(f"\nAll four doors gave {'the same' if agree else 'DIFFERENT'} vectors.")
    return agree


def timed(name: str, call: Callable[[], list[Vector]]) -> list[Vector]:
    call()  # the first call opens connections
    begun = time.perf_counter()
    vectors = call()
    say(f"  {name:<28} {1000 * (time.perf_counter() - begun):7.1f} ms")
    return vectors


def embed_rest(port: int) -> list[Vector]:
    answer: list[Vector] = json.loads(post(f"http://127.0.0.1:{port}/embed", {"inputs": SENTENCES}))
    return answer


def embed_openai(api: int) -> list[Vector]:
    body = {"model": INSTANCE, "input": SENTENCES, "encoding_format": "base64"}
    answer = json.loads(post(f"http://127.0.0.1:{api}/v1/embeddings", body))
    rows = [base64.b64decode(item["embedding"]) for item in answer["data"]]
    return [struct.unpack(f"<{len(row) // 4}f", row) for row in rows]


def embed_grpc(stub: Any, text: str) -> Vector:
    return list(stub.Embed(create_request(text, target=INSTANCE), timeout=30).embeddings)


def embed_stream(stub: Any) -> list[Vector]:
    requests = (create_request(text, target=INSTANCE) for text in SENTENCES)
    return [list(answer.embeddings) for answer in stub.EmbedStream(requests, timeout=30)]


def cosine(left: Vector, right: Vector) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def post(url: str, body: object) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def urls(api: int, port: int, door: int) -> str:
    return f"""
  REST      http://127.0.0.1:{api}/instances
  OpenAI    http://127.0.0.1:{api}/v1/embeddings
  TEI       http://127.0.0.1:{port}/embed
  gRPC      127.0.0.1:{door}
  metrics   http://127.0.0.1:{api}/metrics
"""


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
