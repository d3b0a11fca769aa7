"""What the documents print is what happens: README commands run as written, client examples run as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICK_START = README[README.index("## Quick start") : README.index("## Your own configuration")]
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)

# The Python examples of the multiplexer's published guide, as printed there; only the instance's name differs.
UNARY = """
import grpc
from tei_manager.grpc.proto.multiplexer.v1 import (
    tei_multiplexer_pb2 as mux_pb2,
    tei_multiplexer_pb2_grpc as mux_grpc,
)
from tei_manager.grpc.proto.tei.v1 import tei_pb2

# Connect to multiplexer
channel = grpc.insecure_channel('localhost:9001')
stub = mux_grpc.TeiMultiplexerStub(channel)

# Create request with routing
request = mux_pb2.EmbedRequest(
    target=mux_pb2.Target(
        instance_name="minilm"  # Route to specific instance
    ),
    request=tei_pb2.EmbedRequest(
        inputs="Hello world",
        truncate=True,
        normalize=True,
    )
)

# Generate embeddings
response = stub.Embed(request)
print(f"Embeddings: {response.embeddings}")
"""
STREAM = """
import grpc
from tei_manager.grpc.proto.multiplexer.v1 import (
    tei_multiplexer_pb2 as mux_pb2,
    tei_multiplexer_pb2_grpc as mux_grpc,
)
from tei_manager.grpc.proto.tei.v1 import tei_pb2

channel = grpc.insecure_channel('localhost:9001')
stub = mux_grpc.TeiMultiplexerStub(channel)

# Create stream of requests
def request_stream():
    texts = ["Hello", "World", "Streaming", "Example"]
    for text in texts:
        yield mux_pb2.EmbedRequest(
            target=mux_pb2.Target(instance_name="minilm"),
            request=tei_pb2.EmbedRequest(
                inputs=text,
                truncate=True,
                normalize=True,
            )
        )

# Stream embeddings
responses = stub.EmbedStream(request_stream())
for response in responses:
    print(f"Embeddings: {response.embeddings}")
"""


@pytest.fixture
def demo(manager: Any) -> Any:
    """The product with the instances of `config/quickstart.toml`, on this test's ports."""
    text = (ROOT / "config" / "quickstart.toml").read_text()
    tables = text[text.index("[model_sources]") :]
    manager.write(tables.replace('name = "minilm"', f'name = "minilm"\nport = {manager.first_port}'))
    manager.start()
    manager.until("minilm", "running", within=60)
    return manager


def here(text: str, manager: Any) -> str:
    """A text of the documents with this test's ports."""
    for port, mine in ((9000, manager.api), (9001, manager.grpc), (8080, manager.first_port)):
        text = text.replace(f"localhost:{port}", f"localhost:{mine}")
    return text


def agrees(printed: Any, answered: Any) -> bool:
    """Whether an answer is what was printed. A printed list may end in "..."; instants and ids may differ."""
    if isinstance(printed, dict):
        return printed.keys() == answered.keys() and all(agrees(printed[key], answered[key]) for key in printed)
    if isinstance(printed, list):
        if printed and printed[-1] == "...":
            return len(answered) > len(printed) and all(map(agrees, printed[:-1], answered))
        return len(printed) == len(answered) and all(map(agrees, printed, answered))
    if isinstance(printed, float):
        return abs(printed - answered) < 1e-3
    if isinstance(printed, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", printed):
        return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answered) is not None
    if isinstance(printed, str) and UUID.fullmatch(printed):
        return UUID.fullmatch(answered) is not None
    return bool(printed == answered)


def test_the_curl_commands_of_the_quick_start_answer_as_written(demo: Any) -> None:
    blocks = BLOCK.findall(QUICK_START)
    compared = 0
    for (kind, text), (next_kind, answer) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "bash" or "curl" not in text:
            continue
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", here(text, demo)], capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr
        if next_kind == "json":
            printed = json.loads(answer.replace("...", '"..."'))
            assert agrees(printed, json.loads(run.stdout)), run.stdout[:300]
            compared += 1
        else:
            # created, looked at, deleted: the first two print the instance
            assert '"name":"second"' in run.stdout.replace(" ", "")
    assert compared == 3
    assert [each["name"] for each in demo.get("/instances").body] == ["minilm"]


def test_the_python_example_of_the_readme_prints_what_it_says(demo: Any) -> None:
    ((_, code),) = [block for block in BLOCK.findall(QUICK_START) if block[0] == "python"]
    assert run_python(code, demo).strip() == "384"


def test_the_unary_example_of_the_guide_runs_as_printed(demo: Any) -> None:
    assert run_python(UNARY, demo).startswith("Embeddings: [-0.0344")


def test_the_streaming_example_of_the_guide_runs_as_printed(demo: Any) -> None:
    assert run_python(STREAM, demo).count("Embeddings: [") == 4


def run_python(code: str, manager: Any) -> str:
    run = subprocess.run(
        [sys.executable, "-c", here(code, manager)], capture_output=True, text=True, timeout=60, cwd=manager.folder
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    blocks = [text for kind, text in BLOCK.findall(README) if kind == "toml"]
    assert blocks
    for text in blocks:
        (tmp_path / "config.toml").write_text(text)
        run = subprocess.run(
            [Path(sys.executable).parent / "tei-manager", "check", "-c", tmp_path / "config.toml"],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr


def test_links_of_the_documents_lead_somewhere() -> None:
    pages = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    pages += list((ROOT / "docs").rglob("*.md"))
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
