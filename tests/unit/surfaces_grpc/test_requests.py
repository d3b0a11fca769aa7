"""The two helpers of `tei_manager.grpc`, and what importing it brings along."""

import subprocess
import sys

import pytest

from tei_manager.grpc import Target, create_request
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux_pb2
from tei_manager.grpc.proto.tei.v1 import tei_pb2


def test_every_way_to_write_a_target() -> None:
    assert Target("a") == Target(name="a") == Target(instance_name="a") == mux_pb2.Target(instance_name="a")
    assert Target(model="m") == Target(model_id="m") == mux_pb2.Target(model_id="m")
    zero = Target(index=0)
    assert zero == Target(instance_index=0)
    assert zero.WhichOneof("routing") == "instance_index"


def test_a_target_has_exactly_one_routing() -> None:
    with pytest.raises(TypeError, match="exactly one"):
        Target()
    with pytest.raises(TypeError, match="name, model"):
        Target("a", model="m")


def test_a_request_to_embed() -> None:
    request = create_request("hello", "a")
    assert request.target.instance_name == "a"
    assert (request.request.inputs, request.request.truncate, request.request.normalize) == ("hello", True, True)
    assert not request.request.HasField("dimensions")
    assert not create_request("hello").HasField("target")
    full = create_request(
        "hello",
        Target(model="m"),
        truncate=False,
        normalize=False,
        truncation_direction=tei_pb2.TRUNCATION_DIRECTION_LEFT,
        prompt_name="query",
        dimensions=4,
    )
    assert full.target.model_id == "m"
    assert full.request.HasField("normalize")
    assert (full.request.normalize, full.request.dimensions, full.request.prompt_name) == (False, 4, "query")
    assert full.request.truncation_direction == tei_pb2.TRUNCATION_DIRECTION_LEFT


def test_importing_it_imports_no_other_part_of_the_manager() -> None:
    code = (
        "import sys, tei_manager.grpc\n"
        "from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2_grpc\n"
        "import grpc; assert hasattr(grpc, 'insecure_channel')\n"
        "print([n for n in sys.modules if n.startswith('tei_manager.') and not n.startswith('tei_manager.grpc')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
