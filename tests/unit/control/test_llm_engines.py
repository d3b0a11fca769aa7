"""Instances of engines `vllm` and `llamacpp`: their argv, when they count as ready, how their ends are judged."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind, Protocol, Status
from tei_manager.engines.base import Ask
from tei_manager.ports.driver import Exit
from tei_manager.ports.prober import Seen
from tei_manager.testing.plane import Plane

VLLM = {"engine": EngineKind.VLLM, "command": None, "model_id": "org/model"}
LLAMACPP = {"engine": EngineKind.LLAMACPP, "command": None, "model_id": "/models/a"}


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane(vllm_command=("/opt/vllm", "serve"), llamacpp_program="/opt/llama", model_roots=("/models",))
    await plane.open()
    yield plane
    await plane.close()


def argv(plane: Plane, name: str) -> tuple[str, ...]:
    return plane.living(name)[0].order.argv


async def test_each_is_started_with_the_program_that_is_configured(plane: Plane) -> None:
    plane.models.folders["/models/a"] = ("a.gguf", "README.md")
    for name, fields in (("llm", VLLM), ("gguf", LLAMACPP)):
        ready = await plane.running(name, **fields)
        assert (ready.protocol, ready.grpc_port, ready.ports.metrics) == (Protocol.HTTP, None, None)
    assert argv(plane, "llm")[:3] == ("/opt/vllm", "serve", "org/model")
    assert argv(plane, "gguf")[:3] == ("/opt/llama", "--model", "/models/a/a.gguf")
    with pytest.raises(errors.InvalidSpec):
        await plane.create("none", **LLAMACPP | {"model_id": "/models/b"})


async def test_the_version_of_vllm_is_asked_where_flags_depend_on_it(plane: Plane) -> None:
    plane.driver.versions["/opt/vllm"] = "0.10.0"
    await plane.running("llm", **VLLM, pooling="mean")
    assert "--override-pooler-config" in argv(plane, "llm")


async def test_a_model_is_ready_once_it_answered_a_request_or_refused_it(plane: Plane) -> None:
    plane.prober.says(
        "llm", Seen(False, "HTTP 500"), Seen(False, "HTTP 400", caller_fault=True), about=Ask.OPENAI_WARM_UP
    )
    await plane.running("llm", **VLLM)
    asked = [probe for _, probe in plane.prober.asked if probe.ask is Ask.OPENAI_WARM_UP]
    assert [(probe.path, probe.model) for probe in asked] == [("/v1/embeddings", "org/model")] * 2


async def test_a_start_that_ran_out_of_memory_is_tried_again(plane: Plane) -> None:
    plane.prober.says("llm", Seen(False, "connection refused", refused=True), about=Ask.HTTP_HEALTH)
    await plane.create("llm", **VLLM)
    await plane.until("llm", Status.STARTING)
    await asyncio.sleep(1)
    process = plane.living("llm")[0]
    plane.logs.text[process.order.log_path] = "torch.OutOfMemoryError: CUDA out of memory.\n"
    process.end(Exit(code=1), with_members=True)
    plane.prober.says("llm", Seen(True), about=Ask.HTTP_HEALTH)
    again = await plane.until("llm", Status.RUNNING)
    assert again.restarts == 1
